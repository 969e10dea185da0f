"""Finished evaluations from the store or from files: each result, and each method's sums by user."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, NotFound
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.evaluation.scored_answers import ScoredMethod, rescore_method

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from store.records import Query
    from store.registry import Registry

# hexadecimal digits: 60 bits fit into an int64, and two of a million users collide with a probability of 5e-7
USER_DIGEST_DIGITS = 15


@dataclass(frozen=True)
class FinishedEvaluation:
    """A finished evaluation. `id` is its number in the store, or the digest of its file; `name` names it in messages.

    `user_sums` returns a method's sums by user. Its user ids are the store's own if the evaluation is `in_store`, and
    portable otherwise (see `portable_user_id`). `portable_sums` returns the same sums, always by portable user ids.
    """

    id: int | str
    name: str
    result: dict[str, Any]
    user_sums: Callable[[str], UserSums]
    portable_sums: Callable[[str], UserSums]
    in_store: bool = True


def load_finished_evaluation(reg: Registry, number: int) -> FinishedEvaluation:
    """The stored evaluation with this number. Raises NotFound if it does not exist or has no result yet."""
    found = reg.evaluations.get(number)
    if found.status != "done" or "costs" not in found.result:
        raise NotFound(
            f"Evaluation {number} has no result yet.",
            hint=("finish it: ", Command("eval run"), " with its original options"),
        )

    def scored(method: str) -> ScoredMethod:
        return rescore_method(reg, find_task(reg, found.task), found, method)

    def user_sums(method: str) -> UserSums:
        return scored(method).user_sums

    def portable_sums(method: str) -> UserSums:
        return _to_portable_sums(reg, found.task, scored(method))

    return FinishedEvaluation(number, f"evaluation {number}", found.result, user_sums, portable_sums)


def portable_user_id(name: str, queries: Sequence[Query]) -> int:
    """A user id that is the same in every store: a digest of the name and the answered queries."""
    said = json.dumps([name, sorted([query.input, query.gold] for query in queries)])
    return int(hashlib.sha256(said.encode()).hexdigest()[:USER_DIGEST_DIGITS], 16)


def _to_portable_sums(reg: Registry, task: str, scored: ScoredMethod) -> UserSums:
    """A method's sums by portable user id, sorted by it, without golds."""
    import numpy as np

    from mta_cli.engine.evaluation.whose import WhoseSums

    user_sums, answered = scored.user_sums, {prediction.query_id for prediction in scored.predictions}
    numbers = [
        portable_user_id(
            reg.users.by_id(user).name, [query for query in reg.items.queries(user, task) if query.id in answered]
        )
        for user in user_sums.users
    ]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    portable, whose = dict(zip(user_sums.users, numbers, strict=True)), user_sums.whose
    if whose is not None:
        found = [portable[user] for user in whose.users]
        whose = WhoseSums(tuple(sorted(found)), whose.sums[np.argsort(found)])
    return replace(
        user_sums,
        users=tuple(numbers[n] for n in order),
        golds=((),) * len(numbers),
        sums=user_sums.sums[np.array(order)],
        whose=whose,
    )
