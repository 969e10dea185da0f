"""Bank: a bank's anchors, what each does for people, and a map of everybody with the anchors among them.

Shows what `pipeline.anchor_use` and `pipeline.people_map` found. Builds nothing: that is a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import DataTable, Static

from mta_cli.errors import NotFound
from mta_cli.tui.screens.base import Room
from mta_cli.tui.text import NOTHING, line, signed
from mta_cli.tui.widgets.user_map import Lit, PeopleMapView, letter
from mta_cli.tui.workers.store_reader import Shelf

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.anchor_use import AnchorUse
    from mta_cli.pipeline.bank.user_map import PeopleMap
    from store.records import Bank, User
    from store.registry import Registry

COLUMNS = ("", "anchor", "cluster", "nearest", "items", "loss", "recipes", "weight", "change")
EMPTY = """There is no bank yet.

A bank is a set of anchors: people who stand for groups of people, with a LoRA trained on each one's history.

Press n to build one, or type
  mta bank build --task TASK
in a shell. `mta demo` makes a small one from people who come with the program."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _Found:
    """What the store says: all banks of the task, newest first, the one that is shown, and who is chosen."""

    banks: list[Bank]
    bank: Bank | None
    uses: list[AnchorUse]
    stamp: Stamp
    person: User | None


class BankRoom(Room):
    """One bank at a time: its map, its anchors, and the selected anchor in words."""

    ROOM = "bank"
    CSS_PATH = "bank.tcss"
    HELP = (
        "An anchor stands for a cluster of people. cluster: how many it stood for when the bank was built; nearest: "
        "how many are nearest to it now; loss: of its training, first and last; recipes: how many people's models it "
        "is mixed into, and with what weight; change: by how much the loss on held-out queries fell for those who were "
        "adapted (more is better).\n"
        "Enter chooses the anchor's person for all rooms; their neighbours are then shown on the map."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "other(1)", "Next bank", id="bank.next", tooltip="Show the next older bank"),
        Binding("B", "other(-1)", "Previous bank", id="bank.previous", show=False, tooltip="Show the next newer bank"),
        Binding("m", "turn_to('map')", "Map", id="bank.map", tooltip="Go to the map; arrows then go between anchors"),
        Binding("t", "turn_to('anchors')", "Table", id="bank.table", tooltip="Go to the table of anchors"),
        Binding("n", "build", "Build", id="bank.build", tooltip="Build a bank"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._banks: list[Bank] = []
        self._bank: Bank | None = None
        self._uses: list[AnchorUse] = []
        self._map: PeopleMap | None = None
        self._mapped: tuple[int, Stamp] | None = None
        self._own: Shelf | None = None

    def furnish(self) -> ComposeResult:
        """The head, the map beside or above the table, and a word on the selected anchor."""
        yield Static(line(""), id="head")
        yield Static(Text(EMPTY), id="empty")
        with Container(id="pane"):
            yield PeopleMapView(id="map")
            with Vertical(id="side"):
                table: DataTable[Text] = DataTable(id="anchors", cursor_type="row", zebra_stripes=True)
                table.add_columns(*(line(name) for name in COLUMNS))
                yield table
                yield Static(line(""), id="words")

    def on_unmount(self) -> None:
        """Let the thread that reads end."""
        if self._own is not None:
            self._own.close()

    async def reload(self) -> None:
        """Read banks, anchors and the chosen person; then profiles, where they changed."""
        number = self._bank.id if self._bank is not None else None
        found = await self._reader.read(
            partial(_look, number=number, task=self.home.chosen_task, name=self.home.chosen)
        )
        self._banks, self._bank, self._uses = found.banks, found.bank, found.uses
        self.set_class(found.bank is None, "-empty")
        if found.bank is None:
            self.query_one("#head", Static).update(line("No bank"))
            return
        self.query_one("#head", Static).update(self._headline(found.bank))
        self._fill_table()
        await self._draw_map(found.bank, found.stamp, found.person)

    async def action_other(self, step: int) -> None:
        """Show another bank, round and round."""
        if self._bank is not None and len(self._banks) > 1:
            place = [bank.id for bank in self._banks].index(self._bank.id)
            self._bank = self._banks[(place + step) % len(self._banks)]
            self.stale()

    def action_turn_to(self, widget: str) -> None:
        """Go to the map or the table."""
        self.query_one(f"#{widget}").focus()

    def action_build(self) -> None:
        """Ask for a bank."""
        self.ask_for("bank build")

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """The anchor under the cursor is the selected one of the map."""
        self._say(event.cursor_row)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Work for the anchor's person."""
        if event.cursor_row < len(self._uses) and (name := self._uses[event.cursor_row].anchor.user) is not None:
            self.home.choose(name)

    def on_people_map_view_anchor_selected(self, event: PeopleMapView.AnchorSelected) -> None:
        """The cursor of the table follows the map."""
        self._table.move_cursor(row=event.number)

    async def on_people_map_view_person_clicked(self, event: PeopleMapView.PersonClicked) -> None:
        """Work for whoever was clicked."""
        try:
            user = await self.home.shelf.read(lambda reg: reg.users.by_id(event.user_id))
        except NotFound:  # forgotten since the map was drawn
            self.stale()
            return
        self.home.choose(user.name)

    @property
    def _table(self) -> DataTable[Text]:
        table: DataTable[Text] = self.query_one("#anchors", DataTable)
        return table

    def _headline(self, bank: Bank) -> Text:
        place = [other.id for other in self._banks].index(bank.id) + 1
        speed = f"{bank.tokens:,} tokens in {bank.seconds:,.0f} s" if bank.seconds else ""
        count = f"{len(self._uses)} anchors"
        which = f" ({place} of {len(self._banks)})" if len(self._banks) > 1 else ""
        parts = (f"Bank {bank.name} v{bank.version}{which}", f"task {bank.task}", bank.status, count, speed)
        return line(" · ".join(part for part in parts if part))

    def _fill_table(self) -> None:
        row = self._table.cursor_row
        self._table.clear()
        nearest = self._nearest()
        for number, use in enumerate(self._uses):
            self._table.add_row(*_row(number, use, nearest.get(use.anchor.id)), key=str(use.anchor.id))
        if not self._uses:
            self.query_one("#words", Static).update("")
        else:
            self._table.move_cursor(row=min(max(row, 0), len(self._uses) - 1))
            self._say(self._table.cursor_row)

    def _nearest(self) -> dict[int, int]:
        """How many people are nearest to each anchor, as far as the map is drawn."""
        return {mark.anchor.id: mark.nearest for mark in self._map.landmarks} if self._map is not None else {}

    def _say(self, number: int) -> None:
        """Select an anchor on the map, and put it into words."""
        if not 0 <= number < len(self._uses):  # a bank without anchors yet has no row for a key to go to
            return
        use = self._uses[number]
        self.query_one(PeopleMapView).selected = number
        self.query_one("#words", Static).update(_words(number, use, self._nearest().get(use.anchor.id)))

    async def _draw_map(self, bank: Bank, stamp: Stamp, person: User | None) -> None:
        """The map, and who is nearest to the chosen person; with many people that takes a second or more."""
        from mta_cli.pipeline.bank.user_map import neighbours, people_map

        view = self.query_one(PeopleMapView)
        if self._mapped != (bank.id, stamp) or self._map is None:
            self._map, self._mapped = None, None
            view.show(None, waiting="Reading profiles …")
            self._map = await self._reader.read(partial(people_map, bank=bank))
            self._mapped = bank.id, stamp
            self._fill_table()
        lit = Lit(person.id, person.name) if person is not None else None
        view.show(self._map, lit)
        view.selected = self._table.cursor_row if self._uses else None
        if person is not None:
            near = await self._reader.read(lambda reg: neighbours(reg, bank, person.id))
            view.show(self._map, Lit(person.id, person.name, [one.user_id for one in near]))

    @property
    def _reader(self) -> Shelf:
        """A second thread that reads the store: all recipes and profiles of many people would hold up other rooms."""
        from mta_cli.settings import StoreOptions

        if self._own is None:
            self._own = Shelf(self.home.shelf.root, self.home.settings.build(StoreOptions).timeout)
        return self._own


def _look(reg: Registry, *, number: int | None, task: str | None, name: str | None) -> _Found:
    """The banks of a task, newest first; the one of this number, else the newest that is ready, else the newest."""
    from mta_cli.pipeline.bank.anchor_use import anchor_uses

    banks = sorted((b for b in reg.banks.all() if task in (None, b.task)), key=lambda bank: -bank.id)
    ready = [bank for bank in banks if bank.status == "ready"]
    bank = next((bank for bank in (*(b for b in banks if b.id == number), *ready, *banks)), None)
    try:
        person = reg.users.get(name) if name is not None else None
    except NotFound:
        person = None
    if bank is None:
        return _Found([], None, [], (0, 0, 0), person)
    return _Found(banks, bank, anchor_uses(reg, bank), reg.profiles.stamp(bank.task, bank.embedder), person)


def _row(number: int, use: AnchorUse, nearest: int | None) -> list[Text]:
    anchor = use.anchor
    loss = f"{_loss(anchor.loss_first)} → {_loss(anchor.loss_last)}" if anchor.digest else "not trained"
    numbers = (
        str(anchor.cluster_size),
        NOTHING if nearest is None else f"{nearest:,}",
        str(anchor.items),
        loss,
        f"{use.people:,}",
        f"{use.weight:.2f}" if use.people else NOTHING,
        signed(use.change),
    )
    name = line(f"{anchor.user or 'stale'} ({'forgotten' if anchor.user is None else 'stale'})", "italic")
    name = name if anchor.stale else line(anchor.user)
    return [line(letter(number), "bold"), name, *(Text(value, justify="right") for value in numbers)]


def _words(number: int, use: AnchorUse, nearest: int | None) -> Text:
    """The selected anchor in sentences."""
    anchor = use.anchor
    said = [f"{letter(number)} {anchor.user or 'somebody who was forgotten'}:"]
    said.append(f"{anchor.cluster_size} people when it was chosen" + (f", {nearest:,} now." if nearest else "."))
    if use.people:
        said.append(f"In {use.people:,} recipes, with {100 * use.share:.0f} % of all weight.")
    else:
        said.append("In nobody's recipe.")
    if use.change is not None:
        better = "fell" if use.change >= 0 else "rose"
        said.append(f"The held-out loss of {use.measured:,} of them {better} by {abs(use.change):.3f} when adapted.")
    if anchor.stale:
        why = "its person is forgotten" if anchor.user is None else "without consent"
        said.append(f"Stale, {why}: mta bank build --refresh.")
    words = line(" ".join(said))
    words.no_wrap = False
    return words


def _loss(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
