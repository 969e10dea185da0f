"""Label memory that is added to stored answers: as if computed at once, and without a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.events import JobPlan
from mta_cli.lab.evaluation import method_run
from mta_cli.lab.evaluation.run import run_evaluation
from mta_cli.lab.methods.catalog import PRESET_METHODS, find_method, find_methods, without_memory
from mta_cli.options import MEMORIES
from mta_cli.pipeline.evaluation.scored_answers import unpack_scores
from store.records import NewItem
from store.registry import Registry
from store.tables.predictions import Prediction
from tests.lab.evaluation.trial import eval_request
from tests.pipeline.town import TASK, finish, notes

PLAIN = "pooled-rag,stack,fusion"
ADDED = "pooled-rag+habit,pooled-rag+neighbours,stack+habit,fusion+habit,fusion+neighbours"


def answers(reg: Registry, evaluation: int, methods: str) -> dict[tuple[str, int], Prediction]:
    found = reg.evaluations.predictions.load_predictions(evaluation)
    return {(row.method, row.query_id): row for row in found if row.method in methods.split(",")}


def test_memory_is_added_to_stored_answers_without_a_model(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers, likelihoods, settings and bytes are those of a run in which each method answers by itself."""
    at_once, _ = finish(run_evaluation(peopled, eval_request(methods=ADDED)))
    number = at_once["evaluation"]
    whole = answers(peopled, number, ADDED)
    assert len(whole) == 24 * len(ADDED.split(","))
    peopled.evaluations.remove(number)

    first, _ = finish(run_evaluation(peopled, eval_request(methods=PLAIN)))
    monkeypatch.setattr(method_run, "answer_queries", None)  # no model can be asked from here on
    added, seen = finish(run_evaluation(peopled, eval_request(methods=ADDED)))
    (plan,) = (event for event in seen if isinstance(event, JobPlan))
    assert first["evaluation"] == added["evaluation"]
    (line,) = (line for line in plan.lines if line.name == "answers")
    assert line.value == "about 0 s on top", "no model answers"
    for key, row in answers(peopled, added["evaluation"], ADDED).items():
        other = whole[key]
        assert (row.answer, row.prompt, row.gold_loglik) == (other.answer, other.prompt, other.gold_loglik)
        assert unpack_scores(row.scores) == pytest.approx(unpack_scores(other.scores), rel=1e-5, abs=1e-5)
        assert row.seconds > 0
    for method in ADDED.split(","):
        assert added["settings"][method] == at_once["settings"][method]
        assert added["costs"][method]["bytes"] == at_once["costs"][method]["bytes"] > 0


def test_one_run_answers_for_each_memory(peopled: Registry) -> None:
    request = eval_request(methods="majority,pooled-rag,mta-recipe", memory="all", reference="mta-recipe")
    result, _ = finish(run_evaluation(peopled, request))
    assert result["memory"] == {
        "majority": "off",
        "pooled-rag": "off",
        "pooled-rag+habit": "habit",
        "pooled-rag+neighbours": "neighbours",
        "mta-recipe+off": "off",
        "mta-recipe+habit": "habit",
        "mta-recipe": "neighbours",
    }
    assert result["reference"] == "mta-recipe"


def test_settings_go_to_the_variants_that_have_them(peopled: Registry) -> None:
    own = {"stack": {"steps": "2", "neighbour_weight": "3"}}
    result, _ = finish(run_evaluation(peopled, eval_request(methods="stack", memory="all", given=own)))
    settings = result["settings"]
    assert [settings[name]["steps"] for name in ("stack", "stack+habit", "stack+neighbours")] == [2, 2, 2]
    assert settings["stack+neighbours"]["neighbour_weight"] == 3.0
    assert "neighbour_weight" not in {**settings["stack"], **settings["stack+habit"]}


def test_settings_of_a_method_and_of_its_variant_add_up(peopled: Registry) -> None:
    own = {"stack+habit": {"prior_weight": "0.5"}, "stack": {"steps": "2", "prior_weight": "1"}}
    result, _ = finish(run_evaluation(peopled, eval_request(methods="stack", memory="all", given=own)))
    settings = result["settings"]
    assert (settings["stack+habit"]["steps"], settings["stack+habit"]["prior_weight"]) == (2, 0.5)
    assert settings["stack+neighbours"]["prior_weight"] == 1.0 and settings["stack"] == {
        **settings["stack"],
        "steps": 2,
    }


def test_texts_have_no_memory_to_choose(peopled: Registry) -> None:
    for name in ("user0", "user1", "user2", "user3", "user4", "user5"):
        user = peopled.users.get(name).id
        peopled.items.append_items(user, [NewItem(f"t{n}", "words", f"line {n}", f"word {n}") for n in range(6)])
        peopled.items.append_queries(user, [NewItem("q", "words", "another line", "word")])
    task = replace(TASK, name="words", kind="text", labels=(), metric="rouge")
    request = replace(eval_request(methods="majority,mta-recipe", memory="all", folds=2), task=task)
    result, seen = finish(run_evaluation(peopled, request))
    assert list(result["methods"]) == ["majority", "mta-recipe"] and result["memory"] == {}
    assert any("no label memory" in text for text in notes(seen))


def test_what_learns_beside_neighbours_answers_by_itself() -> None:
    added = {"mta", "stack+neighbours", "mta+habit", "fusion+neighbours", "pooled-rag+neighbours"}
    assert {name for name in added if find_method(name).memory_is_only_added} == added - {"mta", "stack+neighbours"}
    assert not any(find_method(name).memory_is_only_added for name in ("majority", "stack", "mta+off", "neighbours"))


def test_a_suffix_for_the_memory_that_a_method_has_is_dropped() -> None:
    for method in PRESET_METHODS:
        if method.memory is not None:
            assert find_method(f"{method.name}+{method.memory}") is method
            named = [one.name for one in find_methods([method.name], "all")]
            assert len(named) == len(MEMORIES) == len(set(named)) and method.name in named
            assert without_memory(find_method(f"{method.name}+habit")).memory == "off"
