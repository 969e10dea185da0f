"""A pane that explains an answer: items in the prompt, labels with and without memory, neighbours, sampling.

Shows the result of `pipeline.chat.explain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from mta_cli.text.formatting import pluralise
from mta_cli.tui.text import block_text, line_text
from mta_cli.tui.widgets.charts.bars import bar_text
from mta_cli.tui.widgets.charts.canvas import truncate_line

MAX_INPUT_CELLS, MAX_OUTPUT_CELLS, MAX_LABEL_CELLS = 120, 60, 20
BAR_CELLS = 12
CHOSEN, OTHER = "▸", "·"
MEMORY_WORDS = {
    None: "the model alone, no label memory",
    "habit": "the model alone → with the user's own answers",
    "neighbours": "the model alone → with label memory",
}


class ReasonsPane(VerticalScroll, can_focus=True):
    """A pane with the reasons of the last answer; hidden until it is opened."""

    ALLOW_MAXIMIZE = True
    HELP: ClassVar[str] = (
        "The reasons of the last answer. The first line is the step of the ladder that answered, with its parts. "
        "History: the user's items in the prompt.\n"
        "Labels: each label's probability by the model alone → with label memory; how often the user gave it; its "
        "share of the neighbours' votes.\n"
        "Neighbours: items of the bank's other users. Each votes for its label; nearer items have more weight.\n"
        "w or Escape closes it, z enlarges it, y copies it."
    )
    DEFAULT_CSS = """
    ReasonsPane {
        display: none;
        height: 2fr;
        padding: 0 1;
        border: round $surface-lighten-2;
        border-title-color: $text-muted;
        scrollbar-size-vertical: 1;
    }
    ReasonsPane.open {
        display: block;
    }
    ReasonsPane:focus {
        border: round $primary;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._body = Static()
        self.plain_text = ""

    def compose(self) -> ComposeResult:
        """The text of the reasons."""
        yield self._body

    @property
    def is_open(self) -> bool:
        """Whether the pane is shown."""
        return self.has_class("open")

    def show_reasons(self, reasons: Mapping[str, Any]) -> None:
        """Show the reasons of an answer."""
        self.border_title = line_text(f"Why {truncate_line(reasons['answer'], 40)}")
        shown = Text("\n").join(reason_lines(reasons))
        self.plain_text = shown.plain
        self._body.update(shown)
        self.add_class("open")
        self.scroll_home(animate=False)

    def close(self) -> None:
        """Hide the pane; if it was maximised, restore the screen."""
        if self.screen.maximized is self:
            self.screen.minimize()
        self.remove_class("open")


def reason_lines(reasons: Mapping[str, Any]) -> Iterator[Text]:
    """The reasons of an answer as lines: model, items in the prompt, labels, neighbours, decoding."""
    from mta_cli.pipeline.chat.answer import source_line
    from mta_cli.pipeline.user_weights import AnswerSource

    yield block_text(f"{reasons['step']}: {' + '.join(reasons['made_of'])}", "bold")
    yield block_text(source_line(AnswerSource(**reasons["source"]), reasons["task"]), "dim")
    if among := reasons["chosen_among"]:
        yield block_text(
            f"Of {', '.join(among)}, the items of {reasons['task']} are nearest to the first message.", "dim"
        )
    if "labels" in reasons:
        yield _head(f"Labels: {MEMORY_WORDS[reasons['memory']]}")
        yield from _label_lines(reasons["labels"], reasons["answer"], remembered=reasons["memory"] is not None)
    if votes := reasons.get("neighbours"):
        count = pluralise(reasons["neighbour_count"], "neighbour")
        yield _head(f"The {len(votes)} nearest of {count}, each with its share of all votes")
        for vote in votes:
            line = Text(f"{100 * vote['share']:4.1f} %  ").append_text(line_text(vote["user"]))
            yield line.append(": ").append_text(_item_line(vote["input"], vote["label"]))
    history = reasons["history"]
    yield _head(f"{pluralise(len(history), 'history item')} in the prompt" if history else "No history in the prompt")
    for item in history:
        yield _item_line(item["input"], item["output"])
    yield _head("How the answer was chosen")
    yield Text(describe_decoding(reasons["decoding"]))


def describe_decoding(decoding: Mapping[str, Any]) -> str:
    """The decoding settings in one line."""
    if "temperature" not in decoding:
        return f"the {decoding['by']}, without sampling"
    limits = f"repetition penalty {decoding['repetition_penalty']:g} · at most {decoding['max_tokens']} tokens"
    if decoding["by"] == "likeliest token":
        return f"always the likeliest token · {limits}"
    names = {"temperature": "temperature", "top_p": "top-p", "min_p": "min-p", "seed": "seed"}
    settings = " · ".join(f"{name} {decoding[key]:g}" for key, name in names.items())
    return f"sampled · {settings} · {limits}"


def _head(words: str) -> Text:
    return Text("\n").append_text(line_text(words, "bold"))


def _item_line(asked: str, answered: str) -> Text:
    shown = Text(truncate_line(asked, MAX_INPUT_CELLS))
    return shown.append(" → ", "dim").append(truncate_line(answered, MAX_OUTPUT_CELLS), "bold")


def _label_lines(labels: Sequence[Mapping[str, Any]], answer: str, *, remembered: bool) -> Iterator[Text]:
    """One line for each label: a mark for the answer, both probabilities, a bar of the second, and the user's own
    count.
    """
    names = [truncate_line(one["label"], MAX_LABEL_CELLS) for one in labels]
    width = max(map(cell_len, names), default=0)
    for one, name in zip(labels, names, strict=True):
        chosen = one["label"] == answer
        line = Text(f"{CHOSEN if chosen else OTHER} {name}{' ' * (width - cell_len(name))}  {_percent(one['model'])}")
        if remembered:
            line.append(f" → {_percent(one['with_memory'])}")
        bar = bar_text(one["with_memory"], 1.0, BAR_CELLS)
        line.append(f"  {bar}{' ' * (BAR_CELLS - len(bar))}")
        if remembered:
            line.append(f"  {one['own_answers']:>3} own", "dim")
        if one["votes"] is not None:
            line.append(f"  {_percent(one['votes'])} of votes", "dim")
        line.stylize("bold" if chosen else "")
        yield line


def _percent(share: float) -> str:
    return f"{100 * share:3.0f} %"
