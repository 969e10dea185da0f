"""Names that look alike are told apart and reported."""

from __future__ import annotations

from mta_cli.pipeline.data.confusable_names import confusable_name_warnings


def test_case_and_unicode_forms_are_reported() -> None:
    lines = confusable_name_warnings(["Zoë", "zoë", "Ⅳ"], ["IV", "other"])
    assert len(lines) == 2
    assert "'Zoë' and 'zoë' differ only in case, Unicode form or white space" in lines[0]
    assert "'IV' and '\\u2163'" in lines[1]


def test_groups_among_stored_names_alone_are_not_news() -> None:
    assert confusable_name_warnings(["bob"], ["Ann", "ann", "bob"]) == []


def test_many_groups_are_counted() -> None:
    names = [f"user{number}" for number in range(15)]
    lines = confusable_name_warnings(names, [name.upper() for name in names])
    assert len(lines) == 11
    assert lines[-1] == "and 5 more groups of names that look alike"
