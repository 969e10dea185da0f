"""Methods with a chosen label memory: their names, settings and answers."""

from __future__ import annotations

from dataclasses import replace

from mta_cli.lab.evaluation.run import run_evaluation
from mta_cli.lab.methods.catalog import PRESET_METHODS, find_method, find_methods
from mta_cli.options import MEMORIES
from store.records import NewItem
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request
from tests.pipeline.town import TASK, finish, notes


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


def test_a_suffix_for_the_memory_that_a_method_has_is_dropped() -> None:
    for method in PRESET_METHODS:
        if method.memory is not None:
            assert find_method(f"{method.name}+{method.memory}") is method
            named = [one.name for one in find_methods([method.name], "all")]
            assert len(named) == len(MEMORIES) == len(set(named)) and method.name in named
