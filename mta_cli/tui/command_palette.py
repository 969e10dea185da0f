"""What Textual's command palette (ctrl+p) offers: screens, the keys of a screen, and users."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from mta_cli.printable import clean_line
from mta_cli.tui.screens.base import SCREEN_TITLES
from mta_cli.tui.text import line_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from mta_cli.tui.app import MtaApp

MAX_PALETTE_USERS = 8  # names that the palette offers at once


class CommandProvider(Provider):
    """Screens, the keys of the screen that is shown, and users by name."""

    async def discover(self) -> Hits:
        """Everything but users."""
        for name, about, run in self._list_commands():
            yield DiscoveryHit(name, run, help=about)

    async def search(self, query: str) -> Hits:
        """What matches the typed text."""
        matcher = self.matcher(query)
        for name, about, run in self._list_commands():
            if (score := matcher.match(name)) > 0:
                yield Hit(score, line_text(name), run, help=about)
        async for name in self._find_users(query):
            yield Hit(
                0.5,
                line_text(f"Select {name}"),
                partial(self._mta_app.select_user, name),
                help="Use all screens for this user",
            )

    @property
    def _mta_app(self) -> MtaApp:
        return cast("MtaApp", self.app)

    def _list_commands(self) -> list[tuple[str, str, Callable[[], object]]]:
        offers: list[tuple[str, str, Callable[[], object]]] = [
            (f"Go to {title}", f"Key {number}", partial(self._mta_app.show_screen, name))
            for number, (name, title) in enumerate(SCREEN_TITLES.items(), start=1)
        ]
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.id and active.enabled and binding.id.split(".")[0] in SCREEN_TITLES and binding.description:
                offers.append(
                    (
                        binding.description,
                        binding.tooltip,
                        partial(self.app.run_action, binding.action, active.node),
                    )
                )
        return offers

    async def _find_users(self, query: str) -> AsyncIterator[str]:
        names = await self._mta_app.store_reader.read(
            lambda reg: reg.user_table.user_page(query, "name", False, 0, MAX_PALETTE_USERS, None)
        )
        for row in names:
            yield clean_line(row.name)
