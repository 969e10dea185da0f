"""Jobs that were stopped: which are offered, that going on ends as the whole job does, and giving up."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import BadInput, Command, IntegrityFault
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobStarted
from mta_cli.lab.evaluation.resume import resume_evaluation
from mta_cli.lab.evaluation.run import run_evaluation, tune_evaluation
from mta_cli.options import AdaptOptions, BankOptions, FuseOptions, MachineOptions, options_from_json
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.maintenance.resume import UnfinishedJob, discard_job, list_unfinished_jobs, resume_job
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest, adapt_request_json, eval_request_json, restore_adapt_request
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, REQUEST_KEY, record_request
from store.records import NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request, timeless
from tests.pipeline.town import QUICK, SHORT, TASK, bank_request, built, finish, fuse_request, notes

HERE = MachineOptions(device="cpu", dtype="bfloat16", seed=7)  # all but the device must come from what was begun


@pytest.fixture(autouse=True)
def quick_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task by its name is the quick one of `town`."""
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


def stop_after(events: Iterator[Event], steps: int, *, answering: bool = False) -> None:
    """Close a job's generator after so many steps of training, or of answering."""
    taken = 0
    for event in events:
        taken += isinstance(event, JobProgress) and (
            event.label.startswith("fold") if answering else event.loss is not None
        )
        if taken == steps:
            break
    events.close()  # type: ignore[attr-defined]


def go_on(reg: Registry, one: UnfinishedJob) -> tuple[Any, list[Event]]:
    return finish(resume_job(reg, one, HERE, resume_evaluation))


def abandon_runs(reg: Registry) -> None:
    """Leave the running ones as a process that was killed leaves them."""
    for held in reg.runs._held.values():
        held.close()


def begin_adaptation(reg: Registry, names: tuple[str, ...] | None, options: AdaptOptions) -> int:
    """The run that a whole adaptation keeps; returns its number."""
    users = None if names is None else [reg.users.get(name) for name in names]
    bank, request = reg.banks.get("lamp-2"), fuse_request(weights="uniform")
    document = adapt_request_json(AdaptRequest(users, options, request))
    config, whom = {REQUEST_KEY: document}, [user.id for user in users or ()]
    return reg.runs.start_run(ADAPT_RUN_KIND, config, bank_id=bank.id, asked_users=whom).id


def test_nothing_is_offered_where_all_is_done(banked: Registry) -> None:
    finish(adapt_users(banked, AdaptRequest(None, QUICK, fuse_request())))
    finish(run_evaluation(banked, eval_request(methods="majority")))
    assert list_unfinished_jobs(banked) == []


def test_a_stopped_bank_goes_on_to_the_same_bytes(peopled: Registry, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(peopled.root, whole)
    with Registry.open(whole) as other:
        expected = built(other)
    stop_after(build_bank(peopled, bank_request()), 8)
    (one,) = list_unfinished_jobs(peopled)
    assert (one.kind, one.title, one.error) == ("bank build", "lamp-2 v1", "stopped") and one.ended_at
    assert one.detail.endswith("of 4 adapters")
    result, seen = go_on(peopled, one)
    assert [a["digest"] for a in result["anchors"]] == [a["digest"] for a in expected["anchors"]]
    assert any("goes on from step" in text for text in notes(seen))
    assert list_unfinished_jobs(peopled) == [] and peopled.banks.get("lamp-2").seed == 0


def test_a_bank_of_users_that_quick_chose_goes_on_with_quick(peopled: Registry) -> None:
    some = frozenset(user.id for user, _ in list(peopled.users.users_with_items(TASK.name))[:4])
    stop_after(build_bank(peopled, replace(bank_request(), user_ids=some)), 1)
    (one,) = list_unfinished_jobs(peopled)
    with pytest.raises(BadInput) as refused:
        go_on(peopled, one)
    anew = ("discard it and start again (", Command("bank build", task="lamp-2"), ")")
    assert refused.value.hint == (("if ", Command("quick"), " started it, run that again; otherwise "), *anew)


def test_a_bank_that_is_being_built_is_not_offered_and_that_of_a_killed_process_is(
    peopled: Registry,
) -> None:
    job = build_bank(peopled, bank_request())
    for event in job:
        if isinstance(event, JobProgress) and event.loss is not None:
            break
    assert list_unfinished_jobs(peopled) == []
    job.close()  # type: ignore[attr-defined]
    peopled.runs.start_run("bank build", {}, bank_id=peopled.banks.all()[0].id)
    abandon_runs(peopled)
    (one,) = list_unfinished_jobs(peopled)
    assert one.kind == "bank build" and one.error == ""


def test_a_bank_whose_people_changed_cannot_go_on_but_can_be_given_up(peopled: Registry) -> None:
    stop_after(build_bank(peopled, bank_request()), 8)
    user = peopled.users.get("user0")
    peopled.items.append_items(user.id, [NewItem("late", "lamp-2", "one more", "comedy", "2022-01-01")])
    (one,) = list_unfinished_jobs(peopled)
    with pytest.raises(BadInput, match="cannot be resumed: its task"):
        go_on(peopled, one)
    discard_job(peopled, one)
    assert list_unfinished_jobs(peopled) == [] and peopled.banks.all() == [] and peopled.adapters.all() == []


def test_a_bank_that_became_ready_meanwhile_is_not_given_up(peopled: Registry) -> None:
    stop_after(build_bank(peopled, bank_request()), 3)
    (one,) = list_unfinished_jobs(peopled)
    go_on(peopled, one)
    with pytest.raises(BadInput, match="lamp-2 v1 was finished meanwhile"):
        discard_job(peopled, one)
    assert peopled.banks.get("lamp-2").status == "ready"


def test_an_evaluation_that_another_process_ended_meanwhile_is_not_given_up(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(run_evaluation(peopled, eval_request(methods="majority", folds=3)), 1)
    (one,) = list_unfinished_jobs(peopled)
    lock = peopled.job_lock

    def end_before_the_lock(name: str, timeout: float = 0) -> Any:
        monkeypatch.setattr(peopled, "job_lock", lock)
        go_on(peopled, one)
        return lock(name, timeout)

    monkeypatch.setattr(peopled, "job_lock", end_before_the_lock)
    discard_job(peopled, one)
    assert peopled.evaluations.get(one.number).status == "done"


def test_a_model_that_is_another_by_now_is_refused(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(build_bank(peopled, bank_request()), 3)
    (one,) = list_unfinished_jobs(peopled)
    entry = bank_request().base
    monkeypatch.setattr(
        "mta_cli.pipeline.requests.resolve_model", lambda name, kind: replace(entry, fingerprint="other")
    )
    with pytest.raises(IntegrityFault, match="has changed since this job"):
        go_on(peopled, one)


def test_a_stopped_adaptation_names_the_passes_that_were_asked_for(banked: Registry) -> None:
    run = begin_adaptation(banked, SHORT, replace(QUICK, epochs=3))
    banked.runs.fail_run(run, "stopped", interrupted=True)
    (one,) = list_unfinished_jobs(banked)
    assert one.detail.endswith("epochs 3, learning rate 0.05, batch size 8")


def test_an_adaptation_on_a_bank_that_was_replaced_is_not_offered(banked: Registry) -> None:
    banked.runs.fail_run(begin_adaptation(banked, SHORT, QUICK), "stopped", interrupted=True)
    assert len(list_unfinished_jobs(banked)) == 1
    old = banked.banks.get("lamp-2")
    new = banked.banks.get_or_create_bank("lamp-2", "later", old.task, old.base, old.embedder, 0, old.config)
    banked.banks.mark_bank_ready(new.id, 0, 0.0)
    assert list_unfinished_jobs(banked) == []


def test_a_stopped_adaptation_goes_on_with_its_own_options_and_people(banked: Registry) -> None:
    options = replace(QUICK, rank=1, shots=2)
    run = begin_adaptation(banked, SHORT, options)
    banked.runs.fail_run(run, "stopped", interrupted=True)
    (one,) = list_unfinished_jobs(banked)
    assert (one.kind, one.title, one.detail) == (
        "user adapt",
        "ida, jon, kim · lamp-2",
        "on bank lamp-2 v1, shots 2, rank 1, steps 6, learning rate 0.05, batch size 8",
    )
    results, seen = go_on(banked, one)
    assert [(r["user"], r["shots"], r["steps"], r["weights"]) for r in results] == [
        (name, 2, 6, "uniform") for name in SHORT
    ]
    assert [event.kind for event in seen if isinstance(event, ArtifactSaved)].count("stack") == 3


def test_an_adaptation_of_everybody_that_was_killed_is_offered(banked: Registry) -> None:
    begin_adaptation(banked, None, QUICK)
    abandon_runs(banked)
    (one,) = list_unfinished_jobs(banked)
    assert one.title == "all users · lamp-2"
    results, _ = go_on(banked, one)
    assert len(results) == 9


def test_a_forgotten_user_is_left_out(banked: Registry) -> None:
    banked.runs.fail_run(begin_adaptation(banked, ("ida", "jon"), QUICK), "stopped", interrupted=True)
    banked.users.forget(banked.users.get("jon").id)
    (one,) = list_unfinished_jobs(banked)
    assert one.title == "ida · lamp-2"
    results, _ = go_on(banked, one)
    assert [r["user"] for r in results] == ["ida"]


def test_an_adaptation_of_users_who_are_all_forgotten_is_not_offered(banked: Registry) -> None:
    banked.runs.fail_run(begin_adaptation(banked, ("ida",), QUICK), "stopped", interrupted=True)
    banked.users.forget(banked.users.get("ida").id)
    assert list_unfinished_jobs(banked) == []


def test_only_the_newest_run_of_what_was_asked_counts(banked: Registry) -> None:
    banked.runs.fail_run(begin_adaptation(banked, ("ida",), QUICK), "stopped", interrupted=True)
    second = begin_adaptation(banked, ("ida",), QUICK)
    assert list_unfinished_jobs(banked) == []  # it is at work
    banked.runs.fail_run(second, "stopped", interrupted=True)
    banked.runs.fail_run(begin_adaptation(banked, ("kim",), QUICK), "stopped", interrupted=True)
    assert {one.title for one in list_unfinished_jobs(banked)} == {"ida · lamp-2", "kim · lamp-2"}
    banked.runs.finish_run(begin_adaptation(banked, ("ida",), QUICK), {})
    (left,) = list_unfinished_jobs(banked)
    assert left.title == "kim · lamp-2"
    discard_job(banked, left)
    assert list_unfinished_jobs(banked) == []


def test_a_stopped_evaluation_goes_on_with_what_was_written_down(peopled: Registry) -> None:
    request = eval_request(methods="pooled-rag,stack", folds=2, given={"stack": {"steps": "2"}})
    whole, _ = finish(run_evaluation(peopled, request))
    peopled.evaluations.remove(whole["evaluation"])
    stop_after(run_evaluation(peopled, request), 1)
    number = peopled.evaluations.all()[0].id
    document = {REQUEST_KEY: eval_request_json(request)}
    run = peopled.runs.start_run("eval run", document, evaluation_id=number).id
    assert list_unfinished_jobs(peopled) == []
    peopled.runs.fail_run(run, "stopped", interrupted=True)
    (one,) = list_unfinished_jobs(peopled)
    assert one.kind == "eval run" and one.title == f"evaluation {number}, lamp-2"
    result, _ = go_on(peopled, one)
    assert timeless(result) == timeless(whole)


def test_giving_up_an_evaluation_removes_it_only_where_it_has_no_result(peopled: Registry) -> None:
    whole, _ = finish(run_evaluation(peopled, eval_request(methods="majority", folds=2)))
    number = whole["evaluation"]
    document = {REQUEST_KEY: eval_request_json(eval_request(methods="stack", folds=2))}
    peopled.runs.fail_run(
        peopled.runs.start_run("eval run", document, evaluation_id=number).id, "stopped", interrupted=True
    )
    (added,) = list_unfinished_jobs(peopled)
    discard_job(peopled, added)
    assert list_unfinished_jobs(peopled) == [] and peopled.evaluations.get(number).status == "done"
    stop_after(run_evaluation(peopled, eval_request(methods="majority", folds=3)), 1)
    (begun,) = list_unfinished_jobs(peopled)
    discard_job(peopled, begun)
    assert list_unfinished_jobs(peopled) == [] and [each.id for each in peopled.evaluations.all()] == [number]


def test_documents_of_what_was_asked_say_it_all_again(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT]
    request = AdaptRequest(users, QUICK, fuse_request(top_k=2, shots=4))
    run = banked.runs.start_run("adaptation", {}, asked_users=[user.id for user in users]).id
    assert restore_adapt_request(banked, run, adapt_request_json(request), HERE) == request
    everybody = replace(request, users=None)
    assert restore_adapt_request(banked, run, adapt_request_json(everybody), HERE) == everybody
    assert options_from_json(BankOptions, {**asdict(BankOptions(rank=3)), "dtype": "x"}) == BankOptions(rank=3)
    assert options_from_json(FuseOptions, {}) == FuseOptions()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "done"),
        (GeneratorExit(), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (BadInput("no"), "failed"),
    ],
)
def test_a_run_that_is_written_down_says_what_was_asked_and_how_it_ended(
    peopled: Registry, error: BaseException | None, status: str
) -> None:
    user = peopled.users.get("ida")
    written = record_request(peopled, "user export", {"task": "lamp-2"}, user_id=user.id)
    with contextlib.suppress(BaseException), written:
        assert peopled.runs.all()[0].status == "running"
        if error is not None:
            raise error
    (run,) = peopled.runs.of_user(user.id)
    assert (run.status, run.config) == (status, {REQUEST_KEY: {"task": "lamp-2"}})


def test_an_adaptation_that_is_stopped_before_and_during_training_goes_on(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.training.groups.MAX_USERS_PER_GROUP", 1)
    built(peopled)
    users, options = [peopled.users.get(name) for name in SHORT], replace(QUICK, rank=1)
    for end in (JobStarted, ArtifactSaved):
        job = adapt_users(peopled, AdaptRequest(users, options, fuse_request()))
        for event in job:
            if isinstance(event, end):
                break
        job.close()  # type: ignore[attr-defined]
        (one,) = list_unfinished_jobs(peopled)
        assert (one.kind, one.title, one.error) == ("user adapt", "ida, jon, kim · lamp-2", "stopped")
    results, seen = go_on(peopled, one)
    assert [r["user"] for r in results] == list(SHORT) and "ida: adapted already" in " ".join(notes(seen))
    assert list_unfinished_jobs(peopled) == []


def test_an_evaluation_goes_on_with_its_methods_and_a_tuning_with_its_trials(peopled: Registry) -> None:
    request = eval_request(methods="majority,stack", folds=2, given={"stack": {"steps": "2"}})
    stop_after(run_evaluation(peopled, request), 2, answering=True)
    (one,) = list_unfinished_jobs(peopled)
    result, _ = go_on(peopled, one)
    assert list(result["methods"]) == ["majority", "stack"] and result["settings"]["stack"]["steps"] == 2
    stop_after(tune_evaluation(peopled, eval_request(methods="stack", folds=2)), 1, answering=True)
    (one,) = list_unfinished_jobs(peopled)
    assert one.kind == "eval tune" and go_on(peopled, one)[0]["tuned"] and list_unfinished_jobs(peopled) == []
