"""How an entry of a LaMP-shaped file becomes input and output. Knows a task's field names and nothing of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mta_cli.pipeline.data.formats.fields import Fields
from store.records import NewItem


@dataclass(frozen=True)
class Shape:
    """What a parser needs of a task: its name, its fields in a history entry, and how a question is stripped."""

    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    strip: Callable[[str], str]

    def history_item(self, entry: Fields) -> NewItem | None:
        """The entry as a history item; None when a field is at fault, or blank (which is counted as left out)."""
        key = entry.key()
        blank = next((name for name in (*self.inputs, *self.outputs) if entry.blank(name)), None)
        if blank is not None:
            entry.findings.left_out[f"history items without {blank}"] += 1
            return None
        question = [entry.text(name) for name in self.inputs]
        answer = [entry.word(name) for name in self.outputs]
        time = entry.time("time", "date")
        if key is None or None in question or None in answer:
            return None
        return NewItem(key, self.task, _joined(question), _joined(answer), time)

    def question(self, entry: Fields) -> str | None:
        """A question's input without the instruction that its task repeats."""
        raw = entry.text("input")
        if raw is None:
            return None
        stripped = self.strip(raw)
        if not stripped.strip():
            entry.fault("input", "holds the instruction and nothing else")
            return None
        return stripped


def _joined(parts: list[str | None]) -> str:
    return "\n".join(part for part in parts if part is not None)
