"""Compares the personal models with the common one and with no model, by the sums and intervals of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.evaluation.result_document import MAIN_METRICS
from mta_cli.pipeline.evaluation.stored_models import sum_answers
from mta_cli.pipeline.memory.bank_memory import MAX_RECENT_ANSWERS, BankMemory
from mta_cli.pipeline.report.results import LOWER_IS_BETTER, SIGNIFICANCE_LEVEL
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.text.tasks import Task
    from store.records import Bank, User
    from store.registry import Registry

COMMON, UNTRAINED, BASELINE = "pooled", "base", "majority"
MODEL_WORDS = {COMMON: "common", UNTRAINED: "untrained"}
DECIDING_METRICS = {**MAIN_METRICS, "rouge": "gold_loglik"}
"""What a verdict is by: the share of right labels, the error of scores, the likelihood of the user's own text."""
MIN_UNITS = {"users": 6, "questions": 10}
"""Fewer give no interval to rely on; of five, the swaps that p counts cannot give less than 1/16."""
EXAMPLE_RULES = {
    "users": "a question of the users with the largest, the median and the smallest gain",
    "questions": "the questions with the largest, the median and the smallest gain",
}

WORTH_IT, NOT_TOLD_APART, NOT_WORTH_IT = "worth it", "not told apart", "not worth it"


def answer_without_model(
    reg: Registry, task: Task, bank: Bank, users: Sequence[User], answers: Sequence[Prediction]
) -> list[Prediction]:
    """The same queries answered with each user's most frequent label, median score or nearest own text."""
    from mta_cli.engine.methods.baselines.majority import simplest_answerer

    rates_until = BankMemory(reg, task, bank).without_neighbours.rates_until
    answerers = {}
    for user in users:
        own = reg.items.recent_items(user.id, task.name, MAX_RECENT_ANSWERS)
        inputs, outputs = [item.input for item in own], [item.output for item in own]
        answerers[user.id] = simplest_answerer(task, rates_until, inputs, outputs)
    questions = {query.id: query.input for user in users for query in reg.items.queries(user.id, task.name)}
    return [
        replace(one, method=BASELINE, answer=answerers[one.user_id](questions[one.query_id])[0], gold_loglik=None)
        for one in answers
    ]


def compare_models(
    task: Task, answers: Mapping[str, Sequence[Prediction]], personal: str, common: str, *, unit: str, seed: int
) -> dict[str, Any]:
    """What was measured, who gained and the verdict; `answers` are those of the personal, common and no model.

    Gains and intervals are over `unit`: `users`, or the `questions` of a file of one user.
    """
    sums = _sum_by_unit(task, answers, unit)
    deciding, main = DECIDING_METRICS[task.metric], MAIN_METRICS[task.metric]
    gain = _gain(sums[personal], sums[common], deciding, seed)
    over_baseline = _gain(sums[personal], sums[BASELINE], main, seed)
    gains = gains_by_unit(sums[personal], sums[common], deciding)
    verdict, why = decide(gain, over_baseline, len(gains), unit, MODEL_WORDS[common])
    return {
        "common": common,
        "common_word": MODEL_WORDS[common],
        "unit": unit,
        "metric": main,
        "deciding_metric": deciding,
        "models": {
            method: {name: float(value) for name, value in own.metric_values().items()} for method, own in sums.items()
        },
        "better": sum(value > 0 for value in gains.values()),
        "same": sum(value == 0 for value in gains.values()),
        "worse": sum(value < 0 for value in gains.values()),
        "gain": gain,
        "gain_over_baseline": over_baseline,
        "verdict": verdict,
        "why": why,
        "example_rule": EXAMPLE_RULES[unit],
    }


def _sum_by_unit(task: Task, answers: Mapping[str, Sequence[Prediction]], unit: str) -> dict[str, UserSums]:
    """Each method's sums over what is drawn for an interval."""
    if unit == "questions":
        answers = {method: [replace(one, user_id=one.query_id) for one in own] for method, own in answers.items()}
    return {method: sum_answers(task, own) for method, own in answers.items()}


def decide(
    gain: Mapping[str, float], over_baseline: Mapping[str, float], measured: int, unit: str, common: str
) -> tuple[str, str]:
    """The verdict and its reason, by the rule of evaluations for what is told apart."""
    more = "items per user" if unit == "users" else "questions (--hold-out, with another --task)"
    if measured < MIN_UNITS[unit]:
        return NOT_TOLD_APART, f"too few measured {unit}: {measured}, and {MIN_UNITS[unit]} are the least"
    said, plain = _direction(gain), _direction(over_baseline)
    if said < 0:
        return NOT_WORTH_IT, f"the {common} model is better"
    if plain < 0:
        return NOT_WORTH_IT, "what answers without a model is better"
    if said == 0:
        return NOT_TOLD_APART, f"more {more}, or use the {common} model"
    if over_baseline["value"] < 0:
        return (
            NOT_TOLD_APART,
            f"better than the {common} model, but not than the answers without a model",
        )
    if plain == 0:
        return WORTH_IT, f"better than the {common} model, but not told apart from what answers without a model"
    return WORTH_IT, f"better than the {common} model, and than what answers without a model"


def _direction(gain: Mapping[str, float]) -> int:
    """1 for better, -1 for worse, 0 where not told apart, as evaluations tell it: by the interval and p."""
    if gain["low"] <= 0 <= gain["high"] or gain["p"] >= SIGNIFICANCE_LEVEL:
        return 0
    return 1 if gain["low"] > 0 else -1


def gains_by_unit(personal: UserSums, common: UserSums, metric: str) -> dict[int, float]:
    """By the id of the user or query: how much better the personal model is in the metric; positive is better."""
    mine, theirs = personal.metrics_from_sums(personal.sums)[metric], common.metrics_from_sums(common.sums)[metric]
    return dict(zip(personal.users, (_sign(metric) * (mine - theirs)).tolist(), strict=True))


def choose_examples(
    task: Task, answers: Mapping[str, Sequence[Prediction]], personal: str, common: str, unit: str
) -> list[tuple[Prediction, Prediction]]:
    """The answers of the personal and the common model that `EXAMPLE_RULES` choose.

    Equal gains are told apart by the likelihood of the golds. The question of a user is the first on which the models
    differ, else the first.
    """
    sums = _sum_by_unit(task, {method: answers[method] for method in (personal, common)}, unit)
    gains, finer = (
        gains_by_unit(sums[personal], sums[common], metric) for metric in (DECIDING_METRICS[task.metric], "gold_loglik")
    )
    order = sorted(gains, key=lambda one: (gains[one], finer[one], one), reverse=True)
    others = {one.query_id: one for one in answers[common]}
    found = []
    for chosen in dict.fromkeys((order[0], order[len(order) // 2], order[-1])):
        of_chosen = [one for one in answers[personal] if chosen == (one.user_id if unit == "users" else one.query_id)]
        pairs = [(one, others[one.query_id]) for one in of_chosen]
        found.append(next((pair for pair in pairs if pair[0].answer != pair[1].answer), pairs[0]))
    return found


def _gain(a: UserSums, b: UserSums, metric: str, seed: int) -> dict[str, float]:
    """How much better a is than b, with its interval, turned so that positive is better."""
    from mta_cli.engine.evaluation.statistics import paired_difference

    found = paired_difference(a, b, seed=seed)[metric]
    if _sign(metric) > 0:
        return found
    # a difference from 0.0, because a negated zero would be shown as -0.000
    turned = {"value": 0.0 - found["value"], "low": 0.0 - found["high"], "high": 0.0 - found["low"]}
    return {**turned, "p": found["p"]}


def _sign(metric: str) -> int:
    return -1 if metric in LOWER_IS_BETTER else 1
