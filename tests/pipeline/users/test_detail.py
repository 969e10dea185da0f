"""One person as plain values: what is near them, what their model is, how it did. Nothing heavy is loaded for it."""

from __future__ import annotations

import math
import subprocess
import sys
from array import array
from dataclasses import replace

import pytest

from mta_cli.errors import NotFound
from mta_cli.pipeline.users.detail import AnchorMatch, MethodResult, load_user_detail
from store.records import AnchorWeight, NewItem, Profile, Recipe
from store.registry import Registry
from store.tables.predictions import EvalCell, Prediction
from tests.pipeline.world import World


def profile(world: World, name: str, *values: float, embedder: str = "e") -> None:
    user = world.reg.users.get(name)
    world.reg.profiles.save_profile(Profile(user.id, world.task, embedder, array("f", values).tobytes(), 1, 1))


def answer(world: World, method: str, said: str, gold: str) -> Prediction:
    return Prediction(world.alice.id, 1, method, "p", said, gold, None, 9, 0.1)


def test_somebody_new_has_a_name_and_nothing_else(world: World) -> None:
    carol = load_user_detail(world.reg, "carol")
    assert (carol.user, carol.task, carol.task_counts, carol.status) == (world.carol, None, (), "new")
    assert (carol.bank, carol.anchors, carol.recipe, carol.stack) == (None, (), None, None)
    assert (carol.losses, carol.results, carol.runs, carol.items) == ((), None, (), 0)
    with pytest.raises(NotFound):
        load_user_detail(world.reg, "nobody")


def test_the_model_of_somebody_adapted_is_all_there(world: World) -> None:
    alice = load_user_detail(world.reg, "alice")
    assert (alice.status, alice.task, alice.items, alice.queries) == ("adapted", "free", 4, 0)
    assert alice.bank is not None and alice.recipe is not None and alice.stack is not None
    assert alice.task_adapter_share is None  # uniform weights leave nothing over on purpose
    assert [(near.name, near.similarity, near.weight) for near in alice.anchors] == [
        ("dave", pytest.approx(0.9), pytest.approx(0.7)),
        ("erin", pytest.approx(0.9), pytest.approx(0.3)),
    ]
    assert (
        load_user_detail(world.reg, "bob").status == "fused" and load_user_detail(world.reg, "dave").status == "anchor"
    )


def test_similarity_is_the_cosine_of_profiles_where_they_are_known(world: World) -> None:
    profile(world, "alice", 3.0, 4.0)
    profile(world, "erin", 6.0, 8.0)
    profile(world, "dave", -4.0, 3.0)
    near = load_user_detail(world.reg, "alice").anchors
    assert [(one.name, one.similarity) for one in near] == [("erin", pytest.approx(1.0)), ("dave", pytest.approx(0.0))]


def test_profiles_that_cannot_be_compared_leave_what_the_recipe_says(world: World) -> None:
    profile(world, "alice", 1.0, 0.0)
    profile(world, "dave", 1.0, 0.0, 0.0)
    profile(world, "erin", 0.0, 0.0)
    near = {one.name: one.similarity for one in load_user_detail(world.reg, "alice").anchors}
    assert near == {"dave": pytest.approx(0.9), "erin": 0.0}
    profile(world, "carol", 1.0, 0.0, embedder="another")
    assert [one.similarity for one in load_user_detail(world.reg, "carol", "free").anchors] == [None, None]


def test_what_evidence_leaves_over_is_the_task_adapters(world: World) -> None:
    bank = world.reg.banks.latest_ready_bank("free")
    assert bank is not None
    shares = (AnchorWeight(world.reg.banks.anchors(bank.id)[1].id, 0.5, 0.25),)
    world.reg.recipes.save_recipe(Recipe(world.bob.id, "free", bank.id, "evidence", shares, 0))
    bob = load_user_detail(world.reg, "bob")
    assert bob.task_adapter_share == 0.75 and [(one.name, one.weight) for one in bob.anchors] == [
        ("erin", 0.25),
        ("dave", None),
    ]


def test_a_forgotten_anchor_has_no_name_and_no_profile(world: World) -> None:
    profile(world, "alice", 1.0)
    profile(world, "erin", 1.0)
    world.reg.users.forget(world.reg.users.get("dave").id)
    near = load_user_detail(world.reg, "alice").anchors
    assert [(one.name, one.stale) for one in near] == [("erin", False), (f"(forgotten #{near[1].anchor_id})", True)]
    assert near[1] == AnchorMatch(
        near[1].anchor_id, near[1].name, True, pytest.approx(0.9), pytest.approx(0.7), near[1].place
    )


def test_losses_are_those_of_the_last_adaptation_that_took_steps(world: World) -> None:
    runs = world.reg.runs
    for losses, task, kind in (
        ((9.0,), "free", "user adapt"),
        ((3.0, None, 2.0), "free", "user adapt"),
        ((), "free", "user adapt"),
        ((8.0,), "other", "user adapt"),
        ((7.0,), "free", "something else"),
    ):
        run = runs.start_run(kind, {"task": task}, user_id=world.alice.id)
        for step, loss in enumerate(losses):
            runs.record_step(run.id, "alice", step, loss, 10, 0.1)
    alice = load_user_detail(world.reg, "alice")
    assert alice.losses == (3.0, 2.0)
    assert len(alice.runs) == 5 and alice.runs[0].kind == "something else"


def test_results_are_means_of_the_tested_answers_with_the_chosen_settings(labelled: World) -> None:
    reg, chosen, tried = labelled.reg, {"steps": 5}, {"steps": 1}
    number = reg.evaluations.get_or_create_evaluation("k", "lamp-2", {}, [(0, labelled.alice.id, "test")]).id
    cells = [
        (EvalCell(0, "stack", tried, labelled.alice.id, 10, 0.1), [answer(labelled, "stack", "comedy", "comedy")]),
        (
            EvalCell(0, "stack", chosen, labelled.alice.id, 20, 0.1),
            [
                answer(labelled, "stack", " comedy", "comedy"),
                answer(labelled, "stack", "classic", "comedy"),
            ],
        ),
        (EvalCell(0, "base", {}, labelled.alice.id, 0, 0.1), [answer(labelled, "base", "action", "comedy")]),
    ]
    reg.evaluations.predictions.save_cells(number, cells)
    for settings in ({"stack": chosen, "base": {}}, {"stack": [chosen], "base": [{}]}):
        reg.evaluations.finish_evaluation(number, {"settings": settings})
        results = load_user_detail(reg, "alice").results
        assert results is not None and (results.evaluation, results.metric) == (number, "accuracy")
        assert results.methods == (MethodResult("stack", 0.5, 2, 20), MethodResult("base", 0.0, 1, 0))


def test_each_kind_of_task_is_scored_in_its_own_metric(world: World) -> None:
    reg = world.reg
    number = reg.evaluations.add_evaluation("free", None, {}, {})
    reg.evaluations.predictions.add_predictions(
        number, [answer(world, "fused", "a b", "a c"), answer(world, "base", "", "a")]
    )
    results = load_user_detail(reg, "alice").results
    assert results is not None and results.metric == "rouge_1"
    assert results.methods == (MethodResult("fused", 0.5, 1, None), MethodResult("base", 0.0, 1, None))
    scored = reg.evaluations.add_evaluation("lamp-3", None, {}, {})
    reg.items.append_items(world.alice.id, [NewItem(str(n), "lamp-3", "x", "4") for n in range(9)])
    given = [answer(world, "base", "2", "5"), answer(world, "base", "what?", "4"), answer(world, "base", "1", "none")]
    reg.evaluations.predictions.add_predictions(scored, given)
    results = load_user_detail(reg, "alice").results
    assert results is not None and (results.metric, results.methods) == ("mae", (MethodResult("base", 3.0, 2, None),))


def test_a_task_that_is_gone_is_still_shown(world: World) -> None:
    world.reg.items.append_items(world.carol.id, [NewItem("a", "gone", "x", "y")])
    number = world.reg.evaluations.add_evaluation("gone", None, {}, {})
    world.reg.evaluations.predictions.add_predictions(
        number, [replace(answer(world, "base", "y", "y"), user_id=world.carol.id)]
    )
    carol = load_user_detail(world.reg, "carol")
    assert carol.task == "gone" and carol.bank is None
    assert carol.results is not None and carol.results.methods == (MethodResult("base", 1.0, 1, None),)


def test_a_look_at_somebody_loads_nothing_heavy(world: World) -> None:
    profile(world, "alice", 1.0)
    profile(world, "dave", 1.0)
    root = world.reg.root
    code = f"""
import sys
from pathlib import Path
from mta_cli.pipeline.users.detail import load_user_detail
from store.registry import Registry
with Registry.open(Path({str(root)!r})) as reg:
    assert load_user_detail(reg, "alice").anchors[0].similarity
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded & {{"numpy", "torch", "pandas", "sklearn", "rich", "textual"}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_anchor_of_a_large_bank_is_compared(reg_with_many: Registry) -> None:
    near = load_user_detail(reg_with_many, "p0").anchors
    assert len(near) == 300 and math.isclose(near[0].similarity or 0.0, 1.0, abs_tol=1e-6)


@pytest.fixture
def reg_with_many(world: World) -> Registry:
    """A bank of three hundred anchors who all have profiles."""
    reg = world.reg
    people = [reg.users.add(f"p{n}") for n in range(300)]
    reg.items.append_items(people[0].id, [NewItem("a", "free", "x", "y")])
    bank = reg.banks.get_or_create_bank("free", "many", "free", "b", "e", 0, {})
    reg.banks.plan_anchors(bank.id, [(user.id, n, 1, 1) for n, user in enumerate(people)])
    reg.banks.mark_bank_ready(bank.id, 1, 1.0)
    for n, user in enumerate(people):
        values = array("f", [math.sin(n + k) for k in range(384)])
        reg.profiles.save_profile(Profile(user.id, "free", "e", values.tobytes(), 1, 1))
    return reg
