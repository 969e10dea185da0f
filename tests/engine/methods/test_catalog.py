"""The catalogue: names, wrong names, settings that can be tried, and every method for people of every kind."""

from __future__ import annotations

import math

import pytest

from mta_cli.engine.methods import catalog
from mta_cli.engine.methods.catalog import METHODS, find_methods
from mta_cli.engine.methods.method import Method, Settings, UserModel
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import row_log_likelihoods
from mta_cli.errors import UsageError
from tests.engine.methods.benches import a_bench, a_person
from tests.engine.methods.tagging import LABELS, tag_bench, tagger

EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
WANTED = """majority base rag pooled pooled-rag oppu oppu-pooled fusion fusion-random fusion-noise stack mta
mta-lora mta-evidence fusion-evidence mta-learned fusion-learned mta-released pieces search
core gains code stack-r1 stack-frozen-a stack-8bit stack-4bit vector"""
QUICK = {"steps": 2, "learn_steps": 2, "epochs": 1, "evaluations": 6}


def quick(method: Method) -> Settings:
    """The method's own settings, with as little work as they allow."""
    return {**method.settings, **{name: value for name, value in QUICK.items() if name in method.settings}}


def usable(base: LoadedBase, made: UserModel, rows: int = 1) -> bool:
    """Whether the model gives answers a likelihood."""
    if made.answerer is not None:
        return True
    return all(math.isfinite(value) for value, _ in row_log_likelihoods(base, a_person(rows).rows, made.loras))


def test_no_name_is_given_twice_and_all_that_were_promised_are_there() -> None:
    every = [method.name for family in catalog._FAMILIES for method in family.METHODS]
    assert sorted(every) == sorted(METHODS) and set(WANTED.split()) <= set(METHODS)
    assert all(method.about and method.name == method.name.strip().lower() for method in METHODS.values())


def test_names_come_back_once_and_in_their_order() -> None:
    assert [method.name for method in find_methods(["mta", "base", "mta"])] == ["mta", "base"]


@pytest.mark.parametrize(
    ("name", "hint"), [("mat", "did you mean mta?"), ("fusoin", "did you mean fusion?"), ("qqq", "mta eval methods")]
)
def test_a_wrong_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"no method '{name}'") as caught:
        find_methods(["base", name])
    assert caught.value.hint == hint


def test_no_name_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no method was named"):
        find_methods([])


@EVERY
def test_settings_that_are_tried_are_the_methods_own_and_of_their_kind(method: Method) -> None:
    """Settings are part of what an answer is stored under, where 1 and 1.0 are two."""
    for laid in method.grid:
        assert {name: type(value) for name, value in laid.items()} == {n: type(method.settings[n]) for n in laid}
    assert all(type(value) in (int, float, str) for value in method.settings.values())


@EVERY
def test_it_answers_for_a_task_of_texts_and_for_who_has_no_shots(base: LoadedBase, method: Method) -> None:
    people = [a_person(2), a_person(0, 1), a_person(1, 2)]
    made = method.build_models(a_bench(base, 2, placement="late"), people, quick(method))
    assert len(made) == 3 and all(usable(base, one) for one in made)
    assert all(one.prior is None and one.bytes >= 0 for one in made)
    if method.name != "fusion-random":
        assert made[1] == UserModel(answerer=made[1].answerer)


@EVERY
def test_it_answers_for_a_task_of_labels_and_for_who_has_no_shots(base: LoadedBase, method: Method) -> None:
    bench = tag_bench(base, 2)
    people = [tagger(base, bench.task, [LABELS[1], LABELS[2]]), tagger(base, bench.task, [], 1)]
    made = method.build_models(bench, people, quick(method))
    assert len(made) == 2 and all(usable(base, one) for one in made)
    for one in made:
        if one.prior is not None:
            said = one.prior("a film")
            assert len(said) == len(LABELS) and all(map(math.isfinite, said))
        if one.answerer is not None:
            answer, logliks = one.answerer("a film")
            assert answer in LABELS and len(logliks) == len(LABELS)


@EVERY
def test_a_bank_without_anchors_is_no_fault(base: LoadedBase, method: Method) -> None:
    (made,) = method.build_models(a_bench(base, 0), [a_person(1)], quick(method))
    assert usable(base, made)


@EVERY
def test_nobody_at_all_is_no_fault(base: LoadedBase, method: Method) -> None:
    assert method.build_models(a_bench(base, 1, placement="late"), [], quick(method)) == []
