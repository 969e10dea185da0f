"""Between rows of the database and the frozen records: JSON columns, booleans, binary numbers. Knows no table."""

from __future__ import annotations

import json
import math
from typing import Any

from mta_cli.errors import IntegrityFault


def dump_json(document: Any, *, in_order: bool = False) -> str:
    """A document as a JSON column holds it: keys sorted, or `in_order` as they come."""
    return json.dumps(document, ensure_ascii=False, sort_keys=not in_order)


def load_json_columns(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with its JSON `columns` as documents; NULL stays None. IntegrityFault where one is damaged."""
    try:
        return row | {name: None if row[name] is None else json.loads(row[name]) for name in columns}
    except ValueError as error:
        raise IntegrityFault(
            "A record of the store is damaged.", hint="mta restore FILE brings back a backup"
        ) from error


def load_boolean_columns(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with its 0/1 `columns` as booleans."""
    return row | {name: bool(row[name]) for name in columns}


def null_to_nan(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """The row with NULL in `columns` as not-a-number, which is how SQLite keeps it."""
    return row | {name: math.nan if row[name] is None else row[name] for name in columns}
