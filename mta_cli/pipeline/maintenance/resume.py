"""Lists, resumes and discards jobs that were stopped or killed.

Finished parts are stored; resuming runs the same job again with its original options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, Words
from mta_cli.events import Event
from mta_cli.options import AdaptOptions, MachineOptions
from mta_cli.pipeline.requests import restore_adapt_request, restore_bank_request
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, REQUEST_KEY, bank_label, evaluation_lock
from mta_cli.text.formatting import join_some
from store.records import Bank, Run
from store.tables.evaluations import Evaluation

if TYPE_CHECKING:
    from store.registry import Registry

BANK_BUILD, USER_ADAPT, EVAL_RUN, EVAL_TUNE = "bank build", "user adapt", "eval run", "eval tune"
RESUMABLE_KINDS = (BANK_BUILD, USER_ADAPT, EVAL_RUN, EVAL_TUNE)
MAX_NAMES = 3  # users named in a title


@dataclass(frozen=True)
class UnfinishedJob:
    """A job that ended early. `number` is the number of its bank, run or evaluation, depending on `kind`.

    `detail` is its progress, `ended_at` ISO 8601. `error` is empty if the reason is unknown, as after a kill. `run` is
    the number of its run, if there is one, and `request` that run's JSON document.
    """

    kind: str
    title: str
    ended_at: str
    number: int
    detail: str = ""
    error: str = ""
    run: int | None = None
    request: dict[str, Any] = field(default_factory=dict)


def list_unfinished_jobs(reg: Registry) -> list[UnfinishedJob]:
    """Every job that ended early and was not discarded, newest first. Running jobs are left out."""
    banks = reg.banks.all()
    building = [one for bank in banks if bank.status == "building" for one in _unfinished_bank(reg, bank)]
    adapting = [one for bank in banks if bank.status == "ready" for one in _unfinished_adaptations(reg, bank)]
    measuring = [one for each in reg.evaluations.all() for one in _unfinished_evaluation(reg, each)]
    return sorted([*building, *adapting, *measuring], key=lambda one: one.ended_at, reverse=True)


def resume_job(
    reg: Registry,
    one: UnfinishedJob,
    machine: MachineOptions,
    resume_evaluation: Callable[[Registry, UnfinishedJob, MachineOptions], Iterator[Event]],
) -> Iterator[Event]:
    """Resume `one` in this process on the device of `machine`, with its original options.

    `resume_evaluation` resumes an evaluation: see `lab.evaluation.resume`, which this package must not import. Raises
    BadInput if the job's inputs have changed since it began, or if it builds a bank of users that `mta quick` chose;
    and the errors of the job.
    """
    from mta_cli.pipeline.personalize.adapt import adapt_users

    if one.kind == BANK_BUILD:
        return _resume_bank_build(reg, one, machine)
    if one.kind == USER_ADAPT:
        return adapt_users(reg, restore_adapt_request(reg, one.number, one.request, machine), plan=())
    return resume_evaluation(reg, one, machine)


def discard_job(reg: Registry, one: UnfinishedJob) -> None:
    """Discard `one`, so that it is not listed again. An unfinished bank or evaluation is deleted.

    Raises BadInput for a bank that another process has finished meanwhile, StoreBusy while a process works on the job.
    """
    if one.kind == BANK_BUILD:
        bank = reg.banks.by_id(one.number)
        with reg.job_lock(f"bank {bank.name}"):
            if reg.banks.by_id(bank.id).status != "building":
                raise BadInput(
                    f"Bank {bank_label(bank)} was finished meanwhile, so there is nothing to discard.",
                    hint=("if you do not want it, remove it with ", Command("bank rm")),
                )
            reg.banks.remove(bank.id)
    elif one.kind in (EVAL_RUN, EVAL_TUNE):
        found = reg.evaluations.get(one.number)
        with reg.job_lock(evaluation_lock(found.task, found.key)):
            if reg.evaluations.get(one.number).status == "running":
                reg.evaluations.remove(one.number)
    if one.run is not None:
        reg.runs.fail_run(one.run, "given up")


def _resume_bank_build(reg: Registry, one: UnfinishedJob, machine: MachineOptions) -> Iterator[Event]:
    from mta_cli.pipeline.bank.build import bank_key, build_bank
    from mta_cli.pipeline.bank.contributors import find_contributors

    bank = reg.banks.by_id(one.number)
    request = restore_bank_request(reg, bank, machine)
    if bank_key(reg, request, find_contributors(reg, request)) != bank.key:
        otherwise = ("if ", Command("quick"), " started it, run that again; otherwise ")
        raise changed_since_error(f"bank {bank_label(bank)}", Command("bank build", task=bank.task), otherwise)
    yield from build_bank(reg, request, plan=())


def changed_since_error(what: str, command: Command, first: Words = "") -> BadInput:
    """The error for a job that cannot be resumed; `command` starts it again."""
    return BadInput(
        f"{what} cannot be resumed: its task, users, histories or bank, or mta itself, have changed since it began.",
        hint=(first, "discard it and start again (", command, ")"),
    )


def _unfinished_bank(reg: Registry, bank: Bank) -> Iterator[UnfinishedJob]:
    run = next((run for run in reg.runs.of_bank(bank.id) if run.kind == BANK_BUILD), None)
    if run is not None and run.status == "running":
        return
    anchors = reg.banks.anchors(bank.id)
    made = sum(anchor.digest is not None for anchor in anchors) + (bank.task_adapter is not None)
    total = (len(anchors) or bank.config.get("anchors", 0)) + bool(bank.config.get("task_adapter"))
    yield UnfinishedJob(
        BANK_BUILD,
        bank_label(bank),
        _ended_at(run, bank.created),
        bank.id,
        f"{made} of {total} adapters",
        _error_text(run),
        None if run is None else run.id,
    )


def _unfinished_adaptations(reg: Registry, bank: Bank) -> Iterator[UnfinishedJob]:
    if bank != reg.banks.latest_ready_bank(bank.task, bank.base):
        return  # resuming would adapt the users on the newer bank, and list the job again
    for run in _latest(reg, reg.runs.of_bank(bank.id), (ADAPT_RUN_KIND,)):
        all_users, users = run.config[REQUEST_KEY]["everybody"], reg.runs.asked_users(run.id)
        if run.status == "interrupted" and (all_users or users):
            who = "all users" if all_users else join_some([user.name for user in users], MAX_NAMES)
            given = _given_options(AdaptOptions(), run.config[REQUEST_KEY]["options"])
            yield UnfinishedJob(
                USER_ADAPT,
                f"{who} · {bank.task}",
                _ended_at(run, ""),
                run.id,
                ", ".join([f"on bank {bank_label(bank)}", *given]),
                _error_text(run),
                run.id,
                run.config[REQUEST_KEY],
            )


def _given_options(defaults: AdaptOptions, asked: dict[str, Any]) -> list[str]:
    """The options of a request that differ from the defaults, as text."""
    known = ((name, value, asked.get(name)) for name, value in asdict(defaults).items())
    return [f"{name.replace('_', ' ')} {given}" for name, value, given in known if given not in (None, value)]


def _unfinished_evaluation(reg: Registry, one: Evaluation) -> Iterator[UnfinishedJob]:
    runs = _latest(reg, reg.runs.of_evaluation(one.id), (EVAL_RUN, EVAL_TUNE))
    if one.key is None or any(run.status == "running" for run in runs):
        return
    answered = ", ".join(reg.evaluations.predictions.answered_methods(one.id))
    so_far = f"answered so far: {answered}" if answered else "nothing answered yet"
    title = f"{one.label}, {one.task}"
    failed = one.status == "running"  # a failed run may be resumed, unless it was given up
    stopped = [
        run
        for run in runs
        if run.status == "interrupted" or (failed and run.status == "failed" and run.error != "given up")
    ]
    for run in stopped:
        yield UnfinishedJob(
            run.kind, title, _ended_at(run, ""), one.id, so_far, _error_text(run), run.id, run.config[REQUEST_KEY]
        )


def _latest(reg: Registry, runs: list[Run], kinds: tuple[str, ...]) -> list[Run]:
    """The newest run of each request; `runs` are newest first."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.kind in kinds:
            users = [user.id for user in reg.runs.asked_users(run.id)]
            found.setdefault(json.dumps([run.kind, run.config[REQUEST_KEY], users], sort_keys=True), run)
    return list(found.values())


def _ended_at(run: Run | None, otherwise: str) -> str:
    return otherwise if run is None else run.ended or run.started


def _error_text(run: Run | None) -> str:
    return "" if run is None or run.error is None else run.error
