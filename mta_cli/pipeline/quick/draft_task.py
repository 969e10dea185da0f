"""Reads a file as an import does, and drafts a task for its outputs. Stores nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.engine.text.task_files import parse_task, task_to_toml
from mta_cli.engine.text.tasks import METRIC_BY_KIND, Task
from mta_cli.errors import BadInput, Command
from mta_cli.events import Event
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.data.guess_columns import guess_kind
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.parse_file import parse_import_file
from mta_cli.pipeline.users.import_file import KEPT_ITEMS

if TYPE_CHECKING:
    from store.records import NewItem
    from store.registry import Registry

SAMPLE_USERS, SAMPLE_ITEMS = 16, 8
"""The number of users, and of items of each, that are kept to show prompts and to measure the rate."""
CHARACTERS_PER_TOKEN = 3.5  # assumed, because the base is not loaded yet
_WORD = re.compile(r"[^\W\d_][\w -]{0,30}")
_WORD_OF_FORMAT = {"mail": "reply", "chat": "message", "messenger": "message"}
_KIND_WORDS = {"label": "answer", "score": "score", "text": "answer"}


@dataclass(frozen=True)
class FileSummary:
    """A summary of a file: records per user, all outputs, and some users' items in `sample`.

    `input_characters` is the 90th percentile of the inputs' lengths. `untimed` are the users with an item without a
    time. For `input_authors` and `third_parties` see `formats.catalog`. `output_word` is a noun for an output.
    """

    counts: dict[str, int]
    outputs: tuple[str, ...]
    input_characters: int
    sample: dict[str, list[NewItem]]
    input_authors: tuple[str, ...] = ()
    output_word: str = ""
    untimed: frozenset[str] = frozenset()
    third_parties: str = ""

    @property
    def is_of_one_user(self) -> bool:
        """Whether only one user has enough items to hold some out."""
        return sum(count > KEPT_ITEMS for count in self.counts.values()) <= 1

    @property
    def records(self) -> int:
        """The number of records."""
        return sum(self.counts.values())


def summarise_file(reg: Registry, source: ImportSource, task: Task) -> Generator[Event, None, FileSummary]:
    """Read an entire source as items of `task`. Raises an import's errors, and BadInput if records name other tasks."""
    counts, outputs, lengths, untimed = Counter[str](), list[str](), list[int](), set[str]()
    sample: dict[str, list[NewItem]] = {}
    with reg.stage_records() as staged:
        parsed = yield from parse_import_file(source, lambda name: task, staged)
        if others := [name for name in parsed.tasks if name != source.task]:
            raise BadInput(
                f"{source.name} names other tasks: {', '.join(map(format_value, others[:5]))}",
                hint=("use ", Command("data import", "FILE"), ", then ", Command("bank build", task="TASK")),
            )
        authors, third_parties = tuple(parsed.input_authors), parsed.third_parties
        words = {_WORD_OF_FORMAT.get(FORMATS[form].kind, "") for form in parsed.formats}
        for record in parsed.staged:
            counts[record.user] += 1
            outputs.append(record.item.output)
            lengths.append(len(record.item.input))
            if record.item.time is None and not record.held_out:
                untimed.add(record.user)
            if record.user in sample or len(sample) < SAMPLE_USERS:
                own = sample.setdefault(record.user, [])
                if len(own) < SAMPLE_ITEMS:
                    own.append(record.item)
    word = words.pop() if len(words) == 1 else ""
    return FileSummary(
        dict(counts), tuple(outputs), _percentile_90(lengths), sample, authors, word, frozenset(untimed), third_parties
    )


def task_name(path: Path) -> str:
    """A task's name from a file's name: `My Films.csv` gives `my-films`."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.casefold()).strip("-")[:48].strip("-")
    return name or "quick"


def draft_task(name: str, source: ImportSource, summary: FileSummary) -> tuple[Task, float]:
    """A task for these outputs, whose prompts name the output's column, and the step to which scores are rounded.

    Raises BadInput if no task can be made.
    """
    guess = guess_kind(summary.outputs)
    column = (source.columns.output or "output").replace("_", " ")
    named = _WORD.fullmatch(column) and column != "output"
    word = column.lower() if named else summary.output_word or _KIND_WORDS[guess.kind]
    scale = f" from {guess.labels[0]} to {guess.labels[-1]}" if guess.kind == "score" else ""
    query = _budget(summary.input_characters, 192)
    answer = _budget(_percentile_90([len(output) for output in summary.outputs]), 128)
    what = {"label": f"which {word}", "score": f"the {word}{scale}", "text": f"the {word}"}[guess.kind]
    task = Task(
        name,
        guess.kind,
        f"{format_value(source.name)}: {what} that a user gives",
        prompt=f"{{input}}\nMy {word}{scale}:",
        item=f"{{input}}\n{word.capitalize()}: {{output}}",
        history_header="What I answered before:",
        labels=guess.labels,
        metric=METRIC_BY_KIND[guess.kind],
        query_tokens=query,
        item_tokens=min(query, 48) + min(answer, 48) if guess.kind == "text" else min(query, 64) + 8,
        answer_tokens=answer,
    )
    return parse_task(task_to_toml(task), source.name), guess.step


def _percentile_90(lengths: Sequence[int]) -> int:
    return sorted(lengths)[(len(lengths) - 1) * 9 // 10] if lengths else 0


def _budget(characters: int, most: int) -> int:
    """A token budget for texts of this many characters, in steps of 16."""
    return min(most, 16 * (1 + int(characters / CHARACTERS_PER_TOKEN) // 16))
