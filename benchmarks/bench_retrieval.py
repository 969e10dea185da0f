"""The eight nearest of a thousand, a hundred thousand and a million profiles, compared with scikit-learn and a scan in
SQL.

The limit is the time of reading the profiles' bytes from memory, by the harness or by a sum over these profiles,
whichever is faster. A thousand profiles fit into the processor's cache, where the limit does not apply.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from mta_cli.engine.retrieval.nearest import nearest_rows

DIM, TOP = 384, 8
SIZES = {1_000: 50, 100_000: 1, 1_000_000: 1}  # profiles, and searches in one run
ONCE = 1_000_000  # from this many profiles on, the scan in SQL is measured once
SUM = "a sum"
OURS, MAPPED, LEARN, SQL = "ours", "ours, from a mapped file", "scikit-learn brute force", "scan in SQLite"

Matrix = NDArray[np.float32]


def unit(rows: int, seed: int) -> Matrix:
    """Random rows of length one, [rows, DIM]."""
    matrix = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    for start in range(0, rows, 2**16):
        block = matrix[start : start + 2**16]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return matrix


@contextmanager
def mapped(matrix: Matrix, folder: Path) -> Iterator[Matrix]:
    """The matrix, memory-mapped from a file."""
    path = folder / "profiles.f32"
    matrix.tofile(path)
    yield np.memmap(path, dtype=np.float32, mode="r", shape=matrix.shape)
    path.unlink()


def brute_force(matrix: Matrix, query: Matrix) -> Callable[[], list[int]]:
    """scikit-learn's exact search by cosine; `fit` only stores the matrix and is not timed."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=TOP, algorithm="brute", metric="cosine").fit(matrix)

    def run() -> list[int]:
        found: list[int] = search.kneighbors(query[None], return_distance=False)[0].tolist()
        return found

    return run


@contextmanager
def scan(matrix: Matrix, query: Matrix, folder: Path) -> Iterator[Callable[[], list[int]]]:
    """A search in SQL: profiles as BLOBs, ranked by a user-defined function inside the query."""
    path = folder / "profiles.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE profiles (user_id INTEGER PRIMARY KEY, total BLOB NOT NULL)")
        db.executemany("INSERT INTO profiles VALUES (?, ?)", ((i, row.tobytes()) for i, row in enumerate(matrix)))
        db.commit()
        cosine = lambda blob: float(np.dot(np.frombuffer(blob, dtype=np.float32), query))  # noqa: E731
        db.create_function("cosine", 1, cosine, deterministic=True)
        sql = f"SELECT user_id FROM profiles ORDER BY cosine(total) DESC, user_id LIMIT {TOP}"
        yield lambda: [user for (user,) in db.execute(sql)]
    path.unlink()


def measure(count: int, searches: int, folder: Path) -> dict[str, float]:
    """Median seconds of one search by every side, and the minimum of a sum. Exits if answers differ."""
    import torch

    matrix, query = unit(count, 0), unit(1, 1)[0]
    with mapped(matrix, folder) as file, scan(matrix, query, folder) as sql:
        sides: dict[str, Callable[[], list[int]]] = {
            OURS: lambda: nearest_rows(matrix, query, TOP)[0].tolist(),
            MAPPED: lambda: nearest_rows(file, query, TOP)[0].tolist(),
            LEARN: brute_force(matrix, query),
        }
        if count < ONCE:
            sides[SQL] = sql
        plain = torch.from_numpy(matrix)
        runs = harness.interleave({name: _often(side, searches) for name, side in sides.items()} | {SUM: plain.sum})
        read = runs.pop(SUM)
        if count >= ONCE:
            runs[SQL] = [harness.timed(sql)]
    answers = {name: taken[-1].value for name, taken in runs.items()}
    if len({tuple(answer) for answer in answers.values()}) != 1:
        raise SystemExit(f"the sides do not agree about {count:,} profiles: {answers}")
    seconds = {
        name: harness.median_seconds(taken) / (1 if len(taken) == 1 else searches) for name, taken in runs.items()
    }
    return {**seconds, SUM: min(run.seconds for run in read)}


def _often(side: Callable[[], list[int]], times: int) -> Callable[[], list[int]]:
    def run() -> list[int]:
        found: list[int] = []
        for _ in range(times):
            found = side()
        return found

    return run


def main() -> None:
    """Measure, and print the results."""
    rate, found = harness.read_bandwidth(), {}
    for count, searches in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[count] = measure(count, searches, Path(folder))
    rate = max(rate, harness.read_bandwidth(), ONCE * DIM * 4 / found[ONCE][SUM])
    rows: list[dict[str, Any]] = []
    for count, seconds in found.items():
        floor = count * DIM * 4 / rate
        rows += [
            {
                "top 8 of": f"{count:,}",
                "side": name,
                "ms": own * 1e3,
                "times ours": own / seconds[OURS],
                "limit ms": floor * 1e3,
                "times limit": own / floor,
                "% of limit": 100 * floor / own,
            }
            for name, own in seconds.items()
            if name != SUM
        ]
    harness.report("retrieval", rows, read_bandwidth=rate, measured_once=[f"{SQL} of {ONCE:,}"])


if __name__ == "__main__":
    main()
