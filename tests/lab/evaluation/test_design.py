"""The design: what makes two runs one evaluation, who plays which role, and what a plan says before a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mta_cli.engine.evaluation.ladder import STEP_NAMES
from mta_cli.errors import BadInput, Flag, UsageError, words_to_text
from mta_cli.lab.evaluation.design import Design, evaluation_config, make_design, plan_lines
from mta_cli.lab.evaluation.folds import UserFold
from mta_cli.lab.evaluation.method_settings import method_rows, parse_settings
from mta_cli.lab.methods.catalog import PRESETS_BY_NAME
from mta_cli.options import PromptOptions
from mta_cli.pipeline.requests import EvalRequest, bank_options
from store.records import NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request
from tests.pipeline.town import SHORT

Change = Callable[[EvalRequest], EvalRequest]


def options(**changes: Any) -> Change:
    return lambda request: replace(request, options=replace(request.options, **changes))


def bank(**changes: Any) -> Change:
    return lambda request: replace(request, bank=replace(request.bank, **changes))


def machine(**changes: Any) -> Change:
    return lambda request: replace(request, machine=replace(request.machine, **changes))


@pytest.mark.parametrize(
    "change",
    [
        options(shots=4),
        options(folds=2),
        options(placement="upper"),
        options(only_earlier=True),
        bank(anchors=3),
        bank(epochs=2),
        bank(rank=1),
        bank(min_items=4),
        bank(task_adapter=False),
        bank(task_epochs=2),
        bank(max_items=9),
        machine(seed=1),
        machine(dtype="bfloat16"),
        lambda request: replace(request, prompt=PromptOptions(3)),
        lambda request: replace(request, task=replace(request.task, prompt="Now: {input}")),
        lambda request: replace(request, task=replace(request.task, query_tokens=31)),
        lambda request: replace(request, base=replace(request.base, fingerprint="sha256:other")),
        lambda request: replace(request, embedder=replace(request.embedder, fingerprint="sha256:other")),
    ],
    ids=range(18),
)
def test_whatever_decides_an_answer_makes_another_evaluation(peopled: Registry, change: Change) -> None:
    assert make_design(peopled, change(eval_request())).key != make_design(peopled, eval_request()).key


def test_evaluations_of_all_items_are_known_by_what_they_were(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were begun before there was a choice go on."""
    hashed, dumps = list[Any](), json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **more: (hashed.append(value), dumps(value, **more))[1])
    for chosen in ({}, {"only_earlier": False}, {"only_earlier": True}):
        make_design(peopled, eval_request(**chosen))
    usual, refused, asked = (set(each) for each in hashed if isinstance(each, dict) and "people" in each)
    assert usual == refused == asked - {"only_earlier"} != asked
    assert "only_earlier" not in evaluation_config(eval_request())
    assert evaluation_config(eval_request(only_earlier=True))["only_earlier"]


def test_another_machines_number_format_makes_another_evaluation(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for own in ("float32", "bfloat16"):
        monkeypatch.setattr("mta_cli.engine.model.load.number_format", lambda *asked, own=own: own)
        keys.add(make_design(peopled, machine(dtype="auto")(eval_request())).key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    "change",
    [
        options(methods="base"),
        options(reference="base"),
        options(calibrate=False),
        machine(device="auto"),
        lambda request: replace(request, method_settings={"mta": {"steps": "3"}}),
        bank(placement="all"),
    ],
    ids=range(6),
)
def test_methods_and_how_they_are_read_do_not(peopled: Registry, change: Change) -> None:
    """The anchors of an evaluation act where its personal parts do, whatever a bank's own placement is."""
    assert make_design(peopled, change(eval_request())) == make_design(peopled, eval_request())


def test_people_items_and_queries_decide_and_what_is_of_other_tasks_does_not(peopled: Registry) -> None:
    user = peopled.users.get("user0").id

    def key() -> str:
        return make_design(peopled, eval_request()).key

    keys = [key()]
    peopled.users.add("somebody without anything")
    peopled.items.append_items(user, [NewItem("x", "free", "other", "task")])
    peopled.items.append_queries(user, [NewItem("x", "free", "other", "task")])
    assert key() == keys[0]
    peopled.items.append_items(user, [NewItem("older", "lamp-2", "an old film", "comedy", "2001-01-01")])
    keys.append(key())
    peopled.items.append_queries(user, [NewItem("q9", "lamp-2", "a last ship", "comedy", "2021-02-01")])
    keys.append(key())
    peopled.items.append_items(peopled.users.add("new").id, [NewItem("i", "lamp-2", "a film", "comedy")])
    keys.append(key())
    peopled.users.forget(peopled.users.get("user3").id)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_shots_are_the_most_recent_items(peopled: Registry) -> None:
    plan = make_design(peopled, eval_request(shots=4))
    for user, count in peopled.users.users_with_items("lamp-2"):
        everything = peopled.items.recent_items(user.id, "lamp-2")
        assert plan.shots[user.id] == everything[-4:] and len(plan.shots[user.id]) == min(4, count)
        assert plan.queries[user.id] == peopled.items.queries(user.id, "lamp-2")
    assert sorted(plan.test_users) == sorted(user.id for user, _ in peopled.users.users_with_items("lamp-2"))


def test_who_has_no_queries_is_not_tested_and_who_has_no_items_is_nobody(peopled: Registry) -> None:
    silent, empty = peopled.users.add("silent").id, peopled.users.add("empty").id
    peopled.items.append_items(silent, [NewItem(f"i{k}", "lamp-2", f"film {k}", "comedy") for k in range(6)])
    peopled.items.append_queries(empty, [NewItem("q", "lamp-2", "a film", "comedy")])
    plan = make_design(peopled, eval_request())
    assert silent not in plan.test_users and any(silent in fold.bank for fold in plan.folds)
    assert not any(empty in (*fold.bank, *fold.tuning, *fold.test) for fold in plan.folds) and empty not in plan.queries


def test_roles_as_they_are_stored(peopled: Registry) -> None:
    plan = make_design(peopled, eval_request(folds=1))
    (fold,) = plan.folds
    assert plan.role_assignments == [
        *((0, user, "bank") for user in fold.bank),
        *((0, user, "tuning") for user in fold.tuning),
        *((0, user, "test") for user in fold.test),
    ]
    assert plan.answering_users(0) == (*fold.test, *fold.tuning) and plan.test_users == list(fold.test)


def test_settings_are_chosen_on_those_who_are_not_tested() -> None:
    plain = Design("k", (UserFold((1,), (2, 3), (4,)),), {}, {})
    assert plain.tuning_design(0).test_users == [2, 3] and len(plain.tuning_design(0).folds) == 1
    assert plain.tuning_design(0).folds[0].tuning == (), "else temperatures are fitted on those who are judged"
    crossed = Design("k", (UserFold((2, 3), (), (1,)), UserFold((1, 3), (), (2,)), UserFold((1, 2), (), (3,))), {}, {})
    assert [crossed.tuning_design(fold).test_users for fold in range(3)] == [[2, 3], [1, 3], [1, 2]]
    assert [len(fold.test) for fold in crossed.tuning_design(1).folds] == [1, 0, 1]
    same = Design("k", (UserFold((), (), ()), UserFold((), (), ())), {}, {})
    assert len(same.tuning_design(0).folds) == 2


def test_too_few_people_for_the_folds(peopled: Registry) -> None:
    with pytest.raises(BadInput, match=r"lamp-2 cannot be evaluated in 13 folds: 12 users") as caught:
        make_design(peopled, eval_request(folds=13))
    assert isinstance(caught.value.hint, tuple) and caught.value.hint[:2] == ("use a smaller ", Flag("folds"))
    with pytest.raises(BadInput, match="0 users"):
        make_design(peopled, replace(eval_request(), task=replace(eval_request().task, name="lamp-4")))


def test_what_is_kept_of_the_options_names_nobody(peopled: Registry) -> None:
    kept = evaluation_config(eval_request(placement="upper"))
    assert (kept["shots"], kept["folds"], kept["seed"], kept["placement"]) == (3, 3, 0, "upper")
    assert kept["bank"]["placement"] == bank_options(eval_request(placement="upper")).placement == "upper"
    assert not any(name in repr(kept) for name in ("user0", *SHORT))


def test_the_plan_says_who_is_measured_and_what_can_be_found(peopled: Registry) -> None:
    request = eval_request()
    lines = {line.name: line for line in plan_lines(request, make_design(peopled, request), ["base", "mta"])}
    assert lines["users"].value == "12 tested, 24 queries" and lines["methods"].value == "base, mta"
    assert lines["folds"].value.count("8/0/4") == 3
    assert "in accuracy is found with 80 %" in lines["power"].value and "0.4" in lines["power"].origin


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["mta.steps=20"], {"mta": {"steps": "20"}}),
        (["mta.steps=20", "mta.rank=1", "oppu.steps=3"], {"mta": {"steps": "20", "rank": "1"}, "oppu": {"steps": "3"}}),
        (["mta.steps=20", "mta.steps=30"], {"mta": {"steps": "30"}}),
        ([" mta-recipe . scale = 0.5 "], {"mta-recipe": {"scale": "0.5"}}),
        (["stack.targets=q_proj,v_proj"], {"stack": {"targets": "q_proj,v_proj"}}),
        (["m.a=b=c"], {"m": {"a": "b=c"}}),
        (["m.a="], {"m": {"a": ""}}),
    ],
)
def test_settings_in_words(given: list[str], expected: dict[str, dict[str, str]]) -> None:
    assert parse_settings(given) == expected


@pytest.mark.parametrize(
    "text", ["", "mta", "mta.steps", "steps=3", "=", ".=", ".steps=3", "mta.=3", " . = ", "x" * 500]
)
def test_settings_in_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a setting of a method") as caught:
        parse_settings(["mta.steps=1", text])
    assert "METHOD.SETTING=VALUE" in words_to_text(caught.value.hint or "") and len(caught.value.message) < 120


def test_every_method_is_listed_with_its_settings() -> None:
    rows = {row["method"]: row for row in method_rows()}
    assert list(rows) == [*PRESETS_BY_NAME, "pooled-rag+neighbours", "permuted-mta"]
    assert all(rows[name]["about"] == one.about for name, one in PRESETS_BY_NAME.items())
    steps = {name: row["step"] for name, row in rows.items() if row["ladder"]}
    assert list(steps.values()) == sorted(STEP_NAMES, key=[*steps.values()].index), "each step once"
    assert steps["pooled-rag+neighbours"] == "common+memory" and steps["permuted-mta"] == "another's"
    assert rows["oppu"]["step"] is None and not rows["oppu"]["ladder"]
    assert rows["stack"]["settings"] == PRESETS_BY_NAME["stack"].default_settings


def test_consent_and_whose_a_query_is_decide_too(peopled: Registry) -> None:
    keys = [make_design(peopled, eval_request()).key]
    peopled._db.execute_write("UPDATE users SET can_anchor = 0 WHERE name = 'user0'")
    keys.append(make_design(peopled, eval_request()).key)
    last = "(SELECT max(id) FROM queries WHERE user_id = (SELECT id FROM users WHERE name = 'user0'))"
    to = "key = 'moved', user_id = (SELECT id FROM users WHERE name = 'user1')"
    peopled._db.execute_write(f"UPDATE queries SET {to} WHERE id = {last}")
    keys.append(make_design(peopled, eval_request()).key)
    assert len(set(keys)) == 3
