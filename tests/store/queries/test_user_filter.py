"""What a typed filter means: names, statuses, tasks and comparisons; nothing typed is ever an error."""

from __future__ import annotations

import pytest

from store.queries.user_filter import MAX_FILTER_CHARS, UserFilter, parse_user_filter


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", UserFilter()),
        ("  ann   lee ", UserFilter(("ann", "lee"))),
        ('"ann lee"', UserFilter(("ann lee",))),
        ('"ann lee', UserFilter(("ann lee",))),
        ("status:adapted", UserFilter(statuses=("adapted",))),
        ("STATUS:a", UserFilter(statuses=("anchor", "adapted"))),
        ("status:a status:ad", UserFilter(statuses=("adapted",))),
        ("status:gone", UserFilter(statuses=())),
        ("task:lamp-2", UserFilter(tasks=("lamp-2",))),
        ('task:"two words" bob', UserFilter(("bob",), tasks=("two words",))),
        ("items>5", UserFilter(comparisons=(("items", ">", 5.0),))),
        ("Items>=5 queries<=2", UserFilter(comparisons=(("items", ">=", 5.0), ("queries", "<=", 2.0)))),
        ("items>=5,000 bytes<1,234,567.5", UserFilter(comparisons=(("items", ">=", 5e3), ("bytes", "<", 1234567.5)))),
        ("change>-.05", UserFilter(comparisons=(("change", ">", -0.05),))),
        ("anchors=4 bytes<100", UserFilter(comparisons=(("anchors", "=", 4.0), ("bytes", "<", 100.0)))),
    ],
)
def test_what_is_typed_is_read(text: str, meant: UserFilter) -> None:
    assert parse_user_filter(text) == meant


@pytest.mark.parametrize("text", ["status:", "task:", 'task:"', 'task:""', "items>", "items>=", "change<", '"', '""'])
def test_a_word_that_is_not_finished_asks_for_nothing(text: str) -> None:
    assert parse_user_filter(text) == UserFilter()


@pytest.mark.parametrize(
    "text",
    ["items>many", "items>1e9", "items>nan", "items>50,00", "items>,5", "age>5", "items:5", "x:y", "%", "_", "--", "*"],
)
def test_what_is_no_known_word_is_part_of_a_name(text: str) -> None:
    assert parse_user_filter(text) == UserFilter((text,))


def test_a_name_is_looked_for_in_its_stored_form() -> None:
    assert parse_user_filter("Zoe\u0308") == UserFilter(("Zoë",))


def test_a_filter_without_end_is_cut() -> None:
    assert parse_user_filter("x" * 10_000) == UserFilter(("x" * MAX_FILTER_CHARS,))


def test_only_a_name_needs_no_columns() -> None:
    assert parse_user_filter("ann lee").is_name_only
    wanted = parse_user_filter("status:new items>1 bytes<3")
    assert not wanted.is_name_only and wanted.required_columns == {"status", "items", "bytes"}
    assert not parse_user_filter("task:x").is_name_only and not parse_user_filter("status:gone").is_name_only
