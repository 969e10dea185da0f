"""The columns of a list of users: each field of a row carries the SQL that reads it.

A column is added here, and to `mta_cli/terminal/user_columns.py`, which says how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, get_origin, get_type_hints

USER_STATUSES = ("new", "anchor", "fused", "adapted")


def status_sql(*, adapted: str, fused: str, anchor: str) -> str:
    """An SQL expression for a user's index in `USER_STATUSES`, from the SQL of the three conditions."""
    return f"CASE WHEN {adapted} THEN 3 WHEN {fused} THEN 2 WHEN {anchor} THEN 1 ELSE 0 END"


@dataclass(frozen=True)
class Column:
    """A column of a user list: its SQL, and the keys of the joins in `user_table` that this SQL uses.

    A filter can compare a column if `number` is true; a list can be sorted by it if `sortable` is.
    """

    sql: str
    joins: str = ""
    number: bool = False
    sortable: bool = True


_STATUS = Column(
    status_sql(adapted="s.user_id IS NOT NULL", fused="r.user_id IS NOT NULL", anchor="a.user_id IS NOT NULL")
)


@dataclass(frozen=True)
class _ListedUser:
    """The fields of every list of users. `task` is the user's task with most items; `status` is one of
    `USER_STATUSES`.
    """

    name: Annotated[str, Column("users.name")]
    items: Annotated[int, Column("coalesce(i.n, 0)", "i", number=True)]
    queries: Annotated[int, Column("coalesce(q.n, 0)", "q", number=True)]
    task: str | None  # its SQL depends on the list's task
    status: Annotated[str, _STATUS]


@dataclass(frozen=True)
class UserSummary(_ListedUser):
    """One line of `mta user list`.

    `can_anchor` is the user's consent to serve others. `bases` is their status on each base on which they have a model,
    `group` their group in `task` if a file gave one.
    """

    stack_bytes: Annotated[int, Column("coalesce(s.bytes, 0)", "s")]
    can_anchor: Annotated[bool, Column("can_anchor")]
    bases: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True)
class UserRow(_ListedUser):
    """One row of the window's table of users, which can be sorted.

    `anchors` counts the anchors in the recipe on the newest bank; `bytes` is the size of recipe and stack. `change` is
    by how much the stack on the newest bank lowered the mean loss on held-out queries (nats a token, more is better);
    None if it was not measured.
    """

    anchors: Annotated[int, Column("coalesce(r.anchors, 0)", "r", number=True, sortable=False)]
    bytes: Annotated[int, Column("coalesce(r.bytes, 0) + coalesce(s.bytes, 0)", "sr", number=True)]
    change: Annotated[float | None, Column("s.change", "s", number=True)]


def _columns_of(row: type[_ListedUser]) -> dict[str, Column]:
    hints = get_type_hints(row, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


ROW_COLUMNS, SUMMARY_COLUMNS = _columns_of(UserRow), _columns_of(UserSummary)
SORT_COLUMNS = tuple(name for name, column in ROW_COLUMNS.items() if column.sortable)
NUMERIC_COLUMNS = tuple(name for name, column in ROW_COLUMNS.items() if column.number)
