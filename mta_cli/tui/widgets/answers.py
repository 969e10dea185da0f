"""Answers side by side: streaming columns with marked differences and metrics.

Shows the events and results of `pipeline.chat.compare`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalScroll, VerticalScroll
from textual.content import Content, Span
from textual.widgets import Static

from mta_cli.text.formatting import format_rate
from mta_cli.text.printable import clean_line, clean_text
from mta_cli.tui.text import describe_ending
from mta_cli.tui.widgets.charts.bars import Bar, BarChart
from mta_cli.tui.widgets.waiting import WaitingLine

ORDER = ("base", "common", "fused", "adapted")  # columns of other users follow in order of arrival
MIN_COLUMN_WIDTH = 19  # four columns fit in 80 cells; more are scrolled
# marks of labels: right answer, wrong answer, right label (not answered), answer if the right label is unknown, others
RIGHT, WRONG, GOLD, CHOSEN, OTHER = "✓", "✗", "◆", "▸", "·"
RIGHT_STYLE, WRONG_STYLE = "bold $text-success", "bold $text-error"
DIFF_STYLE = "bold underline $text-accent"
MAX_DIFF_WORDS = 1500  # words of an answer that are compared; the time grows with their square
COLUMN_BINDINGS: list[BindingType] = [
    Binding(
        "left", "step_column(-1)", "Column left", id="compare.left", show=False, tooltip="Select the previous column"
    ),
    Binding(
        "right", "step_column(1)", "Column right", id="compare.right", show=False, tooltip="Select the next column"
    ),
]  # keys of the columns; as keys of the screen they work with any focus
_WORD = re.compile(r"\S+")


class AnswerColumn(VerticalScroll):
    """A column with one model's answer: its source, text and metrics. It scrolls by itself."""

    ALLOW_MAXIMIZE = True
    HELP: ClassVar[str] = (
        "Left and right select a column; g keeps the selected answer as a history item.\n"
        "If the task has labels, each has a bar: its probability among all labels. ✓ the answer, right; ✗ the answer, "
        "wrong; ◆ the right label, not answered; ▸ the answer, if the right label is not known."
    )

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.answer_text = ""
        self.ended = ""  # how a finished answer ended: see `Generation`, or `empty`
        self._source = Static(Content.styled(clean_line(key), "bold"), classes="source")  # until the source is known
        self.waiting = WaitingLine()
        self._body, self._labels, self._metrics = Static(classes="body"), BarChart(), Static(classes="metrics")

    def compose(self) -> ComposeResult:
        """Source, text and metrics."""
        yield self._source
        yield self.waiting
        yield self._body
        yield self._metrics
        yield self._labels

    def show_answer(self, differing: list[tuple[int, int]] | None = None) -> None:
        """Show the text so far, with the spans `differing` marked."""
        if self.answer_text:
            self.waiting.stop()
        spans = [Span(start, end, DIFF_STYLE) for start, end in differing or []]
        self._body.update(Content(self.answer_text, spans))

    def clear_answer(self) -> None:
        """Remove the answer and its metrics."""
        self.answer_text = ""
        self._metrics.update("")
        self._labels.show_bars([])

    def show_source(self, answer: dict[str, Any]) -> None:
        """Show the model that answered: its step of the ladder, and below it the bank and anchors."""
        source = answer["source"]
        name = clean_line(f"{self.key[1:]} · {source['mode']}" if self.key[:1] == "@" else answer["step"])
        about = "the model as it is"
        if source["bank"] is not None:
            anchors = "for all users" if source["mode"] == "common" else ", ".join(source["anchors"]) or "no anchors"
            about = clean_line(f"{source['bank']} v{source['version']} · {anchors}")
        self._source.update(Content.assemble(Content.styled(name, "bold"), "\n", Content.styled(about, "$text-muted")))
        self._source.tooltip = Content(about)

    def show_metrics(self, answer: dict[str, Any], *, best: bool) -> None:
        """Show tokens and speed and, if the gold answer is known, the metrics and the gold's likelihood."""
        lines = []
        if gold := answer.get("gold"):
            lines += [_metric_line(name, value) for name, value in gold["metrics"].items()]
            likelihood = _format_likelihood(gold) + (" (best)" if best else "")
            lines.append(Content.styled(likelihood, "bold" if best else ""))
        if answer["ended"] != "label":  # labels are scored in one pass, without generating
            tokens, rate = answer["tokens"], answer.get("tokens_per_second")
            speed = f" · {format_rate(rate)}/s" if rate else ""
            ending = describe_ending(answer["ended"])
            lines.append(Content(f"{tokens} token{'s' if tokens != 1 else ''}{speed}{ending}"))
        self._metrics.update(Content("\n").join(lines))

    def show_labels(self, answer: dict[str, Any]) -> None:
        """Show a bar with the share of each label, if the task has labels."""
        gold = (answer.get("gold") or {}).get("label")
        self._labels.show_bars(label_bars(answer.get("labels") or {}, self.answer_text, gold))


class AnswerColumns(HorizontalScroll):
    """Columns of answers side by side. `selected_key` is the key of the selected column, if any."""

    BINDINGS = COLUMN_BINDINGS
    DEFAULT_CSS = """
    AnswerColumns {
        height: 1fr;
    }
    AnswerColumns > AnswerColumn {
        width: 1fr;
        padding: 0 1;
        border: round $surface-lighten-2;
        scrollbar-size-vertical: 1;
    }
    AnswerColumns > AnswerColumn.chosen {
        border: round $primary;
    }
    AnswerColumns > AnswerColumn:focus {
        border: heavy $primary;
    }
    AnswerColumns .source {
        height: 2;
        text-wrap: nowrap;
        text-overflow: ellipsis;
    }
    AnswerColumns .body {
        margin: 1 0;
    }
    AnswerColumns .metrics {
        color: $text-muted;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self.can_focus = False
        self.selected_key: str | None = None
        self._columns: dict[str, AnswerColumn] = {}
        self._undrawn_keys: set[str] = set()
        self._answered_keys: set[str] = set()  # columns whose next text belongs to a new answer
        self._waiting_for = ""

    @property
    def column_keys(self) -> list[str]:
        """The keys of the columns from left to right."""
        return list(self._columns)

    def answer_of(self, key: str) -> str:
        """The text of a column so far."""
        return self._columns[key].answer_text

    def ending_of(self, key: str) -> str:
        """How a column's answer ended: see `Generation`, or `empty`."""
        return self._columns[key].ended

    def clear_columns(self) -> None:
        """Remove all columns."""
        self._release_focus(*self._columns.values())
        self.selected_key = None
        self._columns.clear()
        self._undrawn_keys.clear()
        self._answered_keys.clear()
        self._waiting_for = ""
        self.query(AnswerColumn).remove()

    def show_waiting(self, what: str) -> None:
        """Show in every empty column that it waits for `what`."""
        self._waiting_for = what
        for column in self._columns.values():
            if not column.answer_text:
                column.waiting.start(what)

    def stop_waiting(self) -> None:
        """Remove columns that stayed empty."""
        self._waiting_for = ""
        for key, column in list(self._columns.items()):
            if not column.answer_text:
                del self._columns[key]
                self._release_focus(column)
                column.remove()
        if self.selected_key not in self._columns:
            self.selected_key = None
        self._set_column_widths()

    def append_answer(self, key: str, piece: str) -> None:
        """Append a piece to a column's answer, or begin a new answer after `expect_answers`.

        Several pieces are drawn at once.
        """
        column = self._get_or_add_column(key)
        if key in self._answered_keys:
            self._answered_keys.discard(key)
            column.clear_answer()
        column.answer_text += clean_text(piece)
        if not self._undrawn_keys:
            self.call_later(self._draw_undrawn_columns)
        self._undrawn_keys.add(key)

    def expect_answers(self) -> None:
        """Let the next text of each column begin a new answer; until then the old answers stay."""
        self._answered_keys = set(self._columns)

    def show_result(self, result: dict[str, Any]) -> None:
        """Show finished answers: mark differences to the first column, and show sources and metrics."""
        details = {key: answer for key, answer in result["details"].items() if answer is not None}
        likelihoods = {key: answer["gold"]["loglik"] for key, answer in details.items() if answer.get("gold")}
        best = max(likelihoods.values(), default=math.nan)
        first = ""
        for key, answer in details.items():
            column = self._get_or_add_column(key)
            text = clean_text(result["answers"][key]).strip()
            column.answer_text, column.ended = text or "(an empty answer)", answer["ended"] if text else "empty"
            first = first or column.answer_text
            column.show_answer(list(differing_spans(first, column.answer_text)))
            column.show_source(answer)
            column.show_labels(answer)
            column.show_metrics(answer, best=len(likelihoods) > 1 and likelihoods.get(key) == best)
        self._undrawn_keys.clear()

    def select_column(self, key: str) -> None:
        """Select a column and focus it."""
        self.selected_key = key
        for name, column in self._columns.items():
            column.set_class(name == key, "chosen")
        self._columns[key].focus()

    def action_step_column(self, step: int) -> None:
        """Select the next or the previous column."""
        if self._columns:
            keys = self.column_keys
            place = keys.index(self.selected_key) + step if self.selected_key in keys else 0
            self.select_column(keys[place % len(keys)])

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Select a column that gets the focus by a click or Tab."""
        if isinstance(event.widget, AnswerColumn) and event.widget.key in self._columns:
            self.select_column(event.widget.key)

    def _get_or_add_column(self, key: str) -> AnswerColumn:
        if key not in self._columns:
            column = AnswerColumn(key)
            if self._waiting_for:
                column.waiting.start(self._waiting_for)
            self._columns[key] = column
            keys = sorted(self._columns, key=lambda each: ORDER.index(each) if each in ORDER else len(ORDER))
            self._columns = {each: self._columns[each] for each in keys}
            following = keys[keys.index(key) + 1 :]
            self.mount(column, before=self._columns[following[0]] if following else None)
            self._set_column_widths()
        return self._columns[key]

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self._set_column_widths()

    def _release_focus(self, *columns: AnswerColumn) -> None:
        """Remove the focus from columns that will be removed. The prompt would get it, and take the screen's keys as
        text.
        """
        if self.screen.focused in columns:
            self.screen.set_focus(None)

    def _set_column_widths(self) -> None:
        """Give all columns the same width, at least the minimum, which Textual's fractional widths would ignore."""
        fits = self.size.width >= MIN_COLUMN_WIDTH * len(self._columns)
        for column in self._columns.values():
            column.styles.width = "1fr" if fits else MIN_COLUMN_WIDTH

    def _draw_undrawn_columns(self) -> None:
        for key in self._undrawn_keys & set(self._columns):
            self._columns[key].show_answer()
        self._undrawn_keys.clear()


def differing_spans(first: str, other: str) -> Iterator[tuple[int, int]]:
    """Yields the spans (start, end) of words in `other` that differ from the text `first`."""
    ours, theirs = list(_WORD.finditer(first)), list(_WORD.finditer(other))
    if max(len(ours), len(theirs)) > MAX_DIFF_WORDS:
        return
    matcher = difflib.SequenceMatcher(None, [m.group() for m in ours], [m.group() for m in theirs], autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if kind in ("replace", "insert"):
            yield theirs[start].start(), theirs[end - 1].end()


def _format_likelihood(gold: dict[str, Any]) -> str:
    if gold["over"] == "labels":
        return f"gold at {100 * math.exp(gold['loglik']):.0f} %"
    return f"gold {gold['loglik']:.3f} nats per token".replace("-", "−")


def _metric_line(name: str, value: float) -> Content:
    if name in ("accuracy", "mae"):
        right = value == (1.0 if name == "accuracy" else 0.0)
        wrong = "wrong" if name == "accuracy" else f"off by {value:g}"
        return Content.styled(f"{RIGHT} right" if right else f"{WRONG} {wrong}", RIGHT_STYLE if right else WRONG_STYLE)
    return Content(f"{name.replace('_', '-')} {value:.3f}".replace(" 0.", " ."))


def label_bars(logliks: dict[str, float], answer: str, gold: str | None) -> list[Bar]:
    """A bar for each label in the task's order: its share, with marks for the answer and the gold label."""
    top = max(logliks.values(), default=0.0)
    total = sum(math.exp(value - top) for value in logliks.values())
    bars = []
    for label, value in logliks.items():
        share, chosen, right = math.exp(value - top) / total, label == answer, label == gold
        tone = "good" if right and chosen else "bad" if chosen and gold is not None else ""
        mark = {"good": RIGHT, "bad": WRONG}.get(tone, GOLD if right else CHOSEN if chosen else OTHER)
        bars.append(Bar(f"{mark} {clean_line(label)}", share, f"{100 * share:.0f} %", chosen or right, tone))
    return bars


def gold_summary(result: dict[str, Any]) -> str:
    """Text on the right answer's probability under the common model and the most personal one; empty if unknown.

    If the most personal one is the common model, it is compared with the base.
    """
    golds = {key: one["gold"] for key, one in result["details"].items() if key in ORDER and one and one.get("gold")}
    best = next((key for key in reversed(ORDER) if key in golds), "base")
    below = "base" if best == "common" else "common"
    if best == "base" or below not in golds or golds[below]["over"] != "labels":
        return ""
    before, after = (100 * math.exp(golds[key]["loglik"]) for key in (below, best))
    return f"{below} {before:.0f} % → {best} {after:.0f} %, {after - before:+.0f} points".replace("-", "−")
