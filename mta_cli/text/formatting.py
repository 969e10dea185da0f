"""Formats events, errors, rates, numbers and counts as text, for the command line, the window and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mta_cli.errors import BadInput, MtaError
from mta_cli.events import ArtifactSaved, Event, JobProgress, Note, UnitFailed
from mta_cli.text.printable import clean_line


class RateMeter:
    """The rates of a job that began at `start`, in seconds of a monotonic clock.

    Tokens are counted from the start. The job's units (`JobStarted.unit`, such as steps) are counted from the first
    observed step, because a resumed job begins in the middle.
    """

    def __init__(self, total: int | None, start: float) -> None:
        self.total = total
        self._start = self._now = start
        self._first_step: tuple[int, float] | None = None  # (units done, time)
        self._done = self._tokens = 0

    def add_step(self, event: JobProgress, now: float) -> None:
        """Add a step that ended at `now`."""
        self._first_step = self._first_step or (event.done, now)
        self._done, self._now = event.done, now
        self._tokens += event.tokens

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second; None for a job without tokens."""
        return self._tokens / max(self._now - self._start, 1e-6) if self._tokens else None

    @property
    def units_per_second(self) -> float | None:
        """Units per second; None before the second step."""
        done, since = self._first_step or (0, self._now)
        return (self._done - done) / max(self._now - since, 1e-6) if self._first_step and self._done > done else None

    @property
    def seconds_left(self) -> float | None:
        """The estimated seconds left; None if the total or the rate is unknown."""
        rate = self.units_per_second
        return max(self.total - self._done, 0) / rate if self.total is not None and rate is not None else None


def pluralise(amount: int, one: str, more: str = "") -> str:
    """An amount with its noun: 1 item, 1,200 items."""
    return f"{amount:,} {one if amount == 1 else more or one + 's'}"


CHANGES = ((0.2, "much"), (0.05, ""), (0.01, "a little"))
"""Minimum relative changes of a loss that count as much better (or worse), better, and a little better."""
LEAST_CHANGE = CHANGES[-1][0]
"""Smaller relative changes count as no difference."""


def loss_verdict(before: float, after: float) -> str:
    """A change of a loss in words: `a little better`, `much worse`, `no different`."""
    change = (before - after) / max(abs(before), 1e-9)
    way = "better" if change > 0 else "worse"
    return next((f"{word} {way}".strip() for least, word in CHANGES if abs(change) >= least), "no different")


AGES = ((86_400 * 2, 86_400, "days"), (3_600, 3_600, "h"), (60, 60, "min"))
MAX_AGE = timedelta(days=30)


def format_age(moment: str | None, now: datetime) -> str | None:
    """The age of an ISO time: `just now`, `5 min ago`, `2 h ago`, `3 days ago`; its date after 30 days.

    Other texts are returned unchanged.
    """
    try:
        then = datetime.fromisoformat(moment or "")
    except ValueError:
        return moment
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    seconds = (now - then).total_seconds()
    if not 0 <= seconds < MAX_AGE.total_seconds():
        return then.date().isoformat()
    return next((f"{seconds // unit:.0f} {name} ago" for least, unit, name in AGES if seconds >= least), "just now")


def format_rate(per_second: float) -> str:
    """A rate with about three digits."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def format_clock(seconds: float) -> str:
    """A duration in the form `0:01:05`."""
    return str(timedelta(seconds=round(seconds)))


def event_text(event: Event) -> str | None:
    """The line that shows an event in a log; None for events that are shown in another way."""
    if isinstance(event, ArtifactSaved):
        return f"saved {event.kind} {event.name}" + (f" ({event.detail})" if event.detail else "")
    if isinstance(event, Note):
        return f"warning: {event.text}" if event.warning else event.text
    if isinstance(event, UnitFailed):
        return f"{event.label} failed: {event.message}"
    return None


def error_lines(error: BaseException) -> list[str]:
    """An error's message, then a line for each fault, indented. Its hint is not included."""
    if not isinstance(error, MtaError):
        return [f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"]
    faults = error.faults if isinstance(error, BadInput) else ()
    return [str(error), *(f"  {clean_line(fault)}" for fault in faults)]


NO_VALUE = "–"
UNITS = ("B", "kB", "MB", "GB", "TB")


def finite_or_none(value: object) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def format_number(value: object, *, signed: bool = False) -> str:
    """Three decimals; a dash for a value that is not a number."""
    found = finite_or_none(value)
    if found is None:
        return NO_VALUE
    return f"{round(found, 3) + 0.0:{'+' if signed else ''}.3f}"  # adding 0.0 turns -0.0 into 0.0


def format_interval(found: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """A value with its interval, `value [low, high]`; parts that are missing are left out."""
    if not isinstance(found, Mapping) or finite_or_none(found.get("value")) is None:
        return NO_VALUE
    value, low, high = (format_number(found.get(part), signed=signed) for part in ("value", "low", "high"))
    return value if NO_VALUE in (low, high) else f"{value} [{low}, {high}]"


def format_bytes(value: object) -> str:
    """Bytes in decimal units with two or three digits, such as 104 B, 1.6 MB or 77 kB."""
    found = finite_or_none(value)
    if found is None:
        return NO_VALUE
    unit = 0
    while abs(found) >= 999.5 and unit < len(UNITS) - 1:
        found, unit = found / 1000, unit + 1
    return f"{found:.1f}".removesuffix(".0") + f" {UNITS[unit]}" if found < 9.95 else f"{found:.0f} {UNITS[unit]}"


def format_count(value: object) -> str:
    """A count with commas between thousands; a mean that is not an integer has one decimal."""
    found = finite_or_none(value)
    if found is None:
        return NO_VALUE
    return f"{found:,.1f}" if found % 1 and found < 1000 else f"{found:,.0f}"


def format_seconds_number(value: object) -> str:
    """Seconds with a number of decimals that depends on their size."""
    found = finite_or_none(value)
    if found is None:
        return NO_VALUE
    return f"{found:,.{3 if 0 < found < 0.1 else 2 if found < 10 else 1 if found < 100 else 0}f}"


def format_p_value(value: object) -> str:
    """A p-value with three decimals, or `< 0.001`."""
    found = finite_or_none(value)
    if found is None:
        return NO_VALUE
    return "< 0.001" if found < 0.001 else f"{found:.3f}"


def join_some(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names and the number of the others: `a, b and 3 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def shorten(text: str, most: int) -> str:
    """`text` in one line of at most `most` characters, with one space between words."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def join_words(names: Iterable[object]) -> str:
    """Names as an enumeration in a sentence: `a, b and c`."""
    found = [str(name) for name in names]
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
