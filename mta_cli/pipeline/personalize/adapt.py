"""The job behind `mta user adapt`: a LoRA of very low rank on the frozen fusion, trained on a user's shots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mta_cli.engine.lora.targets import require_targets
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.engine.training.session import TrainingResult
from mta_cli.errors import BadInput, Flag, NotFound
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine, UnitFailed
from mta_cli.options import SHOT_WEIGHTINGS, WEIGHT_METHODS, MachineOptions
from mta_cli.pipeline.anchors import usable_anchors
from mta_cli.pipeline.executors import open_executors
from mta_cli.pipeline.personalize.fuse import (
    anchor_users,
    bank_embedder,
    check_top_k,
    hash_evidence_items,
    job_title,
    make_recipes,
    refresh_bank_profiles,
    requested_weighting,
)
from mta_cli.pipeline.personalize.plan import adapt_plan_lines
from mta_cli.pipeline.requests import AdaptRequest, FuseRequest, adapt_request_json
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, record_request
from mta_cli.pipeline.training.groups import (
    AdapterJob,
    AdapterTraining,
    TrainingGroup,
    max_group_size,
    train_groups,
)
from mta_cli.pipeline.user_weights import current_bank, load_recipe_anchors
from mta_cli.pipeline.workbench import Workbench
from mta_cli.text.formatting import loss_verdict
from store.records import Adapter, Bank, Item, Recipe, Run, Stack, User
from store.tables.recipes_and_stacks import pack_anchor_weights

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.training.trainer import GroupMember
    from mta_cli.engine.training.work import MeasuredLosses
    from store.registry import Registry

MIN_EFFECTIVE_STEPS = 5
MIN_LOSS_CHANGE = 0.01  # smaller relative changes of the loss count as none
MIN_TRAINABLE_LOSS = 0.05  # nats: below it there is almost nothing to learn


@dataclass(frozen=True)
class AdaptTarget:
    """A user whose stack is to be trained, with the shots, the recipe and the training job.

    Fusion and examples take megabytes per user, so they are made only when the group is trained.
    """

    user: User
    shots: list[Item]
    recipe: Recipe
    job: AdapterJob


def adapt_users(
    reg: Registry, asked: AdaptRequest, *, plan: Sequence[PlanLine] | None = None, dry_run: bool = False
) -> Iterator[Event]:
    """Adapt the requested users.

    `JobResult.result` is the document of `mta user adapt --json`. A user whose stack already has these settings and
    items is skipped, so a stopped run continues where it stopped. With `plan`, a plan with these lines and the cost of
    training comes first; a dry run ends there. Raises UsageError if the bank has fewer anchors than requested.
    """
    # 1. bank, users and shots; refuse bad requests before anything is loaded
    users, request, options = asked.users, asked.fuse, asked.options
    require_targets(options.targets, request.base.path)
    bank = current_bank(reg, request.task.name, request.base.fingerprint)
    request = replace(request, embedder=bank_embedder(reg, bank, request.embedder))
    asked = replace(asked, fuse=request)
    if asked.explicit_top_k:
        check_top_k(reg, bank, request.options)
    chosen = list(users) if users is not None else adaptable_users(reg, bank)
    shots = {user.id: reg.items.recent_items(user.id, request.task.name, options.shots) for user in chosen}
    if plan is not None:
        yield JobPlan("user adapt", (*plan, *adapt_plan_lines(reg, asked, bank, chosen, shots)))
    if dry_run:
        yield JobResult(
            {"dry_run": True, "bank": bank.name, "version": bank.version, "users": [user.name for user in chosen]}
        )
        return
    # 2. hold the users and the anchors' users while their data are in use
    whom = [user.id for user in users or ()]
    used = [*(user.id for user in chosen), *anchor_users(reg, bank)]
    with (
        reg.job_lock(f"adapt {request.task.name}"),
        reg.hold_users(job_title("adaptation", reg, request), used),
        record_request(reg, ADAPT_RUN_KIND, adapt_request_json(asked), bank_id=bank.id, asked_users=whom) as kept,
        open_executors(request.executor) as executors,
    ):
        from mta_cli.pipeline.models.installed import record_models

        reg.items.require_stored(item for own in shots.values() for item in own)
        record_models(reg, request.base)
        training = _StackTraining(Workbench(reg, request, bank, executors), asked)
        with training.bench.holding_task_adapter():
            # 3. recipes first: a stack is trained above its user's fusion
            recipes = yield from _current_recipes(training.bench, chosen, asked)
            # 4. the stacks that are missing or outdated, in groups
            targets = []
            for user in chosen:
                if (target := (yield from training.prepare_target(user, shots[user.id], recipes[user.id]))) is not None:
                    targets.append(target)
            yield JobStarted("user adapt", total=sum(target.job.schedule.steps for target in targets))
            yield from training.train(targets)
        results = training.results
        kept |= _count_better(list(results.values()))
    if chosen and not results:
        raise BadInput(
            "No user could be adapted: every training diverged.",
            hint=("run it again with a lower ", Flag("learning_rate")),
        )
    yield JobResult([results[user.id] for user in chosen if user.id in results])


def _count_better(results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many users have a result, for how many the held-out loss was measured, and for how many it decreased.

    A decrease counts only if `loss_verdict` calls it better, which leaves out the smallest changes.
    """
    losses = [(one["heldout_before"], one["heldout_after"]) for one in results]
    said = [loss_verdict(before, after) for before, after in losses if before is not None and after is not None]
    return {"users": len(results), "measured": len(said), "better": sum(each.endswith("better") for each in said)}


def adaptable_users(reg: Registry, bank: Bank) -> list[User]:
    """Every user with a history of the bank's task who is not one of its anchors. Raises NotFound without any.

    A user whose anchor is no longer usable is included, for example after consent was withdrawn.
    """
    anchors = {anchor.user_id for anchor in usable_anchors(reg, bank)}
    users = [user for user, count in reg.users.users_with_items(bank.task) if count > 0 and user.id not in anchors]
    if not users:
        raise NotFound(
            f"No user is left to adapt: only anchors have a history of task {bank.task}.",
            hint="name the users to adapt; anchors may be among them",
        )
    return users


def _current_recipes(
    bench: Workbench[FuseRequest], users: Sequence[User], asked: AdaptRequest
) -> Generator[Event, None, dict[int, Recipe]]:
    """Returns the recipes of all users by user id; some are computed again (see `_new_weights`)."""
    reg, request = bench.reg, asked.fuse
    kept = {user.id: reg.recipes.get(user.id, request.task.name, bench.bank.id) for user in users}
    recipes = {user_id: recipe for user_id, recipe in kept.items() if recipe is not None}
    yield from refresh_bank_profiles(bench, users)
    wanted = {user.id: _new_weights(reg, user, kept[user.id], request, asked.explicit_top_k) for user in users}
    for weights in dict.fromkeys(one for one in wanted.values() if one is not None):
        chosen = [user for user in users if wanted[user.id] == weights]
        weighing = replace(request, options=replace(request.options, weights=weights))
        recipes |= yield from make_recipes(bench, chosen, weighing)
    return recipes


def _new_weights(
    reg: Registry, user: User, recipe: Recipe | None, request: FuseRequest, explicit_top_k: bool
) -> str | None:
    """The weighting by which to compute the user's recipe again; None keeps the recipe.

    A recipe is computed if it is missing, if the request has another weighting or number of anchors, or if its weights
    come from the likelihood of other items than the request's. The recipe's weighting is kept unless the request names
    one. A recipe from which evidence dropped weights near zero is computed again whenever a number is requested.
    """
    asked = request.options.weights
    if (
        recipe is None
        or recipe.method not in WEIGHT_METHODS  # a weighting that only an earlier version had
        or (not recipe.shares and recipe.method not in SHOT_WEIGHTINGS)  # made before the user had a history
    ):
        return requested_weighting(request.options)
    if asked is not None and asked != recipe.method:
        return asked
    if explicit_top_k and len(recipe.shares) != request.options.top_k:
        return recipe.method
    if recipe.method in SHOT_WEIGHTINGS and recipe.items_hash != hash_evidence_items(reg, user, request):
        return recipe.method
    return None


class _StackTraining:
    """Trains users' stacks on one workbench. `results` has each user's entry in the document, by user id."""

    def __init__(self, bench: Workbench[FuseRequest], asked: AdaptRequest) -> None:
        self.bench, self._request, self._options = bench, asked.fuse, asked.options
        self.results = dict[int, dict[str, Any]]()
        self._runs = dict[int, Run]()  # runs of the users in training, by user id

    def prepare_target(
        self, user: User, shots: list[Item], recipe: Recipe
    ) -> Generator[Event, None, AdaptTarget | None]:
        """Returns the user's training target. If no training is needed, stores the user's result and returns None."""
        reg, bank = self.bench.reg, self.bench.bank
        if not shots:
            yield Note(
                f"{user.name} has no history for task {bank.task}; there is nothing to train a stack on.",
                warning=True,
            )
            self.results[user.id] = _entry(user, recipe)
            return None
        job = self._job(user, shots, recipe)
        known = reg.stacks.get(user.id, bank.task, bank.id)
        if known is not None and known.identity == job.config["identity"] and known.is_intact:
            yield Note(f"{user.name}: adapted already with these settings and items.")
            self.results[user.id] = {**_stored_result(reg, user, recipe, known), "unchanged": True}
            return None
        return AdaptTarget(user, shots, recipe, job)

    def train(self, targets: Sequence[AdaptTarget]) -> Iterator[Event]:
        """Train all stacks in groups, and store the result of each group."""
        if not targets:
            return
        bench = self.bench
        size = max_group_size(bench.base, targets[0].job, self._largest_fusion(targets))
        groups = (targets[start : start + size] for start in range(0, len(targets), size))
        ready = (self._training_group(group) for group in groups)
        try:
            yield from train_groups(bench.reg, bench.base, ready, executor=bench.executor, below=bench.task_adapter)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
            with bench.reg.transaction():
                for run in self._runs.values():
                    bench.reg.runs.fail_run(run.id, "stopped" if stopped else str(error), interrupted=stopped)
            raise

    def _largest_fusion(self, targets: Sequence[AdaptTarget]) -> int:
        """The largest size of a target's fusion in bytes, from its anchors' files (float16; a fusion is float32)."""
        reg = self.bench.reg
        anchors = reg.banks.anchors(self.bench.bank.id)
        files = {one.id: reg.adapters.get(one.digest).bytes for one in anchors if one.digest is not None}
        return max(2 * sum(files.get(share.anchor_id, 0) for share in target.recipe.shares) for target in targets)

    def _training_group(self, targets: Sequence[AdaptTarget]) -> TrainingGroup:
        """The targets as a group, each with a started run."""
        reg = self.bench.reg
        with reg.transaction():
            for one in targets:
                self._runs[one.user.id] = reg.runs.start_run(
                    "user adapt", dict(one.job.config), user_id=one.user.id, bank_id=one.recipe.bank_id
                )
        members = [self._stack_member(one) for one in targets]
        heldout = tuple(self.bench.query_examples(one.user, self._request.memory) for one in targets)
        trainings = [
            AdapterTraining(one.job, member.examples, self._runs[one.user.id], member)
            for one, member in zip(targets, members, strict=True)
        ]
        return TrainingGroup(trainings, partial(self._store_stacks, targets, list(map(len, heldout))), heldout)

    def _stack_member(self, target: AdaptTarget) -> GroupMember:
        """The trainer's input for a user: the examples of the shots, and the merged fusion below the stack."""
        from mta_cli.engine.methods.anchor_weights import merge_shares
        from mta_cli.engine.methods.stacks import stack_member

        bench, methods = self.bench, self.bench.methods
        own = bench.user_shots(target.user, target.shots)
        anchors, _ = load_recipe_anchors(bench.reg, bench.bank, target.recipe.shares)
        fusion = merge_shares([weights for weights, _ in anchors], [weight for _, weight in anchors])
        member = stack_member(methods, own, fusion, self._start, self._options, self._request.memory)
        methods.cache.clear()  # this user is not needed again
        return member

    @cached_property
    def _start(self) -> LoraWeights:
        """The stack before its first step, the same for all users."""
        from mta_cli.engine.methods.stacks import initial_stack

        return initial_stack(self.bench.methods, self._options)

    def _job(self, user: User, shots: list[Item], recipe: Recipe) -> AdapterJob:
        from mta_cli.engine.methods.stacks import stack_schedule

        bank, request, options = self.bench.bank, self._request, self._options
        schedule = stack_schedule(len(shots), options, bool(request.task.labels))
        config = {
            **request.adapter_config,
            "bank": bank.key,
            "recipe": pack_anchor_weights(recipe.shares).hex(),
        }
        # an added task can be replaced by another of the same name; the stack must then be trained again
        if request.task.name not in BUILTIN_TASKS:
            config["task_form"] = hashlib.sha256(json.dumps(asdict(request.task), sort_keys=True).encode()).hexdigest()
        if not request.task.labels:
            config["shown"] = list(request.history_mix)
        if beside := self.bench.memory.neighbour_settings(request.memory):
            config["beside"] = beside
        # default formats are left out, so that stacks stored before this entry existed keep their identity
        if request.machine.formats != MachineOptions().formats:
            config["formats"] = request.machine.formats
        job = AdapterJob(
            "stack",
            user.name,
            bank.task_adapter,
            options.rank,
            options.alpha,
            options.targets,
            options.placement,
            request.machine.seed,
            self.bench.reg.items.hash_items(shots),
            schedule,
            config,
        )
        identity = hashlib.sha256(job.checkpoint_key(bank.base).encode()).hexdigest()
        return replace(job, config={**config, "identity": identity})

    def _store_stacks(
        self,
        targets: Sequence[AdaptTarget],
        queries: Sequence[int],
        adapters: Sequence[Adapter | str],
        trained: TrainingResult,
    ) -> Iterator[Event]:
        """Store the stacks of a group and finish its runs; then yield an event for each user.

        `queries` is the number of held-out queries on which each target was measured.
        """
        reg, made = self.bench.reg, list[Stack | None]()
        for i, (target, adapter) in enumerate(zip(targets, adapters, strict=True)):
            run, before, after = self._runs[target.user.id], trained.measured_before[i], trained.measured_after[i]
            if isinstance(adapter, str):
                reg.runs.fail_run(run.id, adapter)
                made.append(None)
                continue
            stack = _make_stack(target, self.bench.bank, adapter, before, after)
            reg.stacks.save_stack(stack)
            made.append(stack)
            seconds = sum(step.seconds for step in trained.steps[i])
            entry = _entry(target.user, target.recipe, stack, queries[i], before.common, seconds)
            self.results[target.user.id] = entry
            reg.runs.finish_run(run.id, entry)
        for target in targets:
            del self._runs[target.user.id]
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
    """The result of the run that made this stack; without that run, the values in the stack's row."""
    for run in reg.runs.of_user(user.id):
        result = run.result
        if run.kind == "user adapt" and result and run.config.get("identity") == stack.identity:
            return result
    return _entry(user, recipe, stack)
