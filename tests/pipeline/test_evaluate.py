"""Measuring on held-out queries: what is counted, stored and reported."""

import pytest

from mta_cli.engine.metrics import score
from mta_cli.errors import BadInput
from mta_cli.options import PromptOptions
from mta_cli.pipeline.adapt import adapt_users
from mta_cli.pipeline.evaluate import MODES, evaluate_users
from mta_cli.pipeline.models import resolve
from store.registry import Registry
from tests.pipeline.town import CPU, QUICK, SHORT, TASK, built, finish, fuse_request


def test_every_mode_answers_every_query_and_is_stored(peopled: Registry) -> None:
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    finish(adapt_users(peopled, users, fuse_request(), QUICK))
    job = evaluate_users(peopled, resolve("tiny", "base"), TASK, users, MODES, PromptOptions(2), CPU)
    result, _ = finish(job)
    assert result["users"] == 3 and result["queries"] == 6 and set(result["methods"]) == set(MODES)
    predictions = peopled.evaluations.predictions(result["evaluation"])
    assert len(predictions) == 24
    for mode in MODES:
        own = [p for p in predictions if p.method == mode]
        plain = score("accuracy", [p.answer for p in own], [p.gold for p in own], TASK.labels)
        for name, value in plain.items():
            interval = result["methods"][mode][name]
            assert interval["value"] == pytest.approx(value)
            assert interval["low"] <= interval["value"] <= interval["high"]
        assert all(p.answer in TASK.labels and p.gold_loglik < 0 for p in own)
    texts = {mode: [p.gold_loglik for p in predictions if p.method == mode] for mode in MODES}
    assert texts["base"] != texts["pooled"] != texts["fused"] != texts["adapted"]


def test_nobody_to_measure_is_said(peopled: Registry) -> None:
    user = peopled.users.add("nobody")
    with pytest.raises(BadInput, match="held-out"):
        finish(evaluate_users(peopled, resolve("tiny", "base"), TASK, [user], ["base"], PromptOptions(2), CPU))
