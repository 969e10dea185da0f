"""Fusion: which anchors a user gets under each rule, and what is stored."""

from __future__ import annotations

import pytest

from mta_cli.errors import Command, NotFound, UsageError, words_to_text
from mta_cli.options import WEIGHT_METHODS
from mta_cli.pipeline.personalize.fuse import fuse_user, fuse_users
from mta_cli.pipeline.user_weights import loras_by_placement
from store.records import ModelRecord
from store.registry import Registry
from tests.pipeline.town import built, finish, fuse_request, notes


def fused(reg: Registry, name: str, **options: object) -> dict:  # type: ignore[type-arg]
    result: dict = finish(fuse_user(reg, reg.users.get(name), fuse_request(**options)))[0]  # type: ignore[type-arg]
    return result


@pytest.mark.parametrize("rule", WEIGHT_METHODS)
def test_every_rule_gives_a_stored_recipe(banked: Registry, rule: str) -> None:
    result = fused(banked, "ida", weights=rule, top_k=2)
    assert result["method"] == rule and len(result["anchors"]) == 2
    assert result["recipe_bytes"] == 24
    assert sum(a["weight"] for a in result["anchors"]) + result["null_weight"] == pytest.approx(1.0, abs=1e-6)
    assert all(0 <= a["weight"] <= 1 for a in result["anchors"])
    bank = banked.banks.get("lamp-2")
    recipe = banked.recipes.get(banked.users.get("ida").id, "lamp-2", bank.id)
    assert recipe is not None and recipe.method == rule
    assert [s.weight for s in recipe.shares] == pytest.approx([a["weight"] for a in result["anchors"]], abs=1e-6)


def test_evidence_is_the_default_where_there_are_shots(banked: Registry) -> None:
    assert fused(banked, "ida")["method"] == "evidence"


def test_evidence_finds_the_anchor_of_the_same_taste(peopled: Registry) -> None:
    """The three short users each share their films and tags with a third of the long ones."""
    built(peopled, epochs=30, learning_rate=2e-2)
    for name in ("ida", "jon", "kim"):
        best = max(fused(peopled, name)["anchors"], key=lambda anchor: anchor["weight"])
        shared = {item.output for item in peopled.items.recent_items(peopled.users.get(name).id, "lamp-2", 1)}
        assert {
            item.output for item in peopled.items.recent_items(peopled.users.get(best["user"]).id, "lamp-2", 1)
        } == shared


def test_similarities_are_ordered_cosines(banked: Registry) -> None:
    values = [a["similarity"] for a in fused(banked, "jon", weights="similarity", top_k=3)["anchors"]]
    assert values == sorted(values, reverse=True) and all(-1.001 <= v <= 1.001 for v in values)


def test_somebody_without_a_history_gets_the_task_adapter_and_is_told(peopled: Registry) -> None:
    result = built(peopled)
    nobody = peopled.users.add("nobody")
    recipe, seen = finish(fuse_user(peopled, nobody, fuse_request()))
    assert recipe["anchors"] == [] and recipe["recipe_bytes"] == 0
    assert any("task adapter alone" in text for text in notes(seen))
    weights, late, source = loras_by_placement(peopled, result["base"], nobody, "lamp-2", "fused")
    assert weights is not None and late is None and source.anchors == ()


def test_more_anchors_than_the_bank_has_is_refused_only_when_asked_for(banked: Registry) -> None:
    user = banked.users.get("ida")
    with pytest.raises(UsageError, match=r"--top-k 99.*has only 3 usable anchors"):
        finish(fuse_user(banked, user, fuse_request(top_k=99), explicit_top_k=True))
    assert len(fused(banked, "ida", top_k=99)["anchors"]) == 3
    banked._db.execute_write("UPDATE anchors SET stale = 1 WHERE id = (SELECT min(id) FROM anchors)")
    with pytest.raises(UsageError, match="has only 2 usable anchors"):
        finish(fuse_user(banked, user, fuse_request(top_k=3), explicit_top_k=True))


def test_without_a_bank_the_command_that_builds_one_is_named(peopled: Registry) -> None:
    with pytest.raises(NotFound) as caught:
        fused(peopled, "ida")
    assert caught.value.hint == Command("bank build", task="lamp-2")


def test_a_bank_of_another_base_is_refused_with_the_base_it_is_on(banked: Registry) -> None:
    banked.models.save_model(ModelRecord("sha256:other", "other", "base"))
    with pytest.raises(NotFound, match="no bank for task lamp-2 on this base; there is one on tiny") as caught:
        loras_by_placement(banked, "sha256:other", banked.users.get("ida"), "lamp-2", "fused")
    assert caught.value.hint is not None and "--base tiny" in words_to_text(caught.value.hint)


def test_a_dry_run_stores_no_recipe(banked: Registry) -> None:
    before = banked.count_rows()
    finish(fuse_user(banked, banked.users.get("ida"), fuse_request(), dry_run=True))
    assert banked.count_rows() == before


def test_several_users_are_fused_as_one_by_one_and_those_with_a_recipe_keep_it(banked: Registry) -> None:
    alone = fused(banked, "ida", weights="uniform")
    users = [banked.users.get(name) for name in ("ida", "jon", "kim")]
    together: list = finish(fuse_users(banked, users, fuse_request()))[0]  # type: ignore[type-arg]
    assert together == [alone, fused(banked, "jon"), fused(banked, "kim")]
    assert [recipe["method"] for recipe in together] == ["uniform", "evidence", "evidence"]
