"""A store with a bank, and short ways to publish and pull it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from store.records import ModelRecord
from store.registry import Registry
from store.snapshots.place import SnapshotPlace
from store.snapshots.publish import StagedSnapshot, stage_snapshot
from store.snapshots.pull import Pull, PullResult
from store.snapshots.serving_copy import ServingChoice
from tests.store.making import BASE, adapted, bank, item, person

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SENTENCE = "the heron waits by lock nineteen"
LABELS = ("go", "skip")


def choice(**changes: Any) -> ServingChoice:
    """Everything, under its own names; `taste` is a task of labels."""
    given = {"tasks": None, "labelled_tasks": ("taste",), "label_of": _label_of, "shown_name": str}
    return ServingChoice(**(given | changes))


def _label_of(task: str, output: str) -> str | None:
    return output.strip() if output.strip() in LABELS else None


def publish(reg: Registry, to: object, key: bytes | None = KEY, **changes: Any) -> StagedSnapshot:
    """Publish a snapshot; returns its staged contents."""
    with stage_snapshot(reg, SnapshotPlace(str(to)), choice(**changes), "1", hashed_names=False) as staged:
        list(staged.publish(key))
        return staged


def pull(root: Path, source: object, key: bytes | None = KEY) -> PullResult:
    """Pull a snapshot."""
    return end_of(Pull.begin(root, SnapshotPlace(str(source)), key, 0.2).run())


def end_of(steps: Generator[str, None, PullResult]) -> PullResult:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: PullResult = end.value
            return result


@pytest.fixture
def full(reg: Registry) -> Registry:
    """A store with a bank of texts and one of labels; bob is adapted to both, alice and carol are the anchors."""
    reg.models.save_model(ModelRecord(BASE, "tiny", "base"))
    reg.tasks.save_task("taste", "toml")
    alice, bob, carol = person(reg, "alice", SENTENCE), person(reg, "bob", "the sea"), person(reg, "carol", "a hill")
    labelled = [item("a", "a moss lecture", "go", task="taste"), item("b", "a cold swim", " skip ", task="taste")]
    for user in (alice, bob):
        reg.items.append_items(user, [*labelled, item("c", "tea", "who knows", task="taste")])
    reg.items.append_queries(bob, [item("q", "a hidden question", "go", task="taste")])
    adapted(reg, bob, bank(reg, [alice, carol]))
    tastes = bank(reg, [alice], name="taste", task="taste")
    adapted(reg, bob, tastes, b"taste stack", task="taste")
    numbers = reg.items.recent_items(alice, "taste")
    reg.neighbours.add_neighbours(tastes.id, [(one.id, b"\0" * 8) for one in numbers if one.output != "who knows"])
    chat = reg.chats.start_chat(bob, "a chat about herons")
    reg.chats.add_message(chat.id, "user", "my secret is a heron", {})
    return reg
