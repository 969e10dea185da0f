"""The errors of this program. Commands and flags in their texts are values, so that a form can word them in its own
way.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Flag:
    """A flag in a message, by its field's name: `Flag("dtype", "bfloat16")` is `--dtype bfloat16` in a shell."""

    name: str
    value: str | int | None = None

    def __str__(self) -> str:
        flag = f"-{self.name}" if len(self.name) == 1 else f"--{self.name.replace('_', '-')}"
        return flag if self.value is None else f"{flag} {shlex.quote(str(self.value))}"


@dataclass(frozen=True, init=False)
class Command:
    """A command of ours: `Command("bank show", "films", bank_version=2)` is `mta bank show films --bank-version 2`.

    A flag that is None is left out; one that is True has no value.
    """

    path: str
    words: tuple[str, ...]
    flags: tuple[Flag, ...]

    def __init__(self, path: str, *words: str, **flags: str | int | None) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        worded_flags = tuple(Flag(name, None if value is True else value) for name, value in given.items())
        self.__dict__.update(path=path, words=words, flags=worded_flags)  # the class is frozen

    def __str__(self) -> str:
        return self.line("mta")

    def line(self, program: str) -> str:
        """The command line, as the shell takes it; `program` is its beginning, `mta` and flags of every command."""
        return " ".join([program, self.path, *map(shlex.quote, self.words), *map(str, self.flags)])


Words: TypeAlias = "str | Command | Flag | tuple[Words, ...]"
"""A text in which commands and flags are values."""


def words_to_text(words: Words, word: Callable[[Command | Flag], str] = str) -> str:
    """The text of `words`. `word` turns a command or flag into text; by default as on the command line."""
    if isinstance(words, tuple):
        return "".join(words_to_text(part, word) for part in words)
    return words if isinstance(words, str) else word(words)


class MtaError(Exception):
    """An error that the user gets as one line: what happened, with the values; and a hint on what to do."""

    exit_code = 1

    def __init__(self, message: Words, *, hint: Words | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return words_to_text(self.message)


class UsageError(MtaError):
    """Flags or settings that contradict each other or are out of range."""

    exit_code = 2


class NotFound(MtaError):
    """A user, bank, model, task or file that does not exist."""

    exit_code = 3


class BadInput(MtaError):
    """Input that cannot be used. `faults` lists every one found, each with its place."""

    exit_code = 4

    def __init__(self, message: Words, *, hint: Words | None = None, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.faults = faults


class IntegrityFault(MtaError):
    """The store, a file or a model does not match its record."""

    exit_code = 5


class StoreBusy(MtaError):
    """Another process held the write lock, or ran the same job, for longer than the timeout."""


class UserInUse(StoreBusy):
    """A running job uses the data of a user who is to be removed, or whose consent is to be withdrawn."""


class UsersChanged(MtaError):
    """While a job started, some of its users were removed, withdrew their consent, or got other items."""


class Interrupted(MtaError):
    """The user pressed Ctrl-C; the job was closed and left no partial result."""

    exit_code = 130


def did_you_mean(near: Sequence[str], otherwise: Words) -> Words:
    """The hint for an unknown name: the nearest known names, or `otherwise` if there are none."""
    if not near:
        return otherwise
    *others, last = near
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def extra_hint(extra: str) -> str:
    """The hint for missing packages: how to install the `extra` that contains them."""
    return f"pip install '.[{extra}]' in a checkout of mta"


def system_reason(error: Exception) -> str:
    """The reason in the system's words, such as `No such file or directory`; else the error's own text."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
