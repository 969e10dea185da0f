"""Answers side by side: columns that grow together, what differs between them, and the numbers under each.

Knows how a comparison's result looks; asks nothing and measures nothing.
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
from textual.message import Message
from textual.widgets import Static

from mta_cli.printable import clean, clean_line
from mta_cli.progress import rate as per_second

ORDER = ("base", "fused", "adapted")  # other people's columns follow in the order they came
LEAST_WIDTH = 20  # of a column; where there are more than fit, they are scrolled
DIFFERS = "bold underline $text-accent"
MOST_WORDS = 1500  # of an answer that are compared; the time grows with their square
_WORD = re.compile(r"\S+")


class Answer(VerticalScroll):
    """One column: whose answer, its words, its numbers. It scrolls by itself."""

    HELP: ClassVar[str] = "Left and right choose a column; g keeps the chosen answer as a history item."

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.words = ""
        self._head = Static(Content.styled(clean_line(key), "bold"), classes="head")  # until more is known
        self._body, self._foot = Static(classes="body"), Static(classes="foot")

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield self._head
        yield self._body
        yield self._foot

    def show_words(self, differing: list[tuple[int, int]] | None = None) -> None:
        """Show what is there, the given stretches of it marked."""
        spans = [Span(start, end, DIFFERS) for start, end in differing or []]
        self._body.update(Content(self.words, spans))

    def show_source(self, detail: dict[str, Any]) -> None:
        """Say which model spoke."""
        source = detail["source"]
        name = clean_line(f"{self.key.removeprefix('@')} · {source['mode']}" if self.key[:1] == "@" else self.key)
        about = "the model as it is"
        if source["bank"] is not None:
            anchors = ", ".join(source["anchors"]) or "no anchors"
            about = clean_line(f"{source['bank']} v{source['version']} · {anchors}")
        self._head.update(Content.assemble(Content.styled(name, "bold"), "\n", Content.styled(about, "$text-muted")))
        self._head.tooltip = Content(about)

    def show_numbers(self, detail: dict[str, Any], *, best: bool) -> None:
        """Say how fast it was and, where the right answer is known, how good."""
        lines = [Content(text) for text in _speed(detail)]
        if gold := detail.get("gold"):
            lines.append(Content.styled(_likelihood(gold), "bold $text-success" if best else ""))
            lines += [Content(_metric(name, value)) for name, value in gold["metrics"].items()]
        self._foot.update(Content("\n").join(lines))


class Answers(HorizontalScroll):
    """Columns of answers. `chosen` is the key of the column that the person has chosen, if any."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "choose(-1)", "Column left", id="answers.left", show=False, tooltip="Choose the column before"),
        Binding("right", "choose(1)", "Column right", id="answers.right", show=False, tooltip="Choose the next column"),
    ]
    DEFAULT_CSS = """
    Answers {
        height: 1fr;
    }
    Answers > Answer {
        width: 1fr;
        padding: 0 1;
        border: round $surface-lighten-2;
        scrollbar-size-vertical: 1;
    }
    Answers > Answer.chosen {
        border: round $primary;
    }
    Answers > Answer:focus {
        border: heavy $primary;
    }
    Answers .head {
        height: 2;
        text-wrap: nowrap;
        text-overflow: ellipsis;
    }
    Answers .body {
        margin: 1 0;
    }
    Answers .foot {
        color: $text-muted;
    }
    """

    class Chosen(Message):
        """Another column is chosen."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self) -> None:
        super().__init__()
        self.can_focus = False
        self.chosen: str | None = None
        self._columns: dict[str, Answer] = {}
        self._dirty: set[str] = set()

    @property
    def keys(self) -> list[str]:
        """The columns from left to right."""
        return list(self._columns)

    def words(self, key: str) -> str:
        """What a column has said so far."""
        return self._columns[key].words

    def clear(self) -> None:
        """Take all columns away."""
        self.chosen = None
        self._columns.clear()
        self._dirty.clear()
        self.query(Answer).remove()

    def say(self, key: str, piece: str) -> None:
        """Let a column grow; many pieces are drawn at once."""
        self._column(key).words += clean(piece)
        if not self._dirty:
            self.call_later(self._draw)
        self._dirty.add(key)

    def finish(self, result: dict[str, Any]) -> None:
        """All answers are whole: mark what differs from the first column, and say the numbers."""
        details = {key: detail for key, detail in result["details"].items() if detail is not None}
        likelihoods = {key: detail["gold"]["loglik"] for key, detail in details.items() if detail.get("gold")}
        best = max(likelihoods.values(), default=math.nan)
        first = ""
        for key, detail in details.items():
            column = self._column(key)
            column.words = clean(result["answers"][key]).strip() or "(an empty answer)"
            first = first or column.words
            column.show_words(list(differing(first, column.words)))
            column.show_source(detail)
            column.show_numbers(detail, best=len(likelihoods) > 1 and likelihoods.get(key) == best)
        self._dirty.clear()

    def choose(self, key: str) -> None:
        """Choose a column and move the focus to it."""
        if key != self.chosen:
            self.chosen = key
            self.post_message(self.Chosen(key))
        for name, column in self._columns.items():
            column.set_class(name == key, "chosen")
        self._columns[key].focus()

    def action_choose(self, step: int) -> None:
        """Choose the next column, or the one before."""
        if self._columns:
            keys = self.keys
            place = keys.index(self.chosen) + step if self.chosen in keys else 0
            self.choose(keys[place % len(keys)])

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """A click or Tab chooses too."""
        if isinstance(event.widget, Answer) and event.widget.key in self._columns:
            self.choose(event.widget.key)

    def _column(self, key: str) -> Answer:
        if key not in self._columns:
            column = Answer(key)
            self._columns[key] = column
            self._columns = dict(sorted(self._columns.items(), key=lambda pair: _place(pair[0])))
            keys = list(self._columns)
            following = keys[keys.index(key) + 1 :]
            self.mount(column, before=self._columns[following[0]] if following else None)
            self._share()
        return self._columns[key]

    def on_resize(self) -> None:
        """Columns are as wide as there is room."""
        self._share()

    def _share(self) -> None:
        """Equal widths; none below the least. Fractions alone would take no notice of it."""
        fits = self.size.width >= LEAST_WIDTH * len(self._columns)
        for column in self._columns.values():
            column.styles.width = "1fr" if fits else LEAST_WIDTH

    def _draw(self) -> None:
        for key in self._dirty & set(self._columns):
            self._columns[key].show_words()
        self._dirty.clear()


def differing(first: str, other: str) -> Iterator[tuple[int, int]]:
    """Where in `other` words stand that the `first` text does not have there: stretches (start, end)."""
    ours, theirs = list(_WORD.finditer(first)), list(_WORD.finditer(other))
    if max(len(ours), len(theirs)) > MOST_WORDS:
        return
    matcher = difflib.SequenceMatcher(None, [m.group() for m in ours], [m.group() for m in theirs], autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if kind in ("replace", "insert"):
            yield theirs[start].start(), theirs[end - 1].end()


def _place(key: str) -> int:
    return ORDER.index(key) if key in ORDER else len(ORDER)


def _speed(detail: dict[str, Any]) -> Iterator[str]:
    tokens, rate = detail["tokens"], detail.get("tokens_per_second")
    if detail["ended"] == "label":
        yield f"1 of {len(detail['labels'])} labels"
        return
    cut = " · cut" if detail["ended"] == "length" else ""
    yield f"{tokens} token{'s' if tokens != 1 else ''}" + (f" · {per_second(rate)}/s" if rate else "") + cut


def _likelihood(gold: dict[str, Any]) -> str:
    value = f"{gold['loglik']:.3f}".replace("-", "−")
    if gold["over"] == "labels":
        return f"gold {value} nats ({math.exp(gold['loglik']):.0%})"
    return f"gold {value} nats/token"


def _metric(name: str, value: float) -> str:
    if name == "accuracy":
        return "right" if value == 1.0 else "wrong"
    if name == "mae":
        return "right" if value == 0 else f"off by {value:g}"
    return f"{name.replace('_', '-')} {value:.3f}".replace(" 0.", " .")
