"""Measuring people's models on their held-out queries. Trains nothing.

Answers under base, pooled, fused and adapted weights. Intervals are percentile bootstraps over users (2,000 draws,
seeded), so a user with many queries does not count as many users.
"""

import random
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Done, Event, Started, Step
from mta_cli.options import Machine, PromptOptions
from mta_cli.pipeline.examples import Examples
from mta_cli.pipeline.personal import current_bank, load_weights, personal_weights
from store.evaluations import Prediction
from store.models import Query, User

if TYPE_CHECKING:
    from mta_cli.engine.base import LoadedBase
    from mta_cli.engine.lora import LoraWeights
    from mta_cli.engine.tasks import Task
    from mta_cli.pipeline.models import ModelEntry
    from store.registry import Registry

MODES = ("base", "pooled", "fused", "adapted")
DRAWS = 2000


@dataclass(frozen=True)
class Answer:
    """One prediction with everything needed to score it again."""

    user_id: int
    query: Query
    mode: str
    prompt: str
    answer: str
    gold_loglik: float
    tokens: int
    seconds: float


def evaluate_users(
    reg: "Registry", base_entry: "ModelEntry", task: "Task", users: Sequence[User], modes: Sequence[str],
    prompt: PromptOptions, machine: Machine,
) -> Iterator[Event]:  # fmt: skip
    """Answer every held-out query of `users` in each of `modes` and store the predictions.

    `Done.result`: {task, users, queries, methods: {mode: {metric: {value, low, high}}}, evaluation}.
    """
    from mta_cli.engine.base import load_base
    from mta_cli.engine.lora import Folder

    queries = {user.id: reg.items.queries(user.id, task.name) for user in users}
    asked = [user for user in users if queries[user.id]]
    if not asked:
        raise BadInput(
            f"None of these users has held-out queries of task {task.name}.", hint="mta data import users FILE"
        )
    base = load_base(
        base_entry.path,
        name=base_entry.name,
        fingerprint=base_entry.fingerprint,
        device=machine.device,
        dtype=machine.dtype,
    )
    examples, folder = Examples(reg, base, task, prompt.history_items), Folder(base)
    yield Started("evaluate", total=len(modes) * sum(len(queries[user.id]) for user in asked), unit="answers")
    answers: list[Answer] = []
    for mode in modes:
        for user in asked:
            folder.set(weights_for(reg, base.fingerprint, user, task.name, mode))
            found = yield from _answer_all(base, examples, queries[user.id], mode, len(answers))
            answers += found
    folder.set(None)
    result = {
        "task": task.name, "users": len(asked), "queries": sum(len(queries[user.id]) for user in asked),
        "methods": {mode: summarise(task, [a for a in answers if a.mode == mode], machine.seed) for mode in modes},
    }  # fmt: skip
    yield Done({**result, "evaluation": _store(reg, base.fingerprint, task, prompt, result, answers)})


def weights_for(reg: "Registry", base: str, user: User, task: str, mode: str) -> "LoraWeights | None":
    """The weights that `mode` means for a user; `pooled` is the task adapter alone."""
    if mode != "pooled":
        return personal_weights(reg, base, user, task, mode)[0]
    bank = current_bank(reg, task, base)
    return load_weights(reg, bank.task_adapter, bank.base) if bank.task_adapter else None


def _answer_all(
    base: "LoadedBase", examples: Examples, queries: Sequence[Query], mode: str, done: int
) -> Generator[Event, None, list[Answer]]:
    found = []
    for query in queries:
        found.append(_answer(base, examples, query, mode))
        yield Step(mode, done + len(found), tokens=found[-1].tokens, seconds=found[-1].seconds)
    return found


def _answer(base: "LoadedBase", examples: Examples, query: Query, mode: str) -> Answer:
    from mta_cli.engine.generate import answer_loglik, choose_label, stream

    task, prompter, started = examples.task, examples.prompter, time.perf_counter()
    ids = examples.query_prompt(query)
    gold_ids = prompter.answer_ids(query.gold)
    if task.labels:
        place, scores = choose_label(base, ids, [prompter.answer_ids(label) for label in task.labels])
        text = task.labels[place]
        loglik = (
            scores[task.labels.index(query.gold)] if query.gold in task.labels else answer_loglik(base, ids, gold_ids)
        )
    else:
        text = "".join(stream(base, ids, max_tokens=task.answer_tokens)).strip()
        loglik = answer_loglik(base, ids, gold_ids)
    shown = base.tokenizer.decode(ids)
    seconds = time.perf_counter() - started
    return Answer(query.user_id, query, mode, shown, text, loglik, len(ids), seconds)


def summarise(task: "Task", answers: Sequence[Answer], seed: int) -> dict[str, dict[str, float]]:
    """Each metric of the task, and the gold's mean log-likelihood (nats per query), with 95 % intervals over users."""
    from mta_cli.engine.metrics import score

    # A mean over queries is computed once per query; macro-F1 and RMSE are none, and need every drawn sample whole.
    own = [
        score(task.metric, [a.answer], [a.query.gold], task.labels) if task.metric == "rouge" else {} for a in answers
    ]
    means = [{**values, "gold_loglik": a.gold_loglik} for values, a in zip(own, answers, strict=True)]

    def metrics(chosen: Sequence[int]) -> dict[str, float]:
        values = {name: sum(means[i][name] for i in chosen) / len(chosen) for name in means[0]}
        if task.metric == "rouge":
            return values
        given, golds = [answers[i].answer for i in chosen], [answers[i].query.gold for i in chosen]
        return {**score(task.metric, given, golds, task.labels), **values}

    by_user: dict[int, list[int]] = {}
    for i, answer in enumerate(answers):
        by_user.setdefault(answer.user_id, []).append(i)
    groups, draw = list(by_user.values()), random.Random(seed)
    samples = ([i for _ in groups for i in groups[draw.randrange(len(groups))]] for _ in range(DRAWS))
    value, drawn = metrics(range(len(answers))), [metrics(sample) for sample in samples]
    return {name: _interval(value[name], [one[name] for one in drawn]) for name in value}


def _interval(value: float, drawn: list[float]) -> dict[str, float]:
    ordered = sorted(drawn)
    low, high = ordered[int(0.025 * len(ordered))], ordered[min(len(ordered) - 1, int(0.975 * len(ordered)))]
    return {"value": value, "low": low, "high": high}


def _store(
    reg: "Registry", base: str, task: "Task", prompt: PromptOptions, result: dict[str, Any], answers: Sequence[Answer]
) -> int:
    bank = reg.banks.latest(task.name, base)
    config = {"history_items": prompt.history_items, "base": base}
    with reg.transaction():
        number = reg.evaluations.add(task.name, bank.id if bank else None, config, result)
        rows = [
            Prediction(
                a.user_id, a.query.id, a.mode, a.prompt, a.answer, a.query.gold, a.gold_loglik, a.tokens, a.seconds
            )
            for a in answers
        ]
        reg.evaluations.predictions_add(number, rows)
    return number
