"""Invented histories in every format, for tests of importing and of what follows it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mta_cli.events import Event, JobResult, Note
from mta_cli.pipeline.users.import_file import import_file
from store.registry import Registry
from store.staged_records import StagedRecords


def write(path: Path, value: Any) -> Path:
    """`value` as JSON in a file; lists of records as JSON lines where the name says so."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in value), encoding="utf-8")
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def tagged(number: int, **changes: Any) -> dict[str, Any]:
    """A history entry of lamp-2."""
    return {"id": str(number), "description": f"film {number} about a lighthouse", "tag": "comedy"} | changes


def person(name: str, items: int = 3, queries: int = 1) -> dict[str, Any]:
    """A user of a users document, of task lamp-2."""
    asked = [{"id": f"{name}-q{n}", "input": f"a plot {n}", "gold": "action"} for n in range(queries)]
    return {"user_id": name, "profile": [tagged(n, date=f"2020-01-{n + 1:02}") for n in range(items)], "query": asked}


def rows(user: str | None = "ann", count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Records of a JSONL file."""
    whose = {} if user is None else {"user": user}
    return [whose | {"input": f"note {n}", "output": f"answer {n}"} | changes for n in range(count)]


def staged() -> StagedRecords:
    """A place for the records of a parser."""
    return StagedRecords(sqlite3.connect(":memory:", isolation_level=None))


def run(events: Iterator[Event]) -> tuple[Any, list[str]]:
    """The job's result, and its notes."""
    seen = list(events)
    result = seen[-1]
    assert isinstance(result, JobResult)
    return result.result, [event.text for event in seen if isinstance(event, Note)]


def imported(reg: Registry, form: str, path: Path, **options: Any) -> dict[str, Any]:
    """Import a file and return the result."""
    result: dict[str, Any] = run(import_file(reg, form, path, **options))[0]
    return result
