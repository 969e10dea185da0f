"""The ladder of a bank (see `engine.evaluation.ladder`): the gain from its common model and its label memory.

For labels and scores it is measured on the items to which the memory's weights are fitted; each is predicted as a new
user's query, by a task adapter of other users. For texts it is measured on held-out queries of the bank's users, on
whose other items the common model is trained. Personal steps are measured by evaluations only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli.events import Event, JobProgress, JobStarted
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.ladder_text import no_model_warning
from store.records import Bank

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mta_cli.engine.memory.knn import NeighbourIndex
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.bank.contributors import Contributor
    from mta_cli.pipeline.bank.memory_weights import LeaveOneOutCase
    from mta_cli.pipeline.requests import BankRequest
    from mta_cli.pipeline.workbench import Workbench

T = TypeVar("T")
LADDER_KEY = "ladder"  # the key in a bank's config and in its JSON document
MAX_TEXT_QUERIES = 64  # queries on which a bank of texts is measured, evenly over its users


def bank_ladder_warning(bank: Bank) -> str | None:
    """A warning if the steps measured with the bank are not shown to beat answers without a model; otherwise None."""
    said = no_model_warning(bank.config[LADDER_KEY]) if LADDER_KEY in bank.config else []
    if not said:
        return None
    whose = f"Bank {bank.name} v{bank.version} on held-out users, without personal steps"
    return f"{whose}: {said[0][0].lower()}{said[0][1:]}"


def compute_label_ladder(
    task: Task,
    cases: Sequence[LeaveOneOutCase],
    known: NeighbourIndex,
    scores: Mapping[str, npt.NDArray[np.float64]],
    seed: int,
) -> dict[str, Any]:
    """Compute the ladder of a task with labels from `cases`: the JSON document of `judge_ladder`, `seen` and `shots`.

    `scores` are the log-scores of the labels at each step that has a model [cases, labels], nats. Answers without a
    model come from the shots of each case and the label rates of `known` up to the time of the case.
    """
    from mta_cli.engine.evaluation.calibration import gold_loglik
    from mta_cli.engine.evaluation.ladder import NO_MODEL
    from mta_cli.engine.memory.knn import FIT_SHOTS
    from mta_cli.engine.memory.label_prior import decide_label
    from mta_cli.engine.methods.majority import simplest_answerer

    golds = [one.item.output for one in cases]
    without_model = []
    for one in cases:
        shots = [shot.input for shot in one.shots], [shot.output for shot in one.shots]
        answer = simplest_answerer(task, partial(_label_rates_until, known, one.item.user_id), *shots)
        text, own = answer(one.item.input, one.item.time)
        without_model.append((text, gold_loglik(own, task.labels, one.item.output)))
    answers = {NO_MODEL: without_model}
    for step, found in scores.items():
        answers[step] = [
            (task.labels[decide_label(own, task.labels, task.metric)], gold_loglik(own, task.labels, gold))
            for own, gold in zip(found.tolist(), golds, strict=True)
        ]
    judged = _judge(task, [one.item.user_id for one in cases], golds, answers, seed)
    return {**judged, "seen": False, "shots": FIT_SHOTS}


def _label_rates_until(known: NeighbourIndex, asker: int, until: str | None) -> list[float]:
    rates: list[float] = known.until(until, asker).rates.tolist()
    return rates


def measure_text_ladder(bench: Workbench[BankRequest], pool: Sequence[Contributor]) -> Iterator[Event]:
    """Measure and store the ladder of a bank of texts. No adapter may be merged into the base.

    Does nothing for labels, for a bank of an evaluation, without a task adapter, and without held-out queries.
    """
    reg, request, bank, task = bench.reg, bench.spec, bench.bank, bench.task
    if task.labels or request.purpose or not bank.task_adapter or LADDER_KEY in bank.config:
        return
    queries = take_round_robin([reg.items.queries(each.user.id, task.name) for each in pool], MAX_TEXT_QUERIES)
    if not queries:
        return
    from mta_cli.engine.evaluation.ladder import ladder_steps
    from mta_cli.engine.lora.adapter import merge_into_base
    from mta_cli.engine.scoring.log_likelihood import NO_LORAS, mean_losses

    base, common, answers = bench.base, bench.task_adapter, dict[str, list[tuple[str, float]]]()
    shown = request.prompt.history_items
    steps = [one for one in ladder_steps(memory=False, examples=shown > 0, weights=()) if one.weights != "none"]
    yield JobStarted("ladder", len(steps) * len(queries), "answers")
    for step in steps:
        began = time.monotonic()
        rows = PromptRowBuilder(reg, base, task, shown if step.examples else 0).query_rows(queries)
        with merge_into_base(base, common if step.weights == "common" else None):
            losses = mean_losses(base, [([row], NO_LORAS) for row in rows])
        answers[step.name] = [("", -loss) for loss in losses if loss is not None]
        yield JobProgress(step.name, len(answers) * len(queries), seconds=time.monotonic() - began)
    judged = _judge(task, [one.user_id for one in queries], [one.gold for one in queries], answers, bank.seed)
    reg.banks.set_bank_config(bank.id, {**bank.config, LADDER_KEY: {**judged, "seen": True, "shots": None}})


def take_round_robin(of_users: Iterable[Sequence[T]], most: int) -> list[T]:
    """At most `most` entries: the first of each user, then the second of each user, and so on."""
    ranked = [(n, place, one) for place, own in enumerate(of_users) for n, one in enumerate(own)]
    return [one for _, _, one in sorted(ranked, key=lambda each: each[:2])[:most]]


def _judge(
    task: Task,
    users: Sequence[int],
    golds: Sequence[str],
    answers: Mapping[str, Sequence[tuple[str, float]]],
    seed: int,
) -> dict[str, Any]:
    """The ladder from each step's (answer, log-likelihood) pairs, one for each entry of `users` and `golds`."""
    from mta_cli.engine.evaluation.ladder import LOGLIK, MIN_UNITS, judge_ladder
    from mta_cli.engine.evaluation.user_sums import sum_by_user

    unit = "users" if len(set(users)) >= MIN_UNITS["users"] else "questions"
    owners = users if unit == "users" else range(len(users))
    counted = task.metric if task.labels else "likelihood"
    sums = {
        step: sum_by_user(counted, task.labels, owners, [text for text, _ in own], golds, [value for _, value in own])
        for step, own in answers.items()
    }
    return judge_ladder(sums, task.metric if task.labels else LOGLIK, unit=unit, seed=seed)
