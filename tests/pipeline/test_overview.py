"""The overview of a store: its first missing stage, the last jobs with their results, and the users' gains."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.pipeline.evaluation.ladder_text import short_verdict
from mta_cli.pipeline.overview import QUICK, load_gains, load_overview, personal_and_common
from mta_cli.pipeline.runs import ADAPT_RUN_KIND, bank_status, evaluation_status, record_request
from store.records import NewItem
from store.registry import Registry
from store.tables.predictions import Prediction
from tests.pipeline.documents import document, with_ladder
from tests.store.making import adapted, bank, person

VERDICT = {
    "task": "books",
    "evaluation": 1,
    "measured_users": 12,
    "verdict": "worth it: own examples in the prompt; not shown: a personal model on top",
}


@pytest.fixture
def reg(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    ticks = itertools.count()
    monkeypatch.setattr("store.tables.runs.utc_now", lambda: f"2026-01-02T03:04:{next(ticks):02}+00:00")
    with Registry.open(store_root, create=True) as registry:
        yield registry


def stage(reg: Registry) -> str:
    return load_overview(reg, jobs=5, chats=5).stage


def jobs(reg: Registry) -> list[tuple[str, str, str]]:
    return [(one.kind, one.subject, one.outcome) for one in load_overview(reg, jobs=9, chats=0).jobs]


def losses(reg: Registry, user: int, on: Any, before: float, after: float) -> None:
    """A stack with these held-out losses."""
    stack = adapted(reg, user, on, f"stack of {user}".encode())
    reg.stacks.save_stack(replace(stack, heldout_before=before, heldout_after=after))


def test_the_stage_is_what_the_store_lacks_first(reg: Registry) -> None:
    assert stage(reg) == "empty"
    ann = reg.users.add("ann").id
    assert stage(reg) == "no history"
    person(reg, "ann", "a question")
    assert stage(reg) == "no bank"
    on = bank(reg, [ann])
    assert stage(reg) == "no models"
    adapted(reg, person(reg, "bob", "another"), on)
    found = load_overview(reg, jobs=1, chats=1)
    assert (found.stage, found.users, found.modelled, found.banks, found.example) == ("ready", 2, 1, 1, "bob")
    adapted(reg, person(reg, "eve", "a third"), on)
    chosen = [
        load_overview(reg, jobs=1, chats=1, preferred_example=name).example for name in ("bob", "eve", "ann", "gone")
    ]
    assert chosen[:2] == ["bob", "eve"] and set(chosen[2:]) <= {"bob", "eve"}


def test_what_nobody_works_on_any_more_is_interrupted(reg: Registry) -> None:
    built = reg.banks.get_or_create_bank("films", "k", "free", "base", "embedder", 0, {}, "")
    begun = reg.evaluations.get_or_create_evaluation("k", "free", {}, [])
    assert (bank_status(reg, built), evaluation_status(reg, begun)) == ("interrupted", "interrupted")
    build, answer = (
        reg.runs.start_run("bank build", {}, bank_id=built.id),
        reg.runs.start_run("eval run", {}, evaluation_id=begun.id),
    )
    assert (bank_status(reg, built), evaluation_status(reg, begun)) == ("building", "running")
    reg.runs.fail_run(build.id, "", interrupted=True)
    reg.runs.fail_run(answer.id, "no memory is left")
    assert (bank_status(reg, built), evaluation_status(reg, begun)) == ("interrupted", "interrupted")
    reg.banks.mark_bank_ready(built.id, tokens=1, seconds=1.0)
    assert bank_status(reg, reg.banks.by_id(built.id)) == "ready"
    reg.runs.finish_run(reg.runs.start_run("eval tune", {}, evaluation_id=begun.id).id, {})
    assert evaluation_status(reg, begun) == "tuned"


def test_a_job_says_what_it_found_and_one_that_ended_early_why(reg: Registry) -> None:
    on = bank(reg, [person(reg, "ann", "a")], name="films")
    run = reg.runs.start_run("bank build", {}, bank_id=on.id)
    reg.runs.finish_run(run.id, {})
    with record_request(reg, ADAPT_RUN_KIND, {}, bank_id=on.id) as kept:
        kept |= {"users": 5, "measured": 4, "better": 3}
    with pytest.raises(ValueError, match="diverged"), record_request(reg, ADAPT_RUN_KIND, {}, bank_id=on.id):
        raise ValueError("diverged\nand more")
    assert jobs(reg) == [
        ("user adapt", "films v1", ""),
        ("user adapt", "films v1", "held-out loss fell for 3 of 4 users"),
        ("bank build", "films v1", "1 anchor"),
    ]
    failed = load_overview(reg, jobs=1, chats=0).jobs[0]
    assert (failed.status, failed.error) == ("failed", "diverged")


def test_a_job_that_was_interrupted_is_told_until_it_is_done(reg: Registry) -> None:
    on = bank(reg, [person(reg, "ann", "a")], name="films")

    def run(kind: str, request: dict[str, Any], about: int | None, *, stop: bool) -> None:
        with suppress(KeyboardInterrupt), record_request(reg, kind, request, bank_id=about):
            if stop:
                raise KeyboardInterrupt

    everybody, some = {"everybody": True}, {"everybody": False}
    work = [("bank build", {}, on.id), (ADAPT_RUN_KIND, everybody, on.id), (ADAPT_RUN_KIND, some, on.id)]
    for kind, request, about in (*work, (QUICK, {"task": 'name = "books"\n'}, None)):
        run(kind, request, about, stop=True)
    stopped = [one.kind for one in load_overview(reg, jobs=9, chats=0).jobs]
    assert stopped == ["quick", "user adapt", "user adapt", "bank build"]
    for kind, request, about in (*work, (QUICK, {"task": 'name = "books"\n'}, None)):
        run(kind, request, about, stop=False)
    states = [(one.kind, one.status) for one in load_overview(reg, jobs=9, chats=0).jobs]
    assert [kind for kind, state in states if state == "interrupted"] == [
        "quick",
        "user adapt",
    ]  # of other users, maybe
    assert len(states) == 6


def test_an_evaluation_says_which_steps_are_worth_it(reg: Registry) -> None:
    for made in (with_ladder(), document({"mta": 0.5, "base": 0.9})):
        number = reg.evaluations.add_evaluation("lamp-2", None, {}, made)
        with record_request(reg, "eval run", {}, evaluation_id=number):
            pass
    assert [outcome for _, _, outcome in jobs(reg)] == ["2 methods", short_verdict(with_ladder()["ladder"])]
    assert jobs(reg)[1][2].startswith("worth it: own examples in the prompt, the common model, label memory; not shown")
    assert jobs(reg)[0][1] == "lamp-2, evaluation 2"


def test_a_quick_run_keeps_its_verdict_and_hides_the_jobs_that_it_ran(reg: Registry) -> None:
    on = bank(reg, [person(reg, "ann", "a")])
    with record_request(reg, QUICK, {"task": "books"}) as kept:
        with record_request(reg, ADAPT_RUN_KIND, {}, bank_id=on.id):
            pass
        kept |= VERDICT
    assert jobs(reg) == [("quick", "books", VERDICT["verdict"])]
    assert load_overview(reg, jobs=1, chats=0).verdict == f"books, 12 measured users: {VERDICT['verdict']}."


def test_runs_about_one_user_are_no_jobs(reg: Registry) -> None:
    ann = person(reg, "ann", "a")
    reg.runs.start_run("user adapt", {}, user_id=ann)
    assert jobs(reg) == []


def test_the_last_chats_are_those_of_all_users_newest_first(reg: Registry) -> None:
    for name in ("ann", "bob"):
        reg.chats.start_chat(person(reg, name, "a"), f"{name} asks")
    found = load_overview(reg, jobs=0, chats=5).chats
    assert [(chat.user, chat.title) for chat in found] == [("bob", "bob asks"), ("ann", "ann asks")]


def test_without_an_evaluation_the_held_out_losses_say_whom_models_helped(reg: Registry) -> None:
    assert load_gains(reg, 3) is None
    on = bank(reg, [person(reg, "anchor", "a")], name="films")
    for n, after in enumerate((1.0, 2.5, 2.001, 3.0, 1.5)):  # the third counts as no difference
        losses(reg, person(reg, f"u{n}", "a"), on, 2.0, after)
    adapted(reg, person(reg, "unmeasured", "a"), on)
    found = load_gains(reg, 2)
    assert found is not None
    assert (found.source, found.measured, found.worse) == ("bank films v1", 5, 2)
    assert [(one.user, one.before, one.after, one.gain) for one in found.most] == [
        ("u0", 2.0, 1.0, 1.0),
        ("u4", 2.0, 1.5, 0.5),
    ]
    assert [one.user for one in found.least] == ["u3", "u1"]
    whole = load_gains(reg, 9)
    assert whole is not None and len(whole.most) == 3 and not {*whole.most} & {*whole.least}


def answered(
    reg: Registry,
    rows: dict[str, tuple[str, str]],
    *,
    task: str = "lamp-2",
    metric: str = "accuracy",
    gold: str = "comedy",
) -> int:
    """An evaluation of stored models: for each user the common and the own answer to a query."""
    steps = {"common": 0.5, "fused": 0.5}
    ladder = {"comparisons": [{"step": "fused", "below": "common"}], "steps": [{"step": step} for step in steps]}
    result = document(steps, metric=metric, task=task, reference="fused", ladder=ladder)
    number = reg.evaluations.add_evaluation(task, None, {}, result)
    for name, answers in rows.items():
        user, _ = reg.users.get_or_create_user(name)
        reg.items.append_queries(user.id, [NewItem("q", task, "what is it", gold, None)])
        query = reg.items.queries(user.id, task)[0].id
        reg.evaluations.predictions.add_predictions(
            number,
            [
                Prediction(user.id, query, method, "p", answer, gold, -0.1 if answer == gold else -1.1, 1, 0.1)
                for method, answer in zip(("common", "fused"), answers, strict=True)
            ],
        )
    return number


def test_the_newest_evaluation_says_whose_answers_became_likelier(reg: Registry) -> None:
    on = bank(reg, [person(reg, "anchor", "a")])
    losses(reg, person(reg, "u0", "a"), on, 2.0, 1.0)
    number = answered(reg, {"ann": ("action", "comedy"), "bob": ("comedy", "comedy"), "cleo": ("comedy", "action")})
    found = load_gains(reg, 1)
    assert found is not None and (found.source, found.metric) == (f"evaluation {number}", "nats")
    assert (found.measured, found.worse) == (3, 1)
    assert [(one.user, one.before, one.after, one.gain) for one in found.most] == [("ann", -1.1, -0.1, 1.0)]
    assert [one.user for one in found.least] == ["cleo"]
    reg.users.forget(reg.users.get("ann").id)
    again = load_gains(reg, 1)
    assert again is not None and again.measured == 2 and [one.user for one in again.most] == ["bob"]


def test_an_evaluation_that_cannot_be_scored_any_more_is_passed_over(reg: Registry) -> None:
    number = answered(reg, {"ann": ("action", "comedy"), "bob": ("comedy", "comedy")})
    answered(reg, {"ann": ("3", "3")}, metric="mae", task="gone", gold="3")
    answered(reg, {"ann": ("3", "3")}, metric="mae", task="lamp-3", gold="no number")
    old = reg.evaluations.get_or_create_evaluation("key", "lamp-2", {}, [])
    reg.evaluations.finish_evaluation(old.id, {"methods": document()["methods"], "metric": "accuracy", "costs": {}})
    found = load_gains(reg, 1)
    assert found is not None and found.source == f"evaluation {number}"


def test_personal_and_common_are_those_that_the_ladder_compares_as_a_whole() -> None:
    assert personal_and_common(with_ladder()) == ("mta", "pooled-rag+neighbours")
    assert personal_and_common(document({"mta": 0.5, "pooled": 0.4})) is None
    without = with_ladder()["ladder"]
    without["comparisons"] = [one for one in without["comparisons"] if one["step"] not in ("fused", "adapted")]
    assert personal_and_common(document(ladder=without)) is None
