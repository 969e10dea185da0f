"""The job behind `mta bank build`: profiles, anchors, the task adapter, one meta-LoRA per anchor.

Every finished part is a row in the store, so the same command run again goes on where it stopped. Renders nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.engine.lora.targets import require_targets
from mta_cli.engine.training.session import TrainingResult
from mta_cli.errors import BadInput
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.formatting import pluralise
from mta_cli.options import BankOptions, ScreeningOptions
from mta_cli.pipeline.bank.ladder import measure_text_ladder
from mta_cli.pipeline.bank.memory_weights import HELD_OUT_OPTION, fit_memory_weights
from mta_cli.pipeline.bank.screening import SCREENING_KEY, screen_anchors
from mta_cli.pipeline.bank.task_adapter import (
    find_reusable_task_adapter,
    reuse_task_adapter,
    store_task_adapter,
    task_adapter_training,
)
from mta_cli.pipeline.bank.verify import bank_json
from mta_cli.pipeline.bank_sizes import bank_sizes
from mta_cli.pipeline.data.examples import PromptRowBuilder, history_mix
from mta_cli.pipeline.executors import Executors, open_executors
from mta_cli.pipeline.memory.knn import LABEL_RATES_KEY, update_neighbours
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.requests import SCREENING_OPTIONS_KEY
from mta_cli.pipeline.runs import bank_label, fail_run_on_error
from mta_cli.pipeline.training.groups import (
    MAX_USERS_PER_GROUP,
    AdapterJob,
    AdapterTraining,
    TrainingGroup,
    format_losses,
    group_key,
    max_group_size,
    pair_with_adapters,
    train_groups,
)
from store.records import Adapter, Anchor, Bank, Item, Run, User

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.requests import BankRequest
    from mta_cli.pipeline.training.estimate import RowTokens, TokenLoad
    from store.registry import Registry


@dataclass(frozen=True)
class Contributor:
    """A user whose history the bank may be made of, with their items. `items_held` counts all items of the user."""

    user: User
    items: tuple[Item, ...]
    items_held: int


def contributors(
    reg: Registry,
    task: str,
    options: BankOptions,
    user_ids: frozenset[int] | None = None,
    until: str | None = None,
) -> list[Contributor]:
    """Users among `user_ids` (None: all) who consent and have enough items for an anchor or the task adapter.

    Items that are known to be later than `until` do not count.
    """
    found = []
    for user, count in reg.users.users_with_items(task):
        if user.can_anchor and count >= options.pool_items and (user_ids is None or user.id in user_ids):
            items = reg.items.recent_items(user.id, task, (options.max_items or None) if until is None else None)
            if until is not None:
                items = [item for item in items if item.time is None or item.time <= until]
                count, items = len(items), items[-options.max_items :]
            if count >= options.pool_items:
                found.append(Contributor(user, tuple(items), count))
    return found


def anchor_candidates(pool: Sequence[Contributor], task: str, options: BankOptions) -> list[Contributor]:
    """Those of `pool` with enough items to be an anchor. Raises BadInput when there are too few."""
    found = [candidate for candidate in pool if candidate.items_held >= options.anchor_items]
    if not found and options.anchors == 1:
        raise BadInput(
            f"No user may be an anchor of task {task}: none has consented and {options.anchor_items} items.",
            hint="mta user consent USER --can-anchor, a smaller --min-items, or import more",
        )
    if len(found) < options.anchor_count:
        raise BadInput(
            f"{options.anchor_count} anchors asked for, and {len(found)} users may be one "
            f"(they have consented and hold at least {options.anchor_items} items of task {task}).",
            hint=f"--anchors {len(found)}, or a smaller --min-items"
            if found
            else "a smaller --min-items, or import more",
        )
    return found


def _require_consent(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> None:
    """Raises BadInput where there are users with enough items, and none of them has consented."""
    if pool:
        return
    task, least = request.task.name, request.options.anchor_items
    shy = sum(count >= least and not user.can_anchor for user, count in reg.users.users_with_items(task))
    if shy:
        raise BadInput(
            f"No user of task {task} has consented to be an anchor; {shy:,} who have not hold at least {least} items.",
            hint=f"mta user consent --all --can-anchor --task {task}, if they do; or one by one",
        )


def bank_key(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> str:
    """A hash of everything that determines the bank: base, embedder, task, options, seed and data."""
    options = asdict(request.options)
    if options[HELD_OUT_OPTION]:
        del options[HELD_OUT_OPTION]  # banks of earlier versions lack it
    identity = {
        "base": request.base.fingerprint,
        "embedder": request.embedder.fingerprint,
        "task": asdict(request.task),
        "options": options,
        "history_items": request.prompt.history_items,
        "seed": request.machine.seed,
        **request.machine.formats,
        "data": [[c.user.name, reg.items.hash_items(c.items)] for c in pool],
    }
    if request.gates != ScreeningOptions():
        identity["gates"] = asdict(request.gates)
    if request.permute_answers:
        identity["permute_answers"] = True
    if request.purpose:
        identity["screened"] = True  # before, refused anchors took part in the directions of cores
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def build_bank(
    reg: Registry,
    request: BankRequest,
    *,
    plan: Sequence[PlanLine] = (),
    dry_run: bool = False,
    executors: Executors | None = None,
) -> Iterator[Event]:
    """Build or finish the bank that `request` describes. `JobResult.result` has the keys of `mta bank build --json`.

    `executors` are those of the job that the build is a part of.
    """
    require_targets(request.options.targets, request.base.path)
    sizes = bank_sizes(reg, request.task.name, request.options, request.user_ids)
    request = replace(request, options=sizes.options)
    pool = contributors(reg, request.task.name, request.options, request.user_ids, request.until)
    _require_consent(reg, request, pool)
    chosen = anchor_candidates(pool, request.task.name, request.options)
    yield JobPlan("bank build", (*plan, *sizes.plan_lines, *build_plan_lines(reg, request, pool, chosen)))
    if dry_run:
        yield JobResult(
            {
                "dry_run": True,
                "task": request.task.name,
                "anchors": request.options.anchor_count,
                "candidates": len(chosen),
            }
        )
        return
    name = request.name or request.task.name
    own = (
        f" {bank_key(reg, request, pool)[:12]}" if request.purpose else ""
    )  # another build may use the same name meanwhile
    whose, title = [candidate.user.id for candidate in pool], f"bank build of {name}"
    if set(reg.banks.bases(ready=False)) - {request.base.fingerprint}:
        title += f" on {request.base.name}"
    with (
        reg.job_lock(f"bank {name}{own}"),
        reg.hold_users(f"{title}{request.executor.place}", whose, consenting=True),
        open_executors(request.executor, executors) as own_executors,
    ):
        reg.items.require_stored(item for each in pool for item in each.items)
        yield from _build(reg, request, name, pool, own_executors)


def build_plan_lines(
    reg: Registry, request: BankRequest, pool: Sequence[Contributor], chosen: Sequence[Contributor]
) -> tuple[PlanLine, ...]:
    """Data, memory and time of a build, estimated from a sample of the data and the speed of this machine."""
    from mta_cli.pipeline.training.estimate import cost_lines

    shared = find_reusable_task_adapter(reg, request, pool) is not None
    rows = sample_rows(reg, request, pool)
    return (
        PlanLine("task", request.task.name),
        PlanLine("bank", request.name or request.task.name),
        PlanLine("base", request.base.name),
        PlanLine("embedder", request.embedder.name),
        PlanLine("candidates", f"{len(chosen)} users, {sum(len(c.items) for c in chosen)} items"),
        *([PlanLine("task adapter", "there, trained on the same items")] if shared else []),
        *cost_lines(
            reg,
            request.base,
            request.machine,
            estimate_build(request, pool, chosen, shared, rows),
            rows.anchors,
            request.options.batch_size,
        ),
    )


@dataclass(frozen=True)
class BuildRows:
    """The tokens of a build's training rows. Those of anchors show the most history."""

    task_adapter: RowTokens
    anchors: RowTokens


def sample_rows(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> BuildRows:
    """The tokens of the training rows of `pool`, counted in a sample."""
    from mta_cli.pipeline.training.estimate import sample_row_tokens

    items, shown = [item for candidate in pool for item in candidate.items], request.prompt.history_items
    task_adapter, anchors = (
        sample_row_tokens(reg, request.base, request.task, items, shown, mix) for mix in (history_mix(shown), None)
    )
    return BuildRows(task_adapter, anchors)


def estimate_build(
    request: BankRequest, pool: Sequence[Contributor], chosen: Sequence[Contributor], shared: bool, rows: BuildRows
) -> tuple[TokenLoad, ...]:
    """The most that the build of `request` trains. With a `shared` task adapter, it trains the anchors only.

    The memory's weights take one more task adapter, in two halves.
    """
    from mta_cli.pipeline.training.estimate import TokenLoad

    options, row, pooled_row = request.options, rows.anchors.mean, rows.task_adapter.mean
    items = sum(len(c.items) for c in pool) if options.task_adapter and not shared else 0
    pooled = items * options.task_epochs * (2 if request.task.labels and options.held_out_weights else 1)
    longest = sum(sorted((len(c.items) for c in chosen), reverse=True)[: options.anchor_count])
    return (
        TokenLoad(
            round(pooled_row * pooled), options.task_placement, round(pooled_row * items), rank=options.task_rank
        ),
        TokenLoad(
            round(row * longest * options.epochs),
            options.placement,
            round(row * longest),
            min(options.anchor_count, MAX_USERS_PER_GROUP),
            options.rank,
        ),
    )


def _build(
    reg: Registry, request: BankRequest, name: str, pool: Sequence[Contributor], executors: Executors
) -> Iterator[Event]:
    from mta_cli.pipeline.models.installed import record_models

    record_models(reg, request.base, request.embedder)
    key = bank_key(reg, request, pool)
    config = {
        **asdict(request.options),
        "history_items": request.prompt.history_items,
        **request.machine.formats,
        **label_rates_config(request.task, pool),
        SCREENING_OPTIONS_KEY: asdict(request.gates),
    }
    bank = reg.banks.get_or_create_bank(
        name=name,
        key=key,
        task=request.task.name,
        base=request.base.fingerprint,
        embedder=request.embedder.fingerprint,
        seed=request.machine.seed,
        config=config,
        purpose=request.purpose,
    )
    request.on_bank_started(bank.id)
    whose = [(candidate.user, candidate.items) for candidate in pool]
    yield from update_neighbours(reg, bank, request.task, whose, request.embedder, request.machine.device)
    bank = reg.banks.by_id(bank.id)
    if bank.status == "ready":
        yield from fit_memory_weights(reg, bank, request, pool, executors)
        yield Note(f"Bank {bank.name} v{bank.version} was built from the same data and settings; nothing to do.")
        yield from _newer_banks_note(reg, bank)
        yield JobResult(bank_json(reg, reg.banks.by_id(bank.id)))
        return
    run = reg.runs.start_run("bank build", config, bank_id=bank.id)
    with fail_run_on_error(reg, run):
        anchors = yield from _plan_anchors(
            reg, request, bank, anchor_candidates(pool, request.task.name, request.options)
        )
        yield from reuse_task_adapter(reg, request, bank, pool)
        yield from _train_bank(reg, request, reg.banks.by_id(bank.id), anchors, pool, run, executors)
    result = bank_json(reg, reg.banks.by_id(bank.id))
    # A run outlives a forgotten user, so it contains no names.
    reg.runs.finish_run(run.id, {key: value for key, value in result.items() if key != "anchors"})
    yield ArtifactSaved("bank", f"{bank.name} v{bank.version}", pluralise(len(anchors), "anchor"))
    yield from _newer_banks_note(reg, bank)
    yield JobResult(result)


def _newer_banks_note(reg: Registry, bank: Bank) -> Iterator[Event]:
    """A warning where commands use a newer ready bank of the task and base, with what makes this one current."""
    those = [other for other in reg.banks.all() if (other.task, other.base) == (bank.task, bank.base)]
    newer = sorted((other for other in those if other.id > bank.id and other.status == "ready"), key=lambda one: one.id)
    if not newer or bank.purpose:
        return
    removals = [f"`mta bank rm {shlex.quote(one.name)} --bank-version {one.version}`" for one in reversed(newer)]
    yield Note(
        f"Answers come from bank {bank_label(newer[-1])}, which is newer than {bank_label(bank)}. To use "
        f"{bank_label(bank)} instead: {', then '.join(removals)}. Recipes and stacks on a removed bank go with it.",
        warning=True,
    )


def label_rates_config(task: Task, pool: Sequence[Contributor]) -> dict[str, list[float]]:
    """How often the bank's users give each label, stored with the bank for label priors."""
    from mta_cli.engine.memory.label_prior import label_rates

    if not task.labels:
        return {}
    return {LABEL_RATES_KEY: list(label_rates([item.output for c in pool for item in c.items], task.labels))}


def _plan_anchors(
    reg: Registry, request: BankRequest, bank: Bank, chosen: Sequence[Contributor]
) -> Generator[Event, None, list[Anchor]]:
    from mta_cli.pipeline.data.profiles import current_profiles

    users = [candidate.user for candidate in chosen]
    profiles = yield from current_profiles(reg, request.task.name, request.embedder, users, request.machine.device)
    planned = reg.banks.anchors(bank.id)
    if planned:
        return planned
    from mta_cli.engine.retrieval.anchors import choose_anchors

    options = request.options
    picks = choose_anchors(
        profiles,
        [len(c.items) for c in chosen],
        options.anchor_count,
        seed=request.machine.seed,
        pick=options.pick,
    )
    if len(picks) < options.anchor_count:
        yield Note(f"Only {len(picks)} of {options.anchor_count} anchors: some profiles coincide.", warning=True)
    return reg.banks.plan_anchors(
        bank.id, [(users[p.index].id, p.cluster, p.cluster_size, len(chosen[p.index].items)) for p in picks]
    )


def _train_bank(
    reg: Registry,
    request: BankRequest,
    bank: Bank,
    anchors: Sequence[Anchor],
    pool: Sequence[Contributor],
    run: Run,
    executors: Executors,
) -> Iterator[Event]:
    from mta_cli.engine.backends import backend_of
    from mta_cli.engine.lora.adapter import find_target_modules, merge_into_base
    from mta_cli.pipeline.user_weights import load_weights

    options, base = request.options, load_on_device(request.base, request.machine, reg=reg)
    _, placement = find_target_modules(base.model, options.targets, options.placement)
    backend_of(base).require_placements([placement])
    examples = PromptRowBuilder(reg, base, request.task, request.prompt.history_items, until=request.until)
    items = {candidate.user.id: candidate.items for candidate in pool}
    anchors = [anchor for anchor in anchors if anchor.user_id in items]  # the others' users were forgotten
    pooled = (
        task_adapter_training(reg, request, examples, pool, run)
        if options.task_adapter and not bank.task_adapter
        else None
    )
    anchor_trainings = {
        anchor.id: anchor_training(reg, request, examples, anchor, f"{i}/{len(anchors)}", items, run)
        for i, anchor in enumerate(anchors, start=1)
    }
    anchor_trainings = {i: with_task_adapter(training, bank.task_adapter) for i, training in anchor_trainings.items()}
    groups = _groups(reg, base, anchors, anchor_trainings)
    trainings = [*([pooled] if pooled else []), *(anchor_trainings[anchor.id] for group in groups for anchor in group)]
    yield JobStarted("bank build", total=sum(t.job.schedule.steps for t in trainings))
    done, executor = 0, executors.for_base(base, request.base.path)
    if pooled is not None:
        first = TrainingGroup([pooled], partial(store_task_adapter, reg, bank, pool, pooled))
        yield from train_groups(reg, base, [first], executor=executor)
        done = pooled.job.schedule.steps
    task_adapter = reg.banks.by_id(bank.id).task_adapter
    below = load_weights(reg, task_adapter, base.fingerprint) if task_adapter else None
    with merge_into_base(base, below):
        ready = [
            TrainingGroup(
                [with_task_adapter(anchor_trainings[anchor.id], task_adapter) for anchor in group],
                partial(_store_anchors, reg, group, [anchor_trainings[anchor.id] for anchor in group]),
            )
            for group in groups
        ]
        yield from train_groups(reg, base, ready, done, executor, below)
    if SCREENING_KEY not in reg.banks.by_id(bank.id).config:  # else a stopped build has screened: once, against all
        with merge_into_base(base, below):
            chosen = [each.user.id for each in anchor_candidates(pool, request.task.name, options)]
            yield from screen_anchors(reg, bank, base, examples, chosen, request.gates)
    yield from fit_memory_weights(reg, bank, request, pool, executors, run, base)
    yield from measure_text_ladder(reg, bank, request, pool, base)
    mark_ready(reg, bank.id)


def _store_anchors(
    reg: Registry,
    anchors: Sequence[Anchor],
    anchor_trainings: Sequence[AdapterTraining],
    results: Sequence[Adapter | str],
    trained: TrainingResult,
) -> Iterator[Event]:
    made = pair_with_adapters(anchors, anchor_trainings, results)
    for anchor, adapter in made:
        reg.banks.record_trained_anchor(anchor.id, adapter.digest, adapter.loss_first, adapter.loss_last)
    for anchor, adapter in made:
        yield ArtifactSaved("anchor", str(anchor.user), f"loss {format_losses(adapter)}, {adapter.bytes:,} bytes")


def _groups(
    reg: Registry, base: LoadedBase, anchors: Sequence[Anchor], anchor_trainings: dict[int, AdapterTraining]
) -> list[list[Anchor]]:
    """Anchors that train together: those without a meta-LoRA, and all members of a group that was stopped half-way.

    A group with the same members gives the same bytes, so a stopped group continues unchanged.
    """
    if not anchors:
        return []
    size = max_group_size(base, anchor_trainings[anchors[0].id].job)
    groups = []
    for start in range(0, len(anchors), size):
        whole = list(anchors[start : start + size])
        missing = [anchor for anchor in whole if anchor.digest is None]
        stopped = (
            reg.files.read_checkpoint(group_key(base, [anchor_trainings[anchor.id].job for anchor in whole]))
            is not None
        )
        if missing:
            groups.append(whole if stopped else missing)
    return groups


def mark_ready(reg: Registry, bank_id: int) -> None:
    """Mark a bank as ready, with the tokens and seconds that its adapters took."""
    digests = [reg.banks.by_id(bank_id).task_adapter, *(anchor.digest for anchor in reg.banks.anchors(bank_id))]
    adapters = [reg.adapters.get(digest) for digest in digests if digest is not None]
    reg.banks.mark_bank_ready(bank_id, sum(a.tokens for a in adapters), sum(a.seconds for a in adapters))


def anchor_training(
    reg: Registry,
    request: BankRequest,
    examples: PromptRowBuilder,
    anchor: Anchor,
    place: str,
    items: dict[int, tuple[Item, ...]],
    run: Run,
) -> AdapterTraining:
    """The training of an anchor's meta-LoRA on its user's `items`; `place` is its number and the total."""
    from mta_cli.engine.training.trainer import Schedule

    options, seed = request.options, request.machine.seed
    own = items[anchor.user_id] if anchor.user_id is not None else ()
    if request.permute_answers:
        own = permute_answers(own, f"{seed} {anchor.user_id}")
        examples = examples.with_shown_answers({item.id: item.output for item in own})
    rows = examples.training_rows(own)
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
        reg.items.hash_items(own),
        schedule,
        _config(request),
        f"anchor {place}: {anchor.user}",
    )
    return AdapterTraining(job, rows, run=run)


def permute_answers(items: Sequence[Item], seed: str) -> tuple[Item, ...]:
    """The items with their outputs in random order, which may be the same."""
    outputs = [item.output for item in items]
    random.Random(seed).shuffle(outputs)
    return tuple(replace(item, output=output) for item, output in zip(items, outputs, strict=True))


def _config(request: BankRequest) -> dict[str, Any]:
    permuted = {"permuted": True} if request.permute_answers else {}
    return {"history_items": request.prompt.history_items, "task": request.task.name, **permuted}


def with_task_adapter(training: AdapterTraining, task_adapter: str | None) -> AdapterTraining:
    """The same training above a task adapter."""
    return replace(training, job=replace(training.job, task_adapter=task_adapter))
