"""The request of an import: the files, how to read them, and how many items to hold out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput, Flag, UsageError, system_reason
from mta_cli.options import ImportOptions
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.formats.archive import ArchivedFile, is_archive, text_files
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.detect import prefer_non_tables
from mta_cli.pipeline.data.formats.messengers import slack
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.data.git.program import is_repository
from mta_cli.pipeline.data.git.selection import CommitSelection
from mta_cli.pipeline.data.presets import PRESETS, Preset
from store.names import check_name

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task

DEFAULT_TASK = "free"
NO_COLUMN = "-"


@dataclass(frozen=True)
class ImportSource:
    """A file, a folder or zip archive of files, or a git repository, and how it is read.

    `format` None means detection by content. `user` is the user of rows that name no user, `task` the task of records
    that name no task. `also_me` are further names of `user`: addresses in mail, senders in messengers' files.
    `guessed_time` says that the time column in `columns` is a guess. `hold_out` items of each user become queries,
    drawn by `seed` if times are unknown. With `skip_faulty`, faulty records are left out; with `round_to`, a table's
    outputs are rounded to multiples of it, and outputs outside `scale` are left out. `commits` selects the commits of
    a repository.
    """

    format: str | None
    path: Path
    task: str | None = None
    outputs: Path | None = None
    user: str | None = None
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    preset: str | None = None
    hold_out: int = 0
    seed: int = 0
    also_me: tuple[str, ...] = ()
    skip_faulty: bool = False
    round_to: float = 0.0
    scale: tuple[float, float] = (-math.inf, math.inf)
    guessed_time: bool = False
    commits: CommitSelection = field(default_factory=CommitSelection)

    @classmethod
    def from_options(
        cls, path: Path, given: ImportOptions, *, format: str | None = None, task: str | None = None
    ) -> ImportSource:
        """The source at `path` with the options `given`. Raises UsageError if options contradict each other."""
        time, id = ("" if column == NO_COLUMN else column for column in (given.time, given.id))
        source = cls(
            format,
            path,
            task,
            Path(given.outputs).expanduser() if given.outputs else None,
            check_name(given.me[0]) if given.me else None,
            ColumnMapping(given.user, given.input, given.output, time, id),
            given.preset,
            given.hold_out,
            given.seed,
            given.me[1:],
            given.skip_faulty,
            given.round,
            commits=CommitSelection(given.since, given.paths, given.least, given.body, given.pseudonyms),
        )
        source.require_consistent()
        return source

    @property
    def name(self) -> str:
        """The file's or folder's name, for messages."""
        return self.path.name or self.path.resolve().name or str(self.path)

    @property
    def is_repository(self) -> bool:
        """Whether a git repository is read: the format is `git`, or the folder is one and no format is given."""
        return self.format == "git" or (self.format is None and self.preset is None and is_repository(self.path))

    @property
    def is_stream(self) -> bool:
        """Whether the path is a pipe or a device, which can be read only once."""
        return os.path.exists(self.path) and not os.path.isfile(self.path) and not os.path.isdir(self.path)

    @property
    def addresses(self) -> frozenset[str]:
        """The user's mail addresses, in folded case."""
        return frozenset(name.casefold() for name in (self.user or "", *self.also_me) if "@" in name)

    @property
    def names(self) -> tuple[str, ...]:
        """The user's names in messengers' files."""
        return (*filter(None, (self.user,)), *self.also_me)

    @property
    def known_preset(self) -> Preset | None:
        """The preset with the given name, which `require_consistent` must have checked; None without one."""
        return None if self.preset is None else PRESETS[self.preset]

    @property
    def passes_over_unknown(self) -> bool:
        """Whether files of unknown format are skipped: true for a folder or archive if no format is given."""
        return self.format is None and self.preset is None and (self.path.is_dir() or is_archive(self.path))

    @property
    def own_task(self) -> Task | None:
        """The task that belongs to the source: a preset's, or the task of commit messages; otherwise None."""
        if self.is_repository:
            return self.commits.task
        return None if self.known_preset is None else self.known_preset.task

    @property
    def default_task(self) -> str:
        """The name of the task for records that name none."""
        return self.task or (DEFAULT_TASK if self.own_task is None else self.own_task.name)

    @property
    def mapping(self) -> ColumnMapping:
        """The given column mapping, completed by the preset's."""
        preset = self.known_preset
        return self.columns if preset is None else self.columns.merged_over(preset.columns)

    @property
    def keeps_untimed(self) -> bool:
        """Whether rows with an unreadable time are kept without it: true unless the user named the time column."""
        return self.columns.time is None or self.guessed_time

    def require_consistent(self) -> None:
        """Raises UsageError if the options contradict each other."""
        if self.format is not None and self.format not in FORMATS:
            raise UsageError(f"{format_value(self.format)} is not a format", hint=f"choose one of {', '.join(FORMATS)}")
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(f"{format_value(self.preset)} is not a preset", hint=f"choose one of {', '.join(PRESETS)}")
        self.require_format_consistent("git" if self.is_repository else self.format)
        if self.user is not None and self.columns.user is not None:
            raise UsageError(
                (Flag("me"), " and ", Flag("user"), " contradict each other"),
                hint=(Flag("user"), " names the column of the users, ", Flag("me"), " the only user: give one of them"),
            )
        self._require_preset_consistent()
        _ = self.mapping.templates

    def require_format_consistent(self, format: str | None) -> None:
        """Raises UsageError if an option is wrong or missing for `format`; an unknown format (None) passes."""
        if self.outputs is not None and format not in (None, "lamp"):
            raise UsageError((Flag("outputs"), f" applies to files in the format lamp, not to {format}"))
        if format is None:
            return
        kind = FORMATS[format].kind
        if kind != "repository" and (given := self.commits.given):
            raise UsageError((Flag(given[0]), f" applies to git repositories, not to {format}"))
        _ = self.commits.first_time  # raises if it is not a date
        if kind != "table" and self.round_to:
            raise UsageError((Flag("round"), f" applies to files with columns, not to {format}"))
        if kind != "table" and not self.columns.is_default:
            column = next(iter(self.columns.flags()))
            raise UsageError((Flag(column), f" applies to files with columns, not to {format}"))
        names_users = kind in ("document", "repository")
        if names_users and self.skip_faulty:
            raise UsageError((Flag("skip_faulty"), f" applies to files of rows or messages, not to {format}"))
        if names_users and self.user is not None:
            raise UsageError((Flag("me"), f" applies to files of one user, not to {format}, which names its users"))
        if kind == "chat" and self.user is None:
            raise UsageError(
                f"a file in the format {format} does not name its user",
                hint=("say whose messages it has: ", Flag("me", "NAME")),
            )
        others = [name for name in self.also_me if "@" not in name] if kind == "mail" else self.also_me
        if others and kind != "messenger":
            several = "is a second name, which only mail and messengers' files can have"
            if kind == "mail":
                hint = ("in mail, every ", Flag("me"), " after the first must be a mail address")
                raise UsageError((Flag("me", others[0]), " is not an address"), hint=hint)
            raise UsageError((Flag("me", others[0]), f" {several}"), hint=("give one name with ", Flag("me")))

    def _require_preset_consistent(self) -> None:
        preset = self.known_preset
        if preset is None:
            return
        if self.format not in (None, "csv"):
            raise UsageError((Flag("preset", preset.name), f" reads csv, not {self.format}"))
        if preset.has_one_user and self.user is None and self.columns.user is None:
            raise UsageError(
                f"an export of {preset.site} does not name its user",
                hint=("say whose export it is: ", Flag("me", "NAME")),
            )
        if not preset.has_one_user and self.user is not None:
            raise UsageError(f"an export of {preset.site} names its users itself", hint=("leave ", Flag("me"), " out"))

    def files(self) -> Sequence[Path | ArchivedFile]:
        """The files to read: the file itself, or the visible files of a folder, an archive or a Slack export.

        Raises `BadInput` for a folder without files, `NotFound` if a preset's file is missing, UsageError if `outputs`
        is given for a folder, and the errors of `text_files` for an archive.
        """
        if (preset := self.known_preset) is not None:
            return [preset.find_file(self.path)]
        if is_archive(self.path):
            texts = text_files(self.path)
            return slack.day_files(texts) or prefer_non_tables(texts)
        if not self.path.is_dir():
            return [self.path]
        if days := slack.day_files(sorted((*self.path.glob("*.json"), *self.path.glob("*/*.json")))):
            return days
        if self.outputs is not None:
            raise UsageError((Flag("outputs"), " applies to one file, not to a folder"), hint="name the file itself")
        try:
            inside = sorted(each for each in self.path.iterdir() if each.is_file() and not each.name.startswith("."))
        except OSError as error:
            raise BadInput(f"{format_value(str(self.path), 200)} cannot be read: {system_reason(error)}") from error
        if not inside:
            raise BadInput(
                f"{format_value(str(self.path), 200)} is a folder without files to import",
                hint="hidden files and files in subfolders are not read: name the folder that has the files",
            )
        return inside
