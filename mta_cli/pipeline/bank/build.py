"""The job behind `mta bank build`: profiles, anchors, the task adapter, one meta-LoRA per anchor.

Every finished part is a row in the store, so the same command run again goes on where it stopped. Renders nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.engine.lora.targets import require_targets
from mta_cli.errors import BadInput
from mta_cli.events import Done, Event, Note, PlanLine, Planned, Saved, Started
from mta_cli.options import BankOptions, GateOptions, Machine, PromptOptions
from mta_cli.pipeline.asked import failures_of
from mta_cli.pipeline.bank.screening import gate_anchors, gate_config
from mta_cli.pipeline.bank.task_adapter import made_before, settle_task, share_task_adapter, task_training
from mta_cli.pipeline.bank.verify import bank_json
from mta_cli.pipeline.data.examples import Examples
from mta_cli.pipeline.leaving import PeopleLeft, begun_anew, not_trained, staying
from mta_cli.pipeline.memory.knn import keep_neighbours
from mta_cli.pipeline.memory.knn_weight import weigh_neighbours
from mta_cli.pipeline.memory.label_prior import RATES
from mta_cli.pipeline.models.load import load, load_others
from mta_cli.pipeline.training.groups import (
    LEFT,
    AdapterJob,
    Group,
    Training,
    group_key,
    group_size,
    losses_of,
    those_made,
    train_groups,
)
from mta_cli.pipeline.training.session import Trained
from store.records import Adapter, Anchor, Bank, Item, Run, User

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.lookup import ModelEntry
    from mta_cli.pipeline.training.estimate import Tokens
    from store.registry import Registry


@dataclass(frozen=True)
class BankRequest:
    """Everything a bank build needs to know. `name` defaults to the task's.

    `people` are the ids of those it may be built from; None: everybody. For `purpose` see `store.records.Bank`. `begun`
    is told the bank's number before anything is trained.
    """

    task: Task
    base: ModelEntry
    embedder: ModelEntry
    options: BankOptions
    prompt: PromptOptions
    machine: Machine
    name: str | None = None
    people: frozenset[int] | None = None
    purpose: str = ""
    gates: GateOptions = field(default_factory=GateOptions)
    begun: Callable[[int], None] = lambda number: None


@dataclass(frozen=True)
class Candidate:
    """A user whose history the bank may be made of, with the items that count; `items_held` is how many they have."""

    user: User
    items: tuple[Item, ...]
    items_held: int


def contributors(
    reg: Registry, task: str, options: BankOptions, people: frozenset[int] | None = None
) -> list[Candidate]:
    """Users, among `people`, who may be anchors and have enough items to be one, or for the task adapter alone."""
    least = options.min_items if options.task_min_items is None else min(options.task_min_items, options.min_items)
    return [
        Candidate(user, tuple(reg.items.recent(user.id, task, options.max_items or None)), count)
        for user, count in reg.users.with_items(task)
        if user.can_anchor and count >= least and (people is None or user.id in people)
    ]


def candidates(pool: Sequence[Candidate], task: str, options: BankOptions) -> list[Candidate]:
    """Those of `pool` with enough items to be an anchor. BadInput when they are fewer than the anchors asked for."""
    found = [candidate for candidate in pool if candidate.items_held >= options.min_items]
    if len(found) < options.anchors:
        raise BadInput(
            f"{options.anchors} anchors asked for, and {len(found)} users may be one "
            f"(they have consented and hold at least {options.min_items} items of task {task}).",
            hint=f"--anchors {len(found)}, or a smaller --min-items"
            if found
            else "a smaller --min-items, or import more",
        )
    return found


def bank_key(reg: Registry, request: BankRequest, pool: Sequence[Candidate]) -> str:
    """Hash of all that decides the bank: base, embedder, task, options, seed and data."""
    identity = {
        "base": request.base.fingerprint,
        "embedder": request.embedder.fingerprint,
        "task": asdict(request.task),
        "options": asdict(request.options),
        "history_items": request.prompt.history_items,
        "seed": request.machine.seed,
        "dtype": request.machine.dtype,
        "data": [[c.user.name, reg.items.data_hash_of(c.items)] for c in pool],
    }
    if request.gates != GateOptions():
        identity["gates"] = asdict(request.gates)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def build_bank(
    reg: Registry, request: BankRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Build or finish the bank that `request` describes. `Done.result` has the keys of `mta bank build --json`."""
    require_targets(request.options.targets, request.base.path)
    pool = contributors(reg, request.task.name, request.options, request.people)
    chosen = candidates(pool, request.task.name, request.options)
    yield Planned("bank build", (*plan, *plan_lines(reg, request, pool, chosen)))
    if dry_run:
        yield Done(
            {"dry_run": True, "task": request.task.name, "anchors": request.options.anchors, "candidates": len(chosen)}
        )
        return
    name = request.name or request.task.name
    own = (
        f" {bank_key(reg, request, pool)[:12]}" if request.purpose else ""
    )  # others of the name may be built meanwhile
    with reg.job_lock(f"bank {name}{own}"):
        while True:
            try:
                yield from _build(reg, request, name, pool)
                return
            except PeopleLeft as left:
                if request.purpose:
                    raise
                yield begun_anew(reg, left.bank, [candidate.user for candidate in pool])
                reg.banks.remove(left.bank.id)
            pool = contributors(reg, request.task.name, request.options, request.people)
            candidates(pool, request.task.name, request.options)


def plan_lines(
    reg: Registry, request: BankRequest, pool: Sequence[Candidate], chosen: Sequence[Candidate]
) -> tuple[PlanLine, ...]:
    """What the build would read, hold and cost, estimated from the task's token budgets and this machine's speed."""
    from mta_cli.pipeline.training.estimate import cost_lines

    shared = made_before(reg, request, pool) is not None
    work = expected(request, pool, chosen, shared)
    return (
        PlanLine("task", request.task.name),
        PlanLine("bank", request.name or request.task.name),
        PlanLine("base", request.base.name),
        PlanLine("embedder", request.embedder.name),
        PlanLine("candidates", f"{len(chosen)} users, {sum(len(c.items) for c in chosen)} items"),
        *([PlanLine("task adapter", "there, trained on the same items")] if shared else []),
        *cost_lines(reg, request.base, request.machine, work.tokens, work.step),
    )


@dataclass(frozen=True)
class Work:
    """What a build trains, at most, and the tokens of one step."""

    tokens: tuple[Tokens, ...]
    step: int


def expected(request: BankRequest, pool: Sequence[Candidate], chosen: Sequence[Candidate], shared: bool) -> Work:
    """What the build of `request` would train on; with a task adapter that is `shared`, on anchors alone."""
    from mta_cli.pipeline.training.estimate import Tokens

    options, task = request.options, request.task
    row = task.query_tokens + task.answer_tokens // 4 + task.item_tokens * request.prompt.history_items
    pooled = sum(len(c.items) for c in pool) * options.task_epochs if options.task_adapter and not shared else 0
    longest = sorted((len(c.items) for c in chosen), reverse=True)[: options.anchors]
    return Work(
        (
            Tokens(row * pooled, options.task_placement, alone=True),
            Tokens(row * sum(longest) * options.epochs, options.placement),
        ),
        row * options.batch_size,
    )


def _build(reg: Registry, request: BankRequest, name: str, pool: Sequence[Candidate]) -> Iterator[Event]:
    from mta_cli.pipeline.models.lookup import remember

    remember(reg, request.base, request.embedder)
    key = bank_key(reg, request, pool)
    config = {
        **asdict(request.options),
        "history_items": request.prompt.history_items,
        "dtype": request.machine.dtype,
        **rates_kept(request.task, pool),
        **gate_config(request.gates),
    }
    bank = reg.banks.begin(
        name=name,
        key=key,
        task=request.task.name,
        base=request.base.fingerprint,
        embedder=request.embedder.fingerprint,
        seed=request.machine.seed,
        config=config,
        purpose=request.purpose,
    )
    request.begun(bank.id)
    whose = [(candidate.user, candidate.items) for candidate in pool]
    yield from keep_neighbours(reg, bank, request.task, whose, request.embedder, request.machine.device)
    bank = reg.banks.by_id(bank.id)
    if bank.status == "ready":
        yield from weigh_neighbours(reg, bank, request, pool)
        yield Note(f"Bank {bank.name} v{bank.version} was built from the same data and settings; nothing to do.")
        yield Done(bank_json(reg, reg.banks.by_id(bank.id)))
        return
    run = reg.runs.start("bank build", f"{bank.name} v{bank.version}", config)
    with failures_of(reg, run):
        anchors = yield from _plan_anchors(reg, request, bank, candidates(pool, request.task.name, request.options))
        yield from share_task_adapter(reg, request, bank, pool)
        yield from _train(reg, request, reg.banks.by_id(bank.id), anchors, pool, run)
    result = bank_json(reg, reg.banks.by_id(bank.id))
    # A run outlives a forgotten person, so no name stands in it.
    reg.runs.finish(run.id, {key: value for key, value in result.items() if key != "anchors"})
    yield Saved("bank", f"{bank.name} v{bank.version}", f"{len(anchors)} anchors")
    yield Done(result)


def rates_kept(task: Task, pool: Sequence[Candidate]) -> dict[str, list[float]]:
    """How often the people whom the bank is made of give each label, kept with it for label priors."""
    from mta_cli.engine.memory.label_prior import label_rates

    if not task.labels:
        return {}
    return {RATES: list(label_rates([item.output for c in pool for item in c.items], task.labels))}


def _plan_anchors(
    reg: Registry, request: BankRequest, bank: Bank, chosen: Sequence[Candidate]
) -> Generator[Event, None, list[Anchor]]:
    from mta_cli.pipeline.data.profiles import profile_matrix, refresh_profiles

    users = [candidate.user for candidate in chosen]
    for event in refresh_profiles(reg, request.task.name, request.embedder, users, request.machine.device):
        if not isinstance(event, Done):
            yield event
    planned = reg.banks.anchors(bank.id)
    if planned:
        return planned
    from mta_cli.engine.retrieval.anchors import choose_anchors

    _require(reg, request, bank, users)
    ids, matrix = profile_matrix(reg, request.task.name, request.embedder.fingerprint, [user.id for user in users])
    row = {user_id: i for i, user_id in enumerate(ids)}
    options = request.options
    picks = choose_anchors(
        matrix[[row[user.id] for user in users]],
        [len(c.items) for c in chosen],
        options.anchors,
        seed=request.machine.seed,
        pick=options.pick,
    )
    if len(picks) < options.anchors:
        yield Note(f"Only {len(picks)} of {options.anchors} anchors: some profiles coincide.", warning=True)
    with reg.transaction():
        _require(reg, request, bank, [users[pick.index] for pick in picks])
        return reg.banks.plan_anchors(
            bank.id, [(users[p.index].id, p.cluster, p.cluster_size, len(chosen[p.index].items)) for p in picks]
        )


def _require(reg: Registry, request: BankRequest, bank: Bank, users: Sequence[User]) -> None:
    """Raises PeopleLeft when one of `users` is gone or takes part no more."""
    if len(staying(reg, users, request.purpose)) < len(users):
        raise PeopleLeft(bank)


def _train(
    reg: Registry, request: BankRequest, bank: Bank, anchors: Sequence[Anchor], pool: Sequence[Candidate], run: Run
) -> Iterator[Event]:
    from mta_cli.engine.lora.adapter import find_targets, folded
    from mta_cli.engine.scoring.backends import require_everywhere
    from mta_cli.pipeline.personalize.weights import load_weights

    options, base = request.options, load(request.base, request.machine, reg=reg)
    require_everywhere(base, [find_targets(base.model, options.targets, options.placement)[1]])
    examples = Examples(reg, base, request.task, request.prompt.history_items)
    items = {candidate.user.id: candidate.items for candidate in pool}
    anchors = [anchor for anchor in anchors if anchor.user_id in items]  # else theirs was forgotten
    pooled = (
        task_training(reg, request, examples, pool, run) if options.task_adapter and not bank.task_adapter else None
    )
    parts = {
        anchor.id: anchor_part(reg, request, examples, anchor, f"{i}/{len(anchors)}", items, run)
        for i, anchor in enumerate(anchors, start=1)
    }
    whose = {anchor.id: [each.user for each in pool if each.user.id == anchor.user_id] for anchor in anchors}
    parts = {i: made_of(standing_on(part, bank.task_adapter), whose[i], request) for i, part in parts.items()}
    groups = _groups(reg, request, base, anchors, parts)
    trainings = [*([pooled] if pooled else []), *(parts[anchor.id] for group in groups for anchor in group)]
    yield Started("bank build", total=sum(t.job.schedule.steps for t in trainings))
    done = 0
    if pooled is not None:
        yield from train_groups(reg, [base], [Group([pooled], partial(settle_task, reg, bank, pooled))])
        done = pooled.job.schedule.steps
    task_adapter = reg.banks.by_id(bank.id).task_adapter
    below = load_weights(reg, task_adapter, base.fingerprint) if task_adapter else None
    with ExitStack() as stack:
        bases = [base, *load_others(request.base, request.machine, len(groups))]
        for each in bases:
            stack.enter_context(folded(each, below))
        ready = [
            Group(
                [standing_on(parts[anchor.id], task_adapter) for anchor in group],
                partial(_settle_anchors, reg, bank, group, [parts[anchor.id] for anchor in group]),
            )
            for group in groups
        ]
        yield from train_groups(reg, bases, ready, done)
        chosen = [each.user.id for each in candidates(pool, request.task.name, options)]
        yield from gate_anchors(reg, bank, base, examples, chosen, request.gates)
    yield from weigh_neighbours(reg, bank, request, pool, base)
    adapters = _adapters(reg, bank, task_adapter)
    reg.banks.finish(bank.id, sum(a.tokens for a in adapters), sum(a.seconds for a in adapters))


def _settle_anchors(
    reg: Registry,
    bank: Bank,
    anchors: Sequence[Anchor],
    parts: Sequence[Training],
    results: Sequence[Adapter | str],
    trained: Trained,
) -> Iterator[Event]:
    made = those_made(anchors, parts, results)
    for anchor, adapter in made:
        reg.banks.finish_anchor(anchor.id, adapter.digest, adapter.loss_first, adapter.loss_last)
    for anchor, adapter in made:
        yield Saved("anchor", str(anchor.user), f"loss {losses_of(adapter)}, {adapter.bytes:,} bytes")
    if gone := [str(anchor.user) for anchor, end in zip(anchors, results, strict=True) if end == LEFT]:
        yield not_trained(bank.task, gone)


def _groups(
    reg: Registry, request: BankRequest, base: LoadedBase, anchors: Sequence[Anchor], parts: dict[int, Training]
) -> list[list[Anchor]]:
    """Anchors that train together: those that have no meta-LoRA yet, and all of a group that was stopped half-way.

    The same company gives the same bytes, so a stopped group goes on as it was.
    """
    from mta_cli.engine.model.load import resolve_devices

    if not anchors:
        return []
    devices = resolve_devices(request.machine.device, request.machine.dtype)
    size = group_size(base, parts[anchors[0].id].job, len(anchors), len(devices))
    groups = []
    for start in range(0, len(anchors), size):
        whole = list(anchors[start : start + size])
        missing = [anchor for anchor in whole if anchor.digest is None]
        stopped = reg.files.read_partial(group_key(base, [parts[anchor.id].job for anchor in whole])) is not None
        if missing:
            groups.append(whole if stopped else missing)
    return groups


def _adapters(reg: Registry, bank: Bank, task_adapter: str | None) -> list[Adapter]:
    digests = [anchor.digest for anchor in reg.banks.anchors(bank.id)]
    return [reg.adapters.get(digest) for digest in (task_adapter, *digests) if digest is not None]


def anchor_part(
    reg: Registry,
    request: BankRequest,
    examples: Examples,
    anchor: Anchor,
    place: str,
    items: dict[int, tuple[Item, ...]],
    run: Run,
) -> Training:
    """The meta-LoRA of an anchor with its user's `items`; `place` says which of how many it is."""
    from mta_cli.engine.training.trainer import Schedule

    options, seed = request.options, request.machine.seed
    own = items[anchor.user_id] if anchor.user_id is not None else ()
    rows = examples.rows(own)
    schedule = Schedule.epochs(len(rows), options.epochs, options.batch_size, options.learning_rate)
    job = AdapterJob(
        "meta",
        f"anchor {anchor.id}",
        None,
        options.rank,
        options.alpha,
        options.targets,
        options.placement,
        seed,
        reg.items.data_hash_of(own),
        schedule,
        _config(request),
        f"anchor {place}: {anchor.user}",
    )
    return Training(job, rows, run=run)


def _config(request: BankRequest) -> dict[str, Any]:
    return {"history_items": request.prompt.history_items, "task": request.task.name}


def standing_on(training: Training, task_adapter: str | None) -> Training:
    """The same training on a task adapter."""
    return replace(training, job=replace(training.job, task_adapter=task_adapter))


def made_of(training: Training, people: Sequence[User], request: BankRequest) -> Training:
    """The same training, which ends when one of `people` leaves."""
    return replace(training, people=tuple(people), serves=request.purpose == "")
