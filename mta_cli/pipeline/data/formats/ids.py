"""The ids that a file has used, by user and place: tells a repetition from a contradiction. Knows no format."""

from __future__ import annotations

from mta_cli.pipeline.data.formats.findings import ParseFindings, Record, SourceLocation, format_value


class SeenIds:
    """Ids of history items and of queries, each unique per user and task."""

    def __init__(self, findings: ParseFindings) -> None:
        self._findings = findings
        self._first_uses: dict[tuple[str, str, str, bool], tuple[int, SourceLocation]] = {}

    def add_if_new(self, record: Record, field: str, *, may_repeat: bool = False) -> bool:
        """Whether the record's id is new. A used one is a fault, unless it may repeat and has the same content."""
        item = record.item
        content = hash((item.input, item.output, item.time))
        mark = (record.user, item.task, item.key, record.held_out)
        known = self._first_uses.get(mark)
        if known is None:
            self._first_uses[mark] = (content, record.location)
            return True
        if not (may_repeat and known[0] == content):
            other = " with other content" if may_repeat else ""
            where = f"record {known[1].record}"
            self._findings.add_fault(
                record.location, f"{format_value(item.key)} was already used in {where}{other}", field
            )
        return False
