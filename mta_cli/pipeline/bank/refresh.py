"""The job behind `mta bank build --refresh`: replaces stale anchors with meta-LoRAs of other users.

An anchor is stale if its user was forgotten or withdrew consent, or if the screening refused it. A refused user is not
chosen again. New anchors are trained above the bank's task adapter, like the others, and screened; a refused one stays,
marked stale, until the next refresh. Each group is stored as soon as it is trained, and used once it is screened. A
stopped refresh can be resumed.

The neighbours are replaced by the neighbours of a new build; only items of new users, or of users who consented again,
are embedded. The kernel is fitted again and the label rates are counted again, even if users have only left.

The task adapter, the weights of model and memory, and the ladder stay. They come from all users of the bank. Only a new
build removes the influence of users who left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, Flag, NotFound, UsageError
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.options import MachineOptions
from mta_cli.pipeline.anchors import (
    mark_unscreened,
    refused_user_ids,
    screening_of_kept_anchors,
    unscreened_anchor_ids,
)
from mta_cli.pipeline.bank.anchor_training import group_anchors_for_training, prepare_anchor_trainings
from mta_cli.pipeline.bank.build import mark_ready
from mta_cli.pipeline.bank.contributors import BankInputs, Contributor, find_contributors
from mta_cli.pipeline.bank.plan import build_plan_lines
from mta_cli.pipeline.bank.screening import screen_anchors
from mta_cli.pipeline.bank.verify import bank_json
from mta_cli.pipeline.memory.knn import NeighbourChange, find_neighbour_change, update_neighbours
from mta_cli.pipeline.requests import BankRequest, restore_bank_request
from mta_cli.pipeline.runs import bank_label, fail_run_on_error
from mta_cli.pipeline.training.groups import train_groups
from mta_cli.pipeline.user_weights import current_bank
from mta_cli.pipeline.users.dependents import refresh_command
from mta_cli.pipeline.workbench import Workbench
from mta_cli.text.formatting import join_some
from store.records import Adapter, Anchor, Bank, Item, Run, User

if TYPE_CHECKING:
    from store.registry import Registry


@dataclass
class _RefreshState:
    """A refresh in progress: its bank and request, the ids of the anchors to replace, and its results so far."""

    reg: Registry
    bank: Bank
    request: BankRequest
    pool: list[Contributor]
    stale_ids: frozenset[int]
    replaced: list[dict[str, Any]] = field(default_factory=list)
    affected_users: set[str] = field(default_factory=set)
    removed: int = 0

    @property
    def user_items(self) -> list[tuple[User, tuple[Item, ...]]]:
        """The users of a new bank, with their items."""
        return [(each.user, each.items) for each in self.pool]

    @property
    def stale_anchors(self) -> list[Anchor]:
        """The stale anchors still to be replaced. New anchors that the screening refuses stay for the next refresh."""
        anchors = self.reg.banks.anchors(self.bank.id)
        return [anchor for anchor in anchors if anchor.stale and anchor.id in self.stale_ids]

    @property
    def unscreened(self) -> set[int]:
        """The ids of new anchors that are not screened yet, including anchors of a stopped refresh."""
        return unscreened_anchor_ids(self.reg.banks.by_id(self.bank.id))


def refresh_bank(
    reg: Registry,
    task: str,
    machine: MachineOptions,
    *,
    name: str | None = None,
    base: str | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Replace the stale anchors of the task's newest bank, or of the bank `name`, on the device of `machine`.

    With `base` (a fingerprint), only banks on that base count. The neighbours are updated as in a new build; everything
    else stays. `JobResult.result` has the keys of `mta bank build --json`, and `replaced`, `removed` (stale anchors
    without a replacement) and `people` (users who lost their recipes or stacks). Raises NotFound without such a bank,
    and BadInput if no user can be an anchor.
    """
    bank = newest_bank(reg, task, name, base)
    request = restore_bank_request(reg, bank, machine)
    numbers = frozenset(anchor.id for anchor in reg.banks.anchors(bank.id) if anchor.stale)
    work = _RefreshState(reg, bank, request, find_contributors(reg, request), numbers)
    stale, change = work.stale_anchors, find_neighbour_change(reg, bank, request.task, work.user_items)
    unfinished = bool(stale or work.unscreened)
    if dry_run or unfinished or change:
        yield JobPlan("bank refresh", _plan(work, stale, change))
    if dry_run:
        shown = {"bank": bank.name, "version": bank.version, "task": bank.task, "stale": len(stale)}
        yield JobResult({"dry_run": True, **shown, "people": reg.banks.dependent_users(bank.id)})
        return
    if not unfinished and not change:
        yield Note(f"Bank {bank_label(bank)} has no stale anchors, and its neighbours are up to date; nothing to do.")
        yield JobResult(_result(work))
        return
    anchors = [anchor.user_id for anchor in reg.banks.anchors(bank.id) if anchor.user_id is not None]
    pool = [each.user.id for each in work.pool]
    with (
        reg.job_lock(f"bank {bank.name}"),
        reg.job_lock(f"adapt {task}"),
        reg.hold_users(f"refresh of bank {bank.name}", pool, consenting=True),
        reg.hold_users(f"refresh of bank {bank.name}", anchors),
    ):
        reg.items.require_stored(item for each in work.pool for item in each.items)
        run = reg.runs.start_run("bank refresh", {"stale": len(stale)}, bank_id=bank.id)
        with fail_run_on_error(reg, run):
            if unfinished:
                yield from _replace_stale_anchors(work, run)
            yield from update_neighbours(reg, bank, request.task, work.user_items, request.embedder, machine.device)
        # A run outlives a forgotten user, so it contains no names.
        done = {"replaced": len(work.replaced), "removed": work.removed, "people": len(work.affected_users)}
        reg.runs.finish_run(run.id, done)
    yield ArtifactSaved("bank", bank_label(bank), f"{len(work.replaced)} anchors replaced")
    if stale:
        yield from _refresh_notes(work)
    yield JobResult(_result(work))


def newest_bank(reg: Registry, task: str, name: str | None = None, base: str | None = None) -> Bank:
    """The newest ready bank of a task, or the one called `name`; with `base` (a fingerprint), on that base.

    Raises NotFound if there is no such bank, and UsageError if it belongs to another task.
    """
    if name is None and base is not None:
        return current_bank(reg, task, base)
    bank = reg.banks.get(name, base=base) if name is not None else reg.banks.latest_ready_bank(task)
    if bank is None:
        raise NotFound(f"There is no bank for task {task}.", hint=Command("bank build", task=task))
    if bank.task != task:
        raise UsageError(
            (Flag("name", name), f": bank {bank_label(bank)} is of task {bank.task}."), hint=Flag("task", bank.task)
        )
    return bank


def _plan(work: _RefreshState, stale: Sequence[Anchor], change: NeighbourChange) -> tuple[PlanLine, ...]:
    options = replace(work.request.options, anchors=len(stale), task_adapter=False)
    user_names = work.reg.banks.dependent_users(work.bank.id)
    anchors = work.reg.banks.anchors(work.bank.id)
    kept = {anchor.user_id for anchor in anchors if not anchor.stale}
    candidates = tuple(each for each in _candidates(work) if each.user.id not in kept)
    return (
        PlanLine("bank", bank_label(work.bank)),
        PlanLine("stale anchors", f"{len(stale)} of {len(anchors)}"),
        PlanLine("users who lose recipes and stacks", join_some(user_names) if user_names else "none"),
        PlanLine("neighbours", _format_neighbour_change(change)),
        *build_plan_lines(work.reg, BankInputs(replace(work.request, options=options), tuple(work.pool), candidates)),
    )


def _format_neighbour_change(change: NeighbourChange) -> str:
    if change.needs_fit and not (change.new_items or change.removed_ids):
        return "unchanged; the label memory is fitted again"
    return f"{len(change.new_items):,} items added, {len(change.removed_ids):,} removed"


def _candidates(work: _RefreshState) -> list[Contributor]:
    """The users who can be anchors of the bank, including its present anchors."""
    refused, least = refused_user_ids(work.reg, work.bank), work.request.options.anchor_items
    return [each for each in work.pool if each.items_held >= least and each.user.id not in refused]


def _replace_stale_anchors(work: _RefreshState, run: Run) -> Iterator[Event]:
    """Train the new anchors on the bank's task adapter and screen them. Each group is stored once it is trained."""
    from mta_cli.pipeline.models.installed import record_models

    reg, bank, request = work.reg, work.bank, work.request
    record_models(reg, request.base, request.embedder)
    planned = (yield from _choose_new_anchors(work)) if work.stale_anchors else []
    if planned or work.unscreened:
        bench = Workbench(reg, request, bank)
        items = {candidate.user.id: candidate.items for candidate in work.pool}
        trainings = prepare_anchor_trainings(bench, planned, items, run)
        groups = group_anchors_for_training(bench, planned, trainings, partial(_store_trained, work))
        yield JobStarted("bank refresh", total=sum(group.steps for group in groups))
        with bench.holding_task_adapter():
            yield from train_groups(reg, bench.base, groups)
            yield from screen_anchors(bench, [each.user.id for each in _candidates(work)], work.unscreened)
    _remove_unreplaced_anchors(work)


def _choose_new_anchors(work: _RefreshState) -> Generator[Event, None, list[Anchor]]:
    """The anchors to train; each has the id of the stale anchor that it replaces. The choice is deterministic."""
    from mta_cli.engine.retrieval.anchors import choose_replacements
    from mta_cli.pipeline.data.profiles import current_profiles

    # 1. the candidates and their profiles  [candidates, width]
    reg, request, found = work.reg, work.request, _candidates(work)
    if not found:
        raise BadInput(
            f"No user can replace the stale anchors: every user of task {work.bank.task} lacks consent, has fewer than "
            f"{request.options.anchor_items} items of it, or was refused as an anchor.",
            hint=(
                "import more items, let users be anchors with ",
                Command("user consent"),
                ", or remove the bank: ",
                Command("bank rm", work.bank.name, bank_version=work.bank.version),
            ),
        )
    users = [candidate.user for candidate in found]
    profiles = yield from current_profiles(reg, work.bank.task, request.embedder, users, request.machine.device)
    # 2. one candidate for each cluster without an anchor that stays
    place = {user.id: i for i, user in enumerate(users)}
    anchors = reg.banks.anchors(work.bank.id)
    kept = [place[a.user_id] for a in anchors if not a.stale and a.user_id in place]
    picks = choose_replacements(
        profiles,
        [len(c.items) for c in found],
        len(kept) + len(work.stale_anchors),
        kept,
        seed=request.machine.seed,
        pick=request.options.pick,
    )
    # 3. each new anchor replaces a stale one; if there are fewer new ones, the other stale ones stay
    return [
        replace(
            old,
            user_id=users[new.index].id,
            user=users[new.index].name,
            cluster_size=new.cluster_size,
            items=len(found[new.index].items),
            digest=None,
            loss_first=None,
            loss_last=None,
            stale=False,
        )
        for old, new in zip(work.stale_anchors, picks, strict=False)
    ]


def _store_trained(work: _RefreshState, made: Sequence[tuple[Anchor, Adapter]]) -> None:
    """Store a trained group, and remove the recipes and stacks of the stale anchors."""
    new = [
        replace(anchor, digest=one.digest, loss_first=one.loss_first, loss_last=one.loss_last) for anchor, one in made
    ]
    _store_replacements(work, new)
    for anchor, adapter in made:
        work.replaced.append({"stale": anchor.id, "user": anchor.user, "digest": adapter.digest})


def _remove_unreplaced_anchors(work: _RefreshState) -> None:
    """Remove stale anchors without a replacement from the bank. Raises BadInput if no anchor would be left."""
    left = work.stale_anchors
    if not left:
        return
    if len(left) == len(work.reg.banks.anchors(work.bank.id)):
        raise BadInput(
            f"All anchors of bank {bank_label(work.bank)} are stale, and no user can replace them.",
            hint=("remove the bank: ", Command("bank rm", work.bank.name, bank_version=work.bank.version)),
        )
    with work.reg.transaction():
        numbers = [anchor.id for anchor in left]
        bank = work.reg.banks.by_id(work.bank.id)
        stay = {anchor.id for anchor in work.reg.banks.anchors(bank.id)}.difference(numbers)
        # Refused users are found through their anchors, so this comes before the removal.
        work.reg.banks.set_bank_config(bank.id, {**bank.config, **screening_of_kept_anchors(work.reg, bank, stay)})
        work.affected_users.update(work.reg.banks.dependent_users(work.bank.id, numbers))
        work.removed = work.reg.banks.remove_stale_anchors(work.bank.id, numbers)
        _store_replacements(work, [])


def _store_replacements(work: _RefreshState, new: Sequence[Anchor]) -> None:
    """Store the anchors `new` in the bank, with its new key and totals."""
    reg, before = work.reg, work.reg.banks.by_id(work.bank.id)
    with reg.transaction():
        if new:
            work.affected_users.update(reg.banks.dependent_users(before.id, [each.id for each in new]))
        stay = {anchor.id for anchor in reg.banks.anchors(before.id)} - {each.id for each in new}
        config = {**before.config, **screening_of_kept_anchors(reg, before, stay)}
        gone = [before.key, [[each.id, each.digest] for each in new], work.removed]
        key = hashlib.sha256(json.dumps(gone).encode()).hexdigest()
        reg.banks.replace_stale_anchors(before.id, new, key, config)
        mark_unscreened(reg, before, {anchor.id for anchor in reg.banks.anchors(before.id)} - stay)
        mark_ready(reg, before.id)


def _refresh_notes(work: _RefreshState) -> Iterator[Event]:
    bank = work.bank
    if work.removed:
        yield Note(f"Stale anchors without a replacement were removed: {work.removed}.", warning=True)
    if work.affected_users:
        yield Note(
            f"The recipes and stacks of these users were deleted, because they used a replaced anchor: "
            f"{join_some(sorted(work.affected_users))}. "
            f"`mta user fuse` and `mta user adapt` with --task {bank.task} make new ones.",
            warning=True,
        )
    if bank.task_adapter is not None:
        yield Note(
            f"The task adapter of {bank_label(bank)} was not changed. It was trained on all users of the bank, also "
            f"on users whose anchors were replaced; `mta bank build --task {bank.task}` builds a bank without them.",
            warning=True,
        )
    others = [other for other in work.reg.banks.all() if other.id != bank.id and other.task == bank.task]
    for other in others:
        if any(anchor.stale for anchor in work.reg.banks.anchors(other.id)):
            yield Note(
                f"Bank {bank_label(other)} has stale anchors too: `{refresh_command(work.reg, other)}`.", warning=True
            )


def _result(work: _RefreshState) -> dict[str, Any]:
    made = {"replaced": work.replaced, "removed": work.removed, "people": sorted(work.affected_users)}
    return {**bank_json(work.reg, work.reg.banks.by_id(work.bank.id)), **made}
