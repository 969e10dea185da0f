"""The errors of this program, in words for the user at the terminal. Imports nothing; knows no streams or colours."""

from __future__ import annotations

from collections.abc import Sequence


class MtaError(Exception):
    """A failure that is explained in one line: what happened (with the values), and a hint on what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MtaError):
    """Flags or settings that contradict each other or are out of range."""

    exit_code = 2


class NotFound(MtaError):
    """A user, bank, model, task or file that does not exist."""

    exit_code = 3


class BadInput(MtaError):
    """Input that cannot be used. `faults` lists every one found, each with its place."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str | None = None, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.faults = faults


class IntegrityFault(MtaError):
    """The store, a file or a model does not match its record."""

    exit_code = 5


class StoreBusy(MtaError):
    """Another process held the write lock, or the same job, longer than the timeout."""


class UserInUse(StoreBusy):
    """A running job uses the data of a user who is to be removed or takes their consent back."""


class UsersChanged(MtaError):
    """Users of a job were removed, took their consent back, or got other items, between its plan and its begin."""


class Interrupted(MtaError):
    """The user pressed Ctrl-C; the job was closed and left no partial result."""

    exit_code = 130


def did_you_mean(near: Sequence[str], otherwise: str) -> str:
    """The hint at a name that is not known: the nearest names, or `otherwise` where there are none."""
    if not near:
        return otherwise
    *others, last = near
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def extra_hint(extra: str) -> str:
    """The hint where packages of an extra are missing."""
    return f"pip install '.[{extra}]' in a checkout of mta"


def system_reason(error: Exception) -> str:
    """The system's reason for an error, in its own words where it has any: `No such file or directory`."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
