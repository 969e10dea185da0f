"""Answering cell by cell: a method makes a group's models, their queries are answered, all of it is stored at once.

Groups are the same in every run, so a run that goes on after a stop makes what an unbroken one would have made.
"""

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, Step
from mta_cli.pipeline.answering import Asked, Given, answer
from mta_cli.pipeline.evaluation.field import Field
from store.cells import Cell, Prediction
from store.models import Query

if TYPE_CHECKING:
    from mta_cli.engine.methods.shape import Direct, Made, Method

PEOPLE = 16  # whose models are made and answer together
NUMBERS = 1 << 26  # in the parts of the people who answer together, unless one has more


@dataclass(frozen=True)
class Column:
    """One method under one choice of settings in one fold: what is asked of it, of everybody who answers there."""

    fold: int
    method: "Method"
    settings: dict[str, Any]


def missing(field: Field, evaluation: int, column: Column) -> list[tuple[int, ...]]:
    """The groups of users of a column that are not answered yet."""
    users = field.plan.answering(column.fold)
    groups = [users[start : start + PEOPLE] for start in range(0, len(users), PEOPLE)]
    done = field.reg.evaluations.cells.done(evaluation, column.fold, column.method.name, column.settings)
    return [group for group in groups if not done.keys() >= set(group)]


def fill(field: Field, evaluation: int, column: Column, done: int) -> Iterator[Event]:
    """Answer what is missing of a column; progress counts on from `done` people."""
    groups = missing(field, evaluation, column)
    if not groups:
        return
    field.stand_on(column.fold, column.method.below)
    bench = field.bench(column.fold)
    for group in groups:
        started = time.perf_counter()
        made = column.method.make(bench, field.people(group), column.settings)
        seconds = (time.perf_counter() - started) / len(group)
        rows = _answers(field, column, group, made)
        cells = [
            (Cell(column.fold, column.method.name, column.settings, user, one.bytes, seconds), rows[user])
            for user, one in zip(group, made, strict=True)
        ]
        field.reg.evaluations.cells.add(evaluation, cells)
        done += len(group)
        yield Step(f"fold {column.fold + 1}, {column.method.name}", done, seconds=time.perf_counter() - started)


def _answers(field: Field, column: Column, group: Sequence[int], made: "Sequence[Made]") -> dict[int, list[Prediction]]:
    rows: dict[int, list[Prediction]] = {user: [] for user in group}
    model = [(user, one) for user, one in zip(group, made, strict=True) if one.direct is None]
    for portion in _portions(model):
        asked = [Asked(query, i) for i, (user, _) in enumerate(portion) for query in field.plan.queries[user]]
        examples = field.examples(column.method.history)
        found = answer(field.base, examples, asked, [one.parts for _, one in portion])
        for question, given in zip(asked, found, strict=True):
            user, one = portion[question.owner]
            prompt = field.base.tokenizer.decode(list(given.prompt))
            rows[user].append(_prediction(question.query, column.method.name, prompt, given, one.prior))
    for user, one in zip(group, made, strict=True):
        if one.direct is not None:
            rows[user] = [_directly(query, column.method.name, one.direct) for query in field.plan.queries[user]]
    return rows


def _portions(made: "Sequence[tuple[int, Made]]") -> "Iterator[list[tuple[int, Made]]]":
    """People who are answered together, as many as their parts' numbers allow."""
    portion: list[tuple[int, Made]] = []
    numbers = 0
    for user, one in made:
        own = sum(part.parameters for part in one.parts)
        if portion and numbers + own > NUMBERS:
            yield portion
            portion, numbers = [], 0
        portion.append((user, one))
        numbers += own
    if portion:
        yield portion


def _prediction(query: Query, method: str, prompt: str, given: Given, prior: Sequence[float]) -> Prediction:
    scores = [score + extra for score, extra in zip(given.scores, prior or [0.0] * len(given.scores), strict=True)]
    return Prediction(
        query.user_id, query.id, method, prompt, given.answer, query.gold, given.gold_loglik, len(given.prompt),
        given.seconds, given.gold_tokens, _packed(scores),
    )  # fmt: skip


def _directly(query: Query, method: str, direct: "Direct") -> Prediction:
    started = time.perf_counter()
    text, scores = direct(query.input)
    seconds = time.perf_counter() - started
    return Prediction(query.user_id, query.id, method, "", text, query.gold, None, 0, seconds, None, _packed(scores))


def _packed(scores: Sequence[float]) -> bytes | None:
    return struct.pack(f"<{len(scores)}f", *scores) if scores else None
