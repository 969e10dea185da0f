"""An evaluation whose banks and stacks are trained by workers has the predictions of one that is computed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.lab.evaluation.run import run_evaluation
from mta_cli.options import ExecutorOptions
from mta_cli.pipeline.evaluation import whose
from mta_cli.pipeline.executors import ray_workers
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request, timeless
from tests.pipeline.town import finish, people

QUICK = {name: {"steps": "3"} for name in ("stack", "mta")}


def answered(root: Path, executor: ExecutorOptions) -> tuple[Any, list[Any]]:
    """The result and all predictions of an evaluation in a new store, without their times."""
    with Registry.open(root, create=True) as reg:
        people(reg)
        request = replace(eval_request(methods="pooled-rag,stack,mta", folds=2, given=QUICK), executor=executor)
        result, _ = finish(run_evaluation(reg, request))
        rows = reg.evaluations.predictions.load_predictions(result["evaluation"])
        return timeless(result), sorted((replace(row, seconds=0.0) for row in rows), key=repr)


def test_workers_give_the_same_predictions(
    ray: Any, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whose, "MAX_USERS_PER_GROUP", 2)
    here = answered(tmp_path / "here", ExecutorOptions())
    assert len(here[1]) == 3 * 24, "everybody answers by every method"
    begun, start = list[Any](), ray_workers.RayExecutor._start
    monkeypatch.setattr(
        ray_workers.RayExecutor, "_start", lambda self, *given: begun.append(given) or start(self, *given)
    )
    assert answered(tmp_path / "there", ExecutorOptions(executor="ray", workers=2)) == here
    banks, stacks = 2 * 4, 2 * 3 - 1  # task adapter, two halves and anchors of a fold; groups, one of which is timed
    assert len(begun) == banks + 2 * stacks
