"""What a typed filter means: names, statuses, tasks and comparisons; nothing typed is ever an error."""

from __future__ import annotations

import pytest

from store.queries.user_filter import MAX_FILTER, Wanted, read_filter


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", Wanted()),
        ("  ann   lee ", Wanted(("ann", "lee"))),
        ('"ann lee"', Wanted(("ann lee",))),
        ('"ann lee', Wanted(("ann lee",))),
        ("status:adapted", Wanted(statuses=("adapted",))),
        ("STATUS:a", Wanted(statuses=("anchor", "adapted"))),
        ("status:a status:ad", Wanted(statuses=("adapted",))),
        ("status:gone", Wanted(statuses=())),
        ("task:lamp-2", Wanted(tasks=("lamp-2",))),
        ('task:"two words" bob', Wanted(("bob",), tasks=("two words",))),
        ("items>5", Wanted(comparisons=(("items", ">", 5.0),))),
        ("Items>=5 queries<=2", Wanted(comparisons=(("items", ">=", 5.0), ("queries", "<=", 2.0)))),
        ("items>=5,000 bytes<1,234,567.5", Wanted(comparisons=(("items", ">=", 5e3), ("bytes", "<", 1234567.5)))),
        ("change>-.05", Wanted(comparisons=(("change", ">", -0.05),))),
        ("anchors=4 bytes<100", Wanted(comparisons=(("anchors", "=", 4.0), ("bytes", "<", 100.0)))),
    ],
)
def test_what_is_typed_is_read(text: str, meant: Wanted) -> None:
    assert read_filter(text) == meant


@pytest.mark.parametrize("text", ["status:", "task:", 'task:"', 'task:""', "items>", "items>=", "change<", '"', '""'])
def test_a_word_that_is_not_finished_asks_for_nothing(text: str) -> None:
    assert read_filter(text) == Wanted()


@pytest.mark.parametrize(
    "text",
    ["items>many", "items>1e9", "items>nan", "items>50,00", "items>,5", "age>5", "items:5", "x:y", "%", "_", "--", "*"],
)
def test_what_is_no_known_word_is_part_of_a_name(text: str) -> None:
    assert read_filter(text) == Wanted((text,))


def test_a_name_is_looked_for_in_its_stored_form() -> None:
    assert read_filter("Zoe\u0308") == Wanted(("Zoë",))


def test_a_filter_without_end_is_cut() -> None:
    assert read_filter("x" * 10_000) == Wanted(("x" * MAX_FILTER,))


def test_only_a_name_needs_no_columns() -> None:
    assert read_filter("ann lee").name_only
    wanted = read_filter("status:new items>1 bytes<3")
    assert not wanted.name_only and wanted.columns == {"status", "items", "bytes"}
    assert not read_filter("task:x").name_only and not read_filter("status:gone").name_only
