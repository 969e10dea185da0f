"""The job behind `mta bank build --refresh`: other people's meta-LoRAs in the places of stale anchors. Renders nothing.

An anchor is stale when its person was forgotten or has taken their consent back, or when the gates refused it; who was
refused is not chosen again. New anchors stand on the bank's task
adapter and are trained as the others were. They take their places a group at a time, as soon as they are trained: the
bank is whole at every moment, and the same command run again goes on where it stopped.

Neighbours become those of a new build: items of people whose consent came back or who came since are added, and only
these are embedded; the kernel is fitted again.

The task adapter stays, and was trained on everybody of the bank. A bank does not know who they were, so that what was
learned there from somebody who left goes with a whole new build alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, NotFound, UsageFault
from mta_cli.events import Done, Event, Note, PlanLine, Planned, Saved, Started
from mta_cli.options import Machine
from mta_cli.pipeline.asked import asked_bank, bank_label, failures_of
from mta_cli.pipeline.bank.build import (
    BankRequest,
    Candidate,
    anchor_part,
    contributors,
    made_of,
    plan_lines,
    rates_kept,
    standing_on,
)
from mta_cli.pipeline.bank.screening import gate_anchors, gates_left, refused_of
from mta_cli.pipeline.bank.verify import bank_json
from mta_cli.pipeline.memory.knn import Change, keep_neighbours, wanted
from mta_cli.pipeline.training.groups import Group, Training, group_size, losses_of, those_made, train_groups
from mta_cli.pipeline.training.session import Trained
from mta_cli.pipeline.users.dependents import remedy, some
from store.queries.dependents import Replacement
from store.records import Adapter, Anchor, Bank, Item, Run, User

if TYPE_CHECKING:
    from store.registry import Registry


@dataclass
class _Refresh:
    """A refresh under way: what it is about, and what it has done so far.

    `lost` counts new anchors whose person left while they were trained.
    """

    reg: Registry
    bank: Bank
    request: BankRequest
    pool: list[Candidate]
    replaced: list[dict[str, Any]] = field(default_factory=list)
    people: set[str] = field(default_factory=set)
    removed: int = 0
    lost: int = 0

    @property
    def whose(self) -> list[tuple[User, tuple[Item, ...]]]:
        """The people of whom a new bank would be made, with their items."""
        return [(each.user, each.items) for each in self.pool]

    @property
    def stale(self) -> list[Anchor]:
        """The anchors that are still to be replaced."""
        return [anchor for anchor in self.reg.banks.anchors(self.bank.id) if anchor.stale]


def refresh_bank(
    reg: Registry,
    task: str,
    machine: Machine,
    *,
    name: str | None = None,
    plan: Sequence[PlanLine] = (),
    dry_run: bool = False,
) -> Iterator[Event]:
    """Replace the stale anchors of the task's newest bank, or of that called `name`, on the devices of `machine`.

    Its neighbours become those that a new build would keep. All else is as the bank was built. `Done.result` has the
    keys of `mta bank build --json`, and `replaced`, `removed` (stale anchors that nobody could replace), `people`
    (whose recipes or stacks went with them). Raises NotFound without such a bank, BadInput where nobody may be an
    anchor.
    """
    bank = newest_bank(reg, task, name)
    request = asked_bank(reg, bank, machine)
    work = _Refresh(reg, bank, request, contributors(reg, task, request.options))
    stale, change = work.stale, wanted(reg, bank, request.task, work.whose)
    if dry_run or stale or change:
        yield Planned("bank refresh", (*plan, *_plan(work, stale, change)))
    if dry_run:
        yield Done({"dry_run": True, **_named(work, stale), "people": reg.banks.resting(bank.id)})
        return
    if not stale and not change:
        yield Note(f"No anchor of bank {bank_label(bank)} is stale, and its neighbours are all there; nothing to do.")
        yield Done(_result(work))
        return
    with reg.job_lock(f"bank {bank.name}"), reg.job_lock(f"adapt {task}"):
        run = reg.runs.start("bank refresh", bank_label(bank), {"stale": len(stale)})
        with failures_of(reg, run):
            if stale:
                yield from _replace(work, run)
            yield from keep_neighbours(reg, bank, request.task, work.whose, request.embedder, machine.device)
        # A run outlives a forgotten person, so no name stands in it.
        done = {"replaced": len(work.replaced), "removed": work.removed, "people": len(work.people)}
        reg.runs.finish(run.id, done)
    yield Saved("bank", bank_label(bank), f"{len(work.replaced)} anchors replaced")
    if stale:
        yield from _remarks(work)
    yield Done(_result(work))


def newest_bank(reg: Registry, task: str, name: str | None = None) -> Bank:
    """The newest ready bank of a task, or of this name. NotFound without one, UsageFault for another task's."""
    bank = reg.banks.get(name) if name is not None else reg.banks.latest(task)
    if bank is None:
        raise NotFound(f"There is no bank for task {task}.", hint=f"mta bank build --task {task}")
    if bank.task != task:
        raise UsageFault(f"--name {name}: bank {bank_label(bank)} is of task {bank.task}.", hint=f"--task {bank.task}")
    return bank


def _named(work: _Refresh, stale: Sequence[Anchor]) -> dict[str, Any]:
    return {"bank": work.bank.name, "version": work.bank.version, "task": work.bank.task, "stale": len(stale)}


def _plan(work: _Refresh, stale: Sequence[Anchor], change: Change) -> tuple[PlanLine, ...]:
    """What would be replaced, whom that concerns and what it would cost, estimated as for a build."""
    options = replace(work.request.options, anchors=len(stale), task_adapter=False)
    people = work.reg.banks.resting(work.bank.id)
    total = len(work.reg.banks.anchors(work.bank.id))
    return (
        PlanLine("bank", bank_label(work.bank)),
        PlanLine("stale anchors", f"{len(stale)} of {total}"),
        PlanLine("recipes and stacks that go", some(people) if people else "nobody's"),
        PlanLine("neighbours", f"{len(change.new):,} items come, {len(change.old):,} go"),
        *plan_lines(work.reg, replace(work.request, options=options), work.pool, _spare(work)),
    )


def _spare(work: _Refresh) -> list[Candidate]:
    """Who may be an anchor and is none that stays."""
    kept = {anchor.user_id for anchor in work.reg.banks.anchors(work.bank.id) if not anchor.stale}
    return [each for each in _candidates(work) if each.user.id not in kept]


def _candidates(work: _Refresh) -> list[Candidate]:
    refused = refused_of(work.reg.banks.by_id(work.bank.id))
    whose = {anchor.user_id for anchor in work.reg.banks.anchors(work.bank.id) if anchor.id in refused}
    least = work.request.options.min_items
    return [each for each in work.pool if each.items_held >= least and each.user.id not in whose]


def _replace(work: _Refresh, run: Run) -> Iterator[Event]:
    """Train the new anchors on the bank's task adapter; each group takes its places when it is trained."""
    from mta_cli.engine.lora.adapter import folded
    from mta_cli.pipeline.data.examples import Examples
    from mta_cli.pipeline.models.load import load, load_others
    from mta_cli.pipeline.models.lookup import remember
    from mta_cli.pipeline.personalize.weights import load_weights

    reg, bank, request = work.reg, work.bank, work.request
    remember(reg, request.base, request.embedder)
    planned = yield from _choose(work)
    if planned:
        base = load(request.base, request.machine, reg=reg)
        examples = Examples(reg, base, request.task, request.prompt.history_items)
        items = {candidate.user.id: candidate.items for candidate in work.pool}
        parts = [
            standing_on(
                anchor_part(reg, request, examples, anchor, f"{i}/{len(planned)}", items, run), bank.task_adapter
            )
            for i, anchor in enumerate(planned, start=1)
        ]
        whose = [[each.user for each in work.pool if each.user.id == anchor.user_id] for anchor in planned]
        parts = [made_of(part, people, request) for part, people in zip(parts, whose, strict=True)]
        groups = _groups(work, base, planned, parts)
        yield Started("bank refresh", total=sum(part.job.schedule.steps for part in parts))
        below = load_weights(reg, bank.task_adapter, base.fingerprint) if bank.task_adapter else None
        with ExitStack() as stack:
            bases = [base, *load_others(request.base, request.machine, len(groups))]
            for each in bases:
                stack.enter_context(folded(each, below))
            yield from train_groups(reg, bases, groups)
            people = [each.user.id for each in _candidates(work)]
            yield from gate_anchors(reg, bank, base, examples, people, request.gates)
    _take_out(work)


def _choose(work: _Refresh) -> Generator[Event, None, list[Anchor]]:
    """The anchors to be trained, each under the number of the stale one whose place it takes; the same every time."""
    from mta_cli.engine.retrieval.anchors import choose_replacements
    from mta_cli.pipeline.data.profiles import profile_matrix, refresh_profiles

    reg, request, found = work.reg, work.request, _candidates(work)
    if not found:
        raise BadInput(
            f"Nobody may be an anchor of task {work.bank.task}: no one has consented and holds at least "
            f"{request.options.min_items} items of it.",
            hint=f"import more, or mta bank rm {work.bank.name} --bank-version {work.bank.version}",
        )
    users = [candidate.user for candidate in found]
    for event in refresh_profiles(reg, work.bank.task, request.embedder, users, request.machine.device):
        if not isinstance(event, Done):
            yield event
    ids, matrix = profile_matrix(reg, work.bank.task, request.embedder.fingerprint, [user.id for user in users])
    row = {user_id: i for i, user_id in enumerate(ids)}
    place = {user.id: i for i, user in enumerate(users)}
    anchors = reg.banks.anchors(work.bank.id)
    kept = [place[a.user_id] for a in anchors if not a.stale and a.user_id in place]
    picks = choose_replacements(
        matrix[[row[user.id] for user in users]],
        [len(c.items) for c in found],
        len(kept) + len(work.stale),
        kept,
        seed=request.machine.seed,
        pick=request.options.pick,
    )
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
        for old, new in zip(work.stale, picks, strict=False)
    ]


def _groups(work: _Refresh, base: Any, planned: Sequence[Anchor], parts: Sequence[Training]) -> list[Group]:
    """Who trains together. The size is that of a whole bank's groups, so that a stopped refresh finds its own again."""
    from mta_cli.engine.model.load import resolve_devices

    machine = work.request.machine
    devices = resolve_devices(machine.device, machine.dtype)
    size = group_size(base, parts[0].job, len(work.reg.banks.anchors(work.bank.id)), len(devices))
    spans = [slice(start, start + size) for start in range(0, len(planned), size)]
    return [Group(parts[span], partial(_settle, work, planned[span], parts[span])) for span in spans]


def _settle(
    work: _Refresh,
    planned: Sequence[Anchor],
    parts: Sequence[Training],
    results: Sequence[Adapter | str],
    trained: Trained,
) -> Iterator[Event]:
    """A trained group takes its places, and what rested on the stale anchors goes, all at once."""
    both = those_made(planned, parts, results)
    work.lost += len(planned) - len(both)
    _store(work, [_replacement(one, adapter) for one, adapter in both])
    for anchor, adapter in both:
        work.replaced.append({"stale": anchor.id, "user": anchor.user, "digest": adapter.digest})
        yield Saved("anchor", str(anchor.user), f"loss {losses_of(adapter)}, {adapter.bytes:,} bytes")


def _replacement(planned: Anchor, adapter: Adapter) -> Replacement:
    assert planned.user_id is not None
    return Replacement(
        planned.id,
        planned.user_id,
        planned.cluster_size,
        planned.items,
        adapter.digest,
        adapter.loss_first,
        adapter.loss_last,
    )


def _take_out(work: _Refresh) -> None:
    """Stale anchors that nobody can replace leave the bank. BadInput when none would be left."""
    left = work.stale
    if not left or work.lost:
        return
    if len(left) == len(work.reg.banks.anchors(work.bank.id)):
        raise BadInput(
            f"Bank {bank_label(work.bank)} would have no anchor left.",
            hint=f"mta bank rm {work.bank.name} --bank-version {work.bank.version}",
        )
    with work.reg.transaction():
        work.people.update(work.reg.banks.resting(work.bank.id))
        work.removed = work.reg.banks.reset_stale(work.bank.id)
        _store(work, [])


def _store(work: _Refresh, new: Sequence[Replacement]) -> None:
    """Put `new` into the bank, which is another one from then on: its key, label rates and totals are those of now."""
    reg, before = work.reg, work.reg.banks.by_id(work.bank.id)
    with reg.transaction():
        if new:
            work.people.update(reg.banks.resting(before.id, [each.stale for each in new]))
        stay = {anchor.id for anchor in reg.banks.anchors(before.id)} - {each.stale for each in new}
        config = {**before.config, **rates_kept(work.request.task, work.pool), **gates_left(before, stay)}
        gone = [before.key, [[each.stale, each.digest] for each in new], work.removed]
        key = hashlib.sha256(json.dumps(gone).encode()).hexdigest()
        reg.banks.replace_stale(before.id, new, key, config)
        digests = [before.task_adapter, *(anchor.digest for anchor in reg.banks.anchors(before.id))]
        adapters = [reg.adapters.get(digest) for digest in digests if digest is not None]
        reg.banks.finish(before.id, sum(a.tokens for a in adapters), sum(a.seconds for a in adapters))


def _remarks(work: _Refresh) -> Iterator[Event]:
    """What the person should know afterwards."""
    bank = work.bank
    if work.lost:
        yield Note(
            f"{work.lost} of the new anchors' people left meanwhile: run it again to replace them.", warning=True
        )
    if work.removed:
        yield Note(f"Stale anchors that nobody could replace were taken out: {work.removed}.", warning=True)
    if work.people:
        yield Note(
            f"Their recipes or stacks rested on what was replaced, and are gone: {some(sorted(work.people))}. "
            f"`mta user fuse` and `mta user adapt` with --task {bank.task} make them anew.",
            warning=True,
        )
    if bank.task_adapter is not None:
        yield Note(
            f"The task adapter of {bank_label(bank)} stays. It was trained on everybody of the bank, also on those "
            f"whose anchors were replaced; `mta bank build --task {bank.task}` builds a bank without them.",
            warning=True,
        )
    others = [other for other in work.reg.banks.all() if other.id != bank.id and other.task == bank.task]
    for other in others:
        if any(anchor.stale for anchor in work.reg.banks.anchors(other.id)):
            yield Note(f"Bank {bank_label(other)} has stale anchors too: `{remedy(work.reg, other)}`.", warning=True)


def _result(work: _Refresh) -> dict[str, Any]:
    made = {"replaced": work.replaced, "removed": work.removed, "people": sorted(work.people)}
    return {**bank_json(work.reg, work.reg.banks.by_id(work.bank.id)), **made}
