"""One person in a pane: model, anchors near them, training, results, runs, history. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from mta_cli.printable import clean_line
from mta_cli.tui.text import NOTHING, line, signed, size
from mta_cli.tui.widgets.bars import Bar, Bars
from mta_cli.tui.widgets.canvas import fitted
from mta_cli.tui.widgets.sparkline import Curve

if TYPE_CHECKING:
    from mta_cli.pipeline.users.detail import Near, Person, Results
    from store.records import Item, Run

NEAREST, INPUT_CUT, OUTPUT_CUT, RUNS = 12, 240, 120, 8
HEADS = {
    "near": "Anchors near them",
    "loss": "Loss of the last adaptation",
    "results": "Results",
    "runs": "Runs",
    "history": "History, newest first",
}

KINDS: Mapping[str, Callable[..., Widget]] = {"near": Bars, "loss": Curve, "results": Bars}


class PersonPane(VerticalScroll):
    """Everything of one person, a section below another; sections with nothing in them are not there."""

    HELP: ClassVar[str] = (
        "Bars are similarities of profiles; w is the anchor's weight in the recipe. The held-out loss is the mean on "
        "queries that were never trained on, before and after the stack: a rise of quality is a fall of loss."
    )

    def compose(self) -> ComposeResult:
        """All sections, empty."""
        yield Static(id="who")
        for name, title in HEADS.items():
            yield Static(line(title, "bold"), id=f"head-{name}", classes="section")
            yield KINDS.get(name, Static)(id=name)

    def on_mount(self) -> None:
        """Nobody yet."""
        self.clear()

    def clear(self, why: str = "") -> None:
        """Show nobody."""
        self.query_one("#who", Static).update(line(why, "dim"))
        for name in HEADS:
            self._section(name, False)

    def show(self, person: Person, items: Sequence[Item]) -> None:
        """Show somebody and the newest items of their history."""
        self.query_one("#who", Static).update(about(person))
        near = near_bars(person.near)
        self.query_one("#near", Bars).show(near)
        self.query_one("#loss", Curve).show(person.losses)
        self.query_one("#results", Bars).show(result_bars(person.results))
        self.query_one("#runs", Static).update(run_lines(person.runs))
        self.query_one("#history", Static).update(history_lines(items, person.items))
        if person.results is not None:
            self.query_one("#head-results", Static).update(results_head(person.results))
        there = {"near": near, "loss": person.losses, "results": person.results, "runs": person.runs, "history": items}
        for name in HEADS:
            self._section(name, bool(there[name]))

    def _section(self, name: str, there: bool) -> None:
        self.query_one(f"#head-{name}").display = there
        self.query_one(f"#{name}").display = there


def about(person: Person) -> Text:
    """Who they are and what their model is made of."""
    shown = Text.assemble((clean_line(person.user.name), "bold"))
    if not person.user.can_anchor:
        shown.append("  may not be an anchor", "dim")
    for text in (_held(person), _model(person), _heldout(person)):
        if text:
            shown.append(f"\n{clean_line(text)}")
    return shown


def _held(person: Person) -> str:
    if person.task is None:
        return "no items yet"
    others = ", ".join(f"{task} ({items:,})" for task, items, _ in person.held if task != person.task)
    queries = counted(person.queries, "held-out query", "held-out queries")
    own = f"task {person.task}: {person.status}, {counted(person.items, 'item', 'items')}, {queries}"
    return own + (f"; also {others}" if others else "")


def _model(person: Person) -> str:
    if person.task is None:
        return ""
    if person.bank is None:
        return "no bank for this task yet: 3 and n build one"
    parts = [f"bank {person.bank.name} v{person.bank.version}"]
    if (recipe := person.recipe) is not None:
        rest = f", {number(person.rest)} left to the task adapter" if person.rest is not None else ""
        parts.append(f"recipe {size(recipe.bytes)} by {recipe.method}{rest}")
    if (stack := person.stack) is not None:
        parts.append(f"stack {size(stack.bytes)}, {stack.shots} shots, {stack.steps} steps")
    return " · ".join(parts if len(parts) > 1 else [*parts, "no recipe yet: a adapts"])


def _heldout(person: Person) -> str:
    stack = person.stack
    if stack is None or stack.heldout_before is None or stack.heldout_after is None:
        return ""
    change = stack.heldout_before - stack.heldout_after
    return f"held-out loss {stack.heldout_before:.3f} → {stack.heldout_after:.3f} (quality {signed(change)})"


def near_bars(near: Sequence[Near]) -> list[Bar]:
    """The nearest anchors, and those farther away or of unknown similarity that are in the recipe."""
    shown = [one for n, one in enumerate(near) if one.weight or (n < NEAREST and one.similarity is not None)]
    weights = [f"  w {number(one.weight)}" if one.weight else "" for one in shown]
    room = max(map(len, weights), default=0)
    return [
        Bar(_label(one), one.similarity, f"{number(one.similarity):>4}{weight:<{room}}", strong=bool(weight))
        for one, weight in zip(shown, weights, strict=True)
    ]


def _label(near: Near) -> str:
    return clean_line(near.name) + (" (stale)" if near.stale and not near.name.startswith("(") else "")


def results_head(results: Results) -> Text:
    """Which evaluation, and what is measured in it."""
    from mta_cli.pipeline.report.results import titled

    return line(f"Results: {titled(results.metric)}, evaluation {results.evaluation}", "bold")


def result_bars(results: Results | None) -> list[Bar]:
    """A bar for each method."""
    methods = results.methods if results is not None else ()
    return [Bar(clean_line(one.method), one.value, f"{number(one.value)} of {one.answers}") for one in methods]


def run_lines(runs: Sequence[Run]) -> Text:
    """The newest runs, a line each, with the error of one that failed."""
    shown = []
    for run in runs[:RUNS]:
        error = f": {fitted(run.error, INPUT_CUT)}" if run.error and run.status == "failed" else ""
        shown.append(f"{when(run.started)}  {clean_line(run.kind)}  {run.status}{error}")
    return Text("\n".join(shown))


def history_lines(items: Sequence[Item], total: int) -> Text:
    """Items, a paragraph each, and how many there are beyond them."""
    shown = Text()
    for item in items:
        shown.append(f"{when(item.time)}  " if item.time else "", "dim")
        shown.append(fitted(item.input, INPUT_CUT))
        shown.append(" → ", "dim")
        shown.append(fitted(item.output, OUTPUT_CUT) + "\n", "bold")
    if total > len(items):
        shown.append(f"{total - len(items):,} older; o shows more", "dim")
    shown.rstrip()
    return shown


def when(time: str | None) -> str:
    """A time to the minute; whatever else a time is, as it is, cut."""
    return clean_line((time or "").replace("T", " "))[:16] or NOTHING


def number(value: float | None) -> str:
    """Two decimals; no zero before the point."""
    if value is None or value != value:
        return NOTHING
    shown = f"{value:.2f}".replace("-", "−")
    return shown.replace("0.", ".", 1) if shown.lstrip("−").startswith("0.") else shown


def counted(count: int, one: str, many: str) -> str:
    """A number of things in words: `1 item`, `3 items`."""
    return f"{count:,} {one if count == 1 else many}"
