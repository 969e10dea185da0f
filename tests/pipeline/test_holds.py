"""Jobs hold the users whose items they use: no user can be removed or withdraw consent during a job.

Tests try it through another connection, between two events of the job.
"""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mta_cli
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import Flag, NotFound, StoreBusy, UserInUse, UsersChanged
from mta_cli.events import Event, JobProgress, JobStarted, Note, TextChunk
from mta_cli.lab.evaluation.run import run_evaluation, tune_evaluation
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.refresh import refresh_bank
from mta_cli.pipeline.bank.verify import remove_bank
from mta_cli.pipeline.chat.answer import ChatModel, answer_question
from mta_cli.pipeline.chat.compare import Question, compare_queries, compare_question, compare_user_models
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.pipeline.evaluation.stored_models import evaluate_users
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.export import export_user
from mta_cli.pipeline.personalize.fuse import fuse_user, fuse_users
from mta_cli.pipeline.requests import AdaptRequest
from mta_cli.pipeline.users import in_use
from mta_cli.pipeline.users.add import add_user
from mta_cli.pipeline.users.consent import set_consent
from mta_cli.pipeline.users.export_all_data import export_all_data
from mta_cli.pipeline.users.import_file import import_file
from mta_cli.pipeline.users.removal import remove_items, remove_user
from store.records import NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request
from tests.pipeline.town import CPU, QUICK, SHORT, TAGS, TASK, bank_request, built, finish, fuse_request
from tests.pipeline.world import asking

When = Callable[[Event], bool]
PROGRAM = Path(mta_cli.__file__).parent


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


@pytest.fixture
def peopled(peopled: Registry) -> Registry:
    """The users of `town`, each with a text that no other user has."""
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


def speaking(event: Event) -> bool:
    return isinstance(event, TextChunk)


def stale(reg: Registry) -> None:
    """One of the newest bank's anchors is stale."""
    reg._db.execute_write("UPDATE anchors SET stale = 1 WHERE id = (SELECT min(id) FROM anchors)")


def building(reg: Registry) -> Iterator[Event]:
    return build_bank(reg, bank_request(), plan=())


def refreshing(reg: Registry) -> Iterator[Event]:
    built(reg)
    stale(reg)
    return refresh_bank(reg, "lamp-2", CPU)


def adapting(reg: Registry) -> Iterator[Event]:
    built(reg)
    return adapt_users(reg, AdaptRequest([reg.users.get(name) for name in SHORT], QUICK, fuse_request()), plan=())


def fusing(reg: Registry) -> Iterator[Event]:
    built(reg)
    return fuse_user(reg, reg.users.get("ida"), fuse_request())


def fusing_several(reg: Registry) -> Iterator[Event]:
    built(reg)
    return fuse_users(reg, [reg.users.get(name) for name in SHORT], fuse_request())


def measuring(reg: Registry) -> Iterator[Event]:
    return run_evaluation(reg, eval_request(methods="stack", folds=2))


def tuning(reg: Registry) -> Iterator[Event]:
    return tune_evaluation(reg, eval_request(methods="pooled-rag+habit", folds=2))


def measuring_stored(reg: Registry) -> Iterator[Event]:
    built(reg)
    users = [reg.users.get(name) for name in SHORT]
    finish(adapt_users(reg, AdaptRequest(users, QUICK, fuse_request())))
    return evaluate_users(reg, fuse_request(), users)


def asked(reg: Registry) -> Iterator[Event]:
    return answer_question(reg, bank_request().base, "ida", sentence("ida"), asking())


def comparing(reg: Registry) -> Iterator[Event]:
    return compare_user_models(reg, bank_request().base, ["ida"], sentence("ida"), asking())


def comparing_in_the_window(reg: Registry) -> Iterator[Event]:
    model = talk(reg).model
    return compare_question(model, Question(sentence("ida")), [reg.users.get("jon")])


def asking_all_in_the_window(reg: Registry) -> Iterator[Event]:
    return compare_queries(talk(reg).model, [Question(sentence("ida"), "comedy")], [reg.users.get("jon")])


def talk(reg: Registry) -> Conversation:
    model = ChatModel.load_for_user(reg, bank_request().base, reg.users.get("ida"), asking())
    return Conversation(model, autosave=True)


def chatting(reg: Registry) -> Iterator[Event]:
    return talk(reg).answer_message(sentence("ida"))


def comparing_in_a_chat(reg: Registry) -> Iterator[Event]:
    return talk(reg).compare(sentence("ida"))


JOBS: dict[str, tuple[Callable[[Registry], Iterator[Event]], When, str, str]] = {
    "build_bank": (building, training, "user4", "The bank build of lamp-2 is using user4's items."),
    "refresh_bank": (refreshing, training, "user4", "The refresh of bank lamp-2 is using user4's items."),
    "adapt_users": (adapting, training, "ida", "The adaptation for lamp-2 is using ida's items."),
    "fuse_user": (fusing, working, "ida", "The fusion for lamp-2 is using ida's items."),
    "fuse_users": (fusing_several, working, "ida", "The fusion for lamp-2 is using ida's items."),
    "run_evaluation": (measuring, training, "user4", "The evaluation of lamp-2 is using user4's items."),
    "tune_evaluation": (tuning, training, "user4", "The evaluation of lamp-2 is using user4's items."),
    "evaluate_users": (measuring_stored, working, "ida", "The evaluation of lamp-2 is using ida's items."),
    "answer_question": (asked, speaking, "ida", "The chat is using ida's items."),
    "compare_user_models": (comparing, speaking, "ida", "The chat is using ida's items."),
    "compare_question": (comparing_in_the_window, speaking, "jon", "The chat is using jon's items."),
    "compare_queries": (asking_all_in_the_window, speaking, "jon", "The chat is using jon's items."),
    "Conversation.answer_message": (chatting, speaking, "ida", "The chat is using ida's items."),
    "Conversation.compare": (comparing_in_a_chat, speaking, "ida", "The chat is using ida's items."),
}
"""Each job that takes time over users' data: how it begins, the moment that is meant, a user of it, the refusal."""


def advanced(job: Iterator[Event], when: When) -> Iterator[Event]:
    """The job at the moment that is meant."""
    assert any(when(event) for event in job), "the moment never came"
    return job


@pytest.mark.parametrize("ending", ["stopped", "finished"])
@pytest.mark.parametrize("name", JOBS)
def test_a_job_holds_its_users_and_leaves_nothing_of_them_when_they_leave(
    peopled: Registry, name: str, ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped in the middle, a job leaves a checkpoint, profiles, steps and half a bank; then its user goes."""
    begin, when, who, message = JOBS[name]
    job = begin(peopled)
    monkeypatch.setattr("mta_cli.engine.training.session.MIN_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("mta_cli.engine.training.session.MIN_CHECKPOINT_COST_RATIO", 0)
    job = advanced(job, when)
    number = refused(peopled, who, message)
    job.close() if ending == "stopped" else finish(job)  # type: ignore[attr-defined]
    assert peopled.count_rows()["jobs"] == 0 and list((peopled.root / "locks").glob("job-*")) == []
    left_without_a_trace(peopled, number, who, tmp_path)


def refused(reg: Registry, who: str, message: str) -> int:
    """Another process can neither remove the user now nor take the consent back; returns the user's number."""
    with Registry.open(reg.root) as other:
        number = other.users.get(who).id
        for change in (other.users.forget, lambda user: other.users.set_can_anchor(user, False)):
            with pytest.raises(UserInUse, match=message[:-1]) as caught:
                change(number)
            assert caught.value.hint == ("stop that job, or wait until it has ended: ", Flag("wait"))
        assert other.users.get(who).can_anchor and other.check_integrity() == []
    return number


def left_without_a_trace(reg: Registry, number: int, who: str, place: Path) -> None:
    """The user goes from every file, and a newcomer gets neither the number nor anything that was the user's."""
    reg.users.forget(number)
    assert list(reg.files.checkpoint_folder.glob("*")) == [] and reg.check_integrity() == []
    assert reg.users.add("newbie").id > number
    finish(export_all_data(reg, "newbie", place / "all data of newbie"))
    given = {path.stem: json.loads(path.read_text()) for path in (place / "all data of newbie").glob("*.json")}
    assert given.pop("person")["name"] == "newbie"
    assert not any(given.pop("evaluations").values()) and not any(given.pop("runs").values())
    assert given and not any(given.values())
    reg.close()
    words = [sentence(who), *([who] if who == "user4" else [])]  # "candidates" holds "ida"
    assert holding(reg.root, *words) == []


EXPORTS: dict[str, tuple[Callable[[Registry, Path], object], str]] = {
    "export_user": (
        lambda reg, to: finish(export_user(reg, bank_request().base, reg.users.get("ida"), "lamp-2", to)),
        "mta_cli.pipeline.users.exported_folders.sync_file",
    ),
    "export_all_data": (
        lambda reg, to: finish(export_all_data(reg, "ida", to)),
        "mta_cli.pipeline.users.exported_folders.sync_file",
    ),
    "Conversation.save": (
        lambda reg, to: saved_transcript(reg, to),
        "mta_cli.pipeline.chat.conversation._write_new_file",
    ),
}
"""Jobs that write a user's data out of the store: the call, and what it calls while it writes."""


def saved_transcript(reg: Registry, to: Path) -> None:
    chat = talk(reg)
    list(chat.answer_message(sentence("ida")))
    list(chat.save(str(to)))


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_holds_its_user(
    peopled: Registry, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export, called = EXPORTS[name]
    finish(fusing(peopled))
    numbers: list[int] = []

    def writing(*_: object) -> Path:
        numbers.append(refused(peopled, "ida", "The export is using ida's items."))
        return tmp_path

    with monkeypatch.context() as patch:
        patch.setattr(called, writing)
        export(peopled, tmp_path / "exported")
    assert numbers, "it was never asked"
    left_without_a_trace(peopled, numbers[0], "ida", tmp_path)


@pytest.mark.parametrize("name", ["import_file", "add_user"])
def test_an_import_is_one_transaction(peopled: Registry, name: str, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    lines = [{"user": "ida", "id": f"more {n}", "input": f"page {n}", "output": sentence("ida")} for n in range(3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = import_file(peopled, "jsonl", file) if name == "import_file" else add_user(peopled, "ida", history=file)
    job = advanced(job, lambda event: isinstance(event, JobProgress) and event.done == len(lines))
    number = peopled.users.get("ida").id
    with Registry.open(peopled.root, timeout=0.1) as other, pytest.raises(StoreBusy, match="writing to the store"):
        other.users.forget(number)
    finish(job)
    left_without_a_trace(peopled, number, "ida", tmp_path)


def test_who_leaves_while_their_history_is_read_does_not_come_back(peopled: Registry, tmp_path: Path) -> None:
    """They would be new, with a consent that was not asked for."""
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"user": "ida", "id": "more", "input": "page", "output": sentence("ida")}) + "\n")
    peopled.users.set_can_anchor(peopled.users.get("ida").id, False)
    job = import_file(peopled, "jsonl", file, ask=lambda count: False)
    advanced(job, lambda event: isinstance(event, JobStarted) and event.job.startswith("import"))
    with Registry.open(peopled.root) as other:
        other.users.forget(other.users.get("ida").id)
    with pytest.raises(UsersChanged, match="removed while it was read"):
        finish(job)
    assert "ida" not in peopled.users.names()


ONE_TRANSACTION = {
    *("import_file", "import_source", "add_user", "set_consent", "set_consent_of_all", "remove_user", "remove_items"),
    *("Conversation.accept_exchange", "Conversation.undo_accept"),
}
OF_OTHER_JOBS = {"run_demo", "run_quick", "resume_job", "resume_evaluation"}
OF_OTHER_JOBS |= {
    "answer_on_server",
    "compare_on_server",
}  # the server ends a removed user's answers: tests/serving/test_forget.py
NOTHING_BY_USER = {
    *(
        "plan_demo",
        "plan_user_removal",
        "plan_item_removal",
        "pull_model",
        "pull_missing_models",
        "write_backup",
        "restore",
        "repair",
        "run_checks",
    ),
    *("publish_snapshot", "pull_snapshot"),
    *(f"Conversation.{name}" for name in ("opening_notes", "switch_user", "switch_mode", "reset", "resume")),
    *("Conversation.resume_latest", "Conversation.set_system", "Conversation.switch_task"),
    "Conversation.stored_chats",
}


def test_no_job_is_forgotten_here() -> None:
    """Each function of jobs that returns events and that a command or a screen names, or the demo runs."""
    known: dict[str, str] = {}
    for path in (*(PROGRAM / "pipeline").rglob("*.py"), *(PROGRAM / "lab").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = [(f"{node.name}.", each) for each in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
            for prefix, each in named:
                if isinstance(each, ast.FunctionDef) and each.returns and "[Event" in ast.unparse(each.returns):
                    known[each.name] = prefix + each.name
    fronts = [*(PROGRAM / "commands").rglob("*.py"), *(PROGRAM / "tui").rglob("*.py"), PROGRAM / "pipeline" / "demo.py"]
    called = {
        known[name]
        for path in fronts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (getattr(node, key, "") for key in ("id", "attr", "name"))
        if isinstance(name, str) and not name.startswith("_") and name in known
    }
    assert called == {*JOBS, *EXPORTS, *ONE_TRANSACTION, *OF_OTHER_JOBS, *NOTHING_BY_USER}


def test_an_anchor_is_held_while_others_are_adapted_on_it(peopled: Registry) -> None:
    job = advanced(adapting(peopled), training)
    anchor = str(peopled.banks.anchors(1)[0].user)
    with pytest.raises(UserInUse, match=f"using {anchor}'s items"):
        finish(set_consent(peopled, anchor, False))
    unused = next(f"user{n}" for n in range(9) if f"user{n}" not in {a.user for a in peopled.banks.anchors(1)})
    finish(remove_user(peopled, unused))
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
                remove_user(other, "user4", wait=True)
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


@pytest.mark.parametrize("begin", [building, refreshing])
@pytest.mark.parametrize("change", ["rm", "consent"])
def test_who_leaves_as_a_job_begins_is_noticed(
    peopled: Registry, change: str, begin: Callable[[Registry], Iterator[Event]]
) -> None:
    """Between the plan and the hold, nothing is written yet: the job says that it is to be run again."""
    job = begin(peopled)
    before = [peopled.banks.anchors(bank.id) for bank in peopled.banks.all()]
    next(job)
    if change == "rm":
        peopled.users.forget(peopled.users.get("user4").id)
    else:
        peopled.users.set_can_anchor(peopled.users.get("user4").id, False)
    with pytest.raises(UsersChanged, match="while this job started") as caught:
        finish(job)
    assert caught.value.hint == "run the command again"
    left = [peopled.banks.anchors(bank.id) for bank in peopled.banks.all()]
    assert [[anchor.digest for anchor in each] for each in left] == [[a.digest for a in each] for each in before]
    assert peopled.count_rows()["jobs"] == 0


@pytest.mark.parametrize(
    ("begin", "name"), [(building, "user4"), (refreshing, "user4"), (adapting, "ida"), (measuring, "ida")]
)
def test_an_item_that_goes_as_a_job_begins_is_noticed(
    peopled: Registry, begin: Callable[[Registry], Iterator[Event]], name: str
) -> None:
    job = begin(peopled)
    next(job)
    finish(remove_items(peopled, name, ["own"]))
    before = len(peopled.adapters.all())
    with pytest.raises(UsersChanged, match="Items were removed while this job started") as caught:
        finish(job)
    assert caught.value.hint == "run the command again" and len(peopled.adapters.all()) == before


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
    with pytest.raises(UsersChanged, match="were replaced during the fusion"):
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
