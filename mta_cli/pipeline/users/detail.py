"""One user for a detail pane: history, nearest anchors, recipe, training, results, runs.

Plain values, computed without numpy, so that no heavy library is loaded. Uses neither the terminal nor SQL.
"""

from __future__ import annotations

import contextlib
import operator
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.options import SHOT_WEIGHTINGS
from mta_cli.pipeline.bases_in_use import base_name, base_names, has_several_bases
from mta_cli.pipeline.user_weights import anchor_label

if TYPE_CHECKING:
    from store.records import Anchor, Bank, Recipe, Run, Stack, User
    from store.registry import Registry
    from store.tables.predictions import UserPrediction

RUNS_SHOWN = 20


@dataclass(frozen=True)
class AnchorMatch:
    """An anchor compared with a user: the cosine similarity of both profiles, if known, and its weight in the recipe.

    `place` is its index in the bank, from 0.
    """

    anchor_id: int
    name: str
    stale: bool
    similarity: float | None
    weight: float | None
    place: int


@dataclass(frozen=True)
class MethodResult:
    """One method's result for one user: `value` is a mean over `answers`, in the task's main metric."""

    method: str
    value: float
    answers: int
    bytes: int | None


@dataclass(frozen=True)
class Results:
    """The results of the newest evaluation of the task with answers for this user."""

    evaluation: int
    metric: str
    methods: tuple[MethodResult, ...]


@dataclass(frozen=True)
class UserDetail:
    """A user's data for one task. `task_counts` has (task, items, queries) for each of the user's tasks.

    `bank` is the task's newest ready bank, on the requested base if that has one; `recipe`, `stack` and `anchors`
    (nearest first) refer to it. `base` is the name of its base if the store has banks on several, and `other_bases`
    names the others on which the user has a model of the task. `task_adapter_share` is the weight in the recipe that
    goes to the task adapter alone. `losses` are the losses of the last adaptation, by step.
    """

    user: User
    task: str | None
    task_counts: tuple[tuple[str, int, int], ...]
    status: str
    bank: Bank | None
    anchors: tuple[AnchorMatch, ...]
    recipe: Recipe | None
    task_adapter_share: float | None
    stack: Stack | None
    losses: tuple[float, ...]
    results: Results | None
    runs: tuple[Run, ...]
    base: str | None = None
    other_bases: tuple[str, ...] = ()

    @property
    def items(self) -> int:
        """The number of the user's history items of the task."""
        return sum(items for task, items, _ in self.task_counts if task == self.task)

    @property
    def queries(self) -> int:
        """The number of the user's held-out queries of the task."""
        return sum(queries for task, _, queries in self.task_counts if task == self.task)


def load_user_detail(reg: Registry, name: str, task: str | None = None, base: str | None = None) -> UserDetail:
    """The detail of a user for `task` (by default the one with most items), preferably on the base called `base`.

    Raises NotFound for an unknown user.
    """
    user = reg.users.get(name)
    held = tuple(reg.users.tasks_of_user(user.id))
    task = task if task is not None else held[0][0] if held else None
    bank = _bank_on_base(reg, task, base) if task is not None else None
    anchors = reg.banks.anchors(bank.id) if bank is not None else []
    recipe = reg.recipes.get(user.id, bank.task, bank.id) if bank is not None else None
    stack = reg.stacks.get(user.id, bank.task, bank.id) if bank is not None else None
    runs = reg.runs.of_user(user.id)
    return UserDetail(
        user,
        task,
        held,
        _status(user, anchors, recipe, stack),
        bank,
        _rank_anchors(reg, user, bank, anchors, recipe),
        recipe,
        _task_adapter_share(recipe),
        stack,
        _losses(reg, runs, task),
        _results(reg, user, task),
        tuple(runs[:RUNS_SHOWN]),
        base_name(reg, bank.base) if bank is not None and has_several_bases(reg) else None,
        tuple(name for name in base_names(reg, task, user) if bank is not None and name != base_name(reg, bank.base)),
    )


def load_recipe(reg: Registry, user: User, bank: Bank) -> tuple[tuple[AnchorMatch, ...], float | None]:
    """The anchors of a bank with their weights in a user's recipe, and the task adapter's share; empty without a
    recipe.
    """
    recipe = reg.recipes.get(user.id, bank.task, bank.id)
    anchors = reg.banks.anchors(bank.id) if recipe is not None else []
    return _rank_anchors(reg, user, bank, anchors, recipe), _task_adapter_share(recipe)


def _bank_on_base(reg: Registry, task: str, base: str | None) -> Bank | None:
    """The newest ready bank of a task on the base of this name; without one, on any base."""
    for fingerprint in reg.banks.bases(task):
        if base_name(reg, fingerprint) == base:
            return reg.banks.latest_ready_bank(task, fingerprint)
    return reg.banks.latest_ready_bank(task)


def _status(user: User, anchors: Sequence[Anchor], recipe: Recipe | None, stack: Stack | None) -> str:
    if stack is not None:
        return "adapted"
    if recipe is not None:
        return "fused"
    return "anchor" if any(anchor.user_id == user.id for anchor in anchors) else "new"


def _rank_anchors(
    reg: Registry, user: User, bank: Bank | None, anchors: Sequence[Anchor], recipe: Recipe | None
) -> tuple[AnchorMatch, ...]:
    """All anchors, most similar first; anchors of unknown similarity last, by weight."""
    if bank is None:
        return ()
    cosines = _cosines(reg, user, bank, anchors)
    shares = {share.anchor_id: share for share in recipe.shares} if recipe is not None else {}
    near = []
    for place, anchor in enumerate(anchors):
        share = shares.get(anchor.id)
        similarity = cosines.get(anchor.id, share.similarity if share is not None else None)
        weight = share.weight if share is not None else None
        near.append(AnchorMatch(anchor.id, anchor_label(anchor), anchor.stale, similarity, weight, place))
    return tuple(sorted(near, key=lambda one: (one.similarity is None, -(one.similarity or 0.0), -(one.weight or 0.0))))


def _cosines(reg: Registry, user: User, bank: Bank, anchors: Sequence[Anchor]) -> dict[int, float]:
    """Cosines of the user's profile and the anchors', by anchor number."""
    ids = [user.id, *(anchor.user_id for anchor in anchors if anchor.user_id is not None)]
    vectors = {number: _vector(total) for number, total in reg.profiles.profile_totals(bank.task, bank.embedder, ids)}
    own = vectors.get(user.id)
    if own is None:
        return {}
    found = {}
    for anchor in anchors:
        other = vectors.get(anchor.user_id) if anchor.user_id is not None else None
        if other is not None and len(other) == len(own):
            lengths = (_dot(own, own) * _dot(other, other)) ** 0.5
            found[anchor.id] = _dot(own, other) / lengths if lengths > 0 else 0.0
    return found


def _vector(total: bytes) -> array[float]:
    import sys

    vector = array("f", total[: len(total) // 4 * 4])
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def _dot(left: array[float], right: array[float]) -> float:
    return float(sum(map(operator.mul, left, right)))


def _task_adapter_share(recipe: Recipe | None) -> float | None:
    """The weight in the recipe that goes to the task adapter alone; None for weightings that do not define it."""
    if recipe is None or recipe.method not in SHOT_WEIGHTINGS:
        return None
    return 1.0 - sum(share.weight for share in recipe.shares)


def _losses(reg: Registry, runs: Sequence[Run], task: str | None) -> tuple[float, ...]:
    """The losses of the last adaptation with training steps for the task."""
    for run in runs:
        if run.kind == "user adapt" and run.config.get("task") in (task, None):
            losses = tuple(step.loss for step in reg.runs.steps(run.id) if step.loss is not None)
            if losses:
                return losses
    return ()


def _results(reg: Registry, user: User, task: str | None) -> Results | None:
    number = reg.evaluations.predictions.latest_evaluation_of_user(user.id, task) if task is not None else None
    if task is None or number is None:
        return None
    chosen = reg.evaluations.get(number).result.get("settings")
    metric, score = _metric_scorer(reg, task)
    scores: dict[str, list[float]] = {}
    sizes: dict[str, int | None] = {}
    for answer in reg.evaluations.predictions.user_predictions(number, user.id):
        if _was_chosen(answer, chosen):
            sizes[answer.method] = answer.bytes
            with contextlib.suppress(ValueError):  # a gold that is not a number cannot be scored
                scores.setdefault(answer.method, []).append(score(answer))
    methods = tuple(
        MethodResult(method, sum(own) / len(own), len(own), sizes[method]) for method, own in scores.items() if own
    )
    return Results(number, metric, methods) if methods else None


def _was_chosen(answer: UserPrediction, chosen: Any) -> bool:
    """Whether the answer was given with the evaluation's chosen settings; a list has them by fold."""
    settings = chosen.get(answer.method) if isinstance(chosen, Mapping) else None
    if answer.fold is None or settings is None:
        return True
    if isinstance(settings, list):
        settings = settings[answer.fold] if answer.fold < len(settings) else answer.settings
    return bool(settings == answer.settings)


def _metric_scorer(reg: Registry, task: str) -> tuple[str, Callable[[UserPrediction], float]]:
    """The task's main metric, and a function that computes it for one answer; accuracy for an unknown task."""
    from mta_cli.engine.evaluation.metrics import rouge_1, score_errors, score_range
    from mta_cli.pipeline.data.tasks import find_task

    try:
        known = find_task(reg, task)
    except NotFound:
        return "accuracy", _exact_match
    if known.metric == "mae":
        low, high = score_range(known.labels)
        return "mae", lambda own: abs(score_errors([own.answer], [own.gold], low=low, high=high)[0])
    if known.metric == "rouge":
        return "rouge_1", lambda own: rouge_1(own.answer, own.gold)
    return "accuracy", _exact_match


def _exact_match(own: UserPrediction) -> float:
    return float(own.answer.strip() == own.gold.strip())
