"""Time and memory of commands on a large store: 100,000 users, 1,000,000 items.

One user has a fifth of all items, all others have eight. Every command is a separate process. `MTA_BENCH_STORE` names a
folder in which the store is kept for the next run; commands work on a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.bench_startup import environment
from store.records import NewItem
from store.registry import Registry

USERS, ITEMS, HEAVY = 100_000, 1_000_000, 200_000
TASKS = 10_000
WORDS = [f"{start}{vowel}{end}" for start in "bdfghklmnprst" for vowel in "aeiou" for end in ("n", "r", "st", "lf")]
WRITER_TIMEOUT = 10.0  # seconds that a concurrent writer waits during an import
MEASURED = """import resource, sys
from mta_cli.__main__ import main
try:
    code = main()
except SystemExit as ended:
    code = ended.code
used = resource.getrusage(resource.RUSAGE_SELF)
print("used", used.ru_maxrss / 1e3, used.ru_utime + used.ru_stime, file=sys.stderr)
sys.exit(code)
"""


def said(number: int) -> NewItem:
    """An invented item of twelve words."""
    words = [WORDS[number * (2 * place + 3) // (place + 1) % len(WORDS)] for place in range(12)]
    return NewItem(f"i{number}", "free", " ".join(words), words[number % 12], "2026-01-01")


def make_store(root: Path) -> None:
    """Make the large store in plain SQL. The full-text index is built at the end, which is faster than item by item."""
    Registry.open(root, create=True).close()
    with closing(sqlite3.connect(root / "registry.db")) as db:
        ((trigger,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'items_indexed'").fetchall()
        db.executescript("PRAGMA synchronous = OFF; PRAGMA cache_size = -500000; DROP TRIGGER items_indexed")
        db.executemany(
            "INSERT INTO users (id, name, created, uuid) VALUES (?1, printf('user %06d', ?1), '2026-01-01', hex(?1))",
            ((number,) for number in range(1, USERS + 1)),
        )
        db.executemany(
            "INSERT INTO items (user_id, key, task, input, output, time) VALUES (?, ?, ?, ?, ?, ?)",
            ((_owner(n), i.key, i.task, i.input, i.output, i.time) for n, i in ((n, said(n)) for n in range(ITEMS))),
        )
        db.execute("INSERT INTO items_fts (items_fts) VALUES ('rebuild')")
        db.execute(trigger)
        db.commit()


def _owner(number: int) -> int:
    return 1 if number < HEAVY else 2 + (number - HEAVY) * (USERS - 1) // (ITEMS - HEAVY)


def history_file(path: Path, items: int, first: int = 10_000_000) -> Path:
    """Write a CSV or JSONL file of new items; returns its path."""
    found = map(said, range(first, first + items))
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("id,input,output,time\n")
            file.writelines(f"{i.key},{i.input},{i.output},{i.time}\n" for i in found)
        else:
            entries = ({"id": i.key, "input": i.input, "output": i.output, "time": i.time} for i in found)
            file.writelines(f"{json.dumps(entry)}\n" for entry in entries)
    return path


def measure(line: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """One command: seconds, seconds to the first byte of its output, CPU seconds, and peak MB."""
    start = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, *line]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        errors = list[bytes]()
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        reader.start()
        process.stdout.read(1)
        first = time.perf_counter() - start
        while process.stdout.read(1 << 16):
            pass
        reader.join()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"mta {' '.join(line)}: {b''.join(errors).decode()}")
    _, megabytes, processor = errors[-1].split()
    return {"first s": first, "s": seconds, "processor s": float(processor), "MB": float(megabytes)}


@contextmanager
def writer(root: Path) -> Iterator[dict[str, Any]]:
    """Inside the block, a thread writes to the store repeatedly; yields its longest wait (seconds) and its failures."""
    found: dict[str, Any] = {"others wait s": 0.0, "others failed": 0}
    ended = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(root / "registry.db", timeout=WRITER_TIMEOUT, isolation_level=None)) as db:
            while not ended.wait(0.2):
                start = time.perf_counter()
                try:
                    db.execute("UPDATE tasks SET toml = toml WHERE name = ''")
                except sqlite3.OperationalError:
                    found["others failed"] += 1
                found["others wait s"] = max(found["others wait s"], time.perf_counter() - start)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def add_tasks(root: Path) -> None:
    """Make a store with `TASKS` tasks and nothing else."""
    with Registry.open(root, create=True) as reg, reg.transaction():
        for number in range(TASKS):
            reg.tasks.save_task(f"mine-{number}", f'name = "mine-{number}"\nprompt = "Say {{input}}"\n')


def main() -> None:
    """Measure, and print the results."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place, env = Path(folder), environment(Path(folder))
        kept = Path(os.environ.get("MTA_BENCH_STORE", place / "kept"))
        if not kept.exists():
            make_store(kept)
        shutil.copytree(kept, env["MTA_STORE"])
        csv = history_file(place / "history.csv", HEAVY)
        lines = [
            ["user", "list"],
            ["user", "list", "--json"],
            ["user", "show", "user 000001"],
            ["user", "rm", "user 050000", "--yes"],
            ["user", "add", "a new one", "--history", str(csv), "--yes"],
        ]
        for line in lines:
            with writer(Path(env["MTA_STORE"])) as others:
                found = measure(line, env)
            name = " ".join(line).replace(str(csv), f"FILE of {HEAVY:,} items")
            waits = others if line[1] == "add" else {}
            rows.append({"command": f"mta {name}", **found, **waits})
        add_tasks(place / "tasks")
        rows.append(
            {"command": "mta task list", **measure(["task", "list"], {**env, "MTA_STORE": str(place / "tasks")})}
        )
        harness.report("large_store", rows, users=USERS, items=ITEMS, file_mb=csv.stat().st_size / 1e6, tasks=TASKS)


if __name__ == "__main__":
    main()
