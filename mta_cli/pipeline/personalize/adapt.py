"""The job behind `mta user adapt`: an ultra-low-rank stack on the frozen fusion, trained on a user's few shots.

A stack is a core of a few numbers between the bank's main directions, or a LoRA.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.engine.lora.targets import require_targets
from mta_cli.errors import BadInput, NotFound, UsageFault
from mta_cli.events import Done, Event, Failed, Note, PlanLine, Planned, Saved, Started
from mta_cli.options import AdaptOptions
from mta_cli.pipeline.asked import ADAPTATION, adaptation, bank_label, written_down
from mta_cli.pipeline.bank.lora_xs_basis import basis_of
from mta_cli.pipeline.models.load import load_others
from mta_cli.pipeline.personalize.fuse import (
    WHO,
    FuseRequest,
    check_top_k,
    fold_task_adapter,
    gather,
    load_with_task_adapter,
    make_recipes,
    standing_lines,
)
from mta_cli.pipeline.personalize.training_examples import Teaching
from mta_cli.pipeline.personalize.weights import anchor_parts, current_bank, users_task
from mta_cli.pipeline.training.groups import CORE, LEFT, AdapterJob, Group, Training, group_size, train_groups
from mta_cli.pipeline.training.session import Trained
from mta_cli.pipeline.users.dependents import some
from store.records import Adapter, Bank, Item, Recipe, Run, Stack, User
from store.tables.recipes_and_stacks import pack_shares

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import Taught
    from store.registry import Registry

REMOVED = "removed while being adapted; nothing was kept"
FEW_STEPS = 5
STILL = 0.01  # a loss that changed by less than this share did not move
LITTLE = 0.05  # nats: one below it has next to nothing to learn


@dataclass(frozen=True)
class Measured:
    """Mean loss on the shots and, where there are any, on held-out queries: nats per labelled token, or per choice of a
    label beside neighbours and habit.
    """

    shots: float | None
    heldout: float | None


@dataclass(frozen=True)
class Pupil:
    """A user whose stack is to be trained: what on, on which fusion, and how."""

    user: User
    shots: list[Item]
    recipe: Recipe
    job: AdapterJob
    fusion: tuple[LoraWeights, ...]
    taught: list[Taught]
    heldout: list[Taught]


class Workshop:
    """A base with the task adapter folded in; fusions and stacks stand above it as parts of each row's own user."""

    def __init__(self, reg: Registry, base: LoadedBase, bank: Bank, request: FuseRequest, kind: str) -> None:
        self.reg, self.base, self.bank, self.request = reg, base, bank, request
        self.teaching = Teaching(reg, base, request)
        self.basis = basis_of(reg, bank) if kind == CORE else None

    def fusion(self, recipe: Recipe) -> tuple[LoraWeights, ...]:
        """The merged anchors of a recipe; nothing where it names none."""
        from mta_cli.engine.lora.merge import merge

        merged = merge(anchor_parts(self.reg, self.bank, recipe.shares)[0])
        return () if merged is None else (merged,)

    def bases(self, groups: int) -> list[LoadedBase]:
        """The base, and the same on further devices where they have one of `groups` groups to train."""
        others = load_others(self.request.base, self.request.machine, groups)
        for other in others:
            fold_task_adapter(self.reg, self.bank, other)
        return [self.base, *others]


def measure(pupils: Sequence[Pupil], base: LoadedBase, stacks: Sequence[tuple[LoraWeights, ...]]) -> list[Measured]:
    """Everybody's losses under their fusion and `stacks`, in common passes. `base` holds the task adapter."""
    from mta_cli.engine.scoring.log_likelihood import mean_losses

    parts = [(*pupil.fusion, *stack) for pupil, stack in zip(pupils, stacks, strict=True)]
    cases = [(p.taught, part) for p, part in zip(pupils, parts, strict=True)]
    cases += [(p.heldout, part) for p, part in zip(pupils, parts, strict=True)]
    losses = mean_losses(base, cases)
    return [Measured(a, b) for a, b in zip(losses[: len(pupils)], losses[len(pupils) :], strict=True)]


def adapt_users(
    reg: Registry,
    users: Sequence[User] | None,
    request: FuseRequest,
    options: AdaptOptions,
    *,
    plan: Sequence[PlanLine] = (),
    explicit_top_k: bool = False,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Adapt `users`, or everybody with a history who is no anchor. `Done.result` is what the command's --json prints.

    Users whose stack is already what these settings and items would give are left as they are: a stopped run goes on.
    """
    options = options.settled(bool(request.task.labels))
    if options.targets is not None:
        require_targets(options.targets, request.base.path)
    bank = current_bank(reg, request.task.name, request.base.fingerprint)
    if explicit_top_k:
        check_top_k(reg, bank, request.options)
    chosen = list(users) if users is not None else everyone(reg, bank)
    shots = {user.id: reg.items.recent(user.id, request.task.name, options.shots) for user in chosen}
    yield Planned("user adapt", (*plan, *_plan_lines(reg, request, options, bank, chosen, shots)))
    if dry_run:
        yield Done(
            {"dry_run": True, "bank": bank.name, "version": bank.version, "users": [user.name for user in chosen]}
        )
        return
    asked = partial(adaptation, reg, users, request, options)
    with reg.job_lock(f"adapt {request.task.name}"), written_down(reg, ADAPTATION, bank_label(bank), asked):
        recipes, workshop = yield from _prepare(reg, bank, chosen, request, options.kind)
        yield Started("user adapt", total=sum(options.steps for user in chosen if shots[user.id]))
        results: dict[int, dict[str, Any]] = {}
        pupils: list[Pupil] = []
        there = reg.users.there(chosen)
        for user in chosen:
            if user.id not in there or user.id not in recipes:
                yield Failed(user.name, REMOVED)
                continue
            ready = yield from _ready(workshop, user, shots[user.id], recipes[user.id], options)
            if isinstance(ready, Pupil):
                pupils.append(ready)
            else:
                results[user.id] = ready
        yield from _train(workshop, pupils, results, sum(bool(own) for own in shots.values()))
    if chosen and not results:  # said outside of the runs, which outlive a forgotten person's name
        raise _nobody(reg, chosen)
    yield Done([results[user.id] for user in chosen if user.id in results])


def _nobody(reg: Registry, chosen: Sequence[User]) -> BadInput | NotFound:
    """Why nobody was adapted: all were removed, or else training failed."""
    if reg.users.there(chosen):
        return BadInput("No user could be adapted.", hint="lower --learning-rate")
    return NotFound(f"Nobody is left to adapt: {some([user.name for user in chosen])} removed meanwhile.", hint=WHO)


def task_to_adapt(reg: Registry, users: Sequence[User] | None, task: str | None) -> str:
    """The task that is meant: `task`, the users' common one, or the only one that has a bank. Else UsageFault."""
    if task is not None:
        return task
    if users is None:
        found = {bank.task for bank in reg.banks.all() if bank.status == "ready"}
        if not found:
            raise NotFound("There is no bank yet.", hint="mta bank build --task TASK")
    else:
        found = {users_task(reg, user, None) for user in users}
    if len(found) > 1:
        raise UsageFault(f"Several tasks could be meant: {', '.join(sorted(found))}.", hint="say which with --task")
    return found.pop()


def everyone(reg: Registry, bank: Bank) -> list[User]:
    """Every user with a history of the bank's task who is not one of its anchors. NotFound when there is nobody."""
    anchors = {anchor.user_id for anchor in reg.banks.anchors(bank.id)}
    found = [user for user, count in reg.users.with_items(bank.task) if count > 0 and user.id not in anchors]
    if not found:
        raise NotFound(
            f"Nobody is left to adapt: every user with a history of task {bank.task} is an anchor.", hint="name a user"
        )
    return found


def _plan_lines(
    reg: Registry,
    request: FuseRequest,
    options: AdaptOptions,
    bank: Bank,
    users: Sequence[User],
    shots: dict[int, list[Item]],
) -> tuple[PlanLine, ...]:
    from mta_cli.pipeline.training.estimate import Tokens, cost_lines

    task, busy = request.task, [own for own in shots.values() if own]
    row = task.query_tokens + task.answer_tokens // 4 + task.item_tokens * request.prompt.history_items
    rows = sum(min(len(own), options.batch_size) for own in busy) * options.steps
    tokens = Tokens(rows * row, options.placement or bank.config["placement"])
    return (
        PlanLine("users", f"{some([user.name for user in users])}: {len(users)}, {len(busy)} of them with a history"),
        *standing_lines(bank, request),
        *cost_lines(reg, request.base, request.machine, [tokens], row * options.batch_size),
    )


def _prepare(
    reg: Registry, bank: Bank, users: Sequence[User], request: FuseRequest, kind: str
) -> Generator[Event, None, tuple[dict[int, Recipe], Workshop]]:
    """The loaded base and everybody's recipe; a recipe that is there already is kept unless weights were asked for."""
    from mta_cli.pipeline.models.lookup import remember

    remember(reg, request.base, request.embedder)
    kept = {user.id: reg.recipes.get(user.id, request.task.name, bank.id) for user in users}
    missing = [user for user in users if kept[user.id] is None or _asks_otherwise(kept[user.id], request)]
    people = yield from gather(reg, bank, missing, request)
    base = load_with_task_adapter(reg, bank, request)
    made = yield from make_recipes(reg, bank, people, request, base)
    recipes = {user_id: recipe for user_id, recipe in kept.items() if recipe is not None} | made
    return recipes, Workshop(reg, base, bank, request, kind)


def _asks_otherwise(recipe: Recipe | None, request: FuseRequest) -> bool:
    """Whether the recipe was made in another way than is asked for, or before there was a history."""
    if recipe is None or not recipe.shares:
        return True
    return request.options.weights is not None and recipe.method != request.options.weights


def _ready(
    workshop: Workshop, user: User, shots: list[Item], recipe: Recipe, options: AdaptOptions
) -> Generator[Event, None, Pupil | dict[str, Any]]:
    """The user with all that training needs, or the result where there is nothing to train."""
    reg, bank = workshop.reg, workshop.bank
    if not shots:
        yield Note(
            f"{user.name} has no history for task {bank.task}; there is nothing to train a stack on.", warning=True
        )
        return _entry(user, recipe, None, None, None, 0, 0.0)
    job = _job(workshop, user, shots, recipe, options)
    known = reg.stacks.get(user.id, bank.task, bank.id)
    if known is not None and known.identity == job.config["identity"]:
        yield Note(f"{user.name}: adapted already with these settings and items.")
        return {**_stored(reg, user, recipe, known), "unchanged": True}
    teaching = workshop.teaching
    heldout = teaching.queries(user, reg.items.queries(user.id, bank.task))
    return Pupil(user, shots, recipe, job, workshop.fusion(recipe), teaching.shots(user, shots), heldout)


def _train(
    workshop: Workshop, pupils: Sequence[Pupil], results: dict[int, dict[str, Any]], asked: int
) -> Iterator[Event]:
    """Train everybody's stack, a group at a time on each device; what came of it stands in `results` by user id.

    `asked` people have shots. Their number, not that of the pupils who are left of them, is what is shared among the
    devices, so that a stopped run finds its groups again.
    """
    from mta_cli.engine.model.load import resolve_devices

    if not pupils:
        return
    machine = workshop.request.machine
    devices = len(resolve_devices(machine.device, machine.dtype))
    size = group_size(workshop.base, pupils[0].job, asked, devices)
    groups = [pupils[start : start + size] for start in range(0, len(pupils), size)]
    runs, late = dict[int, Run](), list[User]()
    try:
        ready = (_group(workshop, group, runs, results) for group in _begun(workshop.reg, groups, runs, late))
        yield from train_groups(workshop.reg, workshop.bases(len(groups)), ready)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
        with workshop.reg.transaction():
            there = workshop.reg.users.there(pupil.user for pupil in pupils)  # the others' runs went with them
            for run in (run for user_id, run in runs.items() if user_id in there):
                workshop.reg.runs.fail(run.id, "stopped" if stopped else str(error), interrupted=stopped)
        raise
    yield from (Failed(user.name, REMOVED) for user in late)


def _begun(
    reg: Registry, groups: Sequence[Sequence[Pupil]], runs: dict[int, Run], late: list[User]
) -> Iterator[Sequence[Pupil]]:
    """Each group in its turn, with a run for everybody, which stands in `runs` by user id while it lasts.

    Who was removed before their turn came is left out, and added to `late`.
    """
    for group in groups:
        with reg.transaction():
            there = reg.users.there(pupil.user for pupil in group)
            pupils = [pupil for pupil in group if pupil.user.id in there]
            for pupil in pupils:
                runs[pupil.user.id] = reg.runs.start("user adapt", pupil.user.name, dict(pupil.job.config))
        late += [pupil.user for pupil in group if pupil.user.id not in there]
        if pupils:
            yield pupils


def _group(
    workshop: Workshop, pupils: Sequence[Pupil], runs: dict[int, Run], results: dict[int, dict[str, Any]]
) -> Group:
    trainings = [Training(one.job, one.taught, one.fusion, runs[one.user.id], (one.user,)) for one in pupils]
    return Group(trainings, partial(_settle, workshop, pupils, runs, results), partial(measure, pupils), workshop.basis)


def _job(workshop: Workshop, user: User, shots: list[Item], recipe: Recipe, options: AdaptOptions) -> AdapterJob:
    import hashlib

    from mta_cli.engine.training.trainer import Schedule

    bank, request = workshop.bank, workshop.request
    assert options.learning_rate is not None  # settled
    schedule = Schedule(options.steps, options.batch_size, options.learning_rate)
    config = {
        "history_items": request.prompt.history_items,
        "task": bank.task,
        "bank": bank.key,
        "recipe": pack_shares(recipe.shares).hex(),
    }
    if beside := workshop.teaching.priors.terms:
        config["beside"] = beside
    job = AdapterJob(
        CORE if options.kind == CORE else "stack",
        user.name,
        bank.task_adapter,
        options.rank,
        options.alpha or float(options.rank),
        options.targets or "",
        options.placement or "",
        request.machine.seed,
        workshop.reg.items.data_hash_of(shots),
        schedule,
        config,
        pull=options.pull or 0.0,
    )
    identity = hashlib.sha256(job.checkpoint_key(bank.base).encode()).hexdigest()
    return replace(job, config={**config, "identity": identity})


def _settle(
    workshop: Workshop,
    pupils: Sequence[Pupil],
    runs: dict[int, Run],
    results: dict[int, dict[str, Any]],
    adapters: Sequence[Adapter | str],
    trained: Trained,
) -> Iterator[Event]:
    """End the runs of a group and store its stacks; then tell of everybody."""
    reg, made = workshop.reg, list[Stack | None]()
    for i, (pupil, adapter) in enumerate(zip(pupils, adapters, strict=True)):
        run, before, after = runs[pupil.user.id], trained.before[i], trained.after[i]
        if isinstance(adapter, str):
            if adapter != LEFT:  # else the run went with them
                reg.runs.fail(run.id, adapter)
            made.append(None)
            continue
        stack = _stack(pupil, workshop.bank, adapter, before, after, trained.numbers.get(i))
        reg.stacks.put(stack)
        made.append(stack)
        seconds = sum(step.seconds for step in trained.taken[i])
        results[pupil.user.id] = _entry(pupil.user, pupil.recipe, stack, before, after, len(pupil.heldout), seconds)
        reg.runs.finish(run.id, results[pupil.user.id])
    for pupil in pupils:
        del runs[pupil.user.id]
    for i, (pupil, kept) in enumerate(zip(pupils, made, strict=True)):
        if kept is None:
            yield Failed(pupil.user.name, REMOVED if adapters[i] == LEFT else str(adapters[i]))
            continue
        yield from _warn(pupil.user, pupil.job, trained.before[i], trained.after[i], trained.weights[i].norm())
        arrow = f"loss {kept.loss_before:.3f} → {kept.loss_after:.3f}"
        yield Saved("stack", pupil.user.name, f"{arrow}, {kept.bytes:,} bytes")


def _stack(
    pupil: Pupil, bank: Bank, adapter: Adapter, before: Measured, after: Measured, numbers: bytes | None
) -> Stack:
    return Stack(
        pupil.user.id,
        bank.task,
        bank.id,
        adapter.digest,
        len(pupil.shots),
        pupil.job.schedule.steps,
        before.shots or 0.0,
        after.shots or 0.0,
        pack_shares(pupil.recipe.shares),
        adapter.bytes if numbers is None else len(numbers),
        identity=pupil.job.config["identity"],
        numbers=numbers,
        heldout_before=before.heldout,
        heldout_after=after.heldout,
    )


def _warn(user: User, job: AdapterJob, before: Measured, after: Measured, norm: float) -> Iterator[Event]:
    steps, start, end = job.schedule.steps, before.shots or 0.0, after.shots or 0.0
    if steps < FEW_STEPS or (abs(end - start) < STILL * start and start > LITTLE):
        measured = f"loss {start:.4f} → {end:.4f}, ‖ΔW‖ {norm:.2g}"
        yield Note(
            f"{user.name}: {steps} optimiser steps hardly moved the model ({measured}); "
            "try more --steps or a higher --learning-rate.",
            warning=True,
        )


def _entry(
    user: User,
    recipe: Recipe,
    stack: Stack | None,
    before: Measured | None,
    after: Measured | None,
    queries: int,
    seconds: float,
) -> dict[str, Any]:
    return {
        "user": user.name,
        "shots": stack.shots if stack else 0,
        "steps": stack.steps if stack else 0,
        "loss_before": before.shots if before else None,
        "loss_after": after.shots if after else None,
        "heldout_queries": queries,
        "heldout_before": before.heldout if before else None,
        "heldout_after": after.heldout if after else None,
        "recipe_bytes": recipe.bytes,
        "stack_bytes": stack.bytes if stack else 0,
        "weights": recipe.method,
        "seconds": round(seconds, 3),
    }


def _stored(reg: Registry, user: User, recipe: Recipe, stack: Stack) -> dict[str, Any]:
    """The result of the run that made this stack, or what its row still tells."""
    for run in reg.runs.of_person(user.name):
        result = run.result
        if run.kind == "user adapt" and result and run.config.get("identity") == stack.identity:
            return result
    losses = Measured(stack.loss_before, stack.heldout_before), Measured(stack.loss_after, stack.heldout_after)
    return _entry(user, recipe, stack, *losses, 0, 0.0)
