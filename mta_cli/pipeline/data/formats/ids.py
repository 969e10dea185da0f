"""Which ids a file has used, for whom, and where: tells a repetition from a contradiction. Knows no format."""

from __future__ import annotations

from mta_cli.pipeline.data.formats.findings import Findings, Place, Record, shown


class Ids:
    """Ids of history items and of queries, each unique per user and task."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._seen: dict[tuple[str, str, str, bool], tuple[int, Place]] = {}

    def first(self, record: Record, field: str, *, may_repeat: bool = False) -> bool:
        """Whether the record's id is new. A used one is a fault, unless it may repeat and says the same."""
        item = record.item
        content = hash((item.input, item.output, item.time))
        mark = (record.user, item.task, item.key, record.held_out)
        known = self._seen.get(mark)
        if known is None:
            self._seen[mark] = (content, record.place)
            return True
        if not (may_repeat and known[0] == content):
            other = " with other content" if may_repeat else ""
            where = f"record {known[1].record}"
            self._findings.fault(record.place, f"{shown(item.key)} was already used in {where}{other}", field)
        return False
