"""LaMP's own form: questions `[{id, user_id?, input, profile}]` and outputs `{task, golds: [{id, output}]}`.

Without `user_id` a question's id is its user. A user's profile stands in each of their questions and is read once.
Knows no store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mta_cli.pipeline.data.formats.fields import Fields
from mta_cli.pipeline.data.formats.findings import Findings, Place, Record, kind, shown
from mta_cli.pipeline.data.formats.ids import Ids
from mta_cli.pipeline.data.formats.task_fields import Shape
from store.records import NewItem

NO_GOLD = "queries without a gold answer"
NO_QUESTION = "gold answers without a question"


@dataclass(frozen=True)
class Golds:
    """An outputs file: the task that it names, and the answer of each question id."""

    task: str
    answers: Mapping[str, str]


def parse_golds(document: object, file: str, findings: Findings) -> Golds:
    """Every gold answer of an outputs document; what is wrong goes to the findings."""
    whole = Fields.of(document, Place(file), findings)
    answers: dict[str, str] = {}
    if whole is None:
        return Golds("", answers)
    task = (whole.word("task") if whole.has("task") else None) or ""
    for number, entry in enumerate(_members(whole.values.get("golds"), Place(file), findings, "golds"), 1):
        fields = Fields.of(entry, Place(file, number), findings)
        if fields is None:
            continue
        key, answer = fields.key(), fields.word("output")
        if key in answers:
            fields.fault("id", f"{shown(key)} was already used")
        elif key is not None and answer is not None:
            answers[key] = answer
    return Golds(task, answers)


def parse_questions(
    document: object, answers: Mapping[str, str], shape: Shape, file: str, findings: Findings
) -> Iterator[Record]:
    """Histories and, where a gold answer is known, held-out queries of a questions document."""
    ids, asked = Ids(findings), dict[str, int]()
    for number, entry in enumerate(_members(document, Place(file), findings), 1):
        fields = Fields.of(entry, Place(file, number), findings)
        if fields is None:
            continue
        key = fields.key()
        if key is not None and asked.setdefault(key, number) != number:
            fields.fault("id", f"{shown(key)} was already used in record {asked[key]}")
        user = fields.user("id" if fields.values.get("user_id") is None else "user_id")
        question, time = shape.question(fields), fields.time("time", "date")
        yield from _history(fields, user, shape, ids)
        if key is None or user is None or question is None:
            continue
        if key in answers:
            yield Record(user, NewItem(key, shape.task, question, answers[key], time), fields.place, held_out=True)
        else:
            findings.left_out[NO_GOLD] += 1
    _unused(answers, asked, file, findings)


def _unused(answers: Mapping[str, str], asked: Mapping[str, int], file: str, findings: Findings) -> None:
    unused = sum(key not in asked for key in answers)
    if unused and unused == len(answers):
        findings.fault(Place(file), f"none of the {unused:,} gold answers belongs to a question of this file")
    elif unused:
        findings.left_out[NO_QUESTION] += unused


def parse_users(document: object, shape: Shape, file: str, findings: Findings) -> Iterator[Record]:
    """Histories and held-out queries of a users document: `[{user_id, profile, query: [{id, input, gold, date?}]}]`."""
    ids, known = Ids(findings), dict[str, int]()
    for number, entry in enumerate(_members(document, Place(file), findings), 1):
        fields = Fields.of(entry, Place(file, number), findings)
        if fields is None:
            continue
        user = fields.user("user_id")
        if user is not None and known.setdefault(user, number) != number:
            fields.fault("user_id", f"{shown(user)} is already the user of record {known[user]}")
        yield from _history(fields, user, shape, ids, once=True)
        for query in fields.objects("query", required=False):
            record = _query(query, user, shape)
            if record is not None and ids.first(record, query.path("id")):
                yield record


def _history(fields: Fields, user: str | None, shape: Shape, ids: Ids, *, once: bool = False) -> Iterator[Record]:
    for entry in fields.objects("profile"):
        item = shape.history_item(entry)
        if item is None or user is None:
            continue
        record = Record(user, item, fields.place)
        if ids.first(record, entry.path("id"), may_repeat=not once):
            yield record


def _query(query: Fields, user: str | None, shape: Shape) -> Record | None:
    key, question, time = query.key(), shape.question(query), query.time("time", "date")
    if not query.has("gold"):
        query.findings.left_out[NO_GOLD] += 1
        return None
    gold = query.word("gold")
    if key is None or question is None or gold is None or user is None:
        return None
    return Record(user, NewItem(key, shape.task, question, gold, time), query.place, held_out=True)


def _members(document: object, place: Place, findings: Findings, inside: str = "") -> list[object]:
    """The members of a list that should be one, and not empty."""
    if not isinstance(document, list):
        findings.fault(place, f"is {kind(document)}, not a list", inside)
        return []
    if not document:
        findings.fault(place, "is an empty list", inside)
    return document
