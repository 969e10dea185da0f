"""Runs, evaluations, chats, tasks, bases and profiles: what goes in comes out."""

from __future__ import annotations

import pytest

from mta_cli.errors import IntegrityFault, NotFound
from store.records import ModelRecord, Profile
from store.registry import Registry
from store.tables.predictions import Prediction
from store.tables.runs import RunStep
from tests.store.making import bank, person


def test_a_run_that_finishes(reg: Registry) -> None:
    alice = person(reg, "alice")
    run = reg.runs.start_run("user fuse", {"top_k": 4}, user_id=alice)
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


def test_a_run_that_could_not_be_written_leaves_its_number_to_the_next(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run_id: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reg.runs, "get", fail)
        with pytest.raises(KeyboardInterrupt):
            reg.runs.start_run("bank build", {})
    left = reg.root / "locks" / "run-1.lock"
    assert not left.exists()
    left.touch()  # as a process that was killed leaves it
    run = reg.runs.start_run("bank build", {})
    assert (run.id, run.status) == (1, "running") and left.exists()
    reg.runs.finish_run(run.id, {})
    assert not left.exists()


def test_runs_that_do_not_finish(reg: Registry) -> None:
    made = bank(reg, [person(reg, "alice")])
    starts = (reg.runs.start_run("bank build", {}, bank_id=made.id) for _ in range(4))
    failed, stopped, killed, running = (run.id for run in starts)
    reg.runs.fail_run(failed, "no more memory")
    reg.runs.fail_run(stopped, "stopped", interrupted=True)
    reg.runs._held[killed].close()
    assert [(run.id, run.status) for run in reg.runs.all()] == [
        (running, "running"),
        (killed, "interrupted"),
        (stopped, "interrupted"),
        (failed, "failed"),
    ]
    assert reg.runs.get(failed).error == "no more memory"
    assert len(reg.runs.all(limit=2)) == 2
    about = reg.runs.of_bank(made.id)
    assert [(run.id, run.subject) for run in about] == [(n, "free v1") for n in (running, killed, stopped, failed)]
    assert reg.runs.of_bank(99) == reg.runs.of_user(99) == reg.runs.of_evaluation(99) == []
    reg.banks.remove(made.id)
    assert [run.subject for run in reg.runs.all()] == [""] * 4, "what was done stays"
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
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    first, second = reg.chats.start_chat(alice, "films"), reg.chats.start_chat(alice, "books")
    said = reg.chats.add_message(first.id, "user", "hello \x1b[31m", {})
    answered = reg.chats.add_message(
        first.id, "assistant", "hi", {"mode": "fused", "anchors": ["bob", "gone", "alice"]}
    )
    assert answered.source == {"mode": "fused", "anchors": ["bob", "(forgotten)", "alice"]}
    assert reg.chats.messages(first.id) == [said, answered]
    assert reg.chats.of_user(alice) == [second, first]
    reg.users.forget(bob)
    assert reg.chats.messages(first.id)[1].source["anchors"] == ["(forgotten)", "(forgotten)", "alice"]
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
    reg.profiles.save_profile(Profile(alice, "free", "e", bytes(4), 3, 5))  # an older item was removed
    assert changed()
    reg.profiles.save_profile(Profile(bob, "free", "other", b"", 0, 9))
    assert not changed()
    reg.users.forget(bob)
    assert changed()


def test_a_run_about_a_user_goes_with_them(reg: Registry) -> None:
    alice, bob = person(reg, "alice"), person(reg, "bob")
    made = bank(reg, [bob])
    own = reg.runs.start_run("user adapt", {}, user_id=alice, bank_id=made.id)
    both = reg.runs.start_run("adaptation", {}, bank_id=made.id, asked_users=[bob, alice])
    assert reg.runs.of_user(alice) == [own] and reg.runs.of_bank(made.id) == [both, own]
    assert (own.subject, both.subject) == ("alice", "free v1")
    assert [user.name for user in reg.runs.asked_users(both.id)] == ["bob", "alice"]
    reg.users.forget(alice)
    assert reg.runs.all() == [both] and [user.name for user in reg.runs.asked_users(both.id)] == ["bob"]


def test_an_evaluation_takes_its_runs_along(reg: Registry) -> None:
    number = reg.evaluations.get_or_create_evaluation("k", "free", {}, []).id
    run = reg.runs.start_run("eval run", {}, evaluation_id=number)
    assert run.subject == reg.evaluations.get(number).label == f"evaluation {number}"
    other = reg.runs.start_run("user adapt", {}, user_id=person(reg, "alice"))
    reg.evaluations.remove(number)
    assert reg.runs.all() == [other]


def test_a_number_is_never_given_again(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "b")
    made = bank(reg, [alice, bob])
    evaluation = reg.evaluations.add_evaluation("free", None, {}, {})
    run, chat = reg.runs.start_run("user adapt", {}, user_id=bob).id, reg.chats.start_chat(bob, "films").id
    anchors, (item,) = [anchor.id for anchor in reg.banks.anchors(made.id)], reg.items.recent_items(bob, "free", 1)
    reg.users.forget(bob)
    reg.banks.remove(made.id)
    reg.evaluations.remove(evaluation)
    bob_again = person(reg, "bob", "b")
    again = bank(reg, [alice, bob_again])
    assert bob_again > bob and again.id > made.id and reg.items.recent_items(bob_again, "free", 1)[0].id > item.id
    assert min(anchor.id for anchor in reg.banks.anchors(again.id)) > max(anchors)
    assert reg.evaluations.add_evaluation("free", None, {}, {}) > evaluation
    assert reg.runs.start_run("user adapt", {}, user_id=bob_again).id > run
    assert reg.chats.start_chat(bob_again, "films").id > chat
