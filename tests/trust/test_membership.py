"""The membership script: its figures on scores by hand, and every part of a bank on the tiny base."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest
from store.registry import Registry
from tests.pipeline import town
from tests.pipeline.town import QUICK, SHORT, TASK, built, finish, fuse_request
from tests.trust import membership
from tests.trust.inspection import folder
from tests.trust.membership import Tried, auc, interval, line, summary
from tests.trust.tally import tally


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


def test_the_area_under_the_curve_by_hand() -> None:
    assert auc([3.0, 2.0], [1.0, 0.0]) == 1.0 and auc([0.0], [1.0]) == 0.0
    assert auc([1.0, 1.0], [1.0]) == 0.5
    assert auc([1.0, 3.0], [0.0, 2.0]) == pytest.approx(3 / 4)


def test_intervals_are_over_people() -> None:
    found = interval([0.4, 0.6] * 20)
    assert found["value"] == pytest.approx(0.5) and 0.42 < found["low"] < 0.5 < found["high"] < 0.58
    assert interval([0.7])["low"] == interval([0.7])["high"] == pytest.approx(0.7)


def test_people_without_queries_or_strangers_are_left_out() -> None:
    found = summary([Tried([1.0], [0.0], []), Tried([1.0], [], [2.0])])
    assert found["against_held_out"]["people"] == 1 and found["against_held_out"]["value"] == 1.0
    assert found["against_others"]["people"] == 1 and found["against_others"]["value"] == 0.0
    assert summary([]) == {"against_held_out": None, "against_others": None}
    assert "–" in line("anchors", summary([])) and line("neighbours", None).endswith("none")


def test_every_part_of_a_bank_is_tried_and_the_store_stays_as_it_was(
    store_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On a tiny base that was trained hard, what it was trained on is told from what it was not."""
    with Registry.open(store_root, create=True) as reg:
        town.people(reg)
        built(reg, epochs=20, task_epochs=20, learning_rate=2e-2, task_learning_rate=2e-2)
        finish(
            adapt_users(
                reg, AdaptRequest([reg.users.get(name) for name in SHORT], replace(QUICK, steps=1), fuse_request())
            )
        )
        sharp = {"sharpness": 20.0, "votes": 1.0, "habit": 1.0, "linear": 0.0}
        reg.banks.set_kernel(reg.banks.get(TASK.name).id, sharp)
    before = folder(store_root)
    out = tmp_path / "found.json"
    command = ["membership", "--store", str(store_root), "--bank", TASK.name, "--clusters", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    membership.main()
    (found,) = membership.json.loads(out.read_text())
    assert found["people"] == 9 and found["anchors"]["against_others"]["people"] == 3
    assert found["task_adapter"]["against_held_out"]["value"] > 0.8
    assert found["anchors"]["against_others"]["value"] > 0.8
    for part in ("anchors", "cluster_anchors", "task_adapter"):
        figure = found[part]["against_others"]
        tally(f"attacks on the {part.replace('_', ' ')} of people", f"at AUC {figure['value']:.2f}", figure["people"])
    votes = found["neighbours"]["label_has_most_votes"]
    assert votes["kept"] > 0.8 > 0.5 > votes["held_out"]
    assert found["cluster_anchors"]["against_others"]["people"] == found["stacks"]["against_others"]["people"] == 3
    assert capsys.readouterr().out.count("[") >= 6
    with membership.opened(store_root, TASK.name) as scene:
        wide, kept = membership.cluster_anchors(scene), scene.reg.adapters
        for anchor in scene.reg.banks.anchors(scene.bank.id):
            assert kept.get(wide[anchor.user_id or 0]).data_hash != kept.get(anchor.digest or "").data_hash
    assert folder(store_root) == before
