"""Scores a method's stored answers without loading a model: calibration, choice of labels, and sums by user."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.evaluation.whose import whose_sums
from store.tables.evaluations import Evaluation
from store.tables.predictions import Prediction

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.text.tasks import Task
    from store.registry import Registry

TEST_ROLE = "test"  # the role of the users whose answers are scored

FoldSettings = Sequence[Mapping[str, Any]]
"""A method's settings for each fold."""


@dataclass(frozen=True)
class ScoredMethod:
    """A method's answers to the queries of all test users, and the temperatures applied to them.

    `temperatures` are [folds, calibration parts]; None without calibration.
    """

    user_sums: UserSums
    temperatures: list[list[float]] | None
    predictions: list[Prediction]


def rescore_method(reg: Registry, task: Task, evaluation: Evaluation, method: str) -> ScoredMethod:
    """Score a method's answers in a finished evaluation, with the temperatures in the evaluation's document."""
    settings = evaluation.result["settings"][method]
    members = reg.evaluations.fold_members(evaluation.id)
    folds = [
        [user for n, user, role in members if n == fold and role == TEST_ROLE]
        for fold in range(evaluation.result["folds"])
    ]
    by_fold = settings if isinstance(settings, list) else [settings for _ in folds]
    tested, _ = load_answers(reg, evaluation.id, method, by_fold, folds)
    found = evaluation.result["calibration"][method]  # for each fold a list of temperatures, or a single one
    return score_answers(task, method, tested, found and [own if isinstance(own, list) else [own] for own in found])


def load_answers(
    reg: Registry, evaluation: int, method: str, settings: FoldSettings, folds: Sequence[Sequence[int]]
) -> tuple[list[list[Prediction]], list[list[Prediction]]]:
    """Load a method's answers by fold: first of the test users in `folds`, then of all users."""
    load = reg.evaluations.predictions.load_predictions
    found = [load(evaluation, fold=n, method=method, settings=own) for n, own in enumerate(settings)]
    return [[p for p in rows if p.user_id in set(test)] for test, rows in zip(folds, found, strict=True)], found


def score_answers(
    task: Task, method: str, tested: Sequence[Sequence[Prediction]], temperatures: list[list[float]] | None
) -> ScoredMethod:
    """Score a method's answers `tested` [folds], calibrated with `temperatures` [folds, calibration parts]."""
    from mta_cli.engine.evaluation.user_sums import sum_by_user
    from mta_cli.engine.methods.majority import FINAL_ANSWERS

    rows = [prediction for own in tested for prediction in own]
    read = [
        _calibrated_answer(
            task,
            prediction,
            temperatures[n][prediction.user_id % len(temperatures[n])] if temperatures else 1.0,
            is_final=method in FINAL_ANSWERS,
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


def _calibrated_answer(
    task: Task, prediction: Prediction, temperature: float, *, is_final: bool
) -> tuple[str, float | None]:
    """The answer and the gold's log-likelihood (nats), over the labels or per token of a text.

    A label is decided anew from the calibrated scores, unless the stored answer `is_final`.
    """
    from mta_cli.engine.evaluation.calibration import gold_loglik, log_probabilities
    from mta_cli.engine.memory.label_prior import decide_label

    if not task.labels:
        if prediction.gold_loglik is None:
            return prediction.answer, None
        return prediction.answer, prediction.gold_loglik / max(1, prediction.gold_tokens or 1)
    scores = unpack_scores(prediction.scores)
    gold = gold_loglik(scores, task.labels, prediction.gold, temperature)
    if is_final:
        return prediction.answer, gold
    values = log_probabilities(scores, temperature).tolist()
    return task.labels[decide_label(values, task.labels, task.metric)], gold


def pack_scores(scores: Sequence[float]) -> bytes | None:
    """The label scores in their stored form, little-endian float32; None without labels."""
    return struct.pack(f"<{len(scores)}f", *scores) if scores else None


def unpack_scores(packed: bytes | None) -> tuple[float, ...]:
    """The scores that `pack_scores` packed; empty for None."""
    packed = packed or b""
    return struct.unpack(f"<{len(packed) // 4}f", packed)
