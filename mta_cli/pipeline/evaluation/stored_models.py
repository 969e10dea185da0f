"""Measuring people's models on their held-out queries. Trains nothing.

Answers under base, pooled, fused and adapted weights. Intervals are percentile bootstraps over users (2,000 draws,
seeded), so a user with many queries does not count as many users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Done, Event, Started, Step
from mta_cli.options import AnswerOptions, Machine, PromptOptions
from mta_cli.pipeline.data.examples import Examples
from mta_cli.pipeline.evaluation import answer_queries
from mta_cli.pipeline.evaluation.scoring import MAIN, paired
from mta_cli.pipeline.memory.label_prior import PERSONAL, LabelPriors
from mta_cli.pipeline.personalize.weights import parts_above, task_part
from store.records import Query, User
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.label_prior import Prior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.lookup import ModelEntry
    from store.registry import Registry

MODES = ("base", "pooled", "fused", "adapted")
PORTION = 128  # answers given together at most
NUMBERS = 1 << 26  # in the factors of the people who are answered together, unless one has more


@dataclass(frozen=True)
class Answer:
    """One prediction with everything needed to score it again.

    `gold_loglik` (nats) is over the task's labels, as the answer was decided; or per token of a text.
    """

    user_id: int
    query: Query
    mode: str
    prompt: str
    answer: str
    gold_loglik: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Asked:
    """A query in one mode, and the parts that this lays above what is folded in."""

    query: Query
    mode: str
    parts: tuple[LoraWeights, ...]
    prior: Prior | None


def evaluate_users(
    reg: Registry,
    base_entry: ModelEntry,
    task: Task,
    users: Sequence[User],
    modes: Sequence[str],
    prompt: PromptOptions,
    machine: Machine,
) -> Iterator[Event]:
    """Answer every held-out query of `users` in each of `modes` and store the predictions.

    `Done.result` has the keys of `mta eval run`, the last mode being the reference; making a model is not timed.
    """
    from mta_cli.engine.lora.adapter import Folder
    from mta_cli.engine.model.load import dtype_name
    from mta_cli.pipeline.models.load import load

    queries = {user.id: reg.items.queries(user.id, task.name) for user in users}
    asked = [user for user in users if queries[user.id]]
    if not asked:
        raise BadInput(
            f"None of these users has held-out queries of task {task.name}.", hint="mta data import users FILE"
        )
    base = load(base_entry, machine)
    examples, folder = Examples(reg, base, task, prompt.history_items), Folder(base)
    yield Started("evaluate", total=len(modes) * sum(len(queries[user.id]) for user in asked), unit="answers")
    answers: list[Answer] = []
    for alike in ([mode for mode in modes if mode == "base"], [mode for mode in modes if mode != "base"]):
        if not alike:
            continue
        below = task_part(reg, task.name, base.fingerprint) if "base" not in alike else ()
        folder.set(below[0] if below else None)
        for portion in _portions(reg, base.fingerprint, task, asked, queries, alike):
            for answer in _answer_all(base, examples, portion):
                answers.append(answer)
                yield Step(answer.mode, len(answers), tokens=answer.tokens, seconds=answer.seconds)
    folder.set(None)
    answers.sort(key=lambda answer: modes.index(answer.mode))
    result = {
        "task": task.name,
        "metric": MAIN[task.metric],
        "users": len(asked),
        "queries": sum(len(queries[user.id]) for user in asked),
        "seed": machine.seed,
        "history_items": prompt.history_items,
        "base": base_entry.name,
        "dtype": dtype_name(machine.dtype, machine.device),
        "reference": modes[-1],
        **_found(task, modes, answers, machine.seed),
        "costs": {mode: _costs(reg, base.fingerprint, task.name, asked, mode, answers) for mode in modes},
    }
    yield Done({**result, "evaluation": _store(reg, base.fingerprint, task, prompt, result, answers)})


def _portions(
    reg: Registry,
    base: str,
    task: Task,
    users: Sequence[User],
    queries: Mapping[int, Sequence[Query]],
    modes: Sequence[str],
) -> Iterator[list[Asked]]:
    """Every query of every user in each of `modes`, as many together as their people's weights allow."""
    priors = LabelPriors(reg, task, base, AnswerOptions())
    portion: list[Asked] = []
    numbers = 0
    for user in users:
        people = {mode: _parts(reg, base, user, task.name, mode) for mode in modes}
        own_priors = {mode: priors.of(user, mode) for mode in modes}
        own = sum(part.parameters for parts in people.values() for part in parts)
        for i, query in enumerate(queries[user.id]):
            if portion and (len(portion) >= PORTION or (i == 0 and numbers + own > NUMBERS)):
                yield portion
                portion, numbers = [], 0
            portion += [Asked(query, mode, people[mode], own_priors[mode]) for mode in modes]
        numbers += own
    if portion:
        yield portion


def _parts(reg: Registry, base: str, user: User, task: str, mode: str) -> tuple[LoraWeights, ...]:
    """What `mode` means for a user above the task adapter; `pooled` is the task adapter alone."""
    return () if mode == "pooled" else parts_above(reg, base, user, task, mode)[0]


def _answer_all(base: LoadedBase, examples: Examples, portion: Sequence[Asked]) -> list[Answer]:
    """Answer a portion together; each answer counts an equal share of the time."""
    people, priors, owners = _people(portion)
    questions = [answer_queries.Asked(asked.query, owner) for asked, owner in zip(portion, owners, strict=True)]
    return [
        Answer(
            asked.query.user_id,
            asked.query,
            asked.mode,
            base.tokenizer.decode(list(given.prompt)),
            given.answer,
            _gold_loglik(examples.task, asked.query, given),
            len(given.prompt),
            given.seconds,
        )
        for asked, given in zip(portion, answer_queries.answer(base, examples, questions, people, priors), strict=True)
    ]


def _gold_loglik(task: Task, query: Query, given: answer_queries.Given) -> float:
    from mta_cli.engine.evaluation.calibration import gold_loglik

    if task.labels:
        return gold_loglik(given.scores, task.labels, query.gold)
    return given.gold_loglik / max(1, given.gold_tokens)


def _people(
    portion: Sequence[Asked],
) -> tuple[list[tuple[LoraWeights, ...]], list[Prior | None], list[int]]:
    """Parts and prior of the different people (a user in a mode) of a portion, and whose each answer is."""
    places = {(asked.query.user_id, asked.mode): asked for asked in portion}
    numbers = {key: n for n, key in enumerate(places)}
    owners = [numbers[asked.query.user_id, asked.mode] for asked in portion]
    return [one.parts for one in places.values()], [one.prior for one in places.values()], owners


def _found(task: Task, modes: Sequence[str], answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """Each metric of the task, and the gold's mean log-likelihood (nats per query), with 95 % intervals over users."""
    from mta_cli.engine.evaluation import statistics
    from mta_cli.engine.evaluation.user_sums import Tally, tally

    tallies: dict[str, Tally] = {}
    for mode in modes:
        own = [answer for answer in answers if answer.mode == mode]
        users, given, golds = [a.user_id for a in own], [a.answer for a in own], [a.query.gold for a in own]
        tallies[mode] = tally(task.metric, task.labels, users, given, golds, [a.gold_loglik for a in own])
    return {
        "methods": {mode: statistics.summarise(one, seed=seed) for mode, one in tallies.items()},
        "differences": paired(tallies, modes[-1], seed),
    }


def _costs(
    reg: Registry, base: str, task: str, users: Sequence[User], mode: str, answers: Sequence[Answer]
) -> dict[str, float | None]:
    """Bytes that a mode keeps for a person, a mean over `users`, and how fast its answers came."""
    bank = reg.banks.latest(task, base)
    recipes = [reg.recipes.get(user.id, task, bank.id) for user in users] if bank and mode in PERSONAL else []
    stacks = [reg.stacks.get(user.id, task, bank.id) for user in users] if bank and mode == "adapted" else []
    kept = sum(one.bytes for one in (*recipes, *stacks) if one is not None)
    own = [answer for answer in answers if answer.mode == mode]
    seconds, tokens = sum(answer.seconds for answer in own), sum(answer.tokens for answer in own)
    return {
        "bytes": kept / len(users),
        "seconds": None,
        "seconds_per_query": seconds / len(own),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }


def _store(
    reg: Registry, base: str, task: Task, prompt: PromptOptions, result: dict[str, Any], answers: Sequence[Answer]
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
        reg.evaluations.cells.answer(number, rows)
    return number
