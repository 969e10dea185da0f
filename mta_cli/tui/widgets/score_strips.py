"""Strips of marks on the Compare screen: a strip for each column, with a mark for each held-out question and a
score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.widget import Widget

from mta_cli.text.formatting import NO_VALUE
from mta_cli.tui.text import line_text
from mta_cli.tui.widgets.answers import RIGHT, WRONG
from mta_cli.tui.widgets.charts.canvas import truncate_line

PENDING = "·"
BLOCKS = "▁▂▃▄▅▆▇█"  # a score from 0 to 1
MAX_NAME_CELLS = 16


@dataclass(frozen=True)
class StripMark:
    """The mark of one answer: a character, and `tone` good, bad, score or pending."""

    sign: str
    tone: str


@dataclass
class ColumnStrip:
    """One column's name, its marks in the order of the questions, and its score as text."""

    name: str
    marks: list[StripMark] = field(default_factory=list)
    score: str = ""


def answer_mark(metrics: Mapping[str, float]) -> StripMark:
    """The mark of one answer by its task's metrics: right or wrong, the error, or a bar of the score's height."""
    if "accuracy" in metrics:
        return StripMark(RIGHT, "good") if metrics["accuracy"] == 1.0 else StripMark(WRONG, "bad")
    if "mae" in metrics:
        off = round(metrics["mae"])
        return StripMark(RIGHT, "good") if metrics["mae"] == 0.0 else StripMark(str(min(max(off, 1), 9)), "bad")
    if "rouge_1" in metrics:
        return StripMark(BLOCKS[min(int(metrics["rouge_1"] * len(BLOCKS)), len(BLOCKS) - 1)], "score")
    return StripMark(NO_VALUE, "pending")


def format_score(score: Mapping[str, Any]) -> str:
    """The score over all questions so far: the number of right answers, or the metric's mean."""
    from mta_cli.pipeline.evaluation.metric_names import metric_name

    value, answers = score["value"], score["answers"]
    if score["metric"] == "accuracy":
        return f"{round(value * answers)}/{answers}"
    return f"{metric_name(score['metric'])} {value:.3f}".replace(" 0.", " .")


class ScoreStrips(VerticalScroll, can_focus=True):
    """The strips, one line for each column, wrapped if there are more questions than fit."""

    ALLOW_MAXIMIZE = True
    HELP: ClassVar[str] = (
        "A asks all held-out questions. Each column has a strip with one mark for each question: ✓ right, ✗ wrong; "
        "a digit is the size of an error; for texts, the height of a bar is the ROUGE-1. Beside the strip is the score "
        "that evaluations use.\n"
        "Escape stops and keeps what was answered. y copies the scores."
    )
    DEFAULT_CSS = """
    ScoreStrips {
        height: auto;
        max-height: 9;
        padding: 0 1;
        border-top: solid $surface-lighten-2;
        border-title-color: $text-muted;
        scrollbar-size-vertical: 1;
        display: none;
    }
    ScoreStrips.open {
        display: block;
    }
    ScoreStrips.-maximized {
        height: 1fr;
        max-height: 100%;
    }
    ScoreStrips:focus {
        border-top: heavy $primary;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._chart = StripChart()
        self._title = ""

    def compose(self) -> ComposeResult:
        """The chart in a scrollable container."""
        yield self._chart

    def begin(self, title: str, questions: int) -> None:
        """Show empty strips for `questions` questions."""
        self._title = title
        self._chart.strips, self._chart.questions = {}, questions
        self.add_class("open")
        self._show_progress()

    def add_column(self, key: str) -> None:
        """Add an empty strip for a column."""
        self._chart.strips[key] = ColumnStrip(key.removeprefix("@"))
        self._show_progress()

    def add_result(self, result: Mapping[str, Any]) -> None:
        """Add the marks of one question's answers, and update the scores."""
        for key, details in result["details"].items():
            if details is not None:
                strip = self._chart.strips.setdefault(key, ColumnStrip(key.removeprefix("@")))
                if not key.startswith("@"):
                    strip.name = details["step"]
                strip.marks.append(answer_mark((details.get("gold") or {}).get("metrics") or {}))
                if key in result["scores"]:
                    strip.score = format_score(result["scores"][key])
        self._show_progress()

    def finish(self) -> None:
        """Show in the title how many questions were not asked, if any."""
        missing = self._chart.questions - self.answered
        self.border_title = line_text(f"{self._title} · stopped, {missing} not asked" if missing else self._title)

    def _show_progress(self) -> None:
        asked = min(self.answered + 1, self._chart.questions)
        self.border_title = line_text(f"{self._title} · asking {asked} of {self._chart.questions}, Escape stops")
        self._chart.refresh(layout=True)

    @property
    def answered(self) -> int:
        """The number of answered questions."""
        return max((len(strip.marks) for strip in self._chart.strips.values()), default=0)

    @property
    def summary(self) -> str:
        """The scores of all columns in one line, to be copied."""
        scores = ", ".join(f"{strip.name} {strip.score}" for strip in self._chart.strips.values() if strip.score)
        return f"{self._title}: {scores}"

    def close(self) -> None:
        """Hide the strips; if they were maximised, restore the screen."""
        if self.screen.maximized is self:
            self.screen.minimize()
        self._chart.strips, self._title = {}, ""
        self.remove_class("open")


class StripChart(Widget):
    """The chart of the strips, as high as needed."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"strip--{tone}" for tone in ("good", "bad", "score", "pending")}
    DEFAULT_CSS = """
    StripChart { height: auto; width: 1fr; }
    StripChart > .strip--good { color: $text-success; }
    StripChart > .strip--bad { color: $text-error; }
    StripChart > .strip--score { color: $primary; }
    StripChart > .strip--pending { color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.strips: dict[str, ColumnStrip] = {}
        self.questions = 0

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The number of lines of all strips at this width."""
        return len(strip_lines(self.strips, self.questions, width))

    def render(self) -> RenderableType:
        """All strips."""
        tones = {name: str(self.get_component_rich_style(f"strip--{name}")) for name in ("good", "bad", "score")}
        tones["pending"] = str(self.get_component_rich_style("strip--pending"))
        return Text("\n").join(strip_lines(self.strips, self.questions, self.size.width, tones))


def strip_lines(
    strips: Mapping[str, ColumnStrip], questions: int, width: int, tones: Mapping[str, str] | None = None
) -> list[Text]:
    """Name, score and marks of each column in `width` cells; marks are wrapped."""
    names = {key: truncate_line(strip.name, MAX_NAME_CELLS) for key, strip in strips.items()}
    name_cells = max(map(cell_len, names.values()), default=0)
    score_cells = max([cell_len(strip.score) for strip in strips.values()] + [len(f"{questions}/{questions}")])
    head = name_cells + score_cells + 3
    room = max(width - head, 1)
    gap = " " if 2 * questions - 1 <= room else ""
    per_line = max(1, (room + len(gap)) // (1 + len(gap)))
    lines = []
    for key, strip in strips.items():
        marks = [*strip.marks, *[StripMark(PENDING, "pending")] * (questions - len(strip.marks))]
        for start in range(0, len(marks), per_line):
            line = Text(no_wrap=True, overflow="crop", end="")
            if start:
                line.append(" " * head)
            else:
                line.append(names[key] + " " * (name_cells - cell_len(names[key]) + 1))
                line.append(strip.score.rjust(score_cells) + "  ", "bold")
            for place, mark in enumerate(marks[start : start + per_line]):
                line.append(gap if place else "")
                line.append(mark.sign, (tones or {}).get(mark.tone, ""))
            lines.append(line)
    return lines
