"""Answers with label memory, computed from the stored answers of the same models without it. No model is run again.

Only for methods whose memory is added to the model's scores (`Method.memory_is_only_added`). The store keeps scores in
float32, so a likelihood may differ in its last bits from one that was computed with the memory at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.evaluation.scored_answers import pack_scores, unpack_scores
from store.tables.predictions import EvalCell, Prediction

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import Method, MethodContext, UserShots
    from mta_cli.engine.text.tasks import Task
    from store.records import Query
    from store.registry import Registry


@dataclass(frozen=True)
class AnswersWithoutMemory:
    """The costs and answers of the method without memory in one fold, by user id."""

    cells: Mapping[int, EvalCell]
    predictions: Mapping[int, Sequence[Prediction]]

    @classmethod
    def load(
        cls, reg: Registry, evaluation: int, fold: int, method: Method, settings: Mapping[str, Any]
    ) -> AnswersWithoutMemory:
        """The answers of `method`'s model without its memory; empty if the memory is not merely added."""
        if not method.memory_is_only_added:
            return cls({}, {})
        name, own = memoryless_answers_key(method, settings)
        table = reg.evaluations.predictions
        predictions: dict[int, list[Prediction]] = {}
        for row in table.load_predictions(evaluation, fold=fold, method=name, settings=own):
            predictions.setdefault(row.user_id, []).append(row)
        return cls(table.finished_cells(evaluation, fold, name, own), predictions)

    def cover(self, users: Sequence[int]) -> bool:
        """Whether all of `users` were answered."""
        return self.cells.keys() >= set(users)


def memoryless_answers_key(method: Method, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the same method without label memory."""
    from mta_cli.engine.methods.method import MEMORY_SETTINGS
    from mta_cli.lab.methods.catalog import without_memory

    plain, memory = without_memory(method), MEMORY_SETTINGS["neighbours"]
    own = {key: value for key, value in settings.items() if key not in (*memory, "version")}
    return plain.name, {**own, **plain.version_settings}


def add_memory(
    task: Task,
    method: Method,
    settings: Mapping[str, Any],
    context: MethodContext,
    user: UserShots,
    queries: Sequence[Query],
    known: AnswersWithoutMemory,
) -> tuple[EvalCell, list[Prediction]]:
    """The user's costs and answers with the memory of `method`. Times are the model's plus the memory's."""
    from mta_cli.engine.memory.label_prior import add_label_prior, decide_label
    from mta_cli.engine.methods.method import MethodOptions

    started = time.perf_counter()
    options = MethodOptions.from_settings(method, settings).memory
    prior = context.memory.prior_of(user.answers, options)
    size = context.memory.stored_bytes(user.answers) if prior is not None else 0
    cell = known.cells[user.number]
    cell = replace(
        cell,
        method=method.name,
        settings=settings,
        bytes=cell.bytes + size,
        seconds=cell.seconds + time.perf_counter() - started,
    )
    asked = {query.id: query for query in queries}
    rows = []
    for row in known.predictions[user.number]:
        started, query = time.perf_counter(), asked[row.query_id]
        # other users' likelihoods were measured without this memory, so they are dropped
        row = replace(row, method=method.name, whose=None)
        if row.scores is not None:
            scores = add_label_prior(unpack_scores(row.scores), prior, query.input, query.time)
            answer = task.labels[decide_label(scores, task.labels, task.metric)]
            row = replace(row, answer=answer, scores=pack_scores(scores))
        rows.append(replace(row, seconds=row.seconds + time.perf_counter() - started))
    return cell, rows
