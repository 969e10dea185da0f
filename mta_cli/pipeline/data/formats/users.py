"""Reads a JSON list of users `[{user_id, group?, profile, query: [{id, input, gold, date?}]}]`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.fields import RecordFields
from mta_cli.pipeline.data.formats.lamp import NO_GOLD, FieldMapping, read_history
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record, SeenIds, SourceLocation, format_value
from store.records import NewItem
from store.staged_records import StagedRecords


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of users, each with a profile or with queries."""
    found = sample.record.keys() if sample.is_json_list and sample.record is not None else set[str]()
    return "query" in found or ("profile" in found and "input" not in found)


def parse_users(
    entries: Iterable[object], shape: FieldMapping, file: str, findings: ParseFindings, staged: StagedRecords
) -> Iterator[Record]:
    """Stage the histories and held-out queries of a file of users; their groups go to the findings."""
    ids, known = SeenIds(findings, staged), dict[str, int]()
    for number, entry in enumerate(entries, 1):
        fields = RecordFields.from_value(entry, SourceLocation(file, number), findings)
        if fields is None:
            continue
        user = fields.read_user("user_id")
        if user is not None and known.setdefault(user, number) != number:
            fields.add_field_fault("user_id", f"{format_value(user)} is already the user of record {known[user]}")
        group = fields.read_id("group") if fields.has_value("group") else None
        if user is not None and group is not None:
            findings.groups[user] = group
        yield from read_history(fields, user, shape, ids, once=True)
        for query in fields.read_objects("query", required=False):
            record = _query(query, user, shape)
            if record is not None and ids.add_if_new(record, query.path("id")):
                yield record


def _query(query: RecordFields, user: str | None, shape: FieldMapping) -> Record | None:
    key, question, time = query.read_id(), shape.parse_question(query), query.read_time("time", "date")
    if not query.has_value("gold"):
        query.findings.skip_counts[NO_GOLD] += 1
        return None
    gold = query.read_scalar("gold")
    if key is None or question is None or gold is None or user is None:
        return None
    return Record(user, NewItem(key, shape.task, question, gold, time), query.location, held_out=True)
