"""The job behind `mta bank build`: profiles, anchors, the task adapter, one meta-LoRA per anchor.

Every finished part is stored, so the same command resumes a stopped build.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.errors import Command
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.options import ScreeningOptions
from mta_cli.pipeline.anchors import SCREENING_KEY
from mta_cli.pipeline.bank.anchor_training import group_anchors_for_training, prepare_anchor_trainings
from mta_cli.pipeline.bank.contributors import BankInputs, Contributor, gather_bank_inputs
from mta_cli.pipeline.bank.ladder import measure_text_ladder
from mta_cli.pipeline.bank.memory_weights import HELD_OUT_OPTION, fit_memory_weights
from mta_cli.pipeline.bank.plan import build_plan_lines
from mta_cli.pipeline.bank.screening import screen_anchors
from mta_cli.pipeline.bank.task_adapter import reuse_task_adapter, store_task_adapter, task_adapter_training
from mta_cli.pipeline.bank.verify import bank_json
from mta_cli.pipeline.executors import Executors, open_executors
from mta_cli.pipeline.memory.knn import update_neighbours
from mta_cli.pipeline.requests import SCREENING_OPTIONS_KEY
from mta_cli.pipeline.runs import bank_label, fail_run_on_error
from mta_cli.pipeline.training.groups import TrainingGroup, train_groups
from mta_cli.pipeline.workbench import Workbench
from mta_cli.text.formatting import pluralise
from store.records import Adapter, Anchor, Bank, Run

if TYPE_CHECKING:
    from mta_cli.pipeline.requests import BankRequest
    from store.registry import Registry


def build_bank(
    reg: Registry,
    request: BankRequest,
    *,
    plan: Sequence[PlanLine] | None = None,
    dry_run: bool = False,
    executors: Executors | None = None,
) -> Iterator[Event]:
    """Build or finish the bank that `request` describes. `JobResult.result` has the keys of `mta bank build --json`.

    With `plan`, a plan comes first: these lines, and the build's data, memory and time. A dry run ends there.
    `executors` are given if the build is part of another job.
    """
    inputs = gather_bank_inputs(reg, request)
    request, pool = inputs.request, inputs.pool
    if plan is not None:
        yield JobPlan("bank build", (*plan, *inputs.size_lines, *build_plan_lines(reg, inputs)))
    if dry_run:
        counts = {"anchors": request.options.anchor_count, "candidates": len(inputs.candidates)}
        yield JobResult({"dry_run": True, "task": request.task.name, **counts})
        return
    name, key = request.name or request.task.name, bank_key(reg, request, pool)
    # evaluations build several banks of one name
    lock = f"bank {name} {key[:12]}" if request.purpose else f"bank {name}"
    title = f"bank build of {name}"
    if set(reg.banks.bases(ready=False)) - {request.base.fingerprint}:
        title += f" on {request.base.name}"
    whose = [(candidate.user, candidate.items) for candidate in pool]
    with (
        reg.job_lock(lock),
        reg.hold_users(f"{title}{request.executor.title_suffix}", [user.id for user, _ in whose], consenting=True),
        open_executors(request.executor, executors) as own_executors,
    ):
        reg.items.require_stored(item for _, items in whose for item in items)
        bank = _get_or_create_bank(reg, request, name, key)
        request.on_bank_started(bank.id)
        bench = Workbench(reg, request, bank, own_executors, until=request.until)
        # 1. label memory: other users' items as neighbours
        yield from update_neighbours(reg, bank, request.task, whose, request.embedder, request.machine.device)
        if is_there := bench.bank.status == "ready":
            yield from fit_memory_weights(bench, pool)
            yield Note(f"Bank {bank_label(bank)} was built from the same data and settings; nothing to do.")
        else:
            run = reg.runs.start_run("bank build", bank.config, bank_id=bank.id)
            with fail_run_on_error(reg, run):
                # 2. the anchor users
                anchors = yield from _choose_or_load_anchors(bench, inputs)
                # 3. the task adapter, and a meta-LoRA for each anchor above it
                yield from _train(bench, inputs, anchors, run)
                # 4. screening of anchors, weights of the label memory, and the ladder
                if SCREENING_KEY not in bench.bank.config:
                    with bench.holding_task_adapter():
                        yield from screen_anchors(bench, [each.user.id for each in inputs.candidates])
                yield from fit_memory_weights(bench, pool, run)
                yield from measure_text_ladder(bench, pool)
                mark_ready(reg, bank.id)
            # A run outlives a forgotten user, so it contains no names.
            kept = {key: value for key, value in bank_json(reg, bench.bank).items() if key != "anchors"}
            reg.runs.finish_run(run.id, kept)
        if not is_there:
            yield ArtifactSaved("bank", bank_label(bank), pluralise(len(anchors), "anchor"))
        yield from _warn_of_newer_banks(reg, bank)
        yield JobResult(bank_json(reg, bench.bank))


def bank_key(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> str:
    """A hash of everything that determines the bank: base, embedder, task, options, seed and data."""
    options = asdict(request.options)
    if options[HELD_OUT_OPTION]:
        del options[HELD_OUT_OPTION]  # the default is not part of the key
    identity = {
        **request.identity,
        "embedder": request.embedder.fingerprint,
        "options": options,
        **request.machine.formats,
        "data": [[c.user.name, reg.items.hash_items(c.items)] for c in pool],
    }
    if request.gates != ScreeningOptions():
        identity["gates"] = asdict(request.gates)
    if request.permute_answers:
        identity["permute_answers"] = True
    if request.purpose:
        identity["screened"] = True  # marks banks whose refused anchors are left out
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _get_or_create_bank(reg: Registry, request: BankRequest, name: str, key: str) -> Bank:
    from mta_cli.pipeline.models.installed import record_models

    record_models(reg, request.base, request.embedder)
    return reg.banks.get_or_create_bank(
        name=name,
        key=key,
        task=request.task.name,
        base=request.base.fingerprint,
        embedder=request.embedder.fingerprint,
        seed=request.machine.seed,
        config={
            **asdict(request.options),
            **asdict(request.prompt),
            **request.machine.formats,
            SCREENING_OPTIONS_KEY: asdict(request.gates),
        },
        purpose=request.purpose,
    )


def _choose_or_load_anchors(bench: Workbench[BankRequest], inputs: BankInputs) -> Generator[Event, None, list[Anchor]]:
    """Returns the anchors that a stopped build has stored, else chooses and stores anchors among the candidates."""
    from mta_cli.engine.retrieval.anchors import choose_anchors
    from mta_cli.pipeline.data.profiles import current_profiles

    reg, request, chosen = bench.reg, inputs.request, inputs.candidates
    users = [candidate.user for candidate in chosen]
    profiles = yield from current_profiles(reg, request.task.name, request.embedder, users, request.machine.device)
    if planned := reg.banks.anchors(bench.bank.id):
        return planned
    options = request.options
    picks = choose_anchors(
        profiles,
        [len(c.items) for c in chosen],
        options.anchor_count,
        seed=request.machine.seed,
        pick=options.pick,
    )
    if len(picks) < options.anchor_count:
        yield Note(
            f"Only {len(picks)} of {options.anchor_count} anchors were chosen: some users have the same profile.",
            warning=True,
        )
    return reg.banks.plan_anchors(
        bench.bank.id, [(users[p.index].id, p.cluster, p.cluster_size, len(chosen[p.index].items)) for p in picks]
    )


def _train(bench: Workbench[BankRequest], inputs: BankInputs, anchors: Sequence[Anchor], run: Run) -> Iterator[Event]:
    """Train the missing parts: the task adapter, then the anchors above it."""
    from mta_cli.engine.backends import backend_of
    from mta_cli.engine.lora.adapter import find_target_modules

    reg, request, pool, options = bench.reg, inputs.request, inputs.pool, inputs.request.options
    yield from reuse_task_adapter(reg, request, bench.bank, pool)
    base, bank = bench.base, bench.bank
    _, placement = find_target_modules(base.model, options.targets, options.placement)
    backend_of(base).require_placements([placement])
    items = {candidate.user.id: candidate.items for candidate in pool}
    anchors = [anchor for anchor in anchors if anchor.user_id in items]  # users of the other anchors were forgotten
    pooled = None
    if options.task_adapter and not bank.task_adapter:
        pooled = task_adapter_training(bench, pool, run)
    trainings = prepare_anchor_trainings(bench, anchors, items, run)
    store = partial(_store_anchors, reg)
    due = sum(group.steps for group in group_anchors_for_training(bench, anchors, trainings, store))
    done = 0 if pooled is None else pooled.job.schedule.steps
    yield JobStarted("bank build", total=done + due)
    if pooled is not None:
        first = TrainingGroup([pooled], partial(store_task_adapter, reg, bank, pool, pooled))
        yield from train_groups(reg, base, [first], executor=bench.executor)
    with bench.holding_task_adapter():
        # grouped again, because the jobs now name the new task adapter
        groups = group_anchors_for_training(bench, anchors, trainings, store)
        yield from train_groups(reg, base, groups, done, bench.executor, bench.task_adapter)


def _store_anchors(reg: Registry, made: Sequence[tuple[Anchor, Adapter]]) -> None:
    for anchor, adapter in made:
        reg.banks.record_trained_anchor(anchor.id, adapter.digest, adapter.loss_first, adapter.loss_last)


def mark_ready(reg: Registry, bank_id: int) -> None:
    """Mark a bank as ready and store the total training tokens and seconds of its adapters."""
    digests = [reg.banks.by_id(bank_id).task_adapter, *(anchor.digest for anchor in reg.banks.anchors(bank_id))]
    adapters = [reg.adapters.get(digest) for digest in digests if digest is not None]
    reg.banks.mark_bank_ready(bank_id, sum(a.tokens for a in adapters), sum(a.seconds for a in adapters))


def _warn_of_newer_banks(reg: Registry, bank: Bank) -> Iterator[Event]:
    """A warning if commands use a newer ready bank of the same task and base, with the commands that remove it."""
    those = [other for other in reg.banks.all() if (other.task, other.base) == (bank.task, bank.base)]
    newer = sorted((other for other in those if other.id > bank.id and other.status == "ready"), key=lambda one: one.id)
    if not newer or bank.purpose:
        return
    removals = [f"`{Command('bank rm', one.name, bank_version=one.version)}`" for one in reversed(newer)]
    yield Note(
        f"Answers come from bank {bank_label(newer[-1])}, which is newer than {bank_label(bank)}. To use "
        f"{bank_label(bank)} instead: {', then '.join(removals)}. This also removes the recipes and stacks on them.",
        warning=True,
    )
