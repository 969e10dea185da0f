"""A bank's task adapter: one LoRA trained on the items of all users of the bank.

Its training takes most of the time of a build, so banks with the same users, items and training settings share one
task adapter, even if their numbers of anchors differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mta_cli.engine.training.session import TrainingResult
from mta_cli.events import ArtifactSaved, Event, Note
from mta_cli.pipeline.training.groups import (
    AdapterJob,
    AdapterTraining,
    format_losses,
    pair_with_adapters,
)
from mta_cli.pipeline.users.provenance import TRAINED_USERS_KEY
from store.records import Adapter, Bank, Run

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.contributors import Contributor
    from mta_cli.pipeline.requests import BankRequest
    from mta_cli.pipeline.workbench import Workbench
    from store.registry import Registry

IDENTITY_KEY = "made_of"  # key in a task adapter's config: the hash of its data and settings
_OPTIONS = ("targets", "batch_size", "task_placement", "task_rank", "task_epochs", "task_learning_rate")


def find_reusable_task_adapter(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> Adapter | None:
    """The task adapter of another bank that was trained on the same data with the same settings; None without one."""
    return (
        reg.adapters.find_by_config(IDENTITY_KEY, _task_adapter_identity(reg, request, pool))
        if request.options.task_adapter
        else None
    )


def reuse_task_adapter(reg: Registry, request: BankRequest, bank: Bank, pool: Sequence[Contributor]) -> Iterator[Event]:
    """Give `bank` the task adapter of another bank with the same data and settings, if there is one."""
    if bank.task_adapter is not None:
        return
    with reg.transaction():
        if (known := find_reusable_task_adapter(reg, request, pool)) is None:
            return
        reg.banks.set_task_adapter(bank.id, known.digest, [each.user.id for each in pool])
    yield Note("The task adapter of another bank is used: it was trained on the same items with the same settings.")


def task_adapter_training(
    bench: Workbench[BankRequest],
    pool: Sequence[Contributor],
    run: Run | None,
    label: str = "task adapter",
) -> AdapterTraining:
    """The training of a task adapter on the items of all users in `pool`. Progress messages show `label`."""
    from mta_cli.engine.training.trainer import Schedule

    request, options, seed = bench.spec, bench.spec.options, bench.spec.machine.seed
    items = [item for candidate in pool for item in candidate.items]
    rows = bench.rows.training_rows(items, mix=request.history_mix, seed=seed)
    schedule = Schedule.from_epochs(len(rows), options.task_epochs, options.batch_size, options.task_learning_rate)
    config = {
        **request.adapter_config,
        TRAINED_USERS_KEY: len(pool),
        IDENTITY_KEY: _task_adapter_identity(bench.reg, request, pool),
    }
    job = AdapterJob(
        "task",
        label,
        None,
        options.task_rank,
        2.0 * options.task_rank,
        options.targets,
        options.task_placement,
        seed,
        bench.reg.items.hash_items(items),
        schedule,
        config,
    )
    return AdapterTraining(job, rows, run=run)


def store_task_adapter(
    reg: Registry,
    bank: Bank,
    pool: Sequence[Contributor],
    pooled: AdapterTraining,
    results: Sequence[Adapter | str],
    trained: TrainingResult,
) -> Iterator[Event]:
    """Store the trained task adapter with the bank. Raises BadInput if the training failed."""
    ((_, adapter),) = pair_with_adapters([pooled], [pooled], results)
    reg.banks.set_task_adapter(bank.id, adapter.digest, [each.user.id for each in pool])
    yield ArtifactSaved("task adapter", bank.task, f"loss {format_losses(adapter)}, {adapter.bytes:,} bytes")


def _task_adapter_identity(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> str:
    options = asdict(request.options)
    identity = {
        **request.identity,
        "options": {name: options[name] for name in _OPTIONS},
        **request.machine.formats,
        "data": [[c.user.name, reg.items.hash_items(c.items)] for c in pool],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
