"""Adaptation: stacks on the frozen fusion, what is reported, resumption by user."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mta_cli.engine.lora.cores import unpack_core
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import NotFound, UsageError
from mta_cli.events import ArtifactSaved, JobPlan, JobProgress, JobStarted
from mta_cli.lab.evaluation.resume import resume_evaluation
from mta_cli.options import AdaptOptions, MachineOptions, MemoryOptions
from mta_cli.pipeline.maintenance.resume import list_unfinished_jobs, resume_job
from mta_cli.pipeline.personalize.adapt import adapt_users, adaptable_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.requests import AdaptRequest, resolve_adapt_task
from mta_cli.pipeline.user_weights import load_weights, loras_by_placement, most_personal_mode
from mta_cli.pipeline.users.consent import set_consent
from store.records import NewItem, Recipe, Stack
from store.registry import Registry
from tests.pipeline.town import CPU, QUICK, SHORT, TASK, built, finish, fuse_request, give_core, notes


def adapted(reg: Registry, *names: str, options: AdaptOptions = QUICK, **fuse: object) -> list[dict]:  # type: ignore[type-arg]
    users = [reg.users.get(name) for name in names] or None
    results: list[dict] = finish(adapt_users(reg, AdaptRequest(users, options, fuse_request(**fuse))))[0]  # type: ignore[type-arg]
    return results


def alone(reg: Registry, *names: str, options: AdaptOptions = QUICK) -> list[dict]:  # type: ignore[type-arg]
    """The same without neighbours, who know all of these answers and leave nothing to learn."""
    request = replace(fuse_request(), memory=MemoryOptions(memory="habit"))
    results: list[dict] = finish(
        adapt_users(reg, AdaptRequest([reg.users.get(name) for name in names], options, request))
    )[0]  # type: ignore[type-arg]
    return results


def stack_of(reg: Registry, name: str) -> Stack:
    """The stack of an adapted user."""
    found = reg.stacks.get(reg.users.get(name).id, "lamp-2", reg.banks.get("lamp-2").id)
    assert found is not None
    return found


def test_the_shots_are_learnt_and_everything_is_reported(peopled: Registry) -> None:
    document = built(peopled)
    (result,) = alone(peopled, "ida")
    assert result["user"] == "ida" and result["shots"] == 3 and result["steps"] == 6
    assert result["loss_after"] < result["loss_before"]
    assert result["heldout_queries"] == 2 and result["heldout_before"] > 0 and result["heldout_after"] > 0
    assert result["recipe_bytes"] == 36 and result["stack_bytes"] > 0 and result["seconds"] > 0
    stack = stack_of(peopled, "ida")
    row = peopled.adapters.get(stack.digest)
    assert stack.bytes == result["stack_bytes"] == row.bytes
    assert row.placement == "1-1/all" and row.task_adapter == document["task_adapter"]
    assert most_personal_mode(peopled, peopled.users.get("ida"), "lamp-2", document["base"]) == "adapted"
    (run,) = peopled.runs.of_kind("adaptation")
    assert run.result == {
        "users": 1,
        "measured": 1,
        "better": int(result["heldout_after"] <= 0.99 * result["heldout_before"]),
    }
    assert peopled.check_integrity() == []


def test_a_core_of_a_former_version_is_added_to_the_fusion(peopled: Registry) -> None:
    document = built(peopled)
    give_core(peopled, "ida")
    user, stack = peopled.users.get("ida"), stack_of(peopled, "ida")
    own = unpack_core(load_weights(peopled, stack.digest, document["base"]), stack.numbers or b"")
    whole, late, _ = loras_by_placement(peopled, document["base"], user, "lamp-2", "adapted")
    fused, *_ = loras_by_placement(peopled, document["base"], user, "lamp-2", "fused")
    assert whole is not None and fused is not None and late is None and own.norm() > 0
    for path in own.factors:
        assert torch.allclose(whole.delta_weight(path) - fused.delta_weight(path), own.delta_weight(path), atol=1e-6)


def test_a_stack_takes_the_place_of_a_core(banked: Registry) -> None:
    give_core(banked, "ida")
    adapted(banked, "ida")
    stack = stack_of(banked, "ida")
    assert stack.numbers is None and banked.adapters.get(stack.digest).kind == "stack"
    assert banked.check_integrity() == []


def test_without_names_everybody_with_a_history_who_is_no_anchor(peopled: Registry) -> None:
    document = built(peopled)
    peopled.users.add("nobody")
    results = adapted(peopled)
    anchors = {anchor["user"] for anchor in document["anchors"]}
    assert {r["user"] for r in results} == {f"user{n}" for n in range(9)} - anchors | set(SHORT)
    assert {s.name: s.status for s in peopled.user_table.summaries()}["ida"] == "adapted"


def test_without_names_somebody_whose_anchor_is_stale_is_adapted_too(peopled: Registry) -> None:
    document = built(peopled)
    fleur, *others = (anchor["user"] for anchor in document["anchors"])
    finish(set_consent(peopled, fleur, False))
    results = {result["user"]: result for result in adapted(peopled)}
    assert results[fleur]["shots"] > 0 and not set(others) & set(results)
    recipe = peopled.recipes.get(peopled.users.get(fleur).id, "lamp-2", peopled.banks.get("lamp-2").id)
    stale = {anchor.id for anchor in peopled.banks.anchors(peopled.banks.get("lamp-2").id) if anchor.stale}
    assert recipe is not None and stale and not stale & {share.anchor_id for share in recipe.shares}


def test_a_stopped_adaptation_goes_on_with_the_next_user(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.pipeline.training.groups.MAX_USERS_PER_GROUP", 1)
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    job = adapt_users(peopled, AdaptRequest(users, QUICK, fuse_request()))
    for event in job:
        if isinstance(event, ArtifactSaved) and event.kind == "stack":
            break
    job.close()  # type: ignore[attr-defined]
    results, seen = finish(adapt_users(peopled, AdaptRequest(users, QUICK, fuse_request())))
    assert [r["user"] for r in results] == list(SHORT)
    assert any("ida: adapted already" in text for text in notes(seen))
    assert len([e for e in seen if isinstance(e, JobProgress) and e.loss is not None]) == 12


def test_the_same_seed_gives_the_same_stack(banked: Registry) -> None:
    adapted(banked, "ida")
    first = stack_of(banked, "ida")
    banked.stacks.remove(first.user_id, "lamp-2", first.bank_id)
    adapted(banked, "ida")
    second = stack_of(banked, "ida")
    assert first.digest == second.digest


def test_a_stack_that_was_stopped_half_way_is_the_same_in_the_end(banked: Registry) -> None:
    adapted(banked, "ida")
    whole = stack_of(banked, "ida")
    banked.stacks.remove(whole.user_id, "lamp-2", whole.bank_id)
    job = adapt_users(banked, AdaptRequest([banked.users.get("ida")], QUICK, fuse_request()))
    for event in job:
        if isinstance(event, JobProgress) and event.loss is not None and event.done == 3:
            break
    job.close()  # type: ignore[attr-defined]
    _, seen = finish(adapt_users(banked, AdaptRequest([banked.users.get("ida")], QUICK, fuse_request())))
    assert any("goes on from step 3 of 6" in text for text in notes(seen))
    assert stack_of(banked, "ida").digest == whole.digest


def test_a_stack_in_another_number_format_is_another_stack(banked: Registry) -> None:
    """Its checkpoint too: a training does not change its format half-way."""
    ida = banked.users.get("ida")
    requests = {
        dtype: replace(fuse_request(weights="uniform"), machine=MachineOptions(device="cpu", dtype=dtype))
        for dtype in ("auto", "float32", "bfloat16")
    }
    job = adapt_users(banked, AdaptRequest([ida], QUICK, requests["bfloat16"]))
    for event in job:
        if isinstance(event, JobProgress) and event.loss is not None and event.done == 3:
            break
    job.close()  # type: ignore[attr-defined]
    for dtype, request in requests.items():
        ((result,), seen) = finish(adapt_users(banked, AdaptRequest([ida], QUICK, request)))
        assert "unchanged" not in result
        assert any("goes on from step 3" in text for text in notes(seen)) == (dtype == "bfloat16")
        ((result,), _) = finish(adapt_users(banked, AdaptRequest([ida], QUICK, request)))
        assert result["unchanged"]
    named = [run.config.get("formats") for run in reversed(banked.runs.of_user(ida.id)) if run.kind == "user adapt"]
    float32, bfloat16 = {"dtype": "float32"}, {"dtype": "bfloat16"}
    assert named == [bfloat16, None, float32, bfloat16], "stacks in the default format stay valid"


def test_other_settings_replace_the_stack_and_its_file(banked: Registry) -> None:
    adapted(banked, "ida", options=QUICK)
    before = {adapter.digest for adapter in banked.adapters.all()}
    adapted(banked, "ida", options=replace(QUICK, rank=1))
    after = {adapter.digest for adapter in banked.adapters.all()}
    assert len(before) == len(after) and before != after
    assert banked.check_integrity() == []


def test_whoever_stands_on_a_forgotten_anchor_has_no_core_after_the_bank_is_mended(peopled: Registry) -> None:
    document = built(peopled)
    give_core(peopled, "ida")
    bank = peopled.banks.get("lamp-2")
    peopled.users.forget(peopled.users.get(document["anchors"][0]["user"]).id)
    basis = peopled.adapters.verified_path(stack_of(peopled, "ida").digest)
    assert peopled.banks.remove_stale_anchors(bank.id) == 1
    assert peopled.stacks.of_user(peopled.users.get("ida").id) == [] and not basis.exists()
    assert peopled.banks.by_id(bank.id).basis is None and peopled.check_integrity() == []


def test_a_recipe_that_is_there_is_kept_unless_weights_are_asked_for(banked: Registry) -> None:
    finish(fuse_user(banked, banked.users.get("ida"), fuse_request(weights="uniform")))
    assert adapted(banked, "ida")[0]["weights"] == "uniform"
    assert adapted(banked, "ida", weights="similarity")[0]["weights"] == "similarity"


def test_a_recipe_follows_the_items_that_evidence_sees(peopled: Registry) -> None:
    document = built(peopled)
    ida = peopled.users.get("ida")

    def recipe(shots: int, weights: str | None = None) -> Recipe:
        request = fuse_request(shots=shots, weights=weights)
        finish(adapt_users(peopled, AdaptRequest([ida], replace(QUICK, shots=shots), request)))
        kept = peopled.recipes.get(ida.id, "lamp-2", peopled.banks.get(document["bank"]).id)
        assert kept is not None
        return kept

    few = recipe(2)
    whole = recipe(200)
    assert few.items_hash and whole.items_hash != few.items_hash
    assert recipe(200) == whole, "the same items: kept"
    answer = peopled.items.recent_items(ida.id, "lamp-2", 1)[0].output
    peopled.items.append_items(ida.id, [NewItem("more", "lamp-2", "one more film", answer, "2030-01-01")])
    more = recipe(200)
    assert more.items_hash not in (whole.items_hash, few.items_hash)
    peopled.recipes.save_recipe(replace(more, method="learned"))
    anew = recipe(200)
    assert replace(anew, created=more.created) == more, "a weighting of an earlier version: made anew"
    uniform = recipe(2, "uniform")
    assert uniform.items_hash == "" and recipe(200) == uniform, "it needs no items"


def test_a_recipe_of_another_number_of_anchors_than_is_asked_for_is_made_anew(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)
    document = built(peopled)
    adapted(peopled, "ida", weights="uniform")
    ida, bank = peopled.users.get("ida"), peopled.banks.get(document["bank"])
    job = adapt_users(peopled, AdaptRequest([ida], QUICK, fuse_request(top_k=1), explicit_top_k=True))
    next(job), next(job)  # the plan, and the first event of its run, before the recipe is made
    job.close()  # type: ignore[attr-defined]
    (stopped,) = list_unfinished_jobs(peopled)
    ((result,), _) = finish(resume_job(peopled, stopped, CPU, resume_evaluation))
    recipe = peopled.recipes.get(ida.id, "lamp-2", bank.id)
    assert recipe is not None and (recipe.method, len(recipe.shares)) == ("uniform", 1) and "unchanged" not in result
    assert adapted(peopled, "ida", top_k=3)[0]["unchanged"], "a number that nobody asked for"
    finish(adapt_users(peopled, AdaptRequest([ida], QUICK, fuse_request(top_k=3), explicit_top_k=True)))
    more = peopled.recipes.get(ida.id, "lamp-2", bank.id)
    assert more is not None and len(more.shares) == 3


def test_a_recipe_that_evidence_left_without_anchors_stays(banked: Registry) -> None:
    before, user = adapted(banked, "ida", weights="evidence"), banked.users.get("ida")
    recipe = banked.recipes.get(user.id, "lamp-2", banked.banks.get("lamp-2").id)
    assert recipe is not None and before[0]["recipe_bytes"]
    banked.recipes.save_recipe(replace(recipe, shares=()))
    assert not adapted(banked, "ida")[0]["recipe_bytes"]
    banked.recipes.save_recipe(replace(recipe, shares=(), method="similarity", items_hash=""))
    assert adapted(banked, "ida")[0]["recipe_bytes"], "made before the user had a history"


def test_another_form_of_a_task_of_the_users_makes_another_stack(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.personalize.adapt.BUILTIN_TASKS", {})  # lamp-2 replaces a user's own task
    built(peopled)
    ida, request = [peopled.users.get("ida")], fuse_request()
    finish(adapt_users(peopled, AdaptRequest(ida, QUICK, request)))
    changed = replace(request, task=replace(request.task, prompt="{input}\nWhich of these would I say?"))
    for asked, unchanged in ((request, True), (changed, False)):
        (result,), _ = finish(adapt_users(peopled, AdaptRequest(ida, QUICK, asked)))
        assert bool(result.get("unchanged")) == unchanged


def test_an_adapted_user_keeps_the_recipe_their_stack_was_trained_on(peopled: Registry) -> None:
    document = built(peopled)
    adapted(peopled, "ida", weights="uniform")
    user = peopled.users.get("ida")
    before, late, _ = loras_by_placement(peopled, document["base"], user, "lamp-2", "adapted")
    finish(fuse_user(peopled, user, fuse_request(weights="similarity", top_k=1)))
    after, *_ = loras_by_placement(peopled, document["base"], user, "lamp-2", "adapted")
    assert before is not None and after is not None and late is None
    assert before.to_bytes({}) == after.to_bytes({})


def test_progress_and_plan_count_the_steps_that_epochs_make(banked: Registry) -> None:
    options, ida = replace(QUICK, steps=1000, epochs=2), banked.users.get("ida")  # three shots in a batch: two steps
    events = list(adapt_users(banked, AdaptRequest([ida], options, fuse_request())))
    (started,) = [one for one in events if isinstance(one, JobStarted) and one.job == "user adapt"]
    assert started.total == [one.done for one in events if isinstance(one, JobProgress)][-1] == 2
    assert plan_tokens(banked, options) == plan_tokens(banked, replace(QUICK, steps=2))
    again = list(adapt_users(banked, AdaptRequest([ida], options, fuse_request())))
    assert [one.total for one in again if isinstance(one, JobStarted) and one.job == "user adapt"] == [0]


def plan_tokens(reg: Registry, options: AdaptOptions) -> str:
    """The planned tokens of an adaptation of ida."""
    (plan,) = [
        one
        for one in adapt_users(
            reg, AdaptRequest([reg.users.get("ida")], options, fuse_request()), plan=(), dry_run=True
        )
        if isinstance(one, JobPlan)
    ]
    return next(line.value for line in plan.lines if line.name == "tokens")


def test_too_few_steps_are_told_with_the_number(banked: Registry) -> None:
    users = [banked.users.get("ida")]
    _, seen = finish(
        adapt_users(banked, AdaptRequest(users, AdaptOptions(steps=1, learning_rate=1e-8), fuse_request()))
    )
    assert any("ida: 1 optimiser steps hardly moved the model" in text for text in notes(seen))


def test_somebody_without_a_history_is_told_and_gets_no_stack(banked: Registry) -> None:
    banked.users.add("nobody")
    users = [banked.users.get("nobody")]
    (result,), seen = finish(adapt_users(banked, AdaptRequest(users, QUICK, fuse_request())))
    assert result["shots"] == 0 and result["stack_bytes"] == 0 and result["loss_before"] is None
    assert any("nothing to train a stack on" in text for text in notes(seen))


def test_a_dry_run_names_the_users_and_trains_nobody(banked: Registry) -> None:
    before = banked.count_rows()
    result, _ = finish(adapt_users(banked, AdaptRequest(None, QUICK, fuse_request()), dry_run=True))
    assert set(SHORT) <= set(result["users"]) and banked.count_rows() == before


def test_which_task_is_meant(peopled: Registry) -> None:
    with pytest.raises(NotFound, match="no bank"):
        resolve_adapt_task(peopled, None, None)
    built(peopled)
    assert resolve_adapt_task(peopled, None, None) == "lamp-2"
    assert resolve_adapt_task(peopled, [peopled.users.get("ida")], None) == "lamp-2"
    assert resolve_adapt_task(peopled, None, "lamp-4") == "lamp-4"
    with pytest.raises(NotFound):
        resolve_adapt_task(peopled, [peopled.users.add("nobody")], None)
    with pytest.raises(UsageError, match="--top-k 9"):
        finish(adapt_users(peopled, AdaptRequest(None, QUICK, fuse_request(top_k=9), explicit_top_k=True)))


def test_when_all_are_anchors_nobody_is_left(peopled: Registry) -> None:
    for name in (*SHORT, *(f"user{n}" for n in range(3, 9))):
        peopled.users.forget(peopled.users.get(name).id)
    built(peopled)
    with pytest.raises(NotFound, match="No user is left"):
        adaptable_users(peopled, peopled.banks.get("lamp-2"))


def test_people_weighed_together_get_what_each_gets_alone(banked: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of several people in common passes is the evidence of each."""
    names = [user.name for user in adaptable_users(banked, banked.banks.get("lamp-2"))]
    alone = {name: finish(fuse_user(banked, banked.users.get(name), fuse_request()))[0] for name in names}
    for user in map(banked.users.get, names):
        banked.recipes.remove(user.id, "lamp-2", banked.banks.get("lamp-2").id)
    monkeypatch.setattr("mta_cli.engine.methods.anchor_weights.MAX_USERS_PER_BATCH", 4)
    adapted(banked)
    bank = banked.banks.get("lamp-2")
    for name in names:
        recipe = banked.recipes.get(banked.users.get(name).id, "lamp-2", bank.id)
        assert recipe is not None
        expected = [anchor["weight"] for anchor in alone[name]["anchors"]]
        assert [share.weight for share in recipe.shares] == pytest.approx(expected, abs=1e-5)
