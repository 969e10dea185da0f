"""LaMP's files: questions, outputs and users."""

from __future__ import annotations

from typing import Any

import pytest

from mta_cli.pipeline.data.formats.lamp import (
    NO_GOLD,
    NO_QUESTION,
    FieldMapping,
    parse_golds,
    parse_questions,
)
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record
from mta_cli.pipeline.data.formats.users import parse_users
from tests.pipeline.histories import staged

SHAPE = FieldMapping("lamp-2", ("description",), ("tag",), lambda raw: raw.partition("description: ")[2] or raw)
ITEM = {"id": "7", "description": "a heist", "tag": "action", "date": "2020-01-02"}


def question(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "user_id": "ann", "input": "Which tag? description: a plot", "profile": [ITEM]} | changes


def questions(entries: list[Any], answers: dict[str, str] | None = None) -> tuple[list[Record], ParseFindings]:
    findings = ParseFindings()
    return list(parse_questions(entries, answers or {}, SHAPE, "q.json", findings, staged())), findings


def users(entries: list[Any]) -> tuple[list[Record], ParseFindings]:
    findings = ParseFindings()
    return list(parse_users(entries, SHAPE, "u.json", findings, staged())), findings


def test_a_question_gives_its_history_and_its_query() -> None:
    records, findings = questions([question()], {"q1": "comedy"})
    item, query = (record.item for record in records)
    assert (item.key, item.task, item.input, item.output, item.time) == (
        "7",
        "lamp-2",
        "a heist",
        "action",
        "2020-01-02",
    )
    assert (query.key, query.input, query.output) == ("q1", "a plot", "comedy")
    assert [record.held_out for record in records] == [False, True]
    assert findings.fault_count == 0


def test_without_a_user_the_question_is_the_user() -> None:
    document = [question(id="q1"), question(id="q2")]
    for entry in document:
        del entry["user_id"]
    records, _ = questions(document)
    assert [(record.user, record.item.key) for record in records] == [("q1", "7"), ("q2", "7")]


def test_a_profile_that_repeats_is_read_once() -> None:
    records, findings = questions([question(), question(id="q2")])
    assert len(records) == 1
    assert findings.fault_count == 0
    assert findings.skip_counts[NO_GOLD] == 2


def test_a_profile_that_contradicts_itself_is_a_fault() -> None:
    _, findings = questions([question(), question(id="q2", profile=[ITEM | {"tag": "comedy"}])])
    assert findings.fault_lines == [
        "q.json: record 2, field profile[0].id: '7' was already used in record 1 with other content"
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"id": None}, "field id: is null, not text"),
        ({"id": ["x"]}, "field id: is a list, not text"),
        ({"id": True}, "field id: is true or false, not text"),
        ({"id": "x" * 501}, "field id: has 501 characters; the most is 500"),
        ({"user_id": ""}, "field user_id: is empty"),
        ({"user_id": "a\x1b[2Jb"}, "field user_id: "),
        ({"user_id": "--help"}, "field user_id: "),
        ({"input": 5}, "field input: is a number, not text"),
        ({"input": "\0"}, "field input: contains a NUL character"),
        ({"input": "\ud800"}, "field input: is not UTF-8: character 1"),
        ({"input": "Which tag? description:  "}, "field input: contains only the instruction"),
        ({"profile": None}, "field profile: is null, not a list"),
        ({"profile": {"id": 1}}, "field profile: is an object, not a list"),
        ({"profile": [ITEM, 3]}, "field profile[1]: is a number, not an object"),
        ({"profile": [{"id": "7", "tag": "x"}]}, "field profile[0].description: is missing"),
        ({"profile": [ITEM | {"tag": ["x"]}]}, "field profile[0].tag: is a list, not text"),
        ({"profile": [ITEM | {"tag": float("inf")}]}, "field profile[0].tag: is not a finite number"),
        ({"profile": [ITEM | {"date": "yesterday"}]}, "field profile[0].date: 'yesterday' is not an ISO 8601 date"),
        ({"profile": [ITEM | {"date": 20}]}, "field profile[0].date: 20 is not an ISO 8601 date"),
    ],
)
def test_every_wrong_field_is_named(changes: dict[str, Any], line: str) -> None:
    _, findings = questions([question(), question(id="q2", user_id="bob") | changes])
    assert findings.fault_count == 1
    assert findings.fault_lines[0].startswith(f"q.json: record 2, {line}")


def test_a_missing_profile_is_a_fault() -> None:
    entry = question()
    del entry["profile"]
    assert questions([entry])[1].fault_lines == ["q.json: record 1, field profile: is missing"]


def test_duplicate_question_ids_are_faults() -> None:
    _, findings = questions([question(), question()])
    assert findings.fault_lines == ["q.json: record 2, field id: 'q1' was already used in record 1"]


def test_blank_history_is_left_out_and_counted() -> None:
    records, findings = questions(
        [question(profile=[ITEM, ITEM | {"id": "8", "tag": " "}, ITEM | {"id": "9", "date": ""}])]
    )
    assert [record.item.key for record in records] == ["7", "9"]
    assert records[1].item.time is None
    assert findings.skip_counts["history items without tag"] == 1


def test_numbers_are_taken_as_ids_and_answers() -> None:
    records, findings = questions([question(id=1, user_id=2, profile=[ITEM | {"id": 3, "tag": 4.5}])], {"1": "x"})
    assert [(record.user, record.item.key, record.item.output) for record in records] == [
        ("2", "3", "4.5"),
        ("2", "1", "x"),
    ]
    assert findings.fault_count == 0


@pytest.mark.parametrize("document", [None, {}, [], "x", 3, [1], [[]]])
def test_documents_of_another_shape(document: object) -> None:
    if isinstance(document, list) and document:
        assert questions(document)[1].fault_count == 1
        assert users(document)[1].fault_count == 1
    findings = ParseFindings()
    parse_golds(document, "o.json", findings)
    assert findings.fault_count == 1


def test_golds_are_read() -> None:
    findings = ParseFindings()
    golds = parse_golds(
        {"task": "LaMP_2", "golds": [{"id": "q1", "output": "a"}, {"id": 2, "output": 4}]}, "o", findings
    )
    assert golds == ("LaMP_2", {"q1": "a", "2": "4"})


def test_every_wrong_gold_is_named() -> None:
    findings = ParseFindings()
    entries = [{"id": "q1", "output": "a"}, {"id": "q1", "output": "b"}, {"id": "q2"}, 5]
    parse_golds({"task": "LaMP_2", "golds": entries}, "o", findings)
    assert findings.fault_lines == [
        "o, field golds[3]: is a number, not an object",
        "o, field golds[1].id: 'q1' was already used",
        "o, field golds[2].output: is missing",
    ]


def test_golds_of_another_file_are_a_fault() -> None:
    _, findings = questions([question()], {"other": "x"})
    assert findings.fault_lines == ["q.json: none of the 1 gold answers belongs to a question of this file"]


def test_some_golds_too_many_are_counted() -> None:
    _, findings = questions([question()], {"q1": "x", "other": "y"})
    assert findings.fault_count == 0
    assert findings.skip_counts == {NO_QUESTION: 1}


def test_users_give_histories_and_all_queries() -> None:
    asked = [
        {"id": "a", "input": "description: p", "gold": "x", "date": "2021-01-01"},
        {"id": "b", "input": "r", "gold": 3},
    ]
    records, findings = users([{"user_id": "ann", "group": "few", "profile": [ITEM], "query": asked}])
    assert findings.fault_count == 0
    assert [(record.item.key, record.item.output, record.held_out) for record in records] == [
        ("7", "action", False),
        ("a", "x", True),
        ("b", "3", True),
    ]


def test_users_faults() -> None:
    asked = [{"id": "a", "input": "p", "gold": "x"}, {"id": "a", "input": "p", "gold": "x"}, {"id": "c", "gold": "x"}]
    document = [
        {"user_id": "ann", "profile": [ITEM, ITEM], "query": asked},
        {"user_id": "ann", "profile": []},
        {"profile": []},
    ]
    _, findings = users(document)
    assert findings.fault_lines == [
        "u.json: record 1, field profile[1].id: '7' was already used in record 1",
        "u.json: record 1, field query[1].id: 'a' was already used in record 1",
        "u.json: record 1, field query[2].input: is missing",
        "u.json: record 2, field user_id: 'ann' is already the user of record 1",
        "u.json: record 3, field user_id: is missing",
    ]


def test_users_queries_without_gold_are_counted() -> None:
    records, findings = users([{"user_id": "ann", "profile": [], "query": [{"id": "a", "input": "p"}]}])
    assert records == []
    assert findings.skip_counts[NO_GOLD] == 1
    assert list(findings.users) == ["ann"]


def test_the_first_twenty_faults_are_listed_and_all_counted() -> None:
    _, findings = questions([question(id=f"q{number}", input=None) for number in range(50)])
    assert findings.fault_count == 50
    assert len(findings.fault_lines) == 20
