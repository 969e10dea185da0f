"""The Results screen: a list of evaluations, and the ladder, methods, label memories, differences and numbers of one.

Shows stored result documents, read by `lab.report`. Evaluations are made by jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalScroll, Vertical, VerticalScroll
from textual.widgets import DataTable, Static, TabbedContent, TabPane

from mta_cli.lab.report import wording
from mta_cli.lab.report.results import (
    Verdict,
    best_methods,
    difference_verdict,
    differences,
    differences_by_reference,
    is_exploratory,
    method_cost,
    method_score,
    metrics,
    rank_methods,
)
from mta_cli.lab.report.tables import memory_table
from mta_cli.pipeline.evaluation import ladder_text
from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC, metric_name, metric_title
from mta_cli.pipeline.runs import evaluation_status
from mta_cli.terminal.tables import TableLayout
from mta_cli.text.formatting import (
    finite_or_none,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_seconds_number,
)
from mta_cli.text.printable import clean_line
from mta_cli.tui.screens.base import BaseScreen
from mta_cli.tui.text import block_text, line_text
from mta_cli.tui.widgets.charts.intervals import IntervalPlot, IntervalRow, Tone

if TYPE_CHECKING:
    from store.registry import Registry

COLUMNS = ("no.", "task", "best", "", "bytes", "shots", "methods", "made")
VERDICT_TONES: dict[Verdict, Tone] = {"better": "good", "worse": "bad", "not shown": "plain"}
TABS = {
    "ladder": "Ladder",
    "methods": "Methods",
    "memory": "Memory",
    "differences": "Differences",
    "numbers": "Numbers",
    "tasks": "Tasks",
}
TAB_KEYS = "liyvnt"
NO_EVALUATIONS_HELP = """There are no evaluations yet.

An evaluation answers every held-out query at each step of the ladder and says which step is worth it.

Press e to start one, or type
  mta eval run --task TASK
in a shell. `mta demo` ends with a small one."""
ONE_MEMORY_NOTE = "No method was measured with more than one label memory; `mta eval run --memory all` does that."
NO_LADDER_NOTE = "Fewer than two steps of the ladder were measured; `mta eval run` without --methods measures all."
UNFINISHED_NOTE = "This evaluation has no result yet. If it was stopped, resume it in Jobs, or with `mta eval run`."

ResultDocument = Mapping[str, Any]


@dataclass(frozen=True)
class _EvaluationRow:
    """One row of the list of evaluations. `document` is the result, None while it is unfinished."""

    number: int
    task: str
    status: str
    created: str
    shots: object
    method_count: int
    document: ResultDocument | None


class ResultsScreen(BaseScreen):
    """A list of evaluations; below it the results of the selected one, and a comparison of all tasks."""

    SCREEN_NAME = "results"
    CSS_PATH = "results.tcss"
    HELP = (
        "Ladder: what each step adds to the one below, by the likelihood of the users' own answers, all else equal.\n"
        "A bar is a 95 % interval over users, its dot the value; the dotted line is the reference method. "
        "Differences are paired: both methods answered the same queries. A method is better or worse only where that "
        "interval leaves out 0 and the permutation test agrees.\n"
        "Memory: each method with each label memory, where it was measured with more than one."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "metric", "Metric", id="results.metric", tooltip="Show the next metric"),
        *(
            Binding(key, f"tab('{tab}')", title, id=f"results.{tab}", show=False, tooltip=f"Show {title.lower()}")
            for key, (tab, title) in zip(TAB_KEYS, TABS.items(), strict=True)
        ),
        Binding(
            "right_square_bracket",
            "step_view(1)",
            "View",
            id="results.next",
            key_display="]",
            tooltip="Show the next view: ladder, methods, memory, differences, numbers, tasks",
        ),
        Binding(
            "left_square_bracket",
            "step_view(-1)",
            "Previous view",
            id="results.previous",
            key_display="[",
            show=False,
            tooltip="Show the previous view",
        ),
        Binding("e", "start('eval run')", "Evaluate", id="results.evaluate", tooltip="Start an evaluation"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._evaluations: list[_EvaluationRow] = []
        self._selected_metric: str | None = None

    def compose_body(self) -> ComposeResult:
        """The list of evaluations, a line on the design of the selected one, and the views of its results."""
        yield Static(Text(NO_EVALUATIONS_HELP), id="empty")
        with Vertical(id="pane"):
            table: DataTable[Text] = DataTable(id="evaluations", cursor_type="row")
            table.add_columns(*(line_text(name) for name in COLUMNS))
            yield table
            yield Static(line_text(""), id="design")
            with TabbedContent(id="views"):
                with TabPane(TABS["ladder"], id="ladder"), VerticalScroll():
                    with HorizontalScroll(id="steps"):
                        yield Static(line_text(""), id="step-table")
                    yield Static(line_text(""), id="verdicts")
                with TabPane(TABS["methods"], id="methods"), VerticalScroll():
                    yield IntervalPlot(id="bars")
                with TabPane(TABS["memory"], id="memory"):
                    by_memory: DataTable[Text] = DataTable(id="by-memory", cursor_type="row", zebra_stripes=True)
                    yield by_memory
                    yield Static(line_text(ONE_MEMORY_NOTE), id="one-memory")
                with TabPane(TABS["differences"], id="differences"), VerticalScroll():
                    yield IntervalPlot(id="against")
                    yield Static(line_text(""), id="power")
                with TabPane(TABS["numbers"], id="numbers"):
                    numbers: DataTable[Text] = DataTable(id="scores", cursor_type="row", zebra_stripes=True)
                    yield numbers
                with TabPane(TABS["tasks"], id="tasks"):
                    beside: DataTable[Text] = DataTable(id="beside", cursor_type="row", zebra_stripes=True)
                    yield beside

    async def reload(self) -> None:
        """Read the evaluations of the selected task; keep the selected one, else select the newest finished one."""
        task = self.mta_app.selected_task
        selected = entry.number if (entry := self._selected) is not None else None
        self._evaluations = await self.mta_app.store_thread.run(lambda reg: _read_evaluations(reg, task))
        self.set_class(not self._evaluations, "-empty")
        table = self._table
        table.clear()
        for entry in self._evaluations:
            table.add_row(*_evaluation_row_cells(entry), key=str(entry.number))
        if self._evaluations:
            numbers = [entry.number for entry in self._evaluations]
            first_finished = next((row for row, entry in enumerate(self._evaluations) if entry.document is not None), 0)
            table.move_cursor(row=numbers.index(selected) if selected in numbers else first_finished)
        self._show_evaluation()
        self._fill_task_table()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the evaluation under the cursor."""
        if event.data_table is self._table:
            self._show_evaluation()

    def action_metric(self) -> None:
        """Show the next metric."""
        entry = self._selected
        if entry is not None and entry.document is not None:
            names = metrics(entry.document)
            now = self._current_metric(entry.document)
            self._selected_metric = names[(names.index(now) + 1) % len(names)]
            self._show_evaluation()

    def action_tab(self, tab: str) -> None:
        """Show one of the views."""
        self.query_one(TabbedContent).active = tab

    def action_step_view(self, step: int) -> None:
        """Show the next or the previous view, cyclically."""
        views, order = self.query_one(TabbedContent), list(TABS)
        views.active = order[(order.index(views.active) + step) % len(order)]

    @property
    def _table(self) -> DataTable[Text]:
        table: DataTable[Text] = self.query_one("#evaluations", DataTable)
        return table

    @property
    def _selected(self) -> _EvaluationRow | None:
        row = self._table.cursor_row
        return self._evaluations[row] if 0 <= row < len(self._evaluations) else None

    def _current_metric(self, document: ResultDocument) -> str:
        names = metrics(document)
        return self._selected_metric if self._selected_metric in names else names[0]

    def _show_evaluation(self) -> None:
        entry = self._selected
        document = entry.document if entry is not None else None
        self.set_class(document is None, "-unfinished")
        if document is None:
            self.query_one("#design", Static).update(line_text(UNFINISHED_NOTE if entry is not None else ""))
            return
        metric = self._current_metric(document)
        words = line_text(f"{metric_title(metric)}. {wording.describe_design(document)}")
        words.highlight_regex(r"^[^.]*\.", "bold")
        self.query_one("#design", Static).update(words)
        steps, verdicts = ladder_texts(document)
        self.query_one("#step-table", Static).update(steps)
        self.query_one("#verdicts", Static).update(verdicts)
        self.query_one("#bars", IntervalPlot).show_intervals(*_method_intervals(document, metric))
        self.query_one("#against", IntervalPlot).show_intervals(_difference_intervals(document, metric), 0.0)
        self.query_one("#power", Static).update(_differences_note(document, metric))
        self._fill_memory_table(document, metric)
        self._fill_score_table(document)

    def _fill_memory_table(self, document: ResultDocument, metric: str) -> None:
        shown, found = self.query_one("#by-memory", DataTable), memory_table(document, metric)
        shown.clear(columns=True)
        shown.display = bool(found.rows)
        self.query_one("#one-memory").display = not found.rows
        shown.add_columns(*(line_text(name) for name in found.columns))
        for name, *cells in found.rows:
            values = (Text(cell.text, "bold" if cell.strong else "", justify="right") for cell in cells)
            shown.add_row(line_text(name.text), *values)

    def _fill_score_table(self, document: ResultDocument) -> None:
        scores: DataTable[Text] = self.query_one("#scores", DataTable)
        names = metrics(document)
        row = scores.cursor_row
        scores.clear(columns=True)
        scores.add_columns(
            *(line_text(name) for name in ("method", *map(metric_name, names), "bytes", "sec.", "tok/s"))
        )
        winners = {metric: best_methods(document, metric) for metric in names}
        for method in rank_methods(document):
            cells = [
                Text(
                    format_number(method_score(document, method, metric)),
                    "bold" if method in winners[metric] else "",
                    justify="right",
                )
                for metric in names
            ]
            costs = (
                format_bytes(method_cost(document, method, "bytes")),
                format_seconds_number(method_cost(document, method, "seconds")),
                format_count(method_cost(document, method, "tokens_per_second")),
            )
            scores.add_row(line_text(method), *cells, *(Text(shown, justify="right") for shown in costs))
        scores.move_cursor(row=max(0, row))

    def _fill_task_table(self) -> None:
        """Methods by tasks: each task's newest finished evaluation, in its main metric."""
        beside: DataTable[Text] = self.query_one("#beside", DataTable)
        newest = {entry.task: entry.document for entry in reversed(self._evaluations) if entry.document is not None}
        documents = list(reversed(newest.values()))
        beside.clear(columns=True)
        heads = (f"{document['task']} {metric_name(document['metric'])}" for document in documents)
        beside.add_columns(*(line_text(name) for name in ("method", *heads)))
        for method in dict.fromkeys(method for document in documents for method in rank_methods(document)):
            cells = (
                Text(
                    format_interval(document["methods"].get(method, {}).get(document["metric"])),
                    "bold" if method in best_methods(document, document["metric"]) else "",
                    justify="right",
                )
                for document in documents
            )
            beside.add_row(line_text(method), *cells)


def _read_evaluations(reg: Registry, task: str | None) -> list[_EvaluationRow]:
    entries = []
    for one in reg.evaluations.all():
        if task in (None, one.task):
            document = one.result if one.status == "done" and "costs" in one.result else None
            methods = len(document["methods"] if document else reg.evaluations.predictions.answered_methods(one.id))
            made, shots, status = one.created[:10], one.config.get("shots"), evaluation_status(reg, one)
            entries.append(_EvaluationRow(one.id, one.task, status, made, shots, methods, document))
    return entries


def _evaluation_row_cells(entry: _EvaluationRow) -> list[Text]:
    """The cells of an evaluation's row: number, task, the best method with its value and bytes per user, design."""
    document = entry.document
    number = Text(str(entry.number), justify="right")
    if document is None or not document["methods"]:
        found = (line_text(entry.status), line_text(""), line_text(None))
    else:
        first, metric = rank_methods(document)[0], document["metric"]
        said = f"{metric_name(metric)} {format_number(method_score(document, first, metric))}"
        size = format_bytes(method_cost(document, first, "bytes"))
        found = (line_text(first, "bold"), line_text(said), Text(size, justify="right"))
    rest = (entry.shots, entry.method_count, entry.created or None)
    return [number, line_text(entry.task), *found, *(line_text(value) for value in rest)]


def ladder_texts(document: ResultDocument) -> tuple[Text, Text]:
    """The ladder as an aligned table, and its verdicts; both as texts that can be selected with the mouse."""
    ladder = document.get("ladder")
    if ladder is None:
        return Text(""), Text(NO_LADDER_NOTE)
    columns = ladder_text.table_columns(ladder)
    rows = [[clean_line(cell) for cell in row] for row in ladder_text.table_rows(ladder)]
    layout = TableLayout(columns, range(1, len(columns) - 3))
    layout.fit(rows)
    steps = Text("\n".join([layout.line(columns), layout.rule, *map(layout.line, rows)]), no_wrap=True)
    return steps, block_text("\n".join(map(clean_line, ladder_text.verdict_lines(ladder, wording.MORE_EVIDENCE))))


def _method_intervals(document: ResultDocument, metric: str) -> tuple[list[IntervalRow], float | None]:
    reference = document["reference"]
    spans = []
    for method in rank_methods(document, metric):
        value, low, high = (method_score(document, method, metric, part) for part in ("value", "low", "high"))
        note = format_interval(document["methods"][method].get(metric))
        spans.append(IntervalRow(method, value, low, high, note, "strong" if method == reference else "plain"))
    return spans, method_score(document, reference, metric)


def _difference_intervals(document: ResultDocument, metric: str) -> list[IntervalRow]:
    """The intervals of the reference minus each other method, with the verdicts as text and colour."""
    spans = []
    for row in differences(document, metric):
        said = difference_verdict(row)
        value, low, high = (finite_or_none(row.get(part)) for part in ("value", "low", "high"))
        whose = "" if row["a"] == document["reference"] else f" ({row['a']})"
        note = f"{format_number(value, signed=True)}  {wording.describe_verdict(row)}{whose}"
        spans.append(IntervalRow(str(row["b"]), value, low, high, note, VERDICT_TONES[said]))
    return spans


def _differences_note(document: ResultDocument, metric: str) -> Text:
    """The text below the differences: how to read them, and the smallest difference that can be detected."""
    if not differences(document, metric):
        return line_text("No differences were computed in this metric.")
    unit = " in nats" if metric == LOGLIK_METRIC else ""
    reference = document["reference"]
    lead = f"{reference} minus each method{unit}, with a verdict on {reference}. "
    if len(variants := differences_by_reference(document, metric)) > 1:
        lead = f"{' or '.join(variants)} minus each method{unit}, with a verdict on the former. "
    marked = any(is_exploratory(row) for row in differences(document, metric))
    words = line_text(f"{lead}{wording.EXPLORATORY_NOTE + '. ' if marked else ''}{wording.describe_power(document)}")
    words.no_wrap = False
    return words
