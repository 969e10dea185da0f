"""Concurrent commands on one store: each in its turn, no row lost, no process waits forever.

`Job.wait` fails the test when a command is stuck.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from store.registry import Registry
from tests.pipeline.town import SHORT
from tests.trust.inspection import Contents, difference, faults
from tests.trust.orders import Job, Outcome
from tests.trust.scenes import ADAPT, BUILD, CHAT, CPU, LINES, SECRET, Stage, Trial
from tests.trust.tally import tally

FUSE = ("user", "fuse", "ida", *CPU)
LISTED = ("user", "list", "--json")
READERS = 16
RECORDS = 1500


def ok(ran: Outcome) -> Outcome:
    assert ran.code == 0, ran.err
    return ran


def busy(ran: Outcome) -> None:
    """The command said in one line that another process runs the same job."""
    assert ran.code == 1 and ran.err.count("error: ") == 1 and "same job" in ran.err, ran.err


def history(place: Path, who: str, count: int = RECORDS) -> Path:
    """A file with a user's history."""
    path = place / f"{who}.jsonl"
    lines = [json.dumps({"user": who, "id": str(n), "input": f"page {n}", "output": "read"}) for n in range(count)]
    path.write_text("\n".join(lines))
    return path


def without(found: Contents, *tables: str) -> Contents:
    return {name: rows for name, rows in found.items() if name not in tables}


def test_two_writers_and_sixteen_readers(stage: Stage) -> None:
    trial = stage.trial("data import")
    before = {row["name"]: row["items"] for row in ok(stage.begin(trial.store, LISTED).wait()).json()}
    names = ("ann", "ben")
    writers = [stage.begin(trial.store, ("data", "import", "jsonl", str(history(trial.place, name)))) for name in names]
    readers = [stage.begin(trial.store, LISTED) for _ in range(READERS)]
    for reader in readers:
        seen = {row["name"]: row["items"] for row in ok(reader.wait()).json()}
        assert {name: seen.pop(name, 0) for name in names}.items() <= {(n, c) for n in names for c in (0, RECORDS)}
        assert seen == before, "a reader saw half of something"
        tally("readers beside two writers", "saw whole imports alone")
    for writer in writers:
        ok(writer.wait())
    after = {row["name"]: row["items"] for row in ok(stage.begin(trial.store, LISTED).wait()).json()}
    assert after == before | dict.fromkeys(names, RECORDS)
    assert faults(trial.store, trial.place) == []
    tally("rows of two writers at once", "stored", RECORDS * len(writers))


def test_the_same_history_imported_twice_at_once(stage: Stage) -> None:
    trial = stage.trial("data import")
    file = history(trial.place, "ann")
    both = [stage.begin(trial.store, ("data", "import", "jsonl", str(file), "--json")) for _ in range(2)]
    counts = [ok(job.wait()).json() for job in both]
    assert sorted((count["items_added"], count["items_unchanged"]) for count in counts) == [(0, RECORDS), (RECORDS, 0)]
    assert faults(trial.store, trial.place) == []
    tally("the same file imported twice at once", "stored once")


def test_chats_while_a_bank_is_built(stage: Stage) -> None:
    plain, trial = stage.trial("bank build"), stage.trial("bank build")
    ok(plain.run())
    build = stage.begin(trial.store, BUILD)
    chats = 0
    while build.process.is_alive():
        pair = [stage.begin(trial.store, CHAT, LINES) for _ in range(2)]
        for job in pair:
            ok(job.wait())
        chats += len(pair)
    ok(build.wait())
    found, expected = trial.contents(), plain.contents()
    assert len(found["chats"]) == chats > 0 and len(found["messages"]) == 6 * chats
    assert difference(without(found, "chats", "messages"), without(expected, "chats", "messages")) == ""
    assert faults(trial.store, trial.place) == []
    tally("chats while a bank is built", "kept, and the bank the same", chats)


def twice(trial: Trial, arguments: tuple[str, ...]) -> list[Outcome]:
    """The same command twice at once: both outcomes, the luckier one first."""
    jobs: list[Job] = [trial.stage.begin(trial.store, arguments) for _ in range(2)]
    return sorted((job.wait() for job in jobs), key=lambda ran: ran.code)


def embedded(trial: Trial) -> dict[int, tuple[tuple[int, int], np.ndarray]]:
    """Of each user: how many items their profile counts, the last one's number, and the sum."""
    rows = trial.contents()["profiles"]
    return {row["user_id"]: ((row["items"], row["last_item"]), np.frombuffer(row["total"], "<f4")) for row in rows}


def test_the_same_user_is_fused_while_they_are_adapted(stage: Stage) -> None:
    plain, trial = stage.trial("user adapt"), stage.trial("user adapt")
    ok(plain.run())
    jobs = [stage.begin(trial.store, arguments) for arguments in (ADAPT, FUSE, FUSE)]
    for job in jobs:
        ok(job.wait())
    found, expected = (embedded(each) for each in (trial, plain))
    assert found.keys() == expected.keys()
    for who, (counted, total) in expected.items():
        assert found[who][0] == counted
        assert np.allclose(found[who][1], total, atol=1e-4), "an item counts twice, or not at all"
    assert faults(trial.store, trial.place) == []
    tally("fused while they are adapted", "every item counts once", len(jobs) - 1)


@pytest.mark.parametrize("name", ["user adapt", "bank build"])
def test_the_same_job_twice_at_once_is_done_once(stage: Stage, name: str) -> None:
    plain, trial = stage.trial(name), stage.trial(name)
    ok(plain.run())
    first, second = twice(trial, trial.scene.arguments)
    ok(first)
    if second.code:  # else it began when the first had ended
        busy(second)
    assert difference(trial.contents(), plain.contents()) == ""
    assert faults(trial.store, trial.place) == []
    ok(trial.run())
    assert difference(trial.contents(), plain.contents()) == ""
    tally(
        "the same job twice at once",
        "done once, the other told so" if second.code else "done once, one after the other",
    )


def test_others_are_forgotten_while_a_bank_is_built(stage: Stage) -> None:
    plain, trial = stage.trial("bank build"), stage.trial("bank build")
    ok(plain.run())
    build = stage.begin(trial.store, BUILD)
    for name in ("ida", "jon", "kim"):
        ok(stage.begin(trial.store, ("user", "rm", name, "--yes")).wait())
    ok(build.wait())
    for table in ("banks", "anchors", "adapters", "files"):
        assert difference({table: trial.contents()[table]}, {table: plain.contents()[table]}) == ""
    assert faults(trial.store, trial.place) == []
    tally("people forgotten while a bank is built", "gone, and the bank the same", 3)


def adapting(stage: Stage, store: Path) -> Job:
    """An adaptation that has stored a checkpoint and goes on."""
    job = stage.begin(store, ("user", "adapt", *SHORT, "--steps", "100", *CPU))
    while job.process.is_alive() and not any((store / "partial").glob("*")):
        job.process.join(0.01)
    assert job.process.is_alive(), "it ended too soon"
    return job


def require_nothing_of_ida(trial: Trial) -> None:
    assert list((trial.store / "partial").iterdir()) == [] and faults(trial.store, trial.place) == []
    files = [path for path in trial.store.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_nobody_is_forgotten_while_they_are_adapted(stage: Stage) -> None:
    trial = stage.trial("user adapt")
    job = adapting(stage, trial.store)
    refused = stage.begin(trial.store, ("user", "rm", "ida", "--yes")).wait()
    assert refused.code == 1 and "is using ida's items" in refused.err and "--wait" in refused.err, refused
    waiting = stage.begin(trial.store, ("user", "rm", "ida", "--yes", "--wait"))
    ok(job.wait())
    ok(waiting.wait())
    require_nothing_of_ida(trial)
    with Registry.open(trial.store) as reg:
        assert [reg.users.by_id(row["user_id"]).name for row in trial.contents()["stacks"]] == list(SHORT[1:])
    tally("somebody forgotten while they are adapted", "refused, or waited for; then gone from every file")


def test_a_killed_adaptation_holds_nobody(stage: Stage) -> None:
    trial = stage.trial("user adapt")
    job = adapting(stage, trial.store)
    job.process.kill()
    job.process.join()
    ok(stage.begin(trial.store, ("user", "rm", "ida", "--yes")).wait())
    require_nothing_of_ida(trial)
    tally("somebody forgotten after a killed adaptation", "gone from every file, checkpoint included")
