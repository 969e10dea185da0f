"""What is computed in company is stored in one step: who was left of half a company would come to other bytes."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.methods import anchor_weights, stacks
from mta_cli.engine.training import session
from mta_cli.engine.training.trainer import GroupMember
from mta_cli.events import JobProgress, JobStarted
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.executors.local import LocalExecutor
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user, fuse_users
from mta_cli.pipeline.requests import AdaptRequest
from store.records import NewItem, Recipe
from store.registry import Registry
from store.tables.banks import Banks
from store.tables.recipes_and_stacks import Recipes, Stacks, pack_anchor_weights
from tests.pipeline.town import QUICK, SHORT, bank_request, built, finish, fuse_request


class Stopped(Exception):
    """What ends a job in the middle."""


def stop_at_second(monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> None:
    """The second call of a method ends the job."""
    honest, calls = getattr(cls, name), []

    def stopping(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise Stopped
        return honest(*arguments, **named)

    monkeypatch.setattr(cls, name, stopping)


def test_anchors_that_train_together_are_stored_together(
    peopled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(peopled.root, tmp_path / "whole")
    with Registry.open(tmp_path / "whole") as other:
        expected = [anchor["digest"] for anchor in built(other)["anchors"]]
    monkeypatch.setattr(session, "MIN_CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as stopped, pytest.raises(Stopped):
        stop_at_second(stopped, Banks, "record_trained_anchor")
        finish(build_bank(peopled, bank_request()))
    (bank,) = peopled.banks.all()
    assert [anchor.digest for anchor in peopled.banks.anchors(bank.id)] == [None] * 3
    assert [adapter.kind for adapter in peopled.adapters.all()] == ["task"]
    assert len(list(peopled.files.checkpoint_folder.iterdir())) == 1, "the training is not lost"
    assert [anchor["digest"] for anchor in built(peopled)["anchors"]] == expected
    assert peopled.check_integrity() == [] and list(peopled.files.checkpoint_folder.iterdir()) == []


def test_stacks_that_train_together_are_stored_together(banked: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [banked.users.get(name) for name in SHORT]
    with monkeypatch.context() as stopped, pytest.raises(Stopped):
        stop_at_second(stopped, Stacks, "save_stack")
        finish(adapt_users(banked, AdaptRequest(users, QUICK, fuse_request())))
    assert [banked.stacks.of_user(user.id) for user in users] == [[], [], []]
    assert {run.status for user in users for run in banked.runs.of_user(user.id)} == {"failed"}
    finish(adapt_users(banked, AdaptRequest(users, QUICK, fuse_request())))
    assert [len(banked.stacks.of_user(user.id)) for user in users] == [1, 1, 1] and banked.check_integrity() == []


def test_only_the_group_in_training_holds_its_fusions(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fusion takes megabytes a user, so those of a thousand users would take gigabytes."""
    honest, made = stacks.stack_member, list[weakref.ref[GroupMember]]()

    def watched(*arguments: Any) -> GroupMember:
        gc.collect()
        assert not [member for member in made if member() is not None], "the group before is still held"
        member = honest(*arguments)
        made.append(weakref.ref(member))
        return member

    monkeypatch.setattr(stacks, "stack_member", watched)
    monkeypatch.setattr("mta_cli.pipeline.training.groups.MAX_USERS_PER_GROUP", 1)
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    results, seen = finish(adapt_users(peopled, AdaptRequest(users, QUICK, fuse_request())))
    assert len(made) == len(results) == 3 and all(result["heldout_queries"] == 2 for result in results)
    done = [event.done for event in seen if isinstance(event, JobProgress) and event.loss is not None]
    assert done == list(range(1, 19)), "steps of finished groups count"


def test_a_stopped_weighing_keeps_whole_batches_and_goes_on_to_the_same_bytes(
    peopled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user without a history is always asked for again, and has no place in a batch."""
    monkeypatch.setattr(anchor_weights, "MAX_USERS_PER_BATCH", 2)
    built(peopled)
    peopled.users.add("nobody")
    anchors = {anchor.user for anchor in peopled.banks.anchors(peopled.banks.get("lamp-2").id)}
    users = [peopled.users.get(name) for name in ("nobody", *SHORT, *(f"user{n}" for n in range(9)))]
    users = [user for user in users if user.name not in anchors][:6]
    shutil.copytree(peopled.root, tmp_path / "whole")
    with Registry.open(tmp_path / "whole") as other:
        finish(adapt_users(other, AdaptRequest(users, QUICK, fuse_request())))
        expected = [other.recipes.of_user(user.id) for user in users]
    job = adapt_users(peopled, AdaptRequest(users, QUICK, fuse_request()))
    for event in job:
        if isinstance(event, JobProgress) and event.loss is None and event.done == 3:
            break
    job.close()  # type: ignore[attr-defined]
    kept = [peopled.recipes.of_user(user.id) for user in users]
    assert [len(own) for own in kept] == [1, 1, 1, 0, 0, 0]
    _, seen = finish(adapt_users(peopled, AdaptRequest(users, QUICK, fuse_request())))
    started = next(event for event in seen if isinstance(event, JobStarted))
    assert started.total == 4, "three, and who has no history"

    def content(recipes: list[list[Recipe]]) -> list[tuple[str, bytes, str]]:
        return [(own.method, pack_anchor_weights(own.shares), own.items_hash) for (own,) in recipes]

    assert content([peopled.recipes.of_user(user.id) for user in users]) == content(expected)


def test_batches_are_stored_in_the_order_of_the_users(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers end in any order. What a stop leaves must be the last users, who then form the same batches again."""
    honest, saved, stored = LocalExecutor.run, Recipes.save_recipe, list[int]()

    def backwards(self: LocalExecutor, *arguments: Any) -> Iterator[Any]:
        yield from reversed(list(honest(self, *arguments)))

    def noting(self: Recipes, recipe: Recipe) -> None:
        stored.append(recipe.user_id)
        saved(self, recipe)

    monkeypatch.setattr(anchor_weights, "MAX_USERS_PER_BATCH", 1)
    built(peopled)
    monkeypatch.setattr(LocalExecutor, "run", backwards)
    monkeypatch.setattr(Recipes, "save_recipe", noting)
    users = [peopled.users.get(name) for name in SHORT]
    finish(fuse_users(peopled, users, fuse_request()))
    assert stored == [user.id for user in users]


def test_a_recipe_names_the_items_that_were_weighed(banked: Registry) -> None:
    """Not one that arrives meanwhile, which the next adaptation has to see."""
    ida = banked.users.get("ida")
    weighed = banked.items.hash_items(banked.items.recent_items(ida.id, "lamp-2"))
    for event in fuse_user(banked, ida, fuse_request()):
        if isinstance(event, JobStarted) and event.job == "weights of anchors":
            banked.items.append_items(ida.id, [NewItem("late", "lamp-2", "a film", "comedy", "2030-01-01")])
    (recipe,) = banked.recipes.of_user(ida.id)
    assert recipe.items_hash == weighed
    finish(adapt_users(banked, AdaptRequest([ida], QUICK, fuse_request())))
    (recipe,) = banked.recipes.of_user(ida.id)
    assert recipe.items_hash == banked.items.hash_items(banked.items.recent_items(ida.id, "lamp-2")) != weighed


def test_recipes_that_are_weighed_together_are_stored_together(
    banked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [banked.users.get(name) for name in SHORT]
    with monkeypatch.context() as stopped, pytest.raises(Stopped):
        stop_at_second(stopped, Recipes, "save_recipe")
        finish(adapt_users(banked, AdaptRequest(users, QUICK, fuse_request())))
    assert [banked.recipes.of_user(user.id) for user in users] == [[], [], []]
