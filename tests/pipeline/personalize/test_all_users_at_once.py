"""What is computed in company is stored in one step: who was left of half a company would come to other bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.training import session
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.personalize.adapt import adapt_users
from store.registry import Registry
from store.tables.banks import Banks
from store.tables.recipes_and_stacks import Recipes, Stacks
from tests.pipeline.town import LORA, SHORT, bank_request, built, finish, fuse_request


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


def test_stacks_that_train_together_are_stored_together(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    with monkeypatch.context() as stopped, pytest.raises(Stopped):
        stop_at_second(stopped, Stacks, "save_stack")
        finish(adapt_users(peopled, users, fuse_request(), LORA))
    assert [peopled.stacks.of_user(user.id) for user in users] == [[], [], []]
    assert {run.status for user in users for run in peopled.runs.of_user(user.id)} == {"failed"}
    finish(adapt_users(peopled, users, fuse_request(), LORA))
    assert [len(peopled.stacks.of_user(user.id)) for user in users] == [1, 1, 1] and peopled.check_integrity() == []


def test_recipes_that_are_weighed_together_are_stored_together(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    with monkeypatch.context() as stopped, pytest.raises(Stopped):
        stop_at_second(stopped, Recipes, "save_recipe")
        finish(adapt_users(peopled, users, fuse_request(), LORA))
    assert [peopled.recipes.of_user(user.id) for user in users] == [[], [], []]
