"""A store of a dozen people who disagree about the same films, and the requests that build, fuse and adapt on it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.events import Event, JobResult, Note
from mta_cli.options import AdaptOptions, BankOptions, FuseOptions, MachineOptions, PromptOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.pull import register_folder
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest, BankRequest, FuseRequest
from mta_cli.pipeline.user_weights import load_weights
from store.records import NewItem
from store.registry import Registry

TASK: Task = replace(BUILTIN_TASKS["lamp-2"], query_tokens=32, item_tokens=16)
CPU = MachineOptions(device="cpu", dtype="float32")
TAGS = ("comedy", "classic", "action")
SHORT = ("ida", "jon", "kim")


def people(reg: Registry, *, long: int = 9, items: int = 10) -> None:
    """`long` users with `items` items each, of three tastes, and three with three items; each has two queries."""
    names = [f"user{n}" for n in range(long)]
    for n, name in enumerate((*names, *SHORT)):
        user = reg.users.add(name)
        count = items if name in names else 3
        tag, film = TAGS[n % 3], ("ship", "horse", "robot")[n % 3]
        new = [NewItem(f"i{k}", "lamp-2", f"film {k} about a {film}", tag, f"2020-01-{k + 1:02}") for k in range(count)]
        reg.items.append_items(user.id, new)
        asked = [NewItem(f"q{k}", "lamp-2", f"another {film} {k}", tag, f"2021-01-{k + 1:02}") for k in range(2)]
        reg.items.append_queries(user.id, asked)


def make_store(root: Path, base: Path, embedder: Path, *steps: Callable[[Registry], object]) -> Path:
    """Register both model folders in `root/models`, and make `root/store` with the people, and then the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(root / "models"))
        register_folder(base, name="tiny")
        register_folder(embedder, name="tiny-embedder")
        with Registry.open(root / "store", create=True) as reg:
            people(reg)
            for step in steps:
                step(reg)
    return root / "store"


def bank_request(**changes: Any) -> BankRequest:
    """A quick bank of three anchors."""
    options = {"anchors": 3, "rank": 2, "alpha": 4.0, "epochs": 1, "task_epochs": 1, "min_items": 5, "batch_size": 8}
    rest = {key: changes.pop(key) for key in ("machine", "name", "prompt") if key in changes}
    request = BankRequest(
        TASK,
        resolve_model("tiny", "base"),
        resolve_model("tiny-embedder", "embedder"),
        BankOptions(**{**options, **changes}),
        PromptOptions(2),
        CPU,
    )
    return replace(request, **rest)


def fuse_request(**changes: Any) -> FuseRequest:
    """A fusion with the defaults, except for what is given."""
    return FuseRequest(
        TASK,
        resolve_model("tiny", "base"),
        None,
        FuseOptions(**changes),
        PromptOptions(2),
        CPU,
    )


QUICK = AdaptOptions(steps=6, batch_size=8, learning_rate=5e-2)


def give_core(reg: Registry, name: str) -> None:
    """Adapt a user, and put a core in place of the stack, as former versions gave them: between an anchor's factors."""
    user = reg.users.get(name)
    finish(adapt_users(reg, AdaptRequest([user], QUICK, fuse_request())))
    (stack,) = reg.stacks.of_user(user.id)
    anchor = next(one for one in reg.banks.anchors(stack.bank_id) if one.digest is not None)
    row = reg.adapters.get(str(anchor.digest))
    header = {"kind": "basis", "base": row.base, "task_adapter": row.task_adapter}
    digest, size = reg.adapters.write_file(load_weights(reg, row.digest, row.base).to_bytes(header))
    with reg.transaction():
        reg.adapters.add_adapter(replace(row, kind="basis", digest=digest, bytes=size))
        reg.banks._update_bank(stack.bank_id, basis=digest)
        numbers = struct.pack("<7e", *(0.5 - 0.1 * n for n in range(7)))  # rank 1 of seven modules
        reg.stacks.save_stack(replace(stack, digest=digest, bytes=len(numbers), numbers=numbers, identity="core"))


def finish(events: Iterator[Event]) -> tuple[Any, list[Event]]:
    """Run a job to its end: the result and every event."""
    seen = list(events)
    assert isinstance(seen[-1], JobResult)
    return seen[-1].result, seen


def notes(seen: list[Event]) -> list[str]:
    """What the person was told."""
    return [event.text for event in seen if isinstance(event, Note)]


def built(reg: Registry, **changes: Any) -> dict[str, Any]:
    """Build a bank and return its document."""
    result: dict[str, Any] = finish(build_bank(reg, bank_request(**changes)))[0]
    return result
