"""Trains a bank's meta-LoRAs, one for each anchor; used by builds and refreshes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.engine.training.session import TrainingResult
from mta_cli.events import ArtifactSaved, Event
from mta_cli.pipeline.training.groups import (
    AdapterJob,
    AdapterTraining,
    TrainingGroup,
    format_losses,
    group_key,
    max_group_size,
    pair_with_adapters,
)
from store.records import Adapter, Anchor, Item, Run

if TYPE_CHECKING:
    from mta_cli.pipeline.requests import BankRequest
    from mta_cli.pipeline.workbench import Workbench

StoreAnchors = Callable[[Sequence[tuple[Anchor, Adapter]]], None]
"""Stores trained anchors, each with its adapter, in the transaction that stores the adapters."""


def prepare_anchor_trainings(
    bench: Workbench[BankRequest], anchors: Sequence[Anchor], items: Mapping[int, tuple[Item, ...]], run: Run
) -> dict[int, AdapterTraining]:
    """By anchor id, the training of each anchor's meta-LoRA on its user's `items` (by user id).

    The task adapter may not be trained yet; `group_anchors_for_training` adds it to the jobs.
    """
    return {
        anchor.id: _anchor_training(bench, anchor, f"{i}/{len(anchors)}", items, run)
        for i, anchor in enumerate(anchors, start=1)
    }


def group_anchors_for_training(
    bench: Workbench[BankRequest],
    anchors: Sequence[Anchor],
    trainings: Mapping[int, AdapterTraining],
    store: StoreAnchors,
) -> list[TrainingGroup]:
    """Training groups of the anchors that have no meta-LoRA yet. They train above the bank's task adapter, if any.

    A group with a checkpoint is formed again with the same members, so that resuming gives the same weights.
    """
    if not anchors:
        return []
    below = bench.bank.task_adapter
    whole = {i: replace(one, job=replace(one.job, task_adapter=below)) for i, one in trainings.items()}
    size, groups = max_group_size(bench.base, whole[anchors[0].id].job), list[TrainingGroup]()
    for start in range(0, len(anchors), size):
        together = list(anchors[start : start + size])
        missing = [anchor for anchor in together if anchor.digest is None]
        key = group_key(bench.base, [whole[anchor.id].job for anchor in together])
        if missing:
            chosen = missing if bench.reg.files.read_checkpoint(key) is None else together
            members = [whole[anchor.id] for anchor in chosen]
            groups.append(TrainingGroup(members, partial(_store_group, chosen, members, store)))
    return groups


def _store_group(
    anchors: Sequence[Anchor],
    trainings: Sequence[AdapterTraining],
    store: StoreAnchors,
    results: Sequence[Adapter | str],
    trained: TrainingResult,
) -> Iterator[Event]:
    made = pair_with_adapters(anchors, trainings, results)
    store(made)
    for anchor, adapter in made:
        yield ArtifactSaved("anchor", str(anchor.user), f"loss {format_losses(adapter)}, {adapter.bytes:,} bytes")


def _anchor_training(
    bench: Workbench[BankRequest],
    anchor: Anchor,
    place: str,
    items: Mapping[int, tuple[Item, ...]],
    run: Run,
) -> AdapterTraining:
    """The training of one anchor. `place` is its position, such as `2/8`, for progress messages."""
    from mta_cli.engine.training.trainer import Schedule

    request, options, seed, builder = bench.spec, bench.spec.options, bench.spec.machine.seed, bench.rows
    own = items[anchor.user_id] if anchor.user_id is not None else ()
    if request.permute_answers:
        own = permute_answers(own, f"{seed} {anchor.user_id}")
        builder = builder.with_shown_answers({item.id: item.output for item in own})
    rows = builder.training_rows(own)
    schedule = Schedule.from_epochs(len(rows), options.epochs, options.batch_size, options.learning_rate)
    job = AdapterJob(
        "meta",
        f"anchor {anchor.id}",
        None,
        options.rank,
        options.alpha,
        options.targets,
        options.placement,
        seed,
        bench.reg.items.hash_items(own),
        schedule,
        {**request.adapter_config, **({"permuted": True} if request.permute_answers else {})},
        f"anchor {place}: {anchor.user}",
    )
    return AdapterTraining(job, rows, run=run)


def permute_answers(items: Sequence[Item], seed: str) -> tuple[Item, ...]:
    """The items with their outputs randomly permuted."""
    outputs = [item.output for item in items]
    random.Random(seed).shuffle(outputs)
    return tuple(replace(item, output=output) for item, output in zip(items, outputs, strict=True))
