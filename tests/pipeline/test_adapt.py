"""Adaptation: stacks on the frozen fusion, what is reported, resumption by user."""

from dataclasses import replace

import pytest

from mta_cli.errors import NotFound, UsageFault
from mta_cli.events import Saved, Step
from mta_cli.options import AdaptOptions
from mta_cli.pipeline.adapt import adapt_users, everyone, task_to_adapt
from mta_cli.pipeline.fuse import fuse_user
from mta_cli.pipeline.personal import best_mode, personal_weights
from store.registry import Registry
from tests.pipeline.town import QUICK, SHORT, built, finish, fuse_request, notes


def adapted(reg: Registry, *names: str, options: AdaptOptions = QUICK, **fuse: object) -> list[dict]:  # type: ignore[type-arg]
    users = [reg.users.get(name) for name in names] or None
    results: list[dict] = finish(adapt_users(reg, users, fuse_request(**fuse), options))[0]  # type: ignore[type-arg]
    return results


def test_the_shots_are_learnt_and_everything_is_reported(peopled: Registry) -> None:
    document = built(peopled)
    (result,) = adapted(peopled, "ida")
    assert result["user"] == "ida" and result["shots"] == 3 and result["steps"] == 6
    assert result["loss_after"] < result["loss_before"]
    assert result["heldout_queries"] == 2 and result["heldout_before"] > 0 and result["heldout_after"] > 0
    assert result["recipe_bytes"] == 36 and result["stack_bytes"] > 0 and result["seconds"] > 0
    user = peopled.users.get("ida")
    stack = peopled.stacks.get(user.id, "lamp-2", peopled.banks.get("lamp-2").id)
    assert stack is not None and stack.bytes == result["stack_bytes"]
    row = peopled.adapters.get(stack.digest)
    assert (
        row.kind == "stack"
        and row.rank == 2
        and row.placement == "1-1/all"
        and row.task_adapter == document["task_adapter"]
    )
    assert best_mode(peopled, user, "lamp-2", document["base"]) == "adapted"
    assert peopled.check() == []


def test_without_names_everybody_with_a_history_who_is_no_anchor(peopled: Registry) -> None:
    document = built(peopled)
    peopled.users.add("nobody")
    results = adapted(peopled)
    anchors = {anchor["user"] for anchor in document["anchors"]}
    assert {r["user"] for r in results} == {f"user{n}" for n in range(9)} - anchors | set(SHORT)
    assert {s.name: s.status for s in peopled.users.summaries()}["ida"] == "adapted"


def test_a_stopped_adaptation_goes_on_with_the_next_user(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.pipeline.training.TOGETHER", 1)
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    job = adapt_users(peopled, users, fuse_request(), QUICK)
    for event in job:
        if isinstance(event, Saved) and event.kind == "stack":
            break
    job.close()  # type: ignore[attr-defined]
    results, seen = finish(adapt_users(peopled, users, fuse_request(), QUICK))
    assert [r["user"] for r in results] == list(SHORT)
    assert any("ida: adapted already" in text for text in notes(seen))
    assert len([e for e in seen if isinstance(e, Step) and e.loss is not None]) == 12


def test_the_same_seed_gives_the_same_stack(peopled: Registry) -> None:
    built(peopled)
    adapted(peopled, "ida")
    bank, user = peopled.banks.get("lamp-2"), peopled.users.get("ida")
    first = peopled.stacks.get(user.id, "lamp-2", bank.id)
    peopled.stacks.remove(user.id, "lamp-2", bank.id)
    adapted(peopled, "ida")
    second = peopled.stacks.get(user.id, "lamp-2", bank.id)
    assert first is not None and second is not None and first.digest == second.digest


def test_other_settings_replace_the_stack_and_its_file(peopled: Registry) -> None:
    built(peopled)
    adapted(peopled, "ida")
    before = {adapter.digest for adapter in peopled.adapters.all()}
    adapted(peopled, "ida", options=replace(QUICK, rank=1))
    after = {adapter.digest for adapter in peopled.adapters.all()}
    assert len(before) == len(after) and before != after
    assert peopled.check() == []


def test_a_recipe_that_is_there_is_kept_unless_weights_are_asked_for(peopled: Registry) -> None:
    built(peopled)
    finish(fuse_user(peopled, peopled.users.get("ida"), fuse_request(weights="uniform")))
    assert adapted(peopled, "ida")[0]["weights"] == "uniform"
    assert adapted(peopled, "ida", weights="similarity")[0]["weights"] == "similarity"


def test_an_adapted_user_keeps_the_recipe_their_stack_was_trained_on(peopled: Registry) -> None:
    document = built(peopled)
    adapted(peopled, "ida", weights="uniform")
    user = peopled.users.get("ida")
    before, _ = personal_weights(peopled, document["base"], user, "lamp-2", "adapted")
    finish(fuse_user(peopled, user, fuse_request(weights="similarity", top_k=1)))
    after, _ = personal_weights(peopled, document["base"], user, "lamp-2", "adapted")
    assert before is not None and after is not None
    assert before.to_bytes({}) == after.to_bytes({})


def test_too_few_steps_is_a_warning_with_the_number(peopled: Registry) -> None:
    built(peopled)
    users = [peopled.users.get("ida")]
    _, seen = finish(adapt_users(peopled, users, fuse_request(), AdaptOptions(steps=1, learning_rate=1e-6)))
    assert any("ida: 1 optimiser steps hardly moved the model" in text for text in notes(seen))


def test_somebody_without_a_history_is_told_and_gets_no_stack(peopled: Registry) -> None:
    built(peopled)
    peopled.users.add("nobody")
    users = [peopled.users.get("nobody")]
    (result,), seen = finish(adapt_users(peopled, users, fuse_request(), QUICK))
    assert result["shots"] == 0 and result["stack_bytes"] == 0 and result["loss_before"] is None
    assert any("nothing to train a stack on" in text for text in notes(seen))


def test_a_dry_run_names_the_users_and_trains_nobody(peopled: Registry) -> None:
    built(peopled)
    before = peopled.counts()
    result, _ = finish(adapt_users(peopled, None, fuse_request(), QUICK, dry_run=True))
    assert set(SHORT) <= set(result["users"]) and peopled.counts() == before


def test_which_task_is_meant(peopled: Registry) -> None:
    with pytest.raises(NotFound, match="no bank"):
        task_to_adapt(peopled, None, None)
    built(peopled)
    assert task_to_adapt(peopled, None, None) == "lamp-2"
    assert task_to_adapt(peopled, [peopled.users.get("ida")], None) == "lamp-2"
    assert task_to_adapt(peopled, None, "lamp-4") == "lamp-4"
    with pytest.raises(NotFound):
        task_to_adapt(peopled, [peopled.users.add("nobody")], None)
    with pytest.raises(UsageFault, match="--top-k 9"):
        finish(adapt_users(peopled, None, fuse_request(top_k=9), QUICK, explicit_top_k=True))


def test_when_all_are_anchors_nobody_is_left(peopled: Registry) -> None:
    for name in (*SHORT, *(f"user{n}" for n in range(3, 9))):
        peopled.users.forget(peopled.users.get(name).id)
    built(peopled)
    with pytest.raises(NotFound, match="Nobody is left"):
        everyone(peopled, peopled.banks.get("lamp-2"))


def test_people_weighed_together_get_what_each_gets_alone(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of several people in common passes is the evidence of each."""
    built(peopled)
    names = [user.name for user in everyone(peopled, peopled.banks.get("lamp-2"))]
    alone = {name: finish(fuse_user(peopled, peopled.users.get(name), fuse_request()))[0] for name in names}
    for user in map(peopled.users.get, names):
        peopled.recipes.remove(user.id, "lamp-2", peopled.banks.get("lamp-2").id)
    monkeypatch.setattr("mta_cli.pipeline.fuse.TOGETHER", 4)
    adapted(peopled)
    bank = peopled.banks.get("lamp-2")
    for name in names:
        recipe = peopled.recipes.get(peopled.users.get(name).id, "lamp-2", bank.id)
        assert recipe is not None
        expected = [anchor["weight"] for anchor in alone[name]["anchors"]]
        assert [share.weight for share in recipe.shares] == pytest.approx(expected, abs=1e-5)
