"""A bank's task adapter: one LoRA trained on the items of all its people.

Banks of the same people and items share it when they differ in nothing that it rests on, as in how many anchors they
have: it is most of a build's work. Renders nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mta_cli.events import Event, Note, Saved
from mta_cli.pipeline.data.examples import Examples, history_mix
from mta_cli.pipeline.leaving import PeopleLeft, staying
from mta_cli.pipeline.training.groups import LEFT, AdapterJob, Training, losses_of, those_made
from mta_cli.pipeline.training.session import Trained
from mta_cli.pipeline.users.provenance import PEOPLE
from store.records import Adapter, Bank, Run

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.build import BankRequest, Candidate
    from store.registry import Registry

MADE_OF = "made_of"  # the key, in a task adapter's config, of the hash of all that decides it
_OPTIONS = ("targets", "batch_size", "task_placement", "task_rank", "task_epochs", "task_learning_rate")


def made_before(reg: Registry, request: BankRequest, pool: Sequence[Candidate]) -> Adapter | None:
    """The task adapter that another bank has and this one would train; None without one, or where none is wanted."""
    return reg.adapters.with_config(MADE_OF, _identity(reg, request, pool)) if request.options.task_adapter else None


def share_task_adapter(reg: Registry, request: BankRequest, bank: Bank, pool: Sequence[Candidate]) -> Iterator[Event]:
    """Give the bank the task adapter that was `made_before`, if any. Raises PeopleLeft where one of them has left."""
    if bank.task_adapter is not None:
        return
    users = [candidate.user for candidate in pool]
    with reg.transaction():
        if (known := made_before(reg, request, pool)) is None:
            return
        if len(staying(reg, users, request.purpose)) < len(users):
            raise PeopleLeft(bank)
        reg.banks.set_task_adapter(bank.id, known.digest)
    yield Note("The task adapter is there, trained on the same items.")


def task_training(
    reg: Registry, request: BankRequest, examples: Examples, pool: Sequence[Candidate], run: Run
) -> Training:
    """What trains it on the items of everybody in `pool`, and ends when one of them leaves."""
    from mta_cli.engine.training.trainer import Schedule

    options, seed = request.options, request.machine.seed
    items = [item for candidate in pool for item in candidate.items]
    rows = examples.rows(items, mix=history_mix(request.prompt.history_items), seed=seed)
    schedule = Schedule.epochs(len(rows), options.task_epochs, options.batch_size, options.task_learning_rate)
    config = {
        "history_items": request.prompt.history_items,
        "task": request.task.name,
        PEOPLE: len(pool),
        MADE_OF: _identity(reg, request, pool),
    }
    job = AdapterJob(
        "task",
        "task adapter",
        None,
        options.task_rank,
        2.0 * options.task_rank,
        options.targets,
        options.task_placement,
        seed,
        reg.items.data_hash_of(items),
        schedule,
        config,
    )
    users = tuple(candidate.user for candidate in pool)
    return Training(job, rows, run=run, people=users, serves=request.purpose == "")


def settle_task(
    reg: Registry, bank: Bank, pooled: Training, results: Sequence[Adapter | str], trained: Trained
) -> Iterator[Event]:
    """Give the bank what was trained. Raises PeopleLeft where one of its people left, BadInput where it failed."""
    if results[0] == LEFT:
        raise PeopleLeft(bank)
    ((_, adapter),) = those_made([pooled], [pooled], results)
    reg.banks.set_task_adapter(bank.id, adapter.digest)
    yield Saved("task adapter", bank.task, f"loss {losses_of(adapter)}, {adapter.bytes:,} bytes")


def _identity(reg: Registry, request: BankRequest, pool: Sequence[Candidate]) -> str:
    options = asdict(request.options)
    identity = {
        "base": request.base.fingerprint,
        "task": asdict(request.task),
        "seed": request.machine.seed,
        "options": {name: options[name] for name in _OPTIONS},
        "history_items": request.prompt.history_items,
        "dtype": request.machine.dtype,
        "data": [[c.user.name, reg.items.data_hash_of(c.items)] for c in pool],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
