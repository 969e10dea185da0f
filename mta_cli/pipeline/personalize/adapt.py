"""The job behind `mta user adapt`: a LoRA of very low rank on the frozen fusion, trained on a user's shots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.engine.lora.targets import require_targets
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.engine.training.session import TrainingResult
from mta_cli.errors import BadInput, NotFound
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine, UnitFailed
from mta_cli.options import AdaptOptions, MachineOptions
from mta_cli.pipeline.bank.screening import usable_anchors
from mta_cli.pipeline.data.examples import history_mix
from mta_cli.pipeline.executors import Executors, open_executors
from mta_cli.pipeline.executors.local import Executor
from mta_cli.pipeline.personalize.fuse import (
    FusionContext,
    anchor_users,
    bank_embedder,
    bank_plan_lines,
    check_top_k,
    hash_evidence_items,
    job_title,
    load_with_task_adapter,
    make_recipes,
    prepare_fusing,
    weighting_of,
)
from mta_cli.pipeline.personalize.method_inputs import query_examples
from mta_cli.pipeline.requests import AdaptRequest, FuseRequest, adapt_request_json
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, record_request
from mta_cli.pipeline.training.groups import (
    MAX_USERS_PER_GROUP,
    AdapterJob,
    AdapterTraining,
    TrainingGroup,
    max_group_size,
    train_groups,
)
from mta_cli.pipeline.user_weights import current_bank, load_recipe_anchors
from mta_cli.pipeline.users.dependents import join_names
from mta_cli.text.formatting import loss_verdict
from store.records import Adapter, Bank, Item, Recipe, Run, Stack, User
from store.tables.recipes_and_stacks import pack_anchor_weights

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import TrainingExample
    from mta_cli.engine.training.trainer import GroupMember
    from mta_cli.engine.training.work import MeasuredLosses
    from store.registry import Registry

MIN_EFFECTIVE_STEPS = 5
MIN_LOSS_CHANGE = 0.01  # a relative change of the loss below this counts as none
MIN_TRAINABLE_LOSS = 0.05  # nats: a loss below it leaves almost nothing to learn


@dataclass(frozen=True)
class AdaptTarget:
    """A user whose stack is to be trained, with the shots, the recipe and the training job.

    It holds no fusion and no examples: they take megabytes a user, and are made for a group when it is trained.
    """

    user: User
    shots: list[Item]
    recipe: Recipe
    job: AdapterJob


class AdaptContext:
    """A base with the task adapter merged in, and what the stacks of all users share."""

    def __init__(
        self,
        reg: Registry,
        base: LoadedBase,
        executor: Executor,
        fusing: FusionContext,
        request: FuseRequest,
        options: AdaptOptions,
    ) -> None:
        from mta_cli.engine.methods.stacks import initial_stack

        self.reg, self.base, self.executor = reg, base, executor
        self.fusing, self.request, self.options = fusing, request, options
        self.bank = fusing.bank.bank
        self.start = initial_stack(fusing.bank.methods, options)

    def merge_fusion(self, recipe: Recipe) -> tuple[LoraWeights, ...]:
        """The merged anchors of a recipe; empty where it names none."""
        from mta_cli.engine.methods.anchor_weights import merge_shares

        anchors, _ = load_recipe_anchors(self.reg, self.bank, recipe.shares)
        return merge_shares([weights for weights, _ in anchors], [weight for _, weight in anchors])


def adapt_users(
    reg: Registry, asked: AdaptRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Adapt the users who are asked for.

    `JobResult.result` is the document of `mta user adapt --json`. A user whose stack already has these settings and
    items is skipped, so a stopped run continues where it stopped. Raises UsageError where the bank has fewer anchors
    than were asked for.
    """
    users, request, options = asked.users, asked.fuse, asked.options
    require_targets(options.targets, request.base.path)
    bank = current_bank(reg, request.task.name, request.base.fingerprint)
    request = replace(request, embedder=bank_embedder(reg, bank, request.embedder))
    if asked.explicit_top_k:
        check_top_k(reg, bank, request.options)
    chosen = list(users) if users is not None else adaptable_users(reg, bank)
    shots = {user.id: reg.items.recent_items(user.id, request.task.name, options.shots) for user in chosen}
    yield JobPlan("user adapt", (*plan, *_plan_lines(reg, request, options, bank, chosen, shots)))
    if dry_run:
        yield JobResult(
            {"dry_run": True, "bank": bank.name, "version": bank.version, "users": [user.name for user in chosen]}
        )
        return
    document = adapt_request_json(replace(asked, fuse=request))
    whom = [user.id for user in users or ()]
    used = [*(user.id for user in chosen), *anchor_users(reg, bank)]
    with (
        reg.job_lock(f"adapt {request.task.name}"),
        reg.hold_users(job_title("adaptation", reg, request), used),
        record_request(reg, ADAPT_RUN_KIND, document, bank_id=bank.id, asked_users=whom) as kept,
        open_executors(request.executor) as executors,
    ):
        reg.items.require_stored(item for own in shots.values() for item in own)
        recipes, context = yield from _prepare_context(
            reg, bank, chosen, request, options, executors, asked.explicit_top_k
        )
        results: dict[int, dict[str, Any]] = {}
        targets: list[AdaptTarget] = []
        for user in chosen:
            ready = yield from _prepare_target(context, user, shots[user.id], recipes[user.id])
            if isinstance(ready, AdaptTarget):
                targets.append(ready)
            else:
                results[user.id] = ready
        yield JobStarted("user adapt", total=sum(target.job.schedule.steps for target in targets))
        yield from _train_stacks(context, targets, results)
        kept |= _count_better(list(results.values()))
    if chosen and not results:
        raise BadInput("No user could be adapted.", hint="lower --learning-rate")
    yield JobResult([results[user.id] for user in chosen if user.id in results])


def _count_better(results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many users have a model, of how many the loss on held-out queries was measured, and for how many it fell.

    A change that is no difference, by `loss_verdict`, is no fall.
    """
    losses = [(one["heldout_before"], one["heldout_after"]) for one in results]
    said = [loss_verdict(before, after) for before, after in losses if before is not None and after is not None]
    return {"users": len(results), "measured": len(said), "better": sum(each.endswith("better") for each in said)}


def adaptable_users(reg: Registry, bank: Bank) -> list[User]:
    """Every user with a history of the bank's task who is not one of its anchors. Raises NotFound without any.

    A user whose anchor serves nobody any more, as after consent was withdrawn, is one of them.
    """
    anchors = {anchor.user_id for anchor in usable_anchors(reg, bank)}
    users = [user for user, count in reg.users.users_with_items(bank.task) if count > 0 and user.id not in anchors]
    if not users:
        raise NotFound(
            f"No user is left to adapt: every user with a history of task {bank.task} is an anchor.", hint="name a user"
        )
    return users


def _plan_lines(
    reg: Registry,
    request: FuseRequest,
    options: AdaptOptions,
    bank: Bank,
    users: Sequence[User],
    shots: dict[int, list[Item]],
) -> tuple[PlanLine, ...]:
    from mta_cli.engine.methods.stacks import stack_schedule
    from mta_cli.pipeline.training.estimate import TokenLoad, cost_lines, sample_row_tokens

    busy = [items for items in shots.values() if items]
    every = [item for items in busy for item in items]
    row = sample_row_tokens(reg, request.base, request.task, every, request.prompt.history_items)
    schedules = [stack_schedule(len(items), options) for items in busy]
    widest = max((own.batch_size for own in schedules), default=1)
    rows = sum(min(len(items), own.batch_size) * own.steps for items, own in zip(busy, schedules, strict=True))
    load = TokenLoad(
        round(rows * row.mean),
        options.placement,
        round(len(every) * row.mean),
        min(len(busy), MAX_USERS_PER_GROUP),
        options.rank,
        request.options.top_k * bank.config.get("rank", 0),
    )
    return (
        PlanLine(
            "users", f"{join_names([user.name for user in users])}: {len(users)}, {len(busy)} of them with a history"
        ),
        *bank_plan_lines(bank, request),
        *cost_lines(reg, request.base, request.machine, [load], row, widest),
    )


def _prepare_context(
    reg: Registry,
    bank: Bank,
    users: Sequence[User],
    request: FuseRequest,
    options: AdaptOptions,
    executors: Executors,
    explicit_top_k: bool,
) -> Generator[Event, None, tuple[dict[int, Recipe], AdaptContext]]:
    """The loaded base and the recipes of all users, some of them made anew (see `_new_weights`)."""
    from mta_cli.pipeline.models.installed import record_models

    record_models(reg, request.base)
    kept = {user.id: reg.recipes.get(user.id, request.task.name, bank.id) for user in users}
    recipes = {user_id: recipe for user_id, recipe in kept.items() if recipe is not None}
    base = load_with_task_adapter(reg, bank, request)
    fusing = yield from prepare_fusing(reg, bank, users, request, base)
    executor = executors.for_base(base, request.base.path)
    wanted = {user.id: _new_weights(reg, user, kept[user.id], request, explicit_top_k) for user in users}
    for weights in dict.fromkeys(one for one in wanted.values() if one is not None):
        chosen = [user for user in users if wanted[user.id] == weights]
        weighing = replace(request, options=replace(request.options, weights=weights))
        recipes |= yield from make_recipes(reg, fusing, chosen, weighing, executor)
    return recipes, AdaptContext(reg, base, executor, fusing, request, options)


def _new_weights(
    reg: Registry, user: User, recipe: Recipe | None, request: FuseRequest, explicit_top_k: bool
) -> str | None:
    """How the user's anchors are to be weighed anew; None keeps the recipe.

    A recipe is made where there is none, where other weights or another number of anchors are asked for, and where its
    weights come from the likelihood of other items than the request's; then by the same weighting, unless another is
    asked for. A recipe from which evidence left out almost zero weights is made anew each time a number is asked for.
    """
    from mta_cli.engine.methods.method import NEEDS_SHOTS

    asked = request.options.weights
    if recipe is None or (not recipe.shares and recipe.method not in NEEDS_SHOTS):  # before the user had a history
        return weighting_of(request.options)
    if asked is not None and asked != recipe.method:
        return asked
    if explicit_top_k and len(recipe.shares) != request.options.top_k:
        return recipe.method
    if recipe.method in NEEDS_SHOTS and recipe.items_hash != hash_evidence_items(reg, user, request):
        return recipe.method
    return None


def _prepare_target(
    context: AdaptContext, user: User, shots: list[Item], recipe: Recipe
) -> Generator[Event, None, AdaptTarget | dict[str, Any]]:
    """The user as a target of training, or the result where no training is needed."""
    reg, bank = context.reg, context.bank
    if not shots:
        yield Note(
            f"{user.name} has no history for task {bank.task}; there is nothing to train a stack on.", warning=True
        )
        return _entry(user, recipe)
    job = _job(context, user, shots, recipe)
    known = reg.stacks.get(user.id, bank.task, bank.id)
    if known is not None and known.identity == job.config["identity"] and known.is_intact:
        yield Note(f"{user.name}: adapted already with these settings and items.")
        return {**_stored_result(reg, user, recipe, known), "unchanged": True}
    return AdaptTarget(user, shots, recipe, job)


def _train_stacks(
    context: AdaptContext, targets: Sequence[AdaptTarget], results: dict[int, dict[str, Any]]
) -> Iterator[Event]:
    """Train all stacks in groups; `results` gets each user's result by user id."""
    if not targets:
        return
    size = max_group_size(context.base, targets[0].job, _largest_fusion(context, targets))
    groups = [targets[start : start + size] for start in range(0, len(targets), size)]
    runs = dict[int, Run]()
    try:
        ready = (
            _training_group(context, group, runs, results) for group in _start_group_runs(context.reg, groups, runs)
        )
        below = context.fusing.task_adapter
        yield from train_groups(context.reg, context.base, ready, executor=context.executor, below=below)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
        with context.reg.transaction():
            for run in runs.values():
                context.reg.runs.fail_run(run.id, "stopped" if stopped else str(error), interrupted=stopped)
        raise


def _largest_fusion(context: AdaptContext, targets: Sequence[AdaptTarget]) -> int:
    """The most bytes of a target's fusion, by the files of its anchors: they are float16, and a fusion is float32."""
    reg, bank = context.reg, context.bank
    files = {one.id: reg.adapters.get(one.digest).bytes for one in reg.banks.anchors(bank.id) if one.digest is not None}
    return max(2 * sum(files.get(share.anchor_id, 0) for share in target.recipe.shares) for target in targets)


def _start_group_runs(
    reg: Registry, groups: Sequence[Sequence[AdaptTarget]], runs: dict[int, Run]
) -> Iterator[Sequence[AdaptTarget]]:
    """Yield each group in turn, with a started run for each of its users in `runs`, by user id."""
    for group in groups:
        with reg.transaction():
            for target in group:
                runs[target.user.id] = reg.runs.start_run(
                    "user adapt", dict(target.job.config), user_id=target.user.id, bank_id=target.recipe.bank_id
                )
        yield group


def _training_group(
    context: AdaptContext, targets: Sequence[AdaptTarget], runs: dict[int, Run], results: dict[int, dict[str, Any]]
) -> TrainingGroup:
    members = [_stack_member(context, one) for one in targets]
    heldout = tuple(_heldout_examples(context, one.user) for one in targets)
    trainings = [
        AdapterTraining(target.job, member.examples, runs[target.user.id], member)
        for target, member in zip(targets, members, strict=True)
    ]
    queries = [len(examples) for examples in heldout]
    on_trained = partial(_store_stacks, context, targets, queries, runs, results)
    return TrainingGroup(trainings, on_trained, heldout)


def _stack_member(context: AdaptContext, target: AdaptTarget) -> GroupMember:
    """What the trainer takes for a user: the examples of the shots, and the merged fusion below the stack."""
    from mta_cli.engine.methods.stacks import stack_member

    methods, own = context.fusing.bank.methods, context.fusing.user_shots(target.user, target.shots)
    fusion = context.merge_fusion(target.recipe)
    member = stack_member(methods, own, fusion, context.start, context.options, context.request.memory)
    methods.cache.clear()  # this user is not needed again
    return member


def _heldout_examples(context: AdaptContext, user: User) -> list[TrainingExample]:
    fusing, queries = context.fusing, context.reg.items.queries(user.id, context.bank.task)
    assert fusing.rows is not None, "the base is loaded"
    return query_examples(fusing.bank, user, queries, fusing.rows, context.request.memory)


def _job(context: AdaptContext, user: User, shots: list[Item], recipe: Recipe) -> AdapterJob:
    from mta_cli.engine.methods.stacks import stack_schedule

    bank, request, options = context.bank, context.request, context.options
    schedule = stack_schedule(len(shots), options)
    config = {
        "history_items": request.prompt.history_items,
        "task": bank.task,
        "bank": bank.key,
        "recipe": pack_anchor_weights(recipe.shares).hex(),
    }
    if request.task.name not in BUILTIN_TASKS:  # others can be removed and added again in another form
        config["task_form"] = hashlib.sha256(json.dumps(asdict(request.task), sort_keys=True).encode()).hexdigest()
    if not request.task.labels:
        config["shown"] = list(history_mix(request.prompt.history_items))
    if beside := context.fusing.bank.memory.neighbour_settings(request.memory):
        config["beside"] = beside
    if request.machine.formats != MachineOptions().formats:
        config["formats"] = request.machine.formats  # stacks of earlier versions name none, which means the default
    job = AdapterJob(
        "stack",
        user.name,
        bank.task_adapter,
        options.rank,
        options.alpha,
        options.targets,
        options.placement,
        request.machine.seed,
        context.reg.items.hash_items(shots),
        schedule,
        config,
    )
    identity = hashlib.sha256(job.checkpoint_key(bank.base).encode()).hexdigest()
    return replace(job, config={**config, "identity": identity})


def _store_stacks(
    context: AdaptContext,
    targets: Sequence[AdaptTarget],
    queries: Sequence[int],
    runs: dict[int, Run],
    results: dict[int, dict[str, Any]],
    adapters: Sequence[Adapter | str],
    trained: TrainingResult,
) -> Iterator[Event]:
    """Store the stacks of a group and finish its runs; then yield an event for each user.

    `queries`: how many held-out queries each was measured on.
    """
    reg, made = context.reg, list[Stack | None]()
    for i, (target, adapter) in enumerate(zip(targets, adapters, strict=True)):
        run, before, after = runs[target.user.id], trained.measured_before[i], trained.measured_after[i]
        if isinstance(adapter, str):
            reg.runs.fail_run(run.id, adapter)
            made.append(None)
            continue
        stack = _make_stack(target, context.bank, adapter, before, after)
        reg.stacks.save_stack(stack)
        made.append(stack)
        seconds = sum(step.seconds for step in trained.steps[i])
        results[target.user.id] = _entry(target.user, target.recipe, stack, queries[i], before.common, seconds)
        reg.runs.finish_run(run.id, results[target.user.id])
    for target in targets:
        del runs[target.user.id]
    for i, (target, kept) in enumerate(zip(targets, made, strict=True)):
        if kept is None:
            yield UnitFailed(target.user.name, str(adapters[i]))
            continue
        yield from _warn_if_unmoved(target.user, kept, trained.weights[i].norm())
        arrow = f"loss {kept.loss_before:.3f} → {kept.loss_after:.3f}"
        yield ArtifactSaved("stack", target.user.name, f"{arrow}, {kept.bytes:,} bytes")


def _make_stack(
    target: AdaptTarget, bank: Bank, adapter: Adapter, before: MeasuredLosses, after: MeasuredLosses
) -> Stack:
    return Stack(
        target.user.id,
        bank.task,
        bank.id,
        adapter.digest,
        len(target.shots),
        target.job.schedule.steps,
        before.shots or 0.0,
        after.shots or 0.0,
        target.recipe.shares,
        adapter.bytes,
        identity=target.job.config["identity"],
        heldout_before=before.heldout,
        heldout_after=after.heldout,
    )


def _warn_if_unmoved(user: User, stack: Stack, norm: float) -> Iterator[Event]:
    steps, start, end = stack.steps, stack.loss_before, stack.loss_after
    if steps < MIN_EFFECTIVE_STEPS or (abs(end - start) < MIN_LOSS_CHANGE * start and start > MIN_TRAINABLE_LOSS):
        measured = f"loss {start:.4f} → {end:.4f}, ‖ΔW‖ {norm:.2g}"
        yield Note(
            f"{user.name}: {steps} optimiser steps hardly moved the model ({measured}); "
            "try more --steps or a higher --learning-rate.",
            detail=True,
        )


def _entry(
    user: User,
    recipe: Recipe,
    stack: Stack | None = None,
    queries: int = 0,
    common: float | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """A user's entry in the result: losses on shots, and on held-out queries under common model, fusion and stack."""
    return {
        "user": user.name,
        "shots": stack.shots if stack else 0,
        "steps": stack.steps if stack else 0,
        "loss_before": stack.loss_before if stack else None,
        "loss_after": stack.loss_after if stack else None,
        "heldout_queries": queries,
        "heldout_common": common,
        "heldout_before": stack.heldout_before if stack else None,
        "heldout_after": stack.heldout_after if stack else None,
        "recipe_bytes": recipe.bytes,
        "stack_bytes": stack.bytes if stack else 0,
        "weights": recipe.method,
        "seconds": round(seconds, 3),
    }


def _stored_result(reg: Registry, user: User, recipe: Recipe, stack: Stack) -> dict[str, Any]:
    """The result of the run that made this stack, or what its row tells without that run."""
    for run in reg.runs.of_user(user.id):
        result = run.result
        if run.kind == "user adapt" and result and run.config.get("identity") == stack.identity:
            return result
    return _entry(user, recipe, stack)
