"""From stored answers to the result document: calibration, decisions, metrics, differences, costs. Answers nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label
from mta_cli.errors import UsageError
from mta_cli.lab.evaluation.added_memory import unpack_scores
from mta_cli.lab.evaluation.design import Design, describe_options
from mta_cli.lab.evaluation.method_run import timed_group
from mta_cli.lab.evaluation.method_settings import label_memory_of
from mta_cli.pipeline.requests import EvalRequest
from store.tables.evaluations import Evaluation
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.evaluation.whose import WhoseSums
    from mta_cli.engine.text.tasks import Task
    from store.registry import Registry

MAIN_METRICS = {
    "accuracy": "accuracy",
    "mae": "mae",
    "rouge": "rouge_1",
}  # a task's metric, and the main number of its result
TEST_ROLE = "test"  # the role of the users whose answers count
CALIBRATION_PARTS = (5, 4, 3, 2, 7)
"""How many parts, by id, a fold's users make: the first number that makes two. Each is calibrated on the others."""

FoldSettings = Sequence[Mapping[str, Any]]
"""A method's settings, fold by fold."""


@dataclass(frozen=True)
class ScoredMethod:
    """A method's answers to the queries of all test users, and the temperatures applied to them.

    `temperatures` are by fold: one for each calibration part of its users, or one for all of them.
    """

    user_sums: UserSums
    temperatures: list[list[float]] | None
    predictions: list[Prediction]


def score_method(
    reg: Registry, task: Task, plan: Design, evaluation: int, method: str, settings: FoldSettings, calibrate: bool
) -> ScoredMethod:
    """Read a method's answers. A user's temperature is fitted on other users of the same bank."""
    tested, found = _load_predictions(reg, evaluation, method, settings, [fold.test for fold in plan.folds])
    temperatures = _fit_fold_temperatures(task, plan, found, tested) if calibrate and task.labels else None
    return _score_predictions(task, method, tested, temperatures)


def rescore_method(reg: Registry, task: Task, evaluation: Evaluation, method: str) -> ScoredMethod:
    """A method's answers in a finished evaluation, with the temperatures that its document records."""
    settings = evaluation.result["settings"][method]
    members = reg.evaluations.fold_members(evaluation.id)
    folds = [
        [user for n, user, role in members if n == fold and role == TEST_ROLE]
        for fold in range(evaluation.result["folds"])
    ]
    by_fold = settings if isinstance(settings, list) else [settings for _ in folds]
    tested, _ = _load_predictions(reg, evaluation.id, method, by_fold, folds)
    warm = evaluation.result["calibration"][method]
    return _score_predictions(task, method, tested, warm and [own if isinstance(own, list) else [own] for own in warm])


def _load_predictions(
    reg: Registry, evaluation: int, method: str, settings: FoldSettings, folds: Sequence[Sequence[int]]
) -> tuple[list[list[Prediction]], list[list[Prediction]]]:
    """By fold: the answers of its test users, and of all its users."""
    load = reg.evaluations.predictions.load_predictions
    found = [load(evaluation, fold=n, method=method, settings=own) for n, own in enumerate(settings)]
    return [[p for p in rows if p.user_id in set(test)] for test, rows in zip(folds, found, strict=True)], found


def _score_predictions(
    task: Task, method: str, tested: Sequence[Sequence[Prediction]], temperatures: list[list[float]] | None
) -> ScoredMethod:
    from mta_cli.engine.evaluation.user_sums import sum_by_user
    from mta_cli.lab.methods.catalog import PRESETS_BY_NAME

    stands = method in PRESETS_BY_NAME and PRESETS_BY_NAME[method].keeps_own_answer
    rows = [prediction for own in tested for prediction in own]
    read = [
        _calibrated_answer(
            task,
            prediction,
            temperatures[n][prediction.user_id % len(temperatures[n])] if temperatures else 1.0,
            stands=stands,
        )
        for n, own in enumerate(tested)
        for prediction in own
    ]
    counted = sum_by_user(
        task.metric,
        task.labels,
        [p.user_id for p in rows],
        [answer for answer, _ in read],
        [p.gold for p in rows],
        [loglik for _, loglik in read],
    )
    return ScoredMethod(replace(counted, whose=whose_sums(rows)), temperatures, rows)


def _fit_fold_temperatures(
    task: Task, plan: Design, found: Sequence[Sequence[Prediction]], tested: Sequence[Sequence[Prediction]]
) -> list[list[float]]:
    """By fold: one temperature fitted on the tuning users, or one for each calibration part of the test users.

    A part's temperature is fitted on the other parts. A fold without other users uses those of other folds; without
    any, it is 1.
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


def _calibrated_answer(
    task: Task, prediction: Prediction, temperature: float, *, stands: bool
) -> tuple[str, float | None]:
    """The answer, as stored if it `stands`, else the likeliest calibrated label; and the gold's log-likelihood (nats).

    The log-likelihood is over labels, or per token of a text.
    """
    from mta_cli.engine.evaluation.calibration import gold_loglik, log_probabilities
    from mta_cli.engine.memory.label_prior import decide_label

    if not task.labels:
        if prediction.gold_loglik is None:
            return prediction.answer, None
        return prediction.answer, prediction.gold_loglik / max(1, prediction.gold_tokens or 1)
    scores = unpack_scores(prediction.scores)
    gold = gold_loglik(scores, task.labels, prediction.gold, temperature)
    if stands:
        return prediction.answer, gold
    values = log_probabilities(scores, temperature).tolist()
    return task.labels[decide_label(values, task.labels, task.metric)], gold


def result_document(
    reg: Registry,
    request: EvalRequest,
    plan: Design,
    evaluation: int,
    chosen: Mapping[str, FoldSettings],
    given: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The document of `mta eval run`: all of `chosen`'s methods on all test users.

    `given` are those settings of each that a user gave, in this run or in the one that measured it.
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
        "history_items": request.prompt.history_items,
        "anchors": request.bank.anchor_count,
        "task_epochs": request.bank.task_epochs,
        "placement": options.placement,
        "base": request.base.name,
        "options": describe_options(request),
        "dtype": number_format(machine.dtype, machine.device, machine.quantize),
        "evaluation": evaluation,
        **compare_methods({name: one.user_sums for name, one in judged.items()}, reference, machine.seed),
        "costs": {m: _costs(reg, plan, evaluation, m, chosen[m], one) for m, one in judged.items()},
        "memory": {method: label_memory_of(settings) for method, settings in chosen.items() if task.labels},
        **({"bank": request.measured.label} if request.measured else {}),
        "data": plan.data,
        "settings": {method: _settings_json(settings) for method, settings in chosen.items()},
        "given": {method: dict(own) for method, own in given.items() if own and method in chosen},
        "calibration": {method: one.temperatures for method, one in judged.items()},
    }


def whose_sums(answers: Sequence[Prediction], unit: str = "users") -> WhoseSums | None:
    """By user, or question as `unit` says, what the answers say that other users' models were asked about, if any."""
    from mta_cli.engine.evaluation.whose import sum_whose, unpack_logliks

    known = [one for one in answers if one.whose is not None]
    owners = [one.user_id if unit == "users" else one.query_id for one in known]
    return sum_whose(owners, [unpack_logliks(one.whose or b"") for one in known])


def whose_entries(sums: Mapping[str, UserSums], seed: int) -> list[dict[str, Any]]:
    """Whose is it? For each step, or other method, that was asked, in their order: see `whose.identify`.

    No model, which for texts is naive Bayes, comes last and under this name.
    """
    from mta_cli.engine.evaluation.ladder import NO_MODEL
    from mta_cli.engine.evaluation.whose import identify

    order = sorted(sums, key=lambda step: step == NO_MODEL)
    named = {step: "naive-bayes" if step == NO_MODEL else step for step in order}
    known = [(named[step], own) for step in order if (own := sums[step].whose) is not None]
    return [{"step": step, **identify(own, seed=seed)} for step, own in known]


def compare_methods(user_sums: Mapping[str, UserSums], reference: str, seed: int) -> dict[str, Any]:
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
        "differences": paired_differences(user_sums, reference, seed),
        "power": power,
        "ladder": _ladder(user_sums, seed),
    }


def _ladder(user_sums: Mapping[str, UserSums], seed: int) -> dict[str, Any] | None:
    """The ladder of those methods that are its steps, each with its method, and whose answers they are.

    None where there is nothing to compare.
    """
    from mta_cli.engine.evaluation.ladder import compared_pairs, judge_ladder
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
    """The one of `measured` that `method` is compared with: `reference`, with the method's label memory.

    It is `reference` itself where that was not measured with this memory or is named with a memory of its own
    (`mta+off`), and for its own variants, methods without a memory to choose, and those of an earlier version.
    """
    from mta_cli.lab.methods.catalog import find_method

    with suppress(UsageError):
        if "+" not in reference and (memory := find_method(method).memory) is not None:
            own = find_method(f"{reference}+{memory}").name
            if own in measured and own != method:
                return own
    return reference


def paired_differences(user_sums: Mapping[str, UserSums], reference: str, seed: int) -> list[dict[str, Any]]:
    """The reference minus every other method in every metric: interval, p, and p adjusted for all methods.

    Each method is compared with its `reference_for`.
    """
    from mta_cli.engine.evaluation.statistics import holm_adjusted, paired_difference

    pairs = [(reference_for(method, reference, user_sums), method) for method in user_sums if method != reference]
    rows: list[dict[str, Any]] = [
        {"a": own, "b": method, "metric": metric, **values}
        for own, method in pairs
        for metric, values in paired_difference(user_sums[own], user_sums[method], seed=seed).items()
    ]
    for metric in {row["metric"] for row in rows}:
        family = [row for row in rows if row["metric"] == metric]
        for row, adjusted in zip(family, holm_adjusted([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
    return rows


def _settings_json(settings: FoldSettings) -> Any:
    """One document where all folds have the same settings, else a list by fold."""
    return dict(settings[0]) if all(own == settings[0] for own in settings) else [dict(own) for own in settings]


def _costs(
    reg: Registry, plan: Design, evaluation: int, method: str, settings: FoldSettings, judged: ScoredMethod
) -> dict[str, float | None]:
    """A method's costs, as means over test users.

    They are the bytes stored, the seconds to make a model, and the speed of answers: prompt tokens per second, where
    the time includes the likelihoods of golds and labels. Only the timed users count for seconds and speed.
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
