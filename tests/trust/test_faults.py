"""The disk fails in every way at every place: one clear line, the right code, nothing half done, and it can be mended.

`MTA_TEST_KILLS=200` makes every call fail in every way; otherwise some calls fail, each in one way.
"""

from __future__ import annotations

import errno
import random
import sqlite3
from contextlib import closing

import pytest

from tests.trust.inspection import Contents, difference
from tests.trust.orders import SHORT, Harm, Outcome
from tests.trust.scenes import Stage, Trial
from tests.trust.tally import tally
from tests.trust.test_kills import KILLS, SHARED_MEMORY, check_end

ERRORS = (errno.ENOSPC, errno.EIO)
WAYS = {errno.ENOSPC: "no space (ENOSPC)", errno.EIO: "I/O error (EIO)", SHORT: "short write"}
THOROUGH = KILLS >= 200
WRITERS = [
    ("bank build", False, 20),
    ("bank build", True, 40),
    ("user adapt", False, 16),
    ("user rm", False, 1),
    ("model pull", False, 1),
]
"""Scenes that write files, whether with checkpoints, and of how many calls one fails unless all do."""

DATABASE = ("data import", "large data import", "user adapt", "user rm", "chat", "migration")
PEOPLE = ("users", "items", "queries", "chats", "messages")
"""Tables that hold what people wrote."""


def explained(ran: Outcome, most: int = 1) -> None:
    """What went wrong is said in a line, or in each of `most` answers, with the code of bad input or of integrity."""
    assert ran.code in (4, 5), ran
    assert 1 <= ran.err.count("error: ") <= most and "Traceback" not in ran.err, ran.err


def in_common(rows: Contents, other: Contents, tables: list[str]) -> Contents:
    """Those tables with the columns that both have: the migrations may have committed before the fault."""
    found: Contents = {}
    for name in tables:
        columns = set(rows[name][0]) & set(other[name][0]) if rows[name] and other[name] else set()
        found[name] = [{key: row[key] for key in sorted(columns)} for row in rows[name]]
    return found


def survived(trial: Trial, ran: Outcome, before: Contents, expected: Contents, when: str, harm: str) -> None:
    """The fault did no harm, or was explained, left what was there, and is mended by running the command again."""
    assert trial.faults() == [], when
    if ran.code != 0:
        explained(ran, most=trial.scene.stdin.count(b"\n") or 1)
        left = trial.contents()
        held = [name for name in PEOPLE if name in before]
        before, left = in_common(before, left, held), in_common(left, before, held)
        if trial.scene.name != "user rm":
            assert all(row in left[name] for name in held for row in before[name]), when
        # A chat may have its earlier answers; a large import, the written batches.
        if trial.scene.name not in ("user rm", "chat", "large data import"):
            assert difference(left, before) == "", when
        again = trial.run()
        assert again.code in trial.scene.again, (when, again.err)
        assert trial.faults() == [], when
    check_end(trial, expected, when)
    tally(harm, "explained, old state whole, mended" if ran.code else "no harm done")


def calls_to_fail(name: str, whole: Outcome, share: int) -> list[Harm]:
    """Every call in every way, or one of `share` calls in one way; a write that is short is one of the ways."""
    every = [
        Harm(fail_at=place, error=error)
        for place, call in enumerate(whole.calls, start=1)
        for error in (*ERRORS, *([SHORT] if call == "write" else []))
    ]
    if THOROUGH:
        return every
    rng = random.Random(f"faults of {name}")
    return sorted(rng.sample(every, len(whole.calls) // share), key=lambda harm: harm.fail_at or 0)


@pytest.mark.parametrize(("name", "checkpoints", "share"), WRITERS)
def test_calls_that_change_files_fail_in_turn(stage: Stage, name: str, checkpoints: bool, share: int) -> None:
    plain = stage.trial(name)
    before = plain.contents()
    whole = plain.run(checkpoints=checkpoints)
    assert whole.code == 0 and len(whole.calls) > 0, whole.err
    expected, failed = plain.contents(), 0
    for harm in calls_to_fail(name, whole, share):
        trial, when = stage.trial(name), f"{harm}: {whole.calls[(harm.fail_at or 0) - 1]}"
        ran = trial.run(harm, checkpoints=checkpoints)
        assert ran.code == 0 or harm.error != SHORT, (when, ran.err)
        failed += ran.code != 0
        survived(trial, ran, before, expected, when, f"{WAYS[harm.error]} at a file call")
    assert failed > 0


@pytest.mark.parametrize("name", DATABASE)
def test_no_file_may_grow(stage: Stage, name: str) -> None:
    plain = stage.trial(name)
    before, whole = plain.contents(), plain.run()
    assert whole.code == 0, whole.err
    expected, failed = plain.contents(), 0
    largest = (plain.store / "registry.db").stat().st_size
    for limit in (8 * 1024, SHARED_MEMORY + 1, (SHARED_MEMORY + largest) // 2, largest - 1):
        trial = stage.trial(name)
        ran = trial.run(Harm(limit=limit))
        failed += ran.code != 0
        said = f"files of at most {limit} bytes: {ran.err}"
        survived(trial, ran, before, expected, said, "files that may not grow")
    assert failed > 1


@pytest.mark.parametrize("name", ["data import", "large data import", "user adapt"])
def test_the_database_may_not_grow(stage: Stage, name: str) -> None:
    plain = stage.trial(name)
    before = plain.contents()
    assert plain.run().code == 0
    expected, failed = plain.contents(), 0
    for more in (0, 1, 4):
        trial = stage.trial(name)
        with closing(sqlite3.connect(trial.store / "registry.db")) as conn:
            (pages,) = conn.execute("PRAGMA page_count").fetchone()
        ran = trial.run(Harm(pages=pages + more))
        if ran.code:
            assert "disk is full" in ran.err and ran.code == 4, ran.err
        failed += ran.code != 0
        said = f"a database of {pages} pages and {more} more: {ran.err}"
        survived(trial, ran, before, expected, said, "a database that may not grow")
    assert failed > 0
