"""Makes rows for the store's tests: people, adapters, banks. Asserts nothing."""

from __future__ import annotations

from dataclasses import replace

from store.records import Adapter, AnchorWeight, Bank, NewItem, Recipe, Stack
from store.registry import Registry

BASE = "sha256:" + "b" * 64
EMBEDDER = "sha256:" + "e" * 64


def item(
    key: str, words: str = "some words", output: str = "answer", *, task: str = "free", time: str | None = None
) -> NewItem:
    """A history item."""
    return NewItem(key, task, words, output, time)


def person(reg: Registry, name: str, *inputs: str, task: str = "free") -> int:
    """A user with one item for each input; returns their number."""
    user, _ = reg.users.get_or_create_user(name)
    reg.items.append_items(user.id, [item(str(i), words, task=task) for i, words in enumerate(inputs)])
    return user.id


def adapter(reg: Registry, content: bytes, *, kind: str = "meta", base: str = BASE, below: str | None = None) -> str:
    """A stored adapter; returns its digest."""
    digest, size = reg.files.write(content)
    row = Adapter(
        digest=digest,
        kind=kind,
        base=base,
        task_adapter=below,
        rank=2,
        alpha=4.0,
        targets="q_proj",
        placement="all",
        dtype="float32",
        seed=0,
        data_hash="d",
        bytes=size,
        config={"steps": 3},
        versions={"torch": "2"},
    )
    reg.adapters.add_adapter(row)
    return digest


def bank(
    reg: Registry,
    anchors: list[int],
    *,
    name: str = "free",
    key: str = "k",
    task: str = "free",
    base: str = BASE,
    purpose: str = "",
) -> Bank:
    """A ready bank with a task adapter and a meta-LoRA for each of `anchors`, user numbers."""
    begun = reg.banks.get_or_create_bank(name, key, task, base, EMBEDDER, 0, {"rank": 2}, purpose)
    below = adapter(reg, f"task adapter {name} {key}".encode(), kind="task", base=base)
    reg.banks.set_task_adapter(begun.id, below)
    for planned in reg.banks.plan_anchors(begun.id, [(user, i, 3, 5) for i, user in enumerate(anchors)]):
        digest = adapter(reg, f"meta {name} {key} {planned.cluster}".encode(), base=base, below=below)
        reg.banks.record_trained_anchor(planned.id, digest, 2.0, 1.0)
    reg.banks.mark_bank_ready(begun.id, 100, 2.0)
    return reg.banks.by_id(begun.id)


def adapted(reg: Registry, user_id: int, on: Bank, content: bytes = b"stack", task: str = "free") -> Stack:
    """Gives a user a recipe of all anchors of a bank, and a stack on it."""
    shares = tuple(AnchorWeight(anchor.id, 0.5, 0.25) for anchor in reg.banks.anchors(on.id))
    reg.recipes.save_recipe(Recipe(user_id, task, on.id, "evidence", shares, 0))
    digest = adapter(reg, content, kind="stack", below=on.task_adapter)
    stack = Stack(user_id, task, on.id, digest, 5, 10, 2.5, 1.5, shares, len(content))
    reg.stacks.save_stack(stack)
    found = reg.stacks.get(user_id, task, on.id)
    assert found is not None
    return replace(stack, created=found.created)
