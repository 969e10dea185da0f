"""A command is killed at any moment: the store stays sound, and the command run again ends where it would have.

20 kills at moments that a seed chooses; `MTA_TEST_KILLS=200` chooses so many.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.trust.inspection import Contents, difference
from tests.trust.orders import Harm, Outcome
from tests.trust.scenes import SECRET, Stage, Trial
from tests.trust.tally import tally

KILLS = int(os.environ.get("MTA_TEST_KILLS", "20"))
SHARES = {
    "bank build": 5,
    "user adapt": 5,
    "data import": 2,
    "large data import": 2,
    "user rm": 3,
    "restore": 3,
    "pull": 2,
    "model pull": 1,
    "chat": 1,
    "migration": 2,
}
ENDED = "sound, then ended as unbroken"
SHARED_MEMORY = 32 * 1024  # bytes of the file beside SQLite's log, which is made before anything is written


def harms(name: str, whole: Outcome, largest: int) -> list[Harm]:
    """The kills of a scene, whose uninterrupted run was `whole` and left files of at most `largest` bytes."""
    rng = random.Random(f"kills of {name}")
    found = []
    for number in range(max(1, KILLS * SHARES[name] // sum(SHARES.values()))):
        calls, kind = len(whole.calls), number % 4
        if kind == 1 and largest > SHARED_MEMORY:
            found.append(Harm(limit=rng.randrange(SHARED_MEMORY, largest), deadly=True))
        elif kind == 2:
            found.append(Harm(die_after=whole.seconds * rng.uniform(0.1, 1.0)))
        elif kind == 3 and calls:
            found.append(Harm(die_at_call=rng.randint(1, calls)))
        else:
            found.append(Harm(die_at=rng.randint(1, whole.moments)))
    return found


def when(harm: Harm) -> str:
    """The moment of a kill in words."""
    if harm.limit is not None:
        return "in the middle of a write"
    if harm.die_after is not None:
        return "by the clock"
    return "before a file call" if harm.die_at_call is not None else "at a counted moment"


@pytest.mark.parametrize("name", SHARES)
def test_killed_at_any_moment(stage: Stage, name: str) -> None:
    plain = stage.trial(name)
    whole = plain.run()
    assert whole.code == 0, whole
    expected = plain.contents()
    largest = max(path.stat().st_size for path in plain.place.rglob("*") if path.is_file())
    killed = 0
    chosen = harms(name, whole, largest)
    for number, harm in enumerate(chosen):
        trial = stage.trial(name)
        ran = trial.run(harm, checkpoints=number % 2 == 0)
        killed += ran.killed
        assert ran.killed or ran.code == 0, (harm, ran)
        assert trial.faults() == [], (number, harm)
        again = trial.run()
        assert again.code in trial.scene.again, (number, harm, again.err)
        assert trial.faults() == [], (number, harm)
        check_end(trial, expected, f"kill {number}: {harm}")
        tally(f"SIGKILL {when(harm)}", ENDED if ran.killed else "ended before it, sound")
    assert killed > len(chosen) // 2, "too many came too late"


@pytest.mark.parametrize(
    ("name", "share"), [("model pull", 2), ("user rm", 2), ("restore", 4), ("pull", 4), ("user adapt", 24)]
)
def test_killed_before_every_call_that_changes_files(stage: Stage, name: str, share: int) -> None:
    """Before every call, or, unless there are 200 kills, before one of `share` calls."""
    plain = stage.trial(name)
    whole = plain.run(checkpoints=False)
    for call in range(1, len(whole.calls) + 1, share if KILLS < 200 else 1):
        trial, said = stage.trial(name), f"killed before call {call}, {whole.calls[call - 1]}"
        assert trial.run(Harm(die_at_call=call), checkpoints=False).killed
        assert trial.faults() == [], said
        assert trial.run().code in trial.scene.again, said
        check_end(trial, plain.contents(), said)
        tally("SIGKILL before each file call in turn", ENDED)


def check_end(trial: Trial, expected: Contents, when: str) -> None:
    """The result equals the uninterrupted run's, byte for byte, except that a chat may have answers from before the
    kill.
    """
    found = trial.contents()
    if trial.scene.name == "chat":
        found, expected = last_chat(found), last_chat(expected)
    assert difference(found, expected) == "", when
    if trial.scene.name in ("user rm", "restore"):
        files = [path for path in trial.store.rglob("*") if path.is_file()]
        assert [path for path in files if SECRET.encode() in path.read_bytes()] == [], when
        tally("files searched for a forgotten user", "without a word of theirs", len(files))


def last_chat(found: Contents) -> Contents:
    """The same, with the words of the last chat in place of all chats, which have one more after a second run."""
    last = max(found["chats"], key=lambda chat: chat["id"])
    said = sorted((m for m in found["messages"] if m["chat_id"] == last["id"]), key=lambda message: message["id"])
    words = [(message["role"], message["content"], message["source"]) for message in said]
    numbers = {message["id"] for message in said}
    anchors = [(row["position"], row["user_id"]) for row in found["message_anchors"] if row["message_id"] in numbers]
    return {**found, "chats": [last["title"]], "messages": words, "message_anchors": sorted(anchors)}
