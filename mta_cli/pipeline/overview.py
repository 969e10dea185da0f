"""A summary of a store: its latest jobs, the users with the largest gains, and what it lacks next.

`load_overview` stays fast in a store of a million users; `load_gains` reads all answers of one evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mta_cli.pipeline.evaluation.ladder_text import personal_row, short_verdict
from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, REQUEST_KEY, bank_label
from mta_cli.text.formatting import LEAST_CHANGE, pluralise

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from store.records import Bank, Run
    from store.registry import Registry
    from store.tables.chats import RecentChat
    from store.tables.evaluations import Evaluation

Stage = Literal["empty", "no history", "no bank", "no models", "ready"]
"""The first part that the store lacks, in the order of the work, or `ready`."""

QUICK, BANK_BUILD, EVAL_KINDS = "quick", "bank build", ("eval run", "eval tune")
PARENT_KINDS = (QUICK, *EVAL_KINDS)
"""Jobs that run other jobs."""
RUNS_READ = 60  # enough runs to find a few that are not parts of other jobs


@dataclass(frozen=True)
class JobRecord:
    """A recorded job. `outcome` summarises its result; `error` is the reason why it ended early.

    `status`: running, done, failed or interrupted. `started` and `ended` are ISO 8601.
    """

    kind: str
    subject: str
    status: str
    started: str
    ended: str | None
    outcome: str
    error: str
    run: int


@dataclass(frozen=True)
class Overview:
    """The summary of a store. Numbers are counts; `banks` counts ready banks, `modelled` users with a recipe.

    `example` is the name of a user with a recipe. `verdict` is the verdict of the newest job as a sentence; it is empty
    unless this job is `mta quick`.
    """

    stage: Stage
    users: int
    modelled: int
    banks: int
    evaluations: int
    example: str | None
    verdict: str
    jobs: tuple[JobRecord, ...]
    chats: tuple[RecentChat, ...]


@dataclass(frozen=True)
class UserGain:
    """A user's value under the common and under their own model; `gain` is positive if their own is better."""

    user: str
    before: float
    after: float
    gain: float


@dataclass(frozen=True)
class Gains:
    """The users with the largest and smallest gains, among `measured` users; no user is on both lists.

    `worse` counts the users whose own model is worse than the common one. `source` names the evaluation or the bank,
    `metric` the quantity in `before` and `after`.
    """

    source: str
    metric: str
    measured: int
    worse: int
    most: tuple[UserGain, ...]
    least: tuple[UserGain, ...]


def load_overview(
    reg: Registry,
    *,
    jobs: int,
    chats: int,
    known_jobs: Sequence[Sequence[int]] = (),
    preferred_example: str | None = None,
) -> Overview:
    """The overview of a store, with at most `jobs` jobs and `chats` conversations.

    Each entry of `known_jobs` lists the runs of one job, if the caller knows them. `example` is `preferred_example` if
    this user has a recipe.
    """
    banks = [bank for bank in reg.banks.all() if bank.status == "ready"]
    users, modelled = reg.user_table.count_users_matching(), reg.recipes.count_users()
    evaluations = {one.label: one for one in reg.evaluations.all()}
    runs = _main_jobs(reg.runs.jobs(RUNS_READ), known_jobs)[:jobs]
    return Overview(
        _stage(reg, users, banks, modelled),
        users,
        modelled,
        len(banks),
        sum(is_finished(one) for one in evaluations.values()),
        preferred_example
        if preferred_example and reg.recipes.has_user(preferred_example)
        else reg.recipes.user_on_newest_bank(),
        _verdict(runs[0]) if runs else "",
        tuple(_job_record(reg, run, evaluations) for run in runs),
        tuple(reg.chats.recent_chats(chats)),
    )


def load_gains(reg: Registry, limit: int) -> Gains | None:
    """The users' gains, at most `limit` on each list, from the newest finished evaluation with gains.

    Without such an evaluation, the gains come from the held-out losses of the newest bank that has any. Returns None
    without both.
    """
    for one in reg.evaluations.all():
        if is_finished(one) and (found := _gains_of_evaluation(reg, one, limit)) is not None:
            return found
    for bank in sorted(reg.banks.all(), key=lambda bank: bank.id, reverse=True):
        if (found := _gains_of_bank(reg, bank, limit)) is not None:
            return found
    return None


def is_finished(evaluation: Evaluation) -> bool:
    """Whether an evaluation has finished with a result."""
    return evaluation.status == "done" and bool(evaluation.result.get("methods"))


def personal_and_common(document: Mapping[str, Any]) -> tuple[str, str] | None:
    """The personal and the common method that an evaluation's ladder compares; None if one is missing."""
    ladder = document.get("ladder")
    row = personal_row(ladder) if ladder is not None else None
    if ladder is None or row is None:
        return None
    methods = {one["step"]: one.get("method", one["step"]) for one in ladder["steps"]}
    return methods[row["step"]], methods[row["below"]]


def _stage(reg: Registry, users: int, banks: Sequence[Bank], modelled: int) -> Stage:
    if not users:
        return "empty"
    if not banks:
        return "no bank" if reg.items.has_items() else "no history"
    return "ready" if modelled else "no models"


def _main_jobs(runs: Sequence[Run], known_jobs: Sequence[Sequence[int]]) -> list[Run]:
    """The runs, newest first, without parts of larger jobs and without interrupted runs that were completed later.

    A run that started during a larger job is a part of it, unless `known_jobs` puts the two into different jobs.
    """
    parents = [run for run in runs if run.kind in PARENT_KINDS and (run.ended or run.status == "running")]
    job_of = {run: number for number, own in enumerate(known_jobs) for run in own}
    own = [run for run in runs if not any(_is_part(run, parent, job_of) for parent in parents)]
    done = [run for run in own if run.status == "done"]
    return [run for run in own if not (run.status == "interrupted" and any(_completes(later, run) for later in done))]


def _completes(later: Run, run: Run) -> bool:
    """Whether `later` completed the job of `run`. Adaptations are compared only if both are of all users."""
    same = run.subject and later.id > run.id and (later.kind, later.subject) == (run.kind, run.subject)
    return bool(same) and (run.kind != ADAPT_RUN_KIND or (_is_of_all_users(run) and _is_of_all_users(later)))


def _is_of_all_users(adaptation: Run) -> bool:
    return bool(adaptation.config.get(REQUEST_KEY, {}).get("everybody"))


def _is_part(run: Run, parent: Run, job_of: Mapping[int, int]) -> bool:
    within = run.id > parent.id and (parent.ended is None or run.started < parent.ended)
    return within and job_of.get(run.id) == job_of.get(parent.id)


def _job_record(reg: Registry, run: Run, evaluations: Mapping[str, Evaluation]) -> JobRecord:
    evaluation = evaluations.get(run.subject)
    subject = str(run.config[REQUEST_KEY]["task"]) if run.kind == QUICK else run.subject
    if evaluation is not None:
        subject = f"{evaluation.task}, {run.subject}"
    kind = "user adapt" if run.kind == ADAPT_RUN_KIND else run.kind
    outcome = _outcome(reg, run, evaluation) if run.status == "done" else ""
    error = (run.error or "") if run.status in ("failed", "interrupted") else ""
    return JobRecord(kind, subject, run.status, run.started, run.ended, outcome, error.partition("\n")[0], run.id)


def _outcome(reg: Registry, run: Run, evaluation: Evaluation | None) -> str:
    """A summary of a finished job's result; empty if it has none."""
    result = run.result or {}
    if run.kind == QUICK and "verdict" in result:
        return str(result["verdict"])
    if run.kind == ADAPT_RUN_KIND and "users" in result:
        if not result["measured"]:
            return pluralise(result["users"], "user")
        return f"held-out loss fell for {result['better']} of {pluralise(result['measured'], 'user')}"
    if run.kind == BANK_BUILD:
        bank = next((bank for bank in reg.banks.all() if bank_label(bank) == run.subject), None)
        return "" if bank is None else pluralise(len(reg.banks.anchors(bank.id)), "anchor")
    if evaluation is not None and is_finished(evaluation):
        ladder = evaluation.result.get("ladder")
        return pluralise(len(evaluation.result["methods"]), "method") if ladder is None else short_verdict(ladder)
    return ""


def _verdict(run: Run) -> str:
    """The verdict of `mta quick` as a sentence; empty for other jobs."""
    result = run.result or {}
    if run.kind != QUICK or "verdict" not in result:
        return ""
    whom = pluralise(result["measured_users"], "measured user")
    return f"{result['task']}, {whom}: {result['verdict']}."


def _gains_of_bank(reg: Registry, bank: Bank, limit: int) -> Gains | None:
    measured, worse = reg.stacks.count_raised_losses(bank.id, LEAST_CHANGE)
    if not measured:
        return None
    most, least = (
        tuple(UserGain(name, before, after, before - after) for name, before, after in rows)
        for rows in (
            reg.stacks.largest_loss_changes(bank.id, min(limit, (measured + 1) // 2), best=True),
            reg.stacks.largest_loss_changes(bank.id, min(limit, measured // 2), best=False),
        )
    )
    return Gains(f"bank {bank_label(bank)}", "held-out loss", measured, worse, most, least)


def _gains_of_evaluation(reg: Registry, evaluation: Evaluation, limit: int) -> Gains | None:
    """The gains in the mean log-likelihood of users' gold answers, from the common to the personal model.

    None if the evaluation has no personal model to compare, or its answers cannot be scored.
    """
    pair = personal_and_common(evaluation.result)
    if pair is None:
        return None
    personal, common = (_user_sums(reg, evaluation, method) for method in pair)
    if personal is None or common is None or personal.users != common.users:
        return None
    after, before = (
        dict(zip(sums.users, sums.metrics_from_sums(sums.sums)[LOGLIK_METRIC].tolist(), strict=True))
        for sums in (personal, common)
    )
    gains = {user: after[user] - before[user] for user in after}
    order = sorted(gains, key=lambda user: (gains[user], user), reverse=True)
    most, least = order[: min(limit, (len(order) + 1) // 2)], order[::-1][: min(limit, len(order) // 2)]
    names = {user: reg.users.by_id(user).name for user in (*most, *least)}
    shown = [tuple(UserGain(names[u], before[u], after[u], gains[u]) for u in listed) for listed in (most, least)]
    worse = sum(gain < 0 for gain in gains.values())
    return Gains(evaluation.label, "nats", len(order), worse, shown[0], shown[1])


def _user_sums(reg: Registry, evaluation: Evaluation, method: str) -> UserSums | None:
    """A method's sums by user; None if its answers cannot be scored, because the task was removed or changed."""
    from mta_cli.errors import MtaError
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.evaluation.scored_answers import rescore_method
    from mta_cli.pipeline.evaluation.stored_models import sum_answers

    try:
        task = find_task(reg, evaluation.task)
        if evaluation.key is not None:
            return rescore_method(reg, task, evaluation, method).user_sums
        found = reg.evaluations.predictions.load_predictions(evaluation.id)
        return sum_answers(task, [one for one in found if one.method == method], "users")
    except (MtaError, KeyError, ValueError):
        return None
