"""Normalises ISO 8601 times and Unix times to a form that sorts chronologically as text."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

_YEAR_OR_MONTH = re.compile(r"(?!0000)\d{4}(-(0[1-9]|1[0-2]))?")
_DATE = re.compile(r"\d{4}-?(\d{2}-?\d{2}|W\d{2}-?\d)", re.ASCII)
_SLASHED_DATE = re.compile(r"\d{4}/\d{1,2}/\d{1,2}", re.ASCII)
_UNIX = re.compile(r"(\d{9,10})(\d{3})?(\.\d+)?", re.ASCII)


def normalise_time(text: str) -> str:
    """An ISO 8601, slashed or Unix time as `YYYY`, `YYYY-MM`, `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SS[.ffffff]` in UTC.

    `text` is ISO 8601, `YYYY/MM/DD`, or Unix time in seconds (9 or 10 digits) or milliseconds (12 or 13),
    whose fraction is dropped. A time without an offset counts as UTC. Raises ValueError for anything else.
    """
    text = text.strip()
    if not text.isascii():
        raise ValueError("not ISO 8601")
    if _YEAR_OR_MONTH.fullmatch(text):
        return text
    if _DATE.fullmatch(text):
        return date.fromisoformat(text).isoformat()
    if _SLASHED_DATE.fullmatch(text):
        return date(*map(int, text.split("/"))).isoformat()
    if unix := _UNIX.fullmatch(text):
        return datetime.fromtimestamp(int(unix[1]), UTC).replace(tzinfo=None).isoformat()
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError("outside the calendar") from error
    return moment.isoformat()


def may_be_same_day(one: str | None, other: str | None) -> bool:
    """Whether two normalised times can be on the same day. A year or month can mean any of its days, None any day."""
    days = one or "", other or ""
    return days[0][:10].startswith(days[1][:10]) or days[1][:10].startswith(days[0][:10])
