"""Runs, evaluations, chats, tasks, bases and profiles: what goes in comes out."""

from __future__ import annotations

import os

import pytest

from mta_cli.errors import IntegrityFault, NotFound
from store.records import ModelRecord, Profile
from store.registry import Registry
from store.tables.predictions import Prediction
from store.tables.runs import RunStep
from tests.store.making import bank, person
from tests.store.test_files import DEAD


def test_a_run_that_finishes(reg: Registry) -> None:
    run = reg.runs.start_run("user fuse", "alice", {"top_k": 4})
    assert (run.kind, run.subject, run.status, run.config, run.result, run.ended) == (
        "user fuse",
        "alice",
        "running",
        {"top_k": 4},
        None,
        None,
    )
    reg.runs.record_step(run.id, "alice", 1, 2.5, 100, 0.5)
    reg.runs.record_step(run.id, "alice", 2, None, 100, 0.5)
    reg.runs.record_step(run.id, "alice", 1, 2.25, 100, 0.5)
    assert reg.runs.steps(run.id) == [
        RunStep(run.id, "alice", 2, None, 100, 0.5),
        RunStep(run.id, "alice", 1, 2.25, 100, 0.5),
    ]
    reg.runs.finish_run(run.id, {"user": "alice"})
    done = reg.runs.get(run.id)
    assert (done.status, done.result) == ("done", {"user": "alice"})
    assert done.ended is not None


def test_runs_that_do_not_finish(reg: Registry) -> None:
    failed, stopped, killed, running = (reg.runs.start_run("bank build", "free v1", {}).id for _ in range(4))
    reg.runs.fail_run(failed, "no more memory")
    reg.runs.fail_run(stopped, "stopped", interrupted=True)
    reg._db.execute_write("UPDATE runs SET pid = ? WHERE id = ?", (DEAD, killed))
    assert [(run.id, run.status) for run in reg.runs.all()] == [
        (running, "running"),
        (killed, "interrupted"),
        (stopped, "interrupted"),
        (failed, "failed"),
    ]
    assert reg.runs.get(failed).error == "no more memory"
    assert len(reg.runs.all(limit=2)) == 2
    assert [run.id for run in reg.runs.of_subject("free v1")] == [running, killed, stopped, failed]
    assert reg.runs.of_subject("free") == []
    assert reg._db.fetch_value("SELECT pid FROM runs WHERE id = ?", (running,)) == os.getpid()
    with pytest.raises(NotFound):
        reg.runs.get(99)


def test_evaluations_and_predictions(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    made = bank(reg, [alice])
    first = reg.evaluations.add_evaluation("free", None, {"shots": 5}, {"methods": {}})
    second = reg.evaluations.add_evaluation("free", made.id, {}, {"users": 1})
    rows = [
        Prediction(alice, query, "base", "prompt", "answer", "gold", loss, 3, 0.25)
        for query, loss in ((1, -1.5), (2, None))
    ]
    assert reg.evaluations.predictions.add_predictions(second, rows) == 2
    assert reg.evaluations.predictions.load_predictions(second) == rows
    assert reg.evaluations.predictions.load_predictions(first) == []
    assert [each.id for each in reg.evaluations.all()] == [second, first]
    found = reg.evaluations.get(first)
    assert (found.task, found.bank_id, found.config, found.result) == ("free", None, {"shots": 5}, {"methods": {}})
    with pytest.raises(NotFound):
        reg.evaluations.get(99)
    with pytest.raises(IntegrityFault):
        reg.evaluations.predictions.add_predictions(99, rows)


def test_chats(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    first, second = reg.chats.start_chat(alice, "films"), reg.chats.start_chat(alice, "books")
    said = reg.chats.add_message(first.id, "user", "hello \x1b[31m", {})
    answered = reg.chats.add_message(first.id, "assistant", "hi", {"mode": "fused", "anchors": ["bob"]})
    assert answered.source == {"mode": "fused", "anchors": ["bob"]}
    assert reg.chats.messages(first.id) == [said, answered]
    assert reg.chats.of_user(alice) == [second, first]
    reg.chats.remove(first.id)
    assert reg.chats.of_user(alice) == [second]
    assert reg.chats.messages(first.id) == []
    with pytest.raises(NotFound):
        reg.chats.get(first.id)


def test_tasks(reg: Registry) -> None:
    assert reg.tasks.get("mine") is None
    reg.tasks.save_task("mine", 'name = "mine"')
    reg.tasks.save_task("mine", 'name = "mine" # changed')
    reg.tasks.save_task("a", "")
    assert reg.tasks.get("mine") == 'name = "mine" # changed'
    assert list(reg.tasks.all()) == ["a", "mine"]
    reg.tasks.remove("a")
    reg.tasks.remove("a")
    assert list(reg.tasks.all()) == ["mine"]


def test_bases(reg: Registry) -> None:
    small = ModelRecord("sha256:1", "small", "base", {"parameters": 100})
    reg.models.save_model(ModelRecord("sha256:1", "old name", "base"))
    reg.models.save_model(small)
    reg.models.save_model(ModelRecord("sha256:2", "embedder", "embedder"))
    assert reg.models.get("sha256:1") == small
    assert [each.name for each in reg.models.all()] == ["embedder", "small"]
    with pytest.raises(NotFound, match="sha256:3"):
        reg.models.get("sha256:3")


def test_profiles(reg: Registry) -> None:
    bob, alice = person(reg, "bob", "a"), person(reg, "alice", "a")
    profiles = [Profile(user, "free", "e", bytes(range(8)), 1, 1) for user in (alice, bob)]
    for profile in profiles:
        reg.profiles.save_profile(Profile(profile.user_id, "free", "e", b"", 0, 0))
        reg.profiles.save_profile(profile)
    reg.profiles.save_profile(Profile(alice, "free", "other", b"", 0, 0))
    assert reg.profiles.get(alice, "free", "e") == profiles[0]
    assert reg.profiles.get(alice, "lamp-2", "e") is None
    assert reg.profiles.profile_totals("free", "e") == [(bob, bytes(range(8))), (alice, bytes(range(8)))]
    assert reg.profiles.profile_totals("free", "e", [alice, 99, alice]) == [(alice, bytes(range(8)))]
    assert reg.profiles.profile_totals("free", "e", []) == []


def test_profiles_of_more_users_than_one_query_names(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.tables.profiles.MAX_USERS_PER_QUERY", 2)
    users = [person(reg, name, "a") for name in "abcde"]
    for user in users:
        reg.profiles.save_profile(Profile(user, "free", "e", bytes([user] * 4), 1, 1))
    assert reg.profiles.profile_totals("free", "e", users[::-1]) == [(user, bytes([user] * 4)) for user in users]


def test_profiles_come_in_pages_of_one_task_and_embedder(reg: Registry) -> None:
    users = [person(reg, name, "a") for name in "abcde"]
    for user in users:
        reg.profiles.save_profile(Profile(user, "free", "e", bytes([user] * 4), 1, 1))
        reg.profiles.save_profile(Profile(user, "lamp-2", "e", b"", 1, 1))
        reg.profiles.save_profile(Profile(user, "free", "other", b"", 1, 1))
    pages = list(reg.profiles.iter_profile_totals("free", "e", 2))
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [row for page in pages for row in page] == reg.profiles.profile_totals("free", "e")
    assert list(reg.profiles.iter_profile_totals("free", "nobody", 2)) == []


def test_the_stamp_of_profiles_moves_with_every_change_of_them(reg: Registry) -> None:
    bob, alice = person(reg, "bob", "a"), person(reg, "alice", "a")
    stamps = [reg.profiles.version_stamp("free", "e")]

    def changed() -> bool:
        stamps.append(reg.profiles.version_stamp("free", "e"))
        return stamps[-1] not in stamps[:-1]

    for number, user in enumerate((bob, alice, bob, alice, alice)):
        reg.profiles.save_profile(Profile(user, "free", "e", bytes(4), number, number + 1))
        assert changed()
    reg.profiles.save_profile(Profile(bob, "free", "other", b"", 0, 9))
    assert not changed()
    reg.users.forget(bob)
    assert changed()


def test_runs_about_a_person_are_none_about_a_bank_of_that_name(reg: Registry) -> None:
    build, own = (reg.runs.start_run(kind, "free v1", {}) for kind in ("bank build", "user adapt"))
    assert reg.runs.of_user("free v1") == [own] and reg.runs.of_subject("free v1") == [own, build]


def test_an_evaluation_takes_its_runs_along(reg: Registry) -> None:
    number = reg.evaluations.get_or_create_evaluation("k", "free", {}, []).id
    reg.runs.start_run("eval run", f"evaluation {number}", {})
    reg.runs.start_run("user adapt", f"evaluation {number}", {})
    reg.evaluations.remove(number)
    assert [run.kind for run in reg.runs.all()] == ["user adapt"]
