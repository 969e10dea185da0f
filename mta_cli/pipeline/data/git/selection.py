"""The options that select the commits of a repository, and the task of their messages."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from mta_cli.engine.text.tasks import Task
from mta_cli.errors import Flag, UsageError
from mta_cli.options import LEAST_COMMITS
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.data.formats.timestamps import normalise_time

_TASK = Task(
    name="commit",
    kind="text",
    description="Commit messages: the first line that an author writes for a change",
    prompt="{input}\nMy commit message:",
    item="{input}\nMessage: {output}",
    history_header="Commits I made:",
    query_tokens=112,
    item_tokens=64,
    answer_tokens=32,
)
_BODY_TASK = Task(
    name="commit-body",
    kind="text",
    description="Commit messages: all that an author writes for a change",
    prompt="{input}\nMy commit message, with its body:",
    item="{input}\nMessage: {output}",
    history_header="Commits I made:",
    query_tokens=112,
    item_tokens=128,
    answer_tokens=160,
)


@dataclass(frozen=True)
class CommitSelection:
    """Selects the commits made `since` a date that change files in `paths`, of authors with at least `least` of them.

    With `body`, the outputs are whole messages. With `pseudonyms`, users have made-up names.
    """

    since: str | None = None
    paths: tuple[str, ...] = ()
    least: int = LEAST_COMMITS
    body: bool = False
    pseudonyms: bool = False

    @property
    def given(self) -> list[str]:
        """The names of the options that differ from their defaults."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]

    @property
    def task(self) -> Task:
        """The task of the messages. Whole messages are another task, so that both can be stored."""
        return _BODY_TASK if self.body else _TASK

    @cached_property
    def first_time(self) -> str:
        """The earliest time, normalised; empty without one. Raises UsageError if it is not a date."""
        if self.since is None:
            return ""
        try:
            return normalise_time(self.since)
        except ValueError as error:
            raise UsageError(
                (Flag("since"), f": {format_value(self.since)} is not a date"),
                hint="give a year, month or day, such as 2025, 2025-06 or 2025-06-30",
            ) from error
