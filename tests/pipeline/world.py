"""A store with a few people, a bank of two anchors with random weights, a recipe and a stack: all that can answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.events import Event, JobResult, Note, TextChunk
from mta_cli.options import AnswerOptions, MachineOptions, PromptOptions
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.requests import ChatOptions
from store.records import Adapter, AnchorWeight, Item, ModelRecord, NewItem, Recipe, Stack, User
from store.registry import Registry

CPU = MachineOptions(device="cpu", dtype="float32")
BRIEF = AnswerOptions(max_tokens=12)


@dataclass
class World:
    """The registry and who is in it: alice is adapted, bob only fused, carol new; anchors are dave and erin."""

    reg: Registry
    entry: ModelEntry
    alice: User
    bob: User
    carol: User
    task: str


def asking(history_items: int = 2, **rest: object) -> ChatOptions:
    """Questions in float32 on the CPU with short answers."""
    return ChatOptions(machine=CPU, prompt=PromptOptions(history_items), **{"answer": BRIEF, **rest})  # type: ignore[arg-type]


def random_lora(base: LoadedBase, seed: int, *, targets: str, placement: str, rank: int) -> LoraWeights:
    """Weights that visibly change what the tiny base says."""
    fresh = init_lora_weights(base.model, targets, placement, rank, 2.0 * rank, seed)
    noise = torch.Generator().manual_seed(seed + 1)
    factors = {path: (a, 0.4 * torch.randn(b.shape, generator=noise)) for path, (a, b) in fresh.factors.items()}
    return LoraWeights(factors, fresh.scale, fresh.placement)


def add_adapter(reg: Registry, base: LoadedBase, kind: str, weights: LoraWeights) -> str:
    """Store weights as a job would; returns the digest."""
    digest, size = reg.files.write(weights.cast_for_storage().to_bytes({"kind": kind}))
    reg.adapters.add_adapter(
        Adapter(
            digest=digest,
            kind=kind,
            base=base.fingerprint,
            task_adapter=None,
            rank=weights.rank,
            alpha=weights.scale * weights.rank,
            targets="q_proj",
            placement=str(weights.placement),
            dtype="float16",
            seed=0,
            data_hash="",
            bytes=size,
        )
    )
    return digest


def items(task: str, count: int, word: str) -> list[NewItem]:
    """Some history."""
    return [NewItem(f"{word}{n}", task, f"about {word} number {n}", f"{word} {n}!") for n in range(count)]


def make_world(root: Path, task: str = "free", stacks: str = "upper") -> World:
    """The world of one task in a fresh store at `root`; the model `tiny` must be registered. `stacks`: their place."""
    reg, entry = Registry.open(root, create=True), resolve_model("tiny", "base")
    base = load_base(entry.path, name="tiny", fingerprint=entry.fingerprint, device="cpu", dtype="float32")
    reg.models.save_model(ModelRecord(entry.fingerprint, "tiny", "base"))
    people = {name: reg.users.add(name) for name in ("alice", "bob", "carol", "dave", "erin")}
    for name in ("alice", "bob", "dave", "erin"):
        reg.items.append_items(people[name].id, items(task, 4, name))
    pooled = add_adapter(reg, base, "task", random_lora(base, 10, targets="q_proj,v_proj", placement="all", rank=2))
    bank = reg.banks.get_or_create_bank(
        name="tests", key="k", task=task, base=base.fingerprint, embedder="e", seed=0, config={}
    )
    reg.banks.set_task_adapter(bank.id, pooled)
    anchors = reg.banks.plan_anchors(bank.id, [(people[n].id, c, 1, 4) for c, n in enumerate(("dave", "erin"))])
    for anchor in anchors:
        weights = random_lora(
            base, 20 + anchor.cluster, targets="q_proj,down_proj", placement="all", rank=3 + anchor.cluster
        )
        reg.banks.record_trained_anchor(anchor.id, add_adapter(reg, base, "meta", weights), 2.0, 1.0)
    reg.banks.mark_bank_ready(bank.id, 1, 1.0)
    shares = tuple(AnchorWeight(anchor.id, 0.9, weight) for anchor, weight in zip(anchors, (0.7, 0.3), strict=True))
    for name in ("alice", "bob"):
        reg.recipes.save_recipe(Recipe(people[name].id, task, bank.id, "uniform", shares, 24))
    own = add_adapter(reg, base, "stack", random_lora(base, 30, targets="q_proj,v_proj", placement=stacks, rank=2))
    reg.stacks.save_stack(
        Stack(people["alice"].id, task, bank.id, own, 3, 10, 2.0, 1.0, shares, reg.adapters.get(own).bytes)
    )
    return World(reg, entry, people["alice"], people["bob"], people["carol"], task)


def contents(found: Sequence[Item]) -> list[tuple[str, str]]:
    """Inputs and outputs."""
    return [(item.input, item.output) for item in found]


def result_of(events: Iterator[Event]) -> tuple[Any, list[Event]]:
    """What `Done` carries, and everything before it."""
    every = list(events)
    assert isinstance(every[-1], JobResult)
    return every[-1].result, every[:-1]


def text_of(events: Sequence[Event], column: str = "") -> str:
    """What was said in a column."""
    return "".join(event.text for event in events if isinstance(event, TextChunk) and event.column == column)


def notes_of(events: Sequence[Event]) -> str:
    """What the person was told, a line each."""
    return "\n".join(event.text for event in events if isinstance(event, Note))
