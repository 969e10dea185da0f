"""From stored answers to the result document: calibration, decisions, metrics, differences, costs. Answers nothing."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.evaluation.design import Design, EvalRequest
from mta_cli.pipeline.evaluation.filling import timed_group
from store.cells import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.tallies import Tally
    from mta_cli.engine.tasks import Task
    from store.registry import Registry

MAIN = {"accuracy": "accuracy", "mae": "mae", "rouge": "rouge_1"}  # a task's metric, and the number it is judged by
NO_LABEL = math.log(1e-6)  # for a gold that is none of the task's labels

Choice = Sequence[Mapping[str, Any]]
"""A method's settings, fold by fold."""


@dataclass(frozen=True)
class Judged:
    """A method's answers to all tested people, and the temperatures (by fold) that they were read with."""

    tally: "Tally"
    temperatures: list[float] | None
    predictions: list[Prediction]


def judge(
    reg: "Registry", task: "Task", plan: Design, evaluation: int, method: str, choice: Choice, calibrate: bool
) -> Judged:
    """Read a method's answers: the temperature of each fold comes from people who are not tested in it."""
    from mta_cli.engine.tallies import tally

    cells = reg.evaluations.cells
    found = [cells.predictions(evaluation, fold=n, method=method, settings=own) for n, own in enumerate(choice)]
    tested = [[p for p in rows if p.user_id in set(fold.test)] for fold, rows in zip(plan.folds, found, strict=True)]
    temperatures = _temperatures(task, plan, found, tested) if calibrate and task.labels else None
    read = [
        _read(task, prediction, temperatures[n] if temperatures else 1.0)
        for n, rows in enumerate(tested)
        for prediction in rows
    ]
    rows = [prediction for own in tested for prediction in own]
    counted = tally(
        task.metric, task.labels, [p.user_id for p in rows], [answer for answer, _ in read], [p.gold for p in rows],
        [loglik for _, loglik in read],
    )  # fmt: skip
    return Judged(counted, temperatures, rows)


def _temperatures(
    task: "Task", plan: Design, found: Sequence[Sequence[Prediction]], tested: Sequence[Sequence[Prediction]]
) -> list[float]:
    from mta_cli.engine.calibration import temperature

    chosen = []
    for number, fold in enumerate(plan.folds):
        others = [p for n, rows in enumerate(tested) if n != number for p in rows]
        own = [p for p in found[number] if p.user_id in set(fold.tuning)]
        chosen_on = own or others or tested[number]  # the last where nobody else counts: then no test depends on it
        golds = [(p, p.gold.strip()) for p in chosen_on if p.scores is not None]
        known = [(_scores(p), task.labels.index(gold)) for p, gold in golds if gold in task.labels]
        chosen.append(temperature([scores for scores, _ in known], [place for _, place in known]))
    return chosen


def _read(task: "Task", prediction: Prediction, temperature: float) -> tuple[str, float | None]:
    """The answer, and the log-likelihood of the gold: over labels, or per token of a text (nats)."""
    from mta_cli.engine.calibration import log_probabilities
    from mta_cli.engine.labels import decide

    if not task.labels:
        if prediction.gold_loglik is None:
            return prediction.answer, None
        return prediction.answer, prediction.gold_loglik / max(1, prediction.gold_tokens or 1)
    values = log_probabilities(_scores(prediction), temperature).tolist()
    wanted = prediction.gold.strip()
    gold = values[task.labels.index(wanted)] if wanted in task.labels else NO_LABEL
    if prediction.tokens == 0:  # without a model: the answer stands
        return prediction.answer, gold
    return task.labels[decide(values, task.labels, task.metric)], gold


def _scores(prediction: Prediction) -> tuple[float, ...]:
    packed = prediction.scores or b""
    return struct.unpack(f"<{len(packed) // 4}f", packed)


def outcome(
    reg: "Registry", request: EvalRequest, plan: Design, evaluation: int, chosen: Mapping[str, Choice]
) -> dict[str, Any]:
    """The document of `mta eval run`: all of `chosen`'s methods on all tested people."""
    from mta_cli.engine.statistics import detectable, summarise

    task, options, seed = request.task, request.options, request.machine.seed
    judged = {
        method: judge(reg, task, plan, evaluation, method, choice, options.calibrate)
        for method, choice in chosen.items()
    }
    reference = options.reference if options.reference in judged else next(reversed(judged))
    main, others = MAIN[task.metric], [method for method in judged if method != reference]
    differences = paired({method: one.tally for method, one in judged.items()}, reference, seed)
    against = "pooled-rag" if "pooled-rag" in others else others[0] if others else None
    power = None
    if against is not None:
        least = detectable(judged[reference].tally, judged[against].tally, main)
        power = {"metric": main, "detectable": least, "basis": f"as {reference} and {against} differed by person"}
    return {
        "task": task.name, "metric": main, "users": len(plan.tested),
        "queries": sum(len(plan.queries[user]) for user in plan.tested), "shots": options.shots, "seed": seed,
        "folds": options.folds, "history_items": request.prompt.history_items, "anchors": request.bank.anchors,
        "placement": options.placement, "base": request.base.name, "dtype": request.machine.dtype,
        "evaluation": evaluation, "reference": reference,
        "methods": {method: summarise(one.tally, seed=seed) for method, one in judged.items()},
        "differences": differences,
        "costs": {m: _costs(reg, plan, evaluation, m, chosen[m], one) for m, one in judged.items()},
        "power": power, "settings": {method: _settings(choice) for method, choice in chosen.items()},
        "calibration": {method: one.temperatures for method, one in judged.items()},
    }  # fmt: skip


def paired(tallies: "Mapping[str, Tally]", reference: str, seed: int) -> list[dict[str, Any]]:
    """The reference minus every other method in every metric, with interval and p."""
    from mta_cli.engine.statistics import difference

    return [
        {"a": reference, "b": method, "metric": metric, **values}
        for method, other in tallies.items()
        if method != reference
        for metric, values in difference(tallies[reference], other, seed=seed).items()
    ]


def _settings(choice: Choice) -> Any:
    """One document where all folds have the same settings, else a list by fold."""
    return dict(choice[0]) if all(dict(own) == dict(choice[0]) for own in choice) else [dict(own) for own in choice]


def _costs(
    reg: "Registry", plan: Design, evaluation: int, method: str, choice: Choice, judged: Judged
) -> dict[str, float | None]:
    """Bytes to keep, a mean over tested people; of those who are timed, seconds to make, and how fast answers came."""
    made = [reg.evaluations.cells.done(evaluation, n, method, own) for n, own in enumerate(choice)]
    cells = [cells[user] for cells, fold in zip(made, plan.folds, strict=True) for user in fold.test]
    timed = set(timed_group(plan)).intersection(plan.folds[0].test)
    spent = [made[0][user].seconds for user in timed]
    answers = [p for p in judged.predictions if p.user_id in timed]
    seconds, tokens = sum(p.seconds for p in answers), sum(p.tokens for p in answers)
    return {
        "bytes": sum(cell.bytes for cell in cells) / len(cells), "seconds": sum(spent) / len(spent),
        "seconds_per_query": seconds / len(answers),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }  # fmt: skip
