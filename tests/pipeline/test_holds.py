"""Jobs hold the users whose items they use: nobody is removed, or withdraws consent, in the middle of one.

Whoever wants to does so through another connection, between two events of the job.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import NotFound, StoreBusy, UserInUse, UsersChanged
from mta_cli.events import Event, JobProgress, JobStarted, Note
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.refresh import refresh_bank
from mta_cli.pipeline.bank.verify import remove_bank
from mta_cli.pipeline.chat.answer import answer_question
from mta_cli.pipeline.evaluation.run import run_evaluation
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.users import in_use
from mta_cli.pipeline.users.consent import set_consent
from mta_cli.pipeline.users.exported_folders import record_export
from mta_cli.pipeline.users.forget import forget_user
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.evaluation.trial import eval_request
from tests.pipeline.town import CPU, LORA, SHORT, TAGS, TASK, bank_request, built, finish, fuse_request
from tests.pipeline.world import asking

When = Callable[[Event], bool]


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


@pytest.fixture
def peopled(peopled: Registry) -> Registry:
    """The users of `town`, each of whom said something that nobody else did."""
    for name in (*(f"user{number}" for number in range(9)), *SHORT):
        own = NewItem("own", "lamp-2", sentence(name), TAGS[0], "2020-01-01")
        peopled.items.append_items(peopled.users.get(name).id, [own])
    return peopled


def sentence(name: str) -> str:
    return f"{name} saw the heron alone"


def holding(root: Path, *words: str) -> list[Path]:
    """Files that hold one of the words."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(word.encode() in path.read_bytes() for word in words)]


def training(event: Event) -> bool:
    return isinstance(event, JobProgress) and event.loss is not None


def working(event: Event) -> bool:
    return isinstance(event, JobProgress | JobStarted)


def stale(reg: Registry) -> None:
    """One of the newest bank's anchors is stale."""
    reg._db.execute_write("UPDATE anchors SET stale = 1 WHERE id = (SELECT min(id) FROM anchors)")


def building(reg: Registry) -> Iterator[Event]:
    return build_bank(reg, bank_request())


def refreshing(reg: Registry) -> Iterator[Event]:
    built(reg)
    stale(reg)
    return refresh_bank(reg, "lamp-2", CPU)


def adapting(reg: Registry) -> Iterator[Event]:
    built(reg)
    return adapt_users(reg, [reg.users.get(name) for name in SHORT], fuse_request(), LORA)


def fusing(reg: Registry) -> Iterator[Event]:
    built(reg)
    return fuse_user(reg, reg.users.get("ida"), fuse_request())


def measuring(reg: Registry) -> Iterator[Event]:
    return run_evaluation(reg, eval_request(methods="stack", folds=2))


JOBS: dict[str, tuple[Callable[[Registry], Iterator[Event]], When, str, str]] = {
    "build": (building, training, "user4", "The bank build of lamp-2 is using user4's items."),
    "refresh": (refreshing, training, "user4", "The refresh of bank lamp-2 is using user4's items."),
    "adapt": (adapting, training, "ida", "The adaptation for lamp-2 is using ida's items."),
    "fuse": (fusing, working, "ida", "The fusion for lamp-2 is using ida's items."),
    "evaluate": (measuring, training, "user4", "The evaluation of lamp-2 is using user4's items."),
}


def advanced(job: Iterator[Event], when: When) -> Iterator[Event]:
    """The job at the moment that is meant."""
    assert any(when(event) for event in job), "the moment never came"
    return job


@pytest.mark.parametrize("name", JOBS)
def test_a_job_holds_its_users_and_leaves_nothing_of_them_when_it_is_stopped(
    peopled: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, a job leaves a checkpoint, profiles, steps and half a bank; then its user goes."""
    begin, when, who, message = JOBS[name]
    job = begin(peopled)
    monkeypatch.setattr("mta_cli.engine.training.session.MIN_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("mta_cli.engine.training.session.MIN_CHECKPOINT_COST_RATIO", 0)
    job = advanced(job, when)
    with Registry.open(peopled.root) as other:
        number = other.users.get(who).id
        for change in (other.users.forget, lambda user: other.users.set_can_anchor(user, False)):
            with pytest.raises(UserInUse, match=message[:-1]) as caught:
                change(number)
            assert caught.value.hint == "stop it, or wait for its end (--wait)"
        assert other.users.get(who).can_anchor and other.check_integrity() == []
    job.close()  # type: ignore[attr-defined]
    assert peopled.count_rows()["jobs"] == 0 and list((peopled.root / "locks").glob("job-*")) == []
    peopled.users.forget(number)
    assert list(peopled.files.checkpoint_folder.glob("*")) == [] and peopled.check_integrity() == []
    peopled.close()
    words = [sentence(who), *([who] if who == "user4" else [])]  # "candidates" holds "ida"
    assert holding(peopled.root, *words) == []


def test_an_anchor_is_held_while_others_are_adapted_on_it(peopled: Registry) -> None:
    job = advanced(adapting(peopled), training)
    anchor = str(peopled.banks.anchors(1)[0].user)
    with pytest.raises(UserInUse, match=f"using {anchor}'s items"):
        finish(set_consent(peopled, anchor, False))
    unused = next(f"user{n}" for n in range(9) if f"user{n}" not in {a.user for a in peopled.banks.anchors(1)})
    finish(forget_user(peopled, unused))
    finish(set_consent(peopled, anchor, True))
    results, _ = finish(job)
    assert [result["user"] for result in results] == list(SHORT) and peopled.check_integrity() == []


@pytest.mark.parametrize("change", ["rm", "consent"])
def test_a_change_waits_for_the_end_of_the_job(peopled: Registry, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "POLL_SECONDS", 0.01)
    job = advanced(building(peopled), training)
    seen: list[Event] = []
    told = threading.Event()

    def leave() -> None:
        with Registry.open(peopled.root) as other:
            work = (
                forget_user(other, "user4", wait=True)
                if change == "rm"
                else set_consent(other, "user4", False, wait=True)
            )
            for event in work:
                seen.append(event)
                told.set()

    leaving = threading.Thread(target=leave)
    leaving.start()
    assert told.wait(60) and "user4" in peopled.users.names()
    finish(job)
    leaving.join(60)
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert notes[0] == "The bank build of lamp-2 is using user4's items. Waiting for its end."
    assert sum("Waiting" in note for note in notes) == 1
    assert ("user4" not in peopled.users.names()) if change == "rm" else not peopled.users.get("user4").can_anchor


@pytest.mark.parametrize("change", ["rm", "consent"])
def test_who_leaves_as_a_job_begins_is_noticed(peopled: Registry, change: str) -> None:
    """Between the plan and the hold, nothing is written yet: the job says that it is to be run again."""
    job = building(peopled)
    next(job)
    if change == "rm":
        peopled.users.forget(peopled.users.get("user4").id)
    else:
        peopled.users.set_can_anchor(peopled.users.get("user4").id, False)
    with pytest.raises(UsersChanged, match="as this began") as caught:
        finish(job)
    assert caught.value.hint == "run it again"
    assert peopled.banks.all() == [] and peopled.count_rows()["jobs"] == 0


def test_a_dead_process_holds_nobody(peopled: Registry) -> None:
    user = peopled.users.get("ida").id
    peopled._db.execute_write("INSERT INTO jobs (id, title) VALUES (7, 'bank build of lamp-2')")
    peopled._db.execute_write("INSERT INTO job_users VALUES (?, 7)", (user,))
    (peopled.root / "locks").mkdir(exist_ok=True)
    (peopled.root / "locks" / "job-7.lock").touch()
    peopled.users.set_can_anchor(user, False)
    with peopled.hold_users("chat", [user]):
        assert peopled._db.fetch_tuples("SELECT title FROM jobs") == [("chat",)], "what the dead left goes"
    assert list((peopled.root / "locks").glob("job-*")) == []
    peopled.users.forget(user)


def test_two_jobs_may_hold_the_same_user(peopled: Registry) -> None:
    user = peopled.users.get("ida").id
    with peopled.hold_users("export", [user]):
        with peopled.hold_users("chat", [user, user]):
            pass
        with pytest.raises(UserInUse, match="The export is using ida's items"):
            peopled.users.forget(user)
    peopled.users.forget(user)
    with pytest.raises(NotFound, match="The user was removed"), peopled.hold_users("chat", [user]):
        pass


def test_nobody_is_removed_while_they_are_exported(peopled: Registry, tmp_path: Path) -> None:
    user = peopled.users.get("ida")
    with record_export(peopled, user, tmp_path, "all data"), pytest.raises(UserInUse, match="export"):
        peopled.users.forget(user.id)
    peopled.users.forget(user.id)


def test_a_user_is_held_while_their_model_answers(peopled: Registry) -> None:
    job = answer_question(peopled, bank_request().base, "ida", "who saw the heron?", asking(task="lamp-2"))
    for _ in job:
        if peopled.count_rows()["jobs"]:
            break
    with pytest.raises(UserInUse, match="The chat is using ida's items"):
        peopled.users.forget(peopled.users.get("ida").id)
    finish(job)
    peopled.users.forget(peopled.users.get("ida").id)


def test_a_store_that_is_only_read_holds_nobody(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peopled._db, "writable", False)
    with peopled.hold_users("chat", [peopled.users.get("ida").id]):
        assert peopled.count_rows()["jobs"] == 0


def test_no_recipe_names_an_anchor_that_was_replaced_while_it_was_made(peopled: Registry) -> None:
    bank = built(peopled)["bank"]

    def weighing(event: Event) -> bool:
        return isinstance(event, JobStarted) and event.job == "weights of anchors"

    job = advanced(fuse_user(peopled, peopled.users.get("ida"), fuse_request(top_k=3, weights="uniform")), weighing)
    with Registry.open(peopled.root) as other:
        stale(other)
        other.banks.remove_stale_anchors(other.banks.get(bank).id)
    with pytest.raises(UsersChanged, match="were replaced while it was fused"):
        finish(job)
    assert peopled.recipes.of_user(peopled.users.get("ida").id) == [] and peopled.check_integrity() == []


def test_anchors_that_are_replaced_while_profiles_are_made_serve_nobody(peopled: Registry) -> None:
    bank = built(peopled)["bank"]

    def profiling(event: Event) -> bool:
        return isinstance(event, JobProgress)

    job = advanced(fuse_user(peopled, peopled.users.get("ida"), fuse_request(top_k=3, weights="uniform")), profiling)
    with Registry.open(peopled.root) as other:
        stale(other)
        other.banks.remove_stale_anchors(other.banks.get(bank).id)
    finish(job)
    left = {anchor.id for anchor in peopled.banks.anchors(peopled.banks.get(bank).id)}
    (recipe,) = peopled.recipes.of_user(peopled.users.get("ida").id)
    assert {share.anchor_id for share in recipe.shares} == left and len(left) == 2


def test_no_bank_is_removed_while_somebody_is_adapted_on_it(peopled: Registry) -> None:
    bank = built(peopled)["bank"]
    with Registry.open(peopled.root) as other, other.job_lock("adapt lamp-2"), pytest.raises(StoreBusy, match="adapt"):
        remove_bank(peopled, peopled.banks.get(bank))
    assert peopled.banks.get(bank).status == "ready"
