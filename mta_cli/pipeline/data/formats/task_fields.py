"""Turns an entry of a LaMP-shaped file into input and output. Knows a task's field names and no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mta_cli.pipeline.data.formats.fields import RecordFields
from store.records import NewItem


@dataclass(frozen=True)
class FieldMapping:
    """What a parser needs of a task: its name, its fields in a history entry, and how a question is stripped."""

    task: str
    input_fields: tuple[str, ...]
    output_fields: tuple[str, ...]
    strip_instruction: Callable[[str], str]

    def parse_history_item(self, entry: RecordFields) -> NewItem | None:
        """The entry as a history item; None when a field has a fault, or is blank (which is counted as left out)."""
        key = entry.read_id()
        blank = next((name for name in (*self.input_fields, *self.output_fields) if entry.is_blank(name)), None)
        if blank is not None:
            entry.findings.skip_counts[f"history items without {blank}"] += 1
            return None
        question = [entry.read_text_field(name) for name in self.input_fields]
        answer = [entry.read_scalar(name) for name in self.output_fields]
        time = entry.read_time("time", "date")
        if key is None or None in question or None in answer:
            return None
        return NewItem(key, self.task, _join_fields(question), _join_fields(answer), time)

    def parse_question(self, entry: RecordFields) -> str | None:
        """A question's input without the instruction that its task repeats."""
        raw = entry.read_text_field("input")
        if raw is None:
            return None
        stripped = self.strip_instruction(raw)
        if not stripped.strip():
            entry.add_field_fault("input", "holds the instruction and nothing else")
            return None
        return stripped


def _join_fields(parts: list[str | None]) -> str:
    return "\n".join(part for part in parts if part is not None)
