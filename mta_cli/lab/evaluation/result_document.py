"""From stored answers to the result document: calibration, decisions, metrics, differences, costs. Runs no model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mta_cli.engine.evaluation.metrics import MAIN_METRICS
from mta_cli.engine.text.labels import find_label
from mta_cli.errors import UsageError
from mta_cli.lab.evaluation.design import Design, describe_options
from mta_cli.lab.evaluation.method_run import timed_group
from mta_cli.lab.evaluation.method_settings import label_memory_of
from mta_cli.pipeline.evaluation.scored_answers import (
    FoldSettings,
    ScoredMethod,
    load_answers,
    score_answers,
    unpack_scores,
)
from mta_cli.pipeline.requests import EvalRequest
from mta_cli.pipeline.runs import bank_label
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.text.tasks import Task
    from store.registry import Registry

CALIBRATION_PARTS = (5, 4, 3, 2, 7)
"""Test users are divided into calibration parts by their id modulo one of these numbers: the first that gives at
least two parts. The temperature of a part is fitted on the other parts.
"""


def score_method(
    reg: Registry, task: Task, plan: Design, evaluation: int, method: str, settings: FoldSettings, calibrate: bool
) -> ScoredMethod:
    """A method's stored answers to the test users' queries, scored.

    With `calibrate`, in a task of labels, a user's temperature is fitted on other users of the same bank.
    """
    tested, found = load_answers(reg, evaluation, method, settings, [fold.test for fold in plan.folds])
    temperatures = _fit_fold_temperatures(task, plan, found, tested) if calibrate and task.labels else None
    return score_answers(task, method, tested, temperatures)


def _fit_fold_temperatures(
    task: Task, plan: Design, found: Sequence[Sequence[Prediction]], tested: Sequence[Sequence[Prediction]]
) -> list[list[float]]:
    """By fold: one temperature fitted on the tuning users, or one for each calibration part of the test users.

    A part's temperature is fitted on the other parts or, if these have no users, on the test users of other folds.
    Without any other users it is 1.
    """
    chosen = []
    for number, fold in enumerate(plan.folds):
        if own := [p for p in found[number] if p.user_id in set(fold.tuning)]:
            chosen.append([_fit_temperature(task, own)])
            continue
        elsewhere = [p for n, rows in enumerate(tested) if n != number for p in rows]
        users = {p.user_id for p in tested[number]}
        parts = next((n for n in CALIBRATION_PARTS if len({one % n for one in users}) > 1), CALIBRATION_PARTS[0])
        rest = [[p for p in tested[number] if p.user_id % parts != part] for part in range(parts)]
        chosen.append([_fit_temperature(task, others or elsewhere) for others in rest])
    return chosen


def _fit_temperature(task: Task, rows: Sequence[Prediction]) -> float:
    from mta_cli.engine.evaluation.calibration import fit_temperature

    golds = [(p, find_label(p.gold, task.labels)) for p in rows if p.scores is not None]
    known = [(unpack_scores(p.scores), gold) for p, gold in golds if gold is not None]
    return fit_temperature([scores for scores, _ in known], [place for _, place in known])


def result_document(
    reg: Registry,
    request: EvalRequest,
    plan: Design,
    evaluation: int,
    chosen: Mapping[str, FoldSettings],
    given: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The document of `mta eval run`: all of `chosen`'s methods on all test users.

    `given` are the settings that a user gave for each method, in this run or in the run that measured the method.
    """
    from mta_cli.engine.model.load import number_format

    task, options, machine = request.task, request.options, request.machine
    judged = {
        method: score_method(reg, task, plan, evaluation, method, settings, options.calibrate)
        for method, settings in chosen.items()
    }
    reference = options.reference if options.reference in judged else next(reversed(judged))
    return {
        "task": task.name,
        "metric": MAIN_METRICS[task.metric],
        "users": len(plan.test_users),
        "queries": sum(len(plan.queries[user]) for user in plan.test_users),
        "shots": options.shots,
        "seed": machine.seed,
        "folds": options.folds,
        **asdict(request.prompt),
        "anchors": request.bank.anchor_count,
        "task_epochs": request.bank.task_epochs,
        "placement": options.placement,
        "base": request.base.name,
        "options": describe_options(request),
        "dtype": number_format(machine.dtype, machine.device, machine.quantize),
        "evaluation": evaluation,
        **comparison_part({name: one.user_sums for name, one in judged.items()}, reference, machine.seed),
        "costs": {m: _costs(reg, plan, evaluation, m, chosen[m], one) for m, one in judged.items()},
        "memory": {method: label_memory_of(settings) for method, settings in chosen.items() if task.labels},
        **({"bank": bank_label(request.measured.bank)} if request.measured else {}),
        "data": plan.data,
        "settings": {method: _settings_json(settings) for method, settings in chosen.items()},
        "given": {method: dict(own) for method, own in given.items() if own and method in chosen},
        "calibration": {method: one.temperatures for method, one in judged.items()},
    }


def comparison_part(user_sums: Mapping[str, UserSums], reference: str, seed: int) -> dict[str, Any]:
    """The document's keys that depend on user sums: reference, methods, differences, power and ladder."""
    from mta_cli.engine.evaluation.statistics import bootstrap_metrics, minimum_detectable_effect

    others = [method for method in user_sums if method.partition("+")[0] != reference.partition("+")[0]]
    against = "pooled-rag" if "pooled-rag" in others else others[0] if others else None
    power = None
    if against is not None:
        main, own = MAIN_METRICS[user_sums[reference].metric], reference_for(against, reference, user_sums)
        least = minimum_detectable_effect(user_sums[own], user_sums[against], main)
        power = {"metric": main, "detectable": least, "basis": f"as {own} and {against} differed by user"}
    return {
        "reference": reference,
        "methods": {name: bootstrap_metrics(one, seed=seed) for name, one in user_sums.items()},
        "differences": reference_differences(user_sums, reference, seed),
        "power": power,
        "ladder": _ladder(user_sums, seed),
    }


def _ladder(user_sums: Mapping[str, UserSums], seed: int) -> dict[str, Any] | None:
    """The ladder of the methods that are its steps, with their names and the authorship results.

    None if there is nothing to compare.
    """
    from mta_cli.engine.evaluation.ladder import compared_pairs, judge_ladder, whose_entries
    from mta_cli.lab.methods.catalog import methods_by_step

    methods = methods_by_step(user_sums)
    if not compared_pairs(methods):
        return None
    sums = {step: user_sums[name] for step, name in methods.items()}
    others = {name: own for name, own in user_sums.items() if name not in methods.values()}
    found = judge_ladder(sums, MAIN_METRICS[next(iter(sums.values())).metric], unit="users", seed=seed)
    return {
        **found,
        "steps": [{**row, "method": methods[row["step"]]} for row in found["steps"]],
        "whose": whose_entries({**sums, **others}, seed),
    }


def reference_for(method: str, reference: str, measured: Collection[str]) -> str:
    """The method among `measured` with which `method` is compared: `reference`, with the label memory of `method`.

    The result is `reference` itself if it was not measured with this memory, if its name includes a memory (`mta+off`),
    or if `method` is a variant of it, has no choice of memory, or is unknown.
    """
    from mta_cli.lab.methods.catalog import find_method

    with suppress(UsageError):
        if "+" not in reference and (memory := find_method(method).memory) is not None:
            own = find_method(f"{reference}+{memory}").name
            if own in measured and own != method:
                return own
    return reference


def reference_differences(user_sums: Mapping[str, UserSums], reference: str, seed: int) -> list[dict[str, Any]]:
    """The `paired_differences` between each method's `reference_for` and the method."""
    from mta_cli.engine.evaluation.statistics import paired_differences

    pairs = [(reference_for(method, reference, user_sums), method) for method in user_sums if method != reference]
    return paired_differences(user_sums, pairs, seed=seed)


def _settings_json(settings: FoldSettings) -> Any:
    """One document where all folds have the same settings, else a list by fold."""
    return dict(settings[0]) if all(own == settings[0] for own in settings) else [dict(own) for own in settings]


def _costs(
    reg: Registry, plan: Design, evaluation: int, method: str, settings: FoldSettings, judged: ScoredMethod
) -> dict[str, float | None]:
    """A method's costs, as means over test users.

    They are the bytes stored, the seconds to make a model, and the speed of answers: prompt tokens per second, where
    the time includes the likelihoods of golds and labels. Seconds and speed are measured on the timed users only.
    """
    made = [reg.evaluations.predictions.finished_cells(evaluation, n, method, own) for n, own in enumerate(settings)]
    cells = [cells[user] for cells, fold in zip(made, plan.folds, strict=True) for user in fold.test]
    timed = set(timed_group(plan)).intersection(plan.folds[0].test)
    spent = [made[0][user].seconds for user in timed]
    answers = [p for p in judged.predictions if p.user_id in timed]
    seconds, tokens = sum(p.seconds for p in answers), sum(p.tokens for p in answers)
    return {
        "bytes": sum(cell.bytes for cell in cells) / len(cells),
        "seconds": sum(spent) / len(spent),
        "seconds_per_query": seconds / len(answers),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }
