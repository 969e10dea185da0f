"""Jobs that were stopped or killed and can go on: which there are, going on with one, giving one up.

What a job has finished is in the store already; going on is the same job with the options that it was begun with.
Knows no settings and renders nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Event, Note
from mta_cli.options import EvalOptions, Machine
from mta_cli.pipeline.asked import (
    ADAPTATION,
    ASKED,
    asked_adaptation,
    asked_bank,
    asked_evaluation,
    bank_label,
)
from mta_cli.pipeline.evaluation.design import job_name
from store.records import Bank, Run
from store.tables.evaluations import Evaluation

if TYPE_CHECKING:
    from store.registry import Registry

BANK, ADAPT, EVAL, TUNE = "bank build", "user adapt", "eval run", "eval tune"


@dataclass(frozen=True)
class Unfinished:
    """A job that ended early. `number` is that of its bank, run or evaluation, as its `kind` says.

    `detail`: how far it came. `when`: ISO 8601. `why` is empty where nobody can tell, as after a kill. `asked` is the
    document of its run, and `run` that run's number, where it has one.
    """

    kind: str
    title: str
    when: str
    number: int
    detail: str = ""
    why: str = ""
    run: int | None = None
    asked: dict[str, Any] = field(default_factory=dict)


def unfinished(reg: Registry) -> list[Unfinished]:
    """Every job that ended early and can go on, the newest first. What runs at present is not among them."""
    banks = reg.banks.all()
    building = [one for bank in banks if bank.status == "building" for one in _bank(reg, bank)]
    adapting = [one for bank in banks if bank.status == "ready" for one in _adaptations(reg, bank)]
    measuring = [one for each in reg.evaluations.all() for one in _evaluation(reg, each)]
    return sorted([*building, *adapting, *measuring], key=lambda one: one.when, reverse=True)


def again(
    reg: Registry, one: Unfinished, machine: Machine, defaults: EvalOptions, *, dry_run: bool = False
) -> Iterator[Event]:
    """Go on with `one` on the devices of `machine`; all else is as it was begun with.

    `defaults` serve an evaluation whose methods nobody wrote down. Raises BadInput where the task, the people or
    their histories are no longer those it was begun with, and as the job itself.
    """
    if one.kind == BANK:
        return _build(reg, one, machine, dry_run)
    if one.kind == ADAPT:
        return _adapt(reg, one, machine, dry_run)
    return _evaluate(reg, one, machine, defaults, dry_run)


def give_up(reg: Registry, one: Unfinished) -> None:
    """Never offer `one` again. A bank that is not ready, and an evaluation without a result, go with all they hold."""
    if one.kind == BANK:
        bank = reg.banks.by_id(one.number)
        with reg.job_lock(f"bank {bank.name}"):
            reg.banks.remove(bank.id)
    elif one.kind in (EVAL, TUNE) and (found := reg.evaluations.get(one.number)).status == "running":
        with reg.job_lock(job_name(found.task, found.key)):
            reg.evaluations.remove(one.number)
    if one.run is not None:
        reg.runs.fail(one.run, "given up")


def _build(reg: Registry, one: Unfinished, machine: Machine, dry_run: bool) -> Iterator[Event]:
    from mta_cli.pipeline.bank.build import bank_key, build_bank, contributors

    bank = reg.banks.by_id(one.number)
    request = asked_bank(reg, bank, machine)
    pool = contributors(reg, bank.task, request.options)
    if bank_key(reg, request, pool) != bank.key:
        raise _changed(f"bank {bank_label(bank)}", f"mta bank build --task {bank.task}")
    yield from build_bank(reg, request, dry_run=dry_run)


def _adapt(reg: Registry, one: Unfinished, machine: Machine, dry_run: bool) -> Iterator[Event]:
    from mta_cli.pipeline.personalize.adapt import adapt_users

    users, request, options = asked_adaptation(reg, one.asked, machine)
    if users is not None and len(users) < len(one.asked["users"]):
        yield Note(f"{len(one.asked['users']) - len(users)} of those who were asked for are here no more.", True)
    yield from adapt_users(reg, users, request, options, dry_run=dry_run)


def _evaluate(
    reg: Registry, one: Unfinished, machine: Machine, defaults: EvalOptions, dry_run: bool
) -> Iterator[Event]:
    from mta_cli.pipeline.evaluation.design import design
    from mta_cli.pipeline.evaluation.run import run_evaluation, tune_evaluation

    begun = reg.evaluations.get(one.number)
    asked = one.asked
    if not asked:
        answered = reg.evaluations.cells.methods(begun.id)
        methods = ",".join(answered) or defaults.methods
        asked = {"methods": methods, "reference": defaults.reference, "calibrate": defaults.calibrate}
        yield Note(f"Which methods were asked for was not written down; it goes on with {methods}.", warning=True)
    request = asked_evaluation(reg, begun, asked, machine)
    if design(reg, request).key != begun.key:
        raise _changed(begun.label, f"mta eval run --task {begun.task}")
    work = tune_evaluation if one.kind == TUNE else run_evaluation
    yield from work(reg, request, dry_run=dry_run)


def _changed(what: str, command: str) -> BadInput:
    return BadInput(
        f"The task, people or histories that {what} was begun with have changed since: it cannot go on.",
        hint=f"give it up and begin anew ({command})",
    )


def _bank(reg: Registry, bank: Bank) -> Iterator[Unfinished]:
    run = next((run for run in reg.runs.of_subject(bank_label(bank)) if run.kind == BANK), None)
    if run is not None and run.status == "running":
        return
    anchors = reg.banks.anchors(bank.id)
    made = sum(anchor.digest is not None for anchor in anchors) + (bank.task_adapter is not None)
    total = (len(anchors) or bank.config.get("anchors", 0)) + bool(bank.config.get("task_adapter"))
    yield Unfinished(
        BANK,
        bank_label(bank),
        _when(run, bank.created),
        bank.id,
        f"{made} of {total} adapters",
        _why(run),
        None if run is None else run.id,
    )


def _adaptations(reg: Registry, bank: Bank) -> Iterator[Unfinished]:
    for run in _latest(reg.runs.of_subject(bank_label(bank)), (ADAPTATION,)):
        if run.status == "interrupted":
            names = run.config[ASKED]["users"]
            who = "everybody" if names is None else names[0] if len(names) == 1 else f"{len(names)} people"
            yield Unfinished(
                ADAPT,
                f"{who}, {bank.task}",
                _when(run, ""),
                run.id,
                f"on bank {bank_label(bank)}",
                _why(run),
                run.id,
                run.config[ASKED],
            )


def _evaluation(reg: Registry, one: Evaluation) -> Iterator[Unfinished]:
    runs = _latest(reg.runs.of_subject(one.label), (EVAL, TUNE))
    if one.key is None or any(run.status == "running" for run in runs):
        return
    answered = ", ".join(reg.evaluations.cells.methods(one.id))
    so_far = f"answered so far: {answered}" if answered else "nothing answered yet"
    title = f"{one.label}, {one.task}"
    stopped = [run for run in runs if run.status == "interrupted" or (run.status == "failed" and _offered(run, one))]
    for run in stopped:
        yield Unfinished(run.kind, title, _when(run, ""), one.id, so_far, _why(run), run.id, run.config[ASKED])
    if one.status == "running" and not runs:
        yield Unfinished(EVAL, title, one.created, one.id, so_far)


def _offered(run: Run, one: Evaluation) -> bool:
    return one.status == "running" and run.error != "given up"


def _latest(runs: list[Run], kinds: tuple[str, ...]) -> list[Run]:
    """Of each document that was asked, the newest of `runs`, which are newest first."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.kind in kinds and ASKED in run.config:
            found.setdefault(json.dumps([run.kind, run.config[ASKED]], sort_keys=True), run)
    return list(found.values())


def _when(run: Run | None, otherwise: str) -> str:
    return otherwise if run is None else run.ended or run.started


def _why(run: Run | None) -> str:
    return "" if run is None or run.error is None else run.error
