"""A pane with one user: model, nearest anchors, training, results, runs, history. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from mta_cli.text.formatting import NO_VALUE, format_bytes, loss_verdict, pluralise
from mta_cli.text.printable import clean_line
from mta_cli.tui.text import format_short, line_text
from mta_cli.tui.widgets.charts.bars import Bar, BarChart
from mta_cli.tui.widgets.charts.canvas import truncate_line
from mta_cli.tui.widgets.charts.recipe_bar import RecipeBar, RecipePart
from mta_cli.tui.widgets.charts.sparkline import LabelledSparkline

if TYPE_CHECKING:
    from mta_cli.pipeline.users.detail import AnchorMatch, Results, UserDetail
    from store.records import Item, Run

SMALLEST_PERCENT = 0.05  # a smaller change of the loss, in percent, is shown as no change
MAX_ANCHORS_SHOWN, INPUT_CUT, OUTPUT_CUT, MAX_RUNS_SHOWN = 12, 240, 120, 8
SECTION_TITLES = {
    "recipe": "Recipe",
    "loss": "Loss of the last adaptation",
    "results": "Results",
    "runs": "Runs",
    "history": "History, newest first",
}

SECTION_WIDGETS: Mapping[str, Callable[..., Widget]] = {
    "loss": LabelledSparkline,
    "results": BarChart,
}


class UserPane(VerticalScroll):
    """A pane with sections about one user; empty sections are hidden."""

    HELP: ClassVar[str] = (
        "Recipe: the anchors whose models make up this user's, as shares of one bar. Letters and colours are the same "
        "as on the map in Bank; ░ is the task adapter's share. Without a recipe, the most similar anchors are listed, "
        "with the cosine similarity of the profiles.\n"
        "Loss: before the adaptation, at each training step, and of the saved stack. A loss is the mean surprise at "
        "the right answer, in nats: 0 is certain, 0.7 is one in two, 2.3 is one in ten. Held-out queries were never "
        "trained on."
    )

    def compose(self) -> ComposeResult:
        """All sections, empty."""
        yield Static(id="who")
        for name, title in SECTION_TITLES.items():
            yield Static(line_text(title, "bold"), id=f"head-{name}", classes="section")
            yield SECTION_WIDGETS.get(name, Static)(id=name)

    def on_mount(self) -> None:
        """Show that there is no user yet."""
        self.clear_user()

    def clear_user(self, why: str = "") -> None:
        """Show the text `why` instead of a user."""
        self.query_one("#who", Static).update(line_text(why, "dim"))
        for name in SECTION_TITLES:
            self._show_section(name, False)

    def show_user(self, user: UserDetail, items: Sequence[Item]) -> None:
        """Show a user, and the newest items of their history."""
        self.query_one("#who", Static).update(user_summary(user))
        parts = recipe_parts(user)
        self.query_one("#head-recipe", Static).update(
            line_text(SECTION_TITLES["recipe"] if user.recipe is not None else "Nearest anchors", "bold")
        )
        self.query_one("#recipe", Static).update(RecipeBar(parts))
        self.query_one("#loss", LabelledSparkline).show_values(shown_losses(user))
        self.query_one("#results", BarChart).show_bars(result_bars(user.results))
        self.query_one("#runs", Static).update(run_lines(user.runs))
        self.query_one("#history", Static).update(history_lines(items, user.items))
        if user.results is not None:
            self.query_one("#head-results", Static).update(results_head(user.results))
        there = {"recipe": parts, "loss": user.losses, "results": user.results, "runs": user.runs, "history": items}
        for name in SECTION_TITLES:
            self._show_section(name, bool(there[name]))

    def _show_section(self, name: str, there: bool) -> None:
        self.query_one(f"#head-{name}").display = there
        self.query_one(f"#{name}").display = there


def user_summary(user: UserDetail) -> Text:
    """The user's name, items and model, and how adapting changed the held-out loss."""
    shown = Text.assemble((clean_line(user.user.name), "bold"))
    if not user.user.can_anchor:
        shown.append("  may not be an anchor", "dim")
    for text in (_items_line(user), _model_line(user), _held_out_loss_line(user)):
        if text:
            shown.append(f"\n{clean_line(text)}")
    return shown


def _items_line(user: UserDetail) -> str:
    if user.task is None:
        return "no items yet"
    others = ", ".join(f"{task} ({items:,})" for task, items, _ in user.task_counts if task != user.task)
    queries = pluralise(user.queries, "held-out query", "held-out queries")
    own = f"task {user.task}: {user.status}, {pluralise(user.items, 'item')}, {queries}"
    return own + (f"; also {others}" if others else "")


def _model_line(user: UserDetail) -> str:
    if user.task is None:
        return ""
    if user.bank is None:
        return "no bank for this task yet: 3 and n build one"
    base = f" on {user.base}" if user.base is not None else ""
    parts = [f"bank {user.bank.name} v{user.bank.version}{base}"]
    if (recipe := user.recipe) is not None:
        parts.append(f"recipe {format_bytes(recipe.bytes)} by {recipe.method}")
    if (stack := user.stack) is not None:
        parts.append(f"stack {format_bytes(stack.bytes)}, {stack.shots} shots, {stack.steps} steps")
    parts = parts if len(parts) > 1 else [*parts, "no recipe yet: press a to adapt"]
    if user.other_bases:
        parts.append(f"also a model on {', '.join(user.other_bases)}")
    return " · ".join(parts)


def _held_out_loss_line(user: UserDetail) -> str:
    stack = user.stack
    if stack is None or stack.heldout_before is None or stack.heldout_after is None:
        return ""
    before, after = stack.heldout_before, stack.heldout_after
    arrow = f"{before:.3f} → {after:.3f} nats"
    percent = 100 * abs(after - before) / before if before > 0 else 0.0
    if percent < SMALLEST_PERCENT:
        return f"adapting left the loss on held-out queries as it was: {arrow}"
    way = "lowered" if after < before else "raised"
    return f"adapting {way} the loss on held-out queries by {percent:.1f} % ({loss_verdict(before, after)}): {arrow}"


def recipe_parts(user: UserDetail) -> list[RecipePart]:
    """The parts of the user's recipe by weight; without a recipe, the nearest anchors."""
    if user.recipe is None:
        near = [one for one in user.anchors if one.similarity is not None][:MAX_ANCHORS_SHOWN]
        return [RecipePart(one.place, _anchor_label(one), None, format_short(one.similarity)) for one in near]
    return weighted_parts(user.anchors, user.task_adapter_share)


def weighted_parts(anchors: Sequence[AnchorMatch], task_adapter_share: float | None) -> list[RecipePart]:
    """The anchors with a weight, the largest first, and the task adapter's share."""
    weighed = sorted((one for one in anchors if one.weight), key=lambda one: -abs(one.weight or 0.0))
    parts = [RecipePart(one.place, _anchor_label(one), one.weight, format_short(one.weight)) for one in weighed]
    if task_adapter_share is not None:
        share = format_short(task_adapter_share)
        parts.append(RecipePart(None, "task adapter", max(task_adapter_share, 0.0), share))
    return parts


def shown_losses(user: UserDetail) -> tuple[float, ...]:
    """The loss before the last adaptation, at each of its steps, and of the stack that it saved.

    The first and the last value are means over the same shots. Steps vary in the number of own items that their prompts
    show, so the losses of steps differ much.
    """
    stack = user.stack
    if stack is None or not user.losses or stack.steps != len(user.losses):
        return user.losses
    return (stack.loss_before, *user.losses, stack.loss_after)


def _anchor_label(near: AnchorMatch) -> str:
    return clean_line(near.name) + (" (stale)" if near.stale and not near.name.startswith("(") else "")


def results_head(results: Results) -> Text:
    """The title of the results: the metric and the evaluation."""
    from mta_cli.pipeline.evaluation.metric_names import metric_title

    return line_text(f"Results: {metric_title(results.metric)}, evaluation {results.evaluation}", "bold")


def result_bars(results: Results | None) -> list[Bar]:
    """A bar for each method of an evaluation, with the user's score."""
    methods = results.methods if results is not None else ()
    return [Bar(clean_line(one.method), one.value, f"{format_short(one.value)} of {one.answers}") for one in methods]


def run_lines(runs: Sequence[Run]) -> Text:
    """The newest runs, one line each, with the error of a failed run."""
    shown = []
    for run in runs[:MAX_RUNS_SHOWN]:
        error = f": {truncate_line(run.error, INPUT_CUT)}" if run.error and run.status == "failed" else ""
        shown.append(f"{format_time(run.started)}  {clean_line(run.kind)}  {run.status}{error}")
    return Text("\n".join(shown))


def history_lines(items: Sequence[Item], total: int) -> Text:
    """The items, one paragraph each, and the number of older ones that are not shown."""
    shown = Text()
    for item in items:
        shown.append(f"{format_time(item.time)}  " if item.time else "", "dim")
        shown.append(truncate_line(item.input, INPUT_CUT))
        shown.append(" → ", "dim")
        shown.append(truncate_line(item.output, OUTPUT_CUT) + "\n", "bold")
    if total > len(items):
        shown.append(f"{total - len(items):,} older; o shows more", "dim")
    shown.rstrip()
    return shown


def format_time(time: str | None) -> str:
    """A time to the minute; a text in another form is cut to the same length."""
    return clean_line((time or "").replace("T", " "))[:16] or NO_VALUE
