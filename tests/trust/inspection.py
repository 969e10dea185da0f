"""Looks at what a command left behind: whether it is sound, and what it says, without the parts that clocks write."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from store.registry import Registry

CLOCKS = {"created", "seconds", "forgotten_at", "uuid", "user_uuid"}  # and random numbers
LEFT_OUT = {"runs", "run_users", "steps", "jobs", "job_users"}
TEMPORARY = ".mta-*.tmp"

Contents = dict[str, Any]


def faults(root: Path, scratch: Path) -> list[str]:
    """What is wrong with the store in `root`, as SQLite itself and, on a copy of it, the next opening find it.

    Temporary files may be there, and nothing else that is not whole; after the opening they are gone.
    """
    found = _damage(root) + _torn(root)
    copy = scratch / "opened"
    shutil.copytree(root, copy)
    with Registry.open(copy, create=True) as reg:
        found += reg.check_integrity()
    found += [f"{path} is still there" for path in copy.rglob(TEMPORARY)]
    shutil.rmtree(copy)
    return found


def contents(root: Path) -> Contents:
    """All that the store holds: every row with its number, and every file's digest.

    Left out, because they differ between a run and two halves of it: columns of clocks and chance, runs and jobs
    (a command that was run twice has two), and SQLite's own tables behind the full-text index, whose pages depend on
    how rows were grouped in transactions. That the index is right is part of `faults`. So are temporary files, which go
    when the store is opened again.
    """
    found: Contents = {}
    with closing(sqlite3.connect(root / "registry.db")) as conn:
        tables = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        for (table,) in tables:
            if table in LEFT_OUT or table.startswith(("sqlite_", "_sqlite_", "items_fts")):
                continue
            columns = [row[1] for row in conn.execute(f"PRAGMA table_info({table})") if row[1] not in CLOCKS]
            rows = conn.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
            found[table] = sorted((dict(zip(columns, row, strict=True)) for row in rows), key=repr)
    found["files"] = sorted((str(path.relative_to(root)), digest(path)) for path in _files(root))
    return found


def torn_models(root: Path) -> list[str]:
    """What in a models directory is neither whole nor temporary."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and not path.name.endswith(".tmp"):
            try:
                json.loads(path.read_text())
            except ValueError:
                found.append(f"{path} is not a whole document")
    return found


def folder(root: Path) -> Contents:
    """Every file of a models directory with its digest, without what is remembered to save time."""
    every = [path for path in sorted(root.rglob("*")) if path.is_file()]
    kept = [path for path in every if path.parent.name != ".folders" or path.suffix == ".tmp"]
    return {str(path.relative_to(root)): digest(path) for path in kept}


def difference(one: Contents, other: Contents) -> str:
    """What differs, for a person who reads a failed test; empty when nothing does."""
    lines = []
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if left == right:
            continue
        if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
            pairs = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
            lines += [
                f"{key}: {a.items() - b.items()} ≠ {b.items() - a.items()}" for a, b in pairs if isinstance(a, dict)
            ]
            lines += [f"{key}: {a} ≠ {b}" for a, b in pairs if not isinstance(a, dict)]
        else:
            lines.append(f"{key}: {left!r} ≠ {right!r}"[:2000])
    return "\n".join(lines)


def digest(path: Path) -> str:
    """The file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damage(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "registry.db")) as conn:
        lines = [line for (line,) in conn.execute("PRAGMA integrity_check") if line != "ok"]
        return lines + [f"foreign key: {row}" for row in conn.execute("PRAGMA foreign_key_check")]


def _torn(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "registry.db")) as conn:
        there = conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'adapters'").fetchone()
        recorded = {row[0] for row in conn.execute("SELECT digest FROM adapters")} if there else set()
    files = {path.stem: digest(path) for path in root.glob("adapters/??/*.safetensors")}
    lost = [f"the file of {name} is not there" for name in recorded - set(files)]
    halves = [f"{path} is not what it is named by" for path in root.glob("partial/*.safetensors") if _half(path)]
    return lost + halves + [f"the file of {name} has another digest" for name, found in files.items() if name != found]


def _half(path: Path) -> bool:
    return path.name.split(".")[1] != digest(path)


def _files(root: Path) -> list[Path]:
    found = [path for name in ("adapters", "partial") for path in (root / name).rglob("*") if path.is_file()]
    return [path for path in found if not fnmatch(path.name, TEMPORARY)]
