"""Values of columns: JSON, booleans, missing numbers, times. Knows no table."""

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
    """A document as JSON text, with sorted keys, or with `in_order` in the document's order."""
    return json.dumps(document, ensure_ascii=False, sort_keys=not in_order)


def load_json_columns(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with its JSON `columns` as documents; NULL stays None. Raises IntegrityFault for damaged JSON."""
    try:
        return row | {name: None if row[name] is None else json.loads(row[name]) for name in columns}
    except ValueError as error:
        raise IntegrityFault(
            "A record of the store is damaged.", hint=(Command("restore", "FILE"), " brings back a backup")
        ) from error


def load_boolean_columns(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with its 0/1 `columns` as booleans."""
    return row | {name: bool(row[name]) for name in columns}


def null_to_nan(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with NaN for NULL in `columns`: SQLite stores NaN as NULL."""
    return row | {name: math.nan if row[name] is None else row[name] for name in columns}
