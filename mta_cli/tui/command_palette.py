"""The entries of Textual's command palette (ctrl+p): screens, the actions of every screen, and users."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.binding import Binding
from textual.command import DiscoveryHit, Hit, Hits, Provider

from mta_cli.tui.screens.base import SCREEN_KEYS, SCREEN_TITLES, screen_class
from mta_cli.tui.text import line_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from mta_cli.tui.app import MtaApp

MAX_PALETTE_USERS = 8  # the most users in the palette's list


class CommandProvider(Provider):
    """Yields the palette's entries: screens, the actions of all screens (the visible one's first), and users."""

    async def discover(self) -> Hits:
        """Yields the entries before anything is typed: screens, and actions of the visible one."""
        for name, about, run in self._list_commands():
            yield DiscoveryHit(name, run, help=about)

    async def search(self, query: str) -> Hits:
        """The entries that match the typed text."""
        matcher = self.matcher(query)
        for name, about, run in [*self._list_commands(), *self._list_other_screens_commands()]:
            if (score := matcher.match(name)) > 0:
                yield Hit(score, line_text(name), run, help=about)
        task = self._mta_app.selected_task
        users = await self._mta_app.store_thread.run(
            lambda reg: reg.user_table.user_page(query, "name", False, 0, MAX_PALETTE_USERS, task)
        )
        for user in users:
            select = partial(self._mta_app.select_user, user.name)
            yield Hit(0.5, line_text(f"Select {user.name}"), select, help="Use all screens for this user")

    @property
    def _mta_app(self) -> MtaApp:
        return cast("MtaApp", self.app)

    def _list_commands(self) -> list[tuple[str, str, Callable[[], object]]]:
        offers: list[tuple[str, str, Callable[[], object]]] = [
            (f"Go to {title}", f"Key {SCREEN_KEYS[name]}", partial(self._mta_app.show_screen, name))
            for name, title in SCREEN_TITLES.items()
        ]
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if active.enabled and _is_screen_command(binding):
                run = partial(self.app.run_action, binding.action, active.node)
                offers.append((binding.description, binding.tooltip, run))
        return offers

    def _list_other_screens_commands(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        """Yields the actions of the screens that are not visible, as (name, description, function)."""
        for name, title in SCREEN_TITLES.items():
            for binding in screen_class(name).BINDINGS if name != self._mta_app.current_mode else ():
                if isinstance(binding, Binding) and _is_screen_command(binding) and binding.key != "escape":
                    run = partial(self._mta_app.run_screen_action, name, binding.action)
                    yield f"{title}: {binding.description}", binding.tooltip, run


def _is_screen_command(binding: Binding) -> bool:
    return bool(binding.description) and (binding.id or "").split(".")[0] in SCREEN_TITLES
