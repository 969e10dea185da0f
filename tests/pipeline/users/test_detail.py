"""One person as plain values: what is near them, what their model is, how it did. Nothing heavy is loaded for it."""

from __future__ import annotations

import math
import subprocess
import sys
from array import array
from dataclasses import replace

import pytest

from mta_cli.errors import NotFound
from mta_cli.pipeline.users.detail import Measured, Near, history, look_at
from store.records import NewItem, Profile, Recipe, Share
from store.registry import Registry
from store.tables.predictions import Cell, Prediction
from tests.pipeline.world import World


def profile(world: World, name: str, *values: float, embedder: str = "e") -> None:
    user = world.reg.users.get(name)
    world.reg.profiles.put(Profile(user.id, world.task, embedder, array("f", values).tobytes(), 1, 1))


def answer(world: World, method: str, said: str, gold: str) -> Prediction:
    return Prediction(world.alice.id, 1, method, "p", said, gold, None, 9, 0.1)


def test_somebody_new_has_a_name_and_nothing_else(world: World) -> None:
    carol = look_at(world.reg, "carol")
    assert (carol.user, carol.task, carol.held, carol.status) == (world.carol, None, (), "new")
    assert (carol.bank, carol.near, carol.recipe, carol.stack) == (None, (), None, None)
    assert (carol.losses, carol.results, carol.runs, carol.items) == ((), None, (), 0)
    with pytest.raises(NotFound):
        look_at(world.reg, "nobody")


def test_the_model_of_somebody_adapted_is_all_there(world: World) -> None:
    alice = look_at(world.reg, "alice")
    assert (alice.status, alice.task, alice.items, alice.queries) == ("adapted", "free", 4, 0)
    assert alice.bank is not None and alice.recipe is not None and alice.stack is not None
    assert alice.rest is None  # uniform weights leave nothing over on purpose
    assert [(near.name, near.similarity, near.weight) for near in alice.near] == [
        ("dave", pytest.approx(0.9), pytest.approx(0.7)),
        ("erin", pytest.approx(0.9), pytest.approx(0.3)),
    ]
    assert look_at(world.reg, "bob").status == "fused" and look_at(world.reg, "dave").status == "anchor"


def test_similarity_is_the_cosine_of_profiles_where_they_are_known(world: World) -> None:
    profile(world, "alice", 3.0, 4.0)
    profile(world, "erin", 6.0, 8.0)
    profile(world, "dave", -4.0, 3.0)
    near = look_at(world.reg, "alice").near
    assert [(one.name, one.similarity) for one in near] == [("erin", pytest.approx(1.0)), ("dave", pytest.approx(0.0))]


def test_profiles_that_cannot_be_compared_leave_what_the_recipe_says(world: World) -> None:
    profile(world, "alice", 1.0, 0.0)
    profile(world, "dave", 1.0, 0.0, 0.0)
    profile(world, "erin", 0.0, 0.0)
    near = {one.name: one.similarity for one in look_at(world.reg, "alice").near}
    assert near == {"dave": pytest.approx(0.9), "erin": 0.0}
    profile(world, "carol", 1.0, 0.0, embedder="another")
    assert [one.similarity for one in look_at(world.reg, "carol", "free").near] == [None, None]


def test_what_evidence_leaves_over_is_the_task_adapters(world: World) -> None:
    bank = world.reg.banks.latest("free")
    assert bank is not None
    shares = (Share(world.reg.banks.anchors(bank.id)[1].id, 0.5, 0.25),)
    world.reg.recipes.put(Recipe(world.bob.id, "free", bank.id, "evidence", shares, 0))
    bob = look_at(world.reg, "bob")
    assert bob.rest == 0.75 and [(one.name, one.weight) for one in bob.near] == [("erin", 0.25), ("dave", None)]


def test_a_forgotten_anchor_has_no_name_and_no_profile(world: World) -> None:
    profile(world, "alice", 1.0)
    profile(world, "erin", 1.0)
    world.reg.users.forget(world.reg.users.get("dave").id)
    near = look_at(world.reg, "alice").near
    assert [(one.name, one.stale) for one in near] == [("erin", False), (f"(forgotten #{near[1].anchor_id})", True)]
    assert near[1] == Near(near[1].anchor_id, near[1].name, True, pytest.approx(0.9), pytest.approx(0.7))


def test_losses_are_those_of_the_last_adaptation_that_took_steps(world: World) -> None:
    runs = world.reg.runs
    for losses, task, kind in (
        ((9.0,), "free", "user adapt"),
        ((3.0, None, 2.0), "free", "user adapt"),
        ((), "free", "user adapt"),
        ((8.0,), "other", "user adapt"),
        ((7.0,), "free", "something else"),
    ):
        run = runs.start(kind, "alice", {"task": task})
        for step, loss in enumerate(losses):
            runs.step(run.id, "alice", step, loss, 10, 0.1)
    alice = look_at(world.reg, "alice")
    assert alice.losses == (3.0, 2.0)
    assert len(alice.runs) == 5 and alice.runs[0].kind == "something else"


def test_results_are_means_of_the_tested_answers_with_the_chosen_settings(labelled: World) -> None:
    reg, chosen, tried = labelled.reg, {"steps": 5}, {"steps": 1}
    number = reg.evaluations.begin("k", "lamp-2", {}, [(0, labelled.alice.id, "test")]).id
    cells = [
        (Cell(0, "stack", tried, labelled.alice.id, 10, 0.1), [answer(labelled, "stack", "comedy", "comedy")]),
        (
            Cell(0, "stack", chosen, labelled.alice.id, 20, 0.1),
            [
                answer(labelled, "stack", " comedy", "comedy"),
                answer(labelled, "stack", "classic", "comedy"),
            ],
        ),
        (Cell(0, "base", {}, labelled.alice.id, 0, 0.1), [answer(labelled, "base", "action", "comedy")]),
    ]
    reg.evaluations.cells.add(number, cells)
    for settings in ({"stack": chosen, "base": {}}, {"stack": [chosen], "base": [{}]}):
        reg.evaluations.finish(number, {"settings": settings})
        results = look_at(reg, "alice").results
        assert results is not None and (results.evaluation, results.metric) == (number, "accuracy")
        assert results.methods == (Measured("stack", 0.5, 2, 20), Measured("base", 0.0, 1, 0))


def test_each_kind_of_task_is_scored_in_its_own_metric(world: World) -> None:
    reg = world.reg
    number = reg.evaluations.add("free", None, {}, {})
    reg.evaluations.cells.answer(number, [answer(world, "fused", "a b", "a c"), answer(world, "base", "", "a")])
    results = look_at(reg, "alice").results
    assert results is not None and results.metric == "rouge_1"
    assert results.methods == (Measured("fused", 0.5, 1, None), Measured("base", 0.0, 1, None))
    scored = reg.evaluations.add("lamp-3", None, {}, {})
    reg.items.append(world.alice.id, [NewItem(str(n), "lamp-3", "x", "4") for n in range(9)])
    given = [answer(world, "base", "2", "5"), answer(world, "base", "what?", "4"), answer(world, "base", "1", "none")]
    reg.evaluations.cells.answer(scored, given)
    results = look_at(reg, "alice").results
    assert results is not None and (results.metric, results.methods) == ("mae", (Measured("base", 3.0, 2, None),))


def test_a_task_that_is_gone_is_still_shown(world: World) -> None:
    world.reg.items.append(world.carol.id, [NewItem("a", "gone", "x", "y")])
    number = world.reg.evaluations.add("gone", None, {}, {})
    world.reg.evaluations.cells.answer(number, [replace(answer(world, "base", "y", "y"), user_id=world.carol.id)])
    carol = look_at(world.reg, "carol")
    assert carol.task == "gone" and carol.bank is None
    assert carol.results is not None and carol.results.methods == (Measured("base", 1.0, 1, None),)


def test_history_comes_in_pages_newest_first(world: World) -> None:
    whole = [item.key for item in history(world.reg, "alice", "free")]
    assert whole == ["alice3", "alice2", "alice1", "alice0"]
    assert [item.key for item in history(world.reg, "alice", "free", 1, 2)] == whole[1:3]
    assert history(world.reg, "alice", "free", 9) == history(world.reg, "alice", "none") == []
    assert history(world.reg, "alice", "free", -3, -1) == []


def test_a_look_at_somebody_loads_nothing_heavy(world: World) -> None:
    profile(world, "alice", 1.0)
    profile(world, "dave", 1.0)
    root = world.reg.root
    code = f"""
import sys
from pathlib import Path
from mta_cli.pipeline.person import history, look_at
from store.registry import Registry
with Registry.open(Path({str(root)!r})) as reg:
    assert look_at(reg, "alice").near[0].similarity
    assert history(reg, "alice", "free")
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded & {{"numpy", "torch", "pandas", "sklearn", "rich", "textual"}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_anchor_of_a_large_bank_is_compared(reg_with_many: Registry) -> None:
    near = look_at(reg_with_many, "p0").near
    assert len(near) == 300 and math.isclose(near[0].similarity or 0.0, 1.0, abs_tol=1e-6)


@pytest.fixture
def reg_with_many(world: World) -> Registry:
    """A bank of three hundred anchors who all have profiles."""
    reg = world.reg
    people = [reg.users.add(f"p{n}") for n in range(300)]
    reg.items.append(people[0].id, [NewItem("a", "free", "x", "y")])
    bank = reg.banks.begin("free", "many", "free", "b", "e", 0, {})
    reg.banks.plan_anchors(bank.id, [(user.id, n, 1, 1) for n, user in enumerate(people)])
    reg.banks.finish(bank.id, 1, 1.0)
    for n, user in enumerate(people):
        values = array("f", [math.sin(n + k) for k in range(384)])
        reg.profiles.put(Profile(user.id, "free", "e", values.tobytes(), 1, 1))
    return reg
