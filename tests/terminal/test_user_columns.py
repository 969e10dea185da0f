"""Every column that is shown is one of the store's."""

from __future__ import annotations

from dataclasses import fields

from mta_cli.terminal.user_columns import USER_COLUMNS
from store.queries.user_row import UserRow, UserSummary


def test_each_column_is_a_field_of_the_row_that_it_is_read_from() -> None:
    assert {each.key for each in USER_COLUMNS if each.title} <= {each.name for each in fields(UserSummary)}
    assert {each.key for each in USER_COLUMNS if each.width} == {each.name for each in fields(UserRow)}
