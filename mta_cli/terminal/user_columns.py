"""The columns of users in `mta user list` and in the window's Users screen. Imports nothing.

A column is a field of `UserSummary` (for the command) or `UserRow` (for the window) in `store/queries/user_row.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UserColumn:
    """A column. The command shows it where it has a `title`, the window where it has a `width`.

    `width` is in cells; in a narrow window, the column with the highest `drop_priority` is dropped first. `kind` is the
    window's format of a value: text, count, bytes or change. A `quiet` column is dimmed there, and empty for 0.
    """

    key: str
    title: str = ""
    width: int = 0
    kind: str = "text"
    drop_priority: int = 0
    quiet: bool = False


USER_COLUMNS = (
    UserColumn("name", "name", 14),
    UserColumn("items", "items", 7, "count"),
    UserColumn("queries", "queries", 8, "count", drop_priority=4),
    UserColumn("task", "task", 8, drop_priority=2, quiet=True),
    UserColumn("status", "status", 8),
    UserColumn("anchors", "", 7, "count", drop_priority=3, quiet=True),
    UserColumn("stack_bytes", "stack bytes"),
    UserColumn("can_anchor", "anchor?"),
    UserColumn("bytes", "", 7, "bytes", drop_priority=1, quiet=True),
    UserColumn("change", "", 7, "change"),
)
