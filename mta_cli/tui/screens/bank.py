"""The Bank screen: a bank's anchors with their use, and a map of all users with the anchors.

Shows results of `pipeline.bank.anchor_use` and `pipeline.bank.user_map`. Building is a job.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import DataTable, Static

from mta_cli.errors import NotFound
from mta_cli.pipeline.bank.ladder import LADDER_KEY
from mta_cli.pipeline.evaluation.ladder_text import verdict_lines
from mta_cli.text.formatting import NO_VALUE, pluralise
from mta_cli.tui.screens.base import BaseScreen
from mta_cli.tui.text import block_text, format_signed, line_text
from mta_cli.tui.widgets.charts.anchor_colours import anchor_colour, anchor_letter
from mta_cli.tui.widgets.charts.recipe_bar import RecipePart
from mta_cli.tui.widgets.charts.user_map import HighlightedUser, UserMapView
from mta_cli.tui.widgets.user_detail import weighted_parts

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.anchor_use import AnchorUsage
    from mta_cli.pipeline.bank.user_map import UserMap
    from store.records import Bank, User
    from store.registry import Registry

COLUMNS = ("", "anchor", "cluster", "nearest", "items", "loss", "recipes", "weight", "change")
NO_BANK_HELP = """There is no bank yet.

A bank is a set of anchors: users who represent clusters of users, each with a LoRA trained on their history.

Press n to build one, or type
  mta bank build --task TASK
in a shell. `mta demo` makes a small one from included sample users."""

ProfilesStamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class _BankSnapshot:
    """What the screen shows: all banks of the task, newest first, the chosen bank, the selected user and their recipe.

    `on_base` is ` on NAME` if the store has banks on several bases.
    """

    banks: list[Bank]
    bank: Bank | None
    anchor_uses: list[AnchorUsage]
    profiles_stamp: ProfilesStamp
    selected_user: User | None
    on_base: str = ""
    recipe: tuple[RecipePart, ...] = ()


class BankScreen(BaseScreen):
    """One bank: a map of all users, a table of its anchors, and a description of the selected anchor."""

    SCREEN_NAME = "bank"
    CSS_PATH = "bank.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (170, "-wide")]  # noqa: RUF012 - Textual declares no ClassVar
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]  # noqa: RUF012
    HELP = (
        "An anchor represents a cluster of users. cluster: its size when the bank was built; nearest: how many users "
        "are nearest to it now; loss: its first and last training loss; recipes: how many users' recipes contain it; "
        "weight: its mean weight in them; change: by how much the stacks of these users lowered the loss on held-out "
        "queries (more is better).\n"
        "Enter selects the anchor's user for all screens; the map then shows that user's neighbours and recipe. z "
        "enlarges the map."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "step_bank(1)", "Next bank", id="bank.next", tooltip="Show the next older bank"),
        Binding(
            "B", "step_bank(-1)", "Previous bank", id="bank.previous", show=False, tooltip="Show the next newer bank"
        ),
        Binding(
            "m", "focus_widget('map')", "Map", id="bank.map", tooltip="Go to the map, where arrow keys select anchors"
        ),
        Binding("t", "focus_widget('anchors')", "Table", id="bank.table", tooltip="Go to the table of anchors"),
        Binding("n", "start('bank build')", "Build", id="bank.build", tooltip="Build a bank"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._banks: list[Bank] = []
        self._bank: Bank | None = None
        self._anchor_uses: list[AnchorUsage] = []
        self._followed_user: str | None = None  # the selected user for whom the bank was chosen
        self._map: UserMap | None = None
        self._map_key: tuple[int, ProfilesStamp] | None = None

    def compose_body(self) -> ComposeResult:
        """The head, the map beside or above the table, the description of the selected anchor, and the bank's
        verdicts.
        """
        yield Static(line_text(""), id="head")
        yield Static(Text(NO_BANK_HELP), id="empty")
        with Container(id="pane"):
            yield UserMapView(id="map")
            with Vertical(id="side"):
                table: DataTable[Text] = DataTable(id="anchors", cursor_type="row", zebra_stripes=True)
                table.add_columns(*(line_text(name) for name in COLUMNS))
                yield table
                yield Static(line_text(""), id="words")
                yield Static(line_text(""), id="ladder")

    async def reload(self) -> None:
        """Read banks, anchors and the selected user; then profiles, if they changed."""
        number, name = self._bank.id if self._bank is not None else None, self.mta_app.selected_user
        found = await self.mta_app.profile_thread.run(
            partial(
                _read_bank_snapshot,
                number=number,
                task=self.mta_app.selected_task,
                name=name,
                follow=name != self._followed_user,
            )
        )
        self._followed_user = name
        self._banks, self._bank, self._anchor_uses = found.banks, found.bank, found.anchor_uses
        self.set_class(found.bank is None, "-empty")
        if found.bank is None:
            self.query_one("#head", Static).update(line_text("No bank"))
            return
        self.query_one("#head", Static).update(self._headline(found.bank, found.on_base))
        self._fill_table()
        ladder = found.bank.config.get(LADDER_KEY)
        self.query_one("#ladder", Static).update(block_text("\n".join(verdict_lines(ladder)) if ladder else ""))
        await self._draw_map(found)

    async def action_step_bank(self, step: int) -> None:
        """Show the next or the previous bank, cyclically."""
        if self._bank is not None and len(self._banks) > 1:
            place = [bank.id for bank in self._banks].index(self._bank.id)
            self._bank = self._banks[(place + step) % len(self._banks)]
            self.reload_if_current()

    def action_focus_widget(self, widget: str) -> None:
        """Focus the map or the table."""
        self.query_one(f"#{widget}").focus()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Select on the map the anchor under the table's cursor."""
        self._select_anchor(event.cursor_row)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Select the anchor's user for all screens."""
        if (
            event.cursor_row < len(self._anchor_uses)
            and (name := self._anchor_uses[event.cursor_row].anchor.user) is not None
        ):
            self.mta_app.select_user(name)

    def on_user_map_view_anchor_selected(self, event: UserMapView.AnchorSelected) -> None:
        """Move the table's cursor to the anchor selected on the map."""
        self._table.move_cursor(row=event.number)

    @work(exit_on_error=False)
    async def on_user_map_view_user_clicked(self, event: UserMapView.UserClicked) -> None:
        """Select the user whose dot on the map was clicked."""
        try:
            user = await self.mta_app.store_thread.run(lambda reg: reg.users.by_id(event.user_id))
        except NotFound:  # removed since the map was drawn
            self.reload_if_current()
            return
        self.mta_app.select_user(user.name)

    @property
    def _table(self) -> DataTable[Text]:
        table: DataTable[Text] = self.query_one("#anchors", DataTable)
        return table

    def _headline(self, bank: Bank, on_base: str) -> Text:
        place = [other.id for other in self._banks].index(bank.id) + 1
        speed = f"{bank.tokens:,} tokens in {bank.seconds:,.0f} s" if bank.seconds else ""
        count = f"{len(self._anchor_uses)} anchors"
        which = f" ({place} of {len(self._banks)})" if len(self._banks) > 1 else ""
        parts = (f"Bank {bank.name} v{bank.version}{on_base}{which}", f"task {bank.task}", bank.status, count, speed)
        return line_text(" · ".join(part for part in parts if part))

    def _fill_table(self) -> None:
        row = self._table.cursor_row
        self._table.clear()
        nearest = self._nearest_user_counts()
        for number, use in enumerate(self._anchor_uses):
            self._table.add_row(*_anchor_row_cells(number, use, nearest.get(use.anchor.id)), key=str(use.anchor.id))
        if not self._anchor_uses:
            self.query_one("#words", Static).update("")
        else:
            self._table.move_cursor(row=min(max(row, 0), len(self._anchor_uses) - 1))
            self._select_anchor(self._table.cursor_row)

    def _nearest_user_counts(self) -> dict[int, int]:
        return {mark.anchor.id: mark.nearest_users for mark in self._map.map_anchors} if self._map is not None else {}

    def _select_anchor(self, number: int) -> None:
        if not 0 <= number < len(self._anchor_uses):  # a bank may not have anchors yet
            return
        use = self._anchor_uses[number]
        self.query_one(UserMapView).selected_anchor = number
        self.query_one("#words", Static).update(
            _anchor_description(number, use, self._nearest_user_counts().get(use.anchor.id))
        )

    async def _draw_map(self, found: _BankSnapshot) -> None:
        """Draw the map with the users most similar to the selected one. With many users that takes a second or more."""
        from mta_cli.pipeline.bank.user_map import compute_user_map, find_similar_users

        view, bank, user = self.query_one(UserMapView), found.bank, found.selected_user
        assert bank is not None
        if self._map_key != (bank.id, found.profiles_stamp) or self._map is None:
            self._map, self._map_key = None, None
            view.show_map(None, waiting="Reading profiles …")
            self._map = await self.mta_app.profile_thread.run(partial(compute_user_map, bank=bank))
            self._map_key = bank.id, found.profiles_stamp
            self._fill_table()
        highlighted = HighlightedUser(user.id, user.name, recipe=found.recipe) if user is not None else None
        view.show_map(self._map, highlighted)
        view.selected_anchor = self._table.cursor_row if self._anchor_uses else None
        if user is not None and highlighted is not None:
            near = await self.mta_app.profile_thread.run(lambda reg: find_similar_users(reg, bank, user.id))
            view.show_map(self._map, replace(highlighted, neighbours=[one.user_id for one in near]))


def _read_bank_snapshot(
    reg: Registry, *, number: int | None, task: str | None, name: str | None, follow: bool
) -> _BankSnapshot:
    """The banks of a task, newest first, showing bank `number`, else the newest ready one, else the newest.

    With `follow`, a bank of one of the user's own tasks is preferred, in the order of the user's items.
    """
    from mta_cli.pipeline.bank.anchor_use import anchor_usage
    from mta_cli.pipeline.bases_in_use import on_base
    from mta_cli.pipeline.users.detail import load_recipe

    banks = sorted((b for b in reg.banks.all() if task in (None, b.task)), key=lambda bank: -bank.id)
    ready = [bank for bank in banks if bank.status == "ready"]
    user = reg.users.find(name) if name is not None else None
    order = [*(bank for bank in banks if bank.id == number), *ready, *banks]
    if follow and user is not None:
        tasks = [held for held, _, _ in reg.users.tasks_of_user(user.id)]
        order.sort(key=lambda bank: tasks.index(bank.task) if bank.task in tasks else len(tasks))
    bank = next(iter(order), None)
    if bank is None:
        return _BankSnapshot([], None, [], (0, 0, 0, 0), user)
    stamp = reg.profiles.version_stamp(bank.task, bank.embedder)
    recipe = weighted_parts(*load_recipe(reg, user, bank)) if user is not None else ()
    return _BankSnapshot(banks, bank, anchor_usage(reg, bank), stamp, user, on_base(reg, bank.base), tuple(recipe))


def _anchor_row_cells(number: int, use: AnchorUsage, nearest_users: int | None) -> list[Text]:
    anchor = use.anchor
    loss = f"{_loss(anchor.loss_first)} → {_loss(anchor.loss_last)}" if anchor.digest else "not trained"
    numbers = (
        str(anchor.cluster_size),
        NO_VALUE if nearest_users is None else f"{nearest_users:,}",
        str(anchor.items),
        loss,
        f"{use.user_count:,}",
        f"{use.weight:.2f}" if use.user_count else NO_VALUE,
        format_signed(use.heldout_gain),
    )
    name = line_text(f"{anchor.user or 'stale'} ({'forgotten' if anchor.user is None else 'stale'})", "italic")
    name = name if anchor.stale else line_text(anchor.user)
    return [
        line_text(anchor_letter(number), f"bold {anchor_colour(number)}"),
        name,
        *(Text(value, justify="right") for value in numbers),
    ]


def _anchor_description(number: int, use: AnchorUsage, nearest_users: int | None) -> Text:
    """The sentences below the table about the selected anchor: users, recipes, weight, held-out loss."""
    anchor = use.anchor
    said = [f"{anchor_letter(number)} {anchor.user or '(forgotten)'}:"]
    served = pluralise(anchor.cluster_size, "user")
    said.append(f"{served} when it was chosen" + (f", {nearest_users:,} now." if nearest_users else "."))
    if use.user_count:
        recipes = pluralise(use.user_count, "recipe")
        said.append(f"In {recipes}, with {100 * use.weight_share:.0f} % of all weight.")
    else:
        said.append("In no recipe.")
    if use.heldout_gain is not None:
        by = f"{abs(use.heldout_gain):.3f}"
        way = "fell" if use.heldout_gain > 0 else "rose"
        change = "stayed as it was" if float(by) == 0 else f"{way} by {by}"
        said.append(f"The held-out loss of {use.measured_users:,} of them {change} when adapted.")
    if anchor.stale:
        why = ", its user was forgotten" if anchor.user is None else ""
        said.append(f"Stale{why}: no new recipe has it. Replace it: mta bank build --refresh.")
    words = line_text(" ".join(said))
    words.no_wrap = False
    return words


def _loss(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.2f}"
