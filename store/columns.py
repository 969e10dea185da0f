"""Converts values between Python and the columns of any table: JSON, booleans, missing numbers, times."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from mta_cli.errors import Command, IntegrityFault


def utc_now() -> str:
    """The current time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def dump_json(document: Any, *, in_order: bool = False) -> str:
    """A document as JSON text. Keys are sorted; with `in_order` they keep the document's order."""
    return json.dumps(document, ensure_ascii=False, sort_keys=not in_order)


def load_json_columns(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with the JSON text of `columns` parsed; NULL becomes None. Raises IntegrityFault for damaged JSON."""
    try:
        return row | {name: None if row[name] is None else json.loads(row[name]) for name in columns}
    except ValueError as error:
        raise IntegrityFault(
            f"A row of the store has damaged JSON in one of the columns {', '.join(columns)}.",
            hint=(Command("restore", "FILE"), " replaces the store by a backup"),
        ) from error


def load_boolean_columns(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with 0 and 1 in `columns` as False and True."""
    return row | {name: bool(row[name]) for name in columns}


def null_to_nan(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with NaN in place of None in `columns`, because SQLite stores NaN as NULL."""
    return row | {name: math.nan if row[name] is None else row[name] for name in columns}
