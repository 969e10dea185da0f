"""The window's time to start, its response to keys, and its memory, with few users and with 100,000.

Uses a real pseudo-terminal of 120 × 40. A time ends when the emulated screen shows the expected text.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.bench_startup import environment, fill, mta
from store.records import NewItem
from store.registry import Registry
from tests.pseudo_terminal import Terminal

PEOPLE, ITEMS, QUERIES = 100_000, 5, 1
ROUNDS = 7
HEAVY = ("torch", "transformers", "peft", "sentence_transformers", "sklearn", "matplotlib", "numpy", "scipy")


def crowd(root: Path, people: int = PEOPLE) -> None:
    """A store of generated users."""
    with Registry.open(root, create=True) as reg, reg.transaction():
        for number in range(people):
            user, _ = reg.users.get_or_create_user(f"person {number:06} {('ash', 'elm', 'oak', 'yew')[number % 4]}")
            reg.items.append_items(user.id, [NewItem(f"i{n}", "free", f"said {n}", "yes") for n in range(ITEMS)])
            reg.items.append_queries(user.id, [NewItem(f"q{n}", "free", f"asked {n}", "no") for n in range(QUERIES)])


def opened(env: dict[str, str], first: str) -> tuple[float, float, float]:
    """Milliseconds to the first frame and to the first row of users, and then the process's memory in MB."""
    with Terminal(["tui"], 120, 40, env) as terminal:
        frame = terminal.until("1 Users")
        rows = terminal.until(first)
        return frame * 1e3, rows * 1e3, resident(terminal.pid)


def keys(env: dict[str, str], first: str) -> list[float]:
    """Milliseconds from each key of a filter to the filtered rows."""
    taken = []
    with Terminal(["tui"], 120, 40, env) as terminal:
        terminal.until(first)
        terminal.press("/")
        for key in "99999":
            before, start = _people(terminal.look(0.5)), terminal.clock
            terminal.type(key)
            taken.append((terminal.until(lambda screen, old=before: _people(screen) not in ("", old)) - start) * 1e3)
    return taken


def _people(screen: str) -> str:
    return "\n".join(line[:40] for line in screen.splitlines() if line.startswith(" person"))


def resident(pid: int) -> float:
    """The resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def heavy(env: dict[str, str]) -> list[str]:
    """The heavy libraries that a window with users has imported."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from mta_cli.configuration.settings import Settings\n"
        "from mta_cli.tui.app import MtaApp\n"
        "import os\n"
        "async def show():\n"
        "    app = MtaApp(Path(os.environ['MTA_STORE']), Settings.load(None))\n"
        "    async with app.run_test(size=(120, 40)) as pilot:\n"
        "        await pilot.pause(2)\n"
        "asyncio.run(show())\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout.split()


def main() -> None:
    """Measure, and print the results."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        few, many = environment(Path(folder) / "few"), environment(Path(folder) / "many")
        fill(few)
        subprocess.run(mta(["init"]), env=many, check=True, stdout=subprocess.DEVNULL)
        crowd(Path(many["MTA_STORE"]))
        size = sum(path.stat().st_size for path in Path(many["MTA_STORE"]).rglob("*") if path.is_file()) / 1e6
        for name, env, first in (("28 people", few, "bryn"), (f"{PEOPLE:,} people", many, "person 000000")):
            taken = [opened(env, first) for _ in range(ROUNDS)]
            frame, people, memory = (statistics.median(column) for column in zip(*taken, strict=True))
            row: dict[str, Any] = {"store": name, "first frame ms": frame, "people ms": people, "MB": memory}
            if env is many:
                row["filter key ms"] = statistics.median(keys(env, first))
            rows.append(row)
        harness.report("window", rows, heavy_modules=heavy(few), store_mb=size, sqlite=sqlite3.sqlite_version)


if __name__ == "__main__":
    main()
