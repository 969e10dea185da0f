"""Label priors: nothing without weight or labels, else the person's habit, with or without neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mta_cli.engine.memory.knn import PRIOR_STRENGTH, NeighbourKernel
from mta_cli.engine.memory.label_prior import user_label_prior
from mta_cli.engine.methods.label_priors import (
    COUNT_BYTES,
    NEIGHBOUR_SETTINGS,
    NO_PRIOR_SETTINGS,
    label_priors,
    neighbour_label_prior,
    shot_examples,
)
from mta_cli.engine.methods.method import MethodContext, UserShots, Value
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.label_examples import LabelExample
from tests.engine.methods.benches import a_bench, a_person
from tests.engine.methods.tagging import LABELS, embed, tag_bench, tagger


def said(bench: MethodContext, person: UserShots, settings: dict[str, Value], text: str = "a film") -> list[float]:
    ((prior, _),) = label_priors(bench, [person], settings)
    assert prior is not None
    return list(prior(text))


def test_without_weight_or_labels_it_is_nothing(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    people = [tagger(base, bench.task, [LABELS[0]]), tagger(base, bench.task, [])]
    off = {"prior_weight": 0.0, "prior_strength": 4.0, "neighbour_weight": 0.0}
    assert label_priors(bench, people, off) == [(None, 0), (None, 0)]
    for weights in ({"prior_weight": 1.0}, {"prior_weight": 0.0, **NEIGHBOUR_SETTINGS}):
        assert label_priors(a_bench(base, 0), [a_person(2)], {"prior_strength": 4.0, **weights}) == [(None, 0)]


def test_it_is_a_share_of_the_habit(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    person = tagger(base, bench.task, [LABELS[3], LABELS[3], LABELS[0], "no label"])
    whole = user_label_prior(person.outputs, bench.task.labels, bench.rates, 2.0)
    for weight in (0.25, 1.0):
        ((prior, size),) = label_priors(bench, [person], {"prior_weight": weight, "prior_strength": 2.0})
        assert prior is not None and list(prior("a film")) == pytest.approx([weight * value for value in whole])
        assert prior("a film")[3] > 0 > prior("a film")[5] and size == 2 * COUNT_BYTES


def test_who_answered_nothing_has_no_habit(base: LoadedBase) -> None:
    bench, nobody = tag_bench(base, 0), []
    person = tagger(base, bench.task, nobody)
    ((_, size),) = label_priors(bench, [person], {"prior_weight": 1.0, "prior_strength": 4.0})
    assert said(bench, person, {"prior_weight": 1.0, "prior_strength": 4.0}) == pytest.approx([0.0] * len(LABELS))
    assert size == 0


def test_a_label_with_spaces_around_it_is_that_label(base: LoadedBase) -> None:
    bench, settings = tag_bench(base, 0), {"prior_weight": 1.0, "prior_strength": 4.0}
    plain, spaced = (tagger(base, bench.task, outputs) for outputs in ([LABELS[1]], [f" {LABELS[1]}\n"]))
    assert label_priors(bench, [plain], settings) == label_priors(bench, [spaced], settings)


def test_neighbours_and_the_habit_speak_together(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    person = tagger(base, bench.task, [LABELS[3], LABELS[3], LABELS[0]])
    assert bench.neighbour_index is not None
    known, kernel, _ = bench.neighbour_index
    own = np.array([user_label_prior(person.outputs, bench.task.labels, bench.rates, PRIOR_STRENGTH)])
    assert kernel == NeighbourKernel(4.0, 1.5, 0.5)
    for near, share in ((1.0, 0.25), (2.0, 0.0)):
        for text in ("item 4", "something else"):
            expected = known.label_log_ratios(NeighbourKernel(4.0, 1.5, 0.25), embed([text]), own)[0]
            weights = {"prior_weight": share, "prior_strength": 1.0, "neighbour_weight": near}
            assert said(bench, person, weights, text) == pytest.approx(expected.tolist())
            ((prior, _),) = label_priors(bench, [person], weights)
            assert prior is not None and prior.model_weight == 1.0 / near


def test_the_like_of_an_item_gets_its_label(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    votes = said(bench, tagger(base, bench.task, []), {**NEIGHBOUR_SETTINGS}, "item 4")
    assert votes.index(max(votes)) == 4


def test_there_is_no_guess_without_neighbours(base: LoadedBase) -> None:
    with pytest.raises(ValueError, match="no neighbours"):
        neighbour_label_prior(a_bench(base, 0), a_person(1), 1.0)


def test_a_shot_is_a_choice_beside_what_neighbours_and_the_other_shots_say(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    person = tagger(base, bench.task, [LABELS[3], f" {LABELS[0]} ", "no label"])
    first, second, third = shot_examples(bench, person, NEIGHBOUR_SETTINGS)
    assert third is person.rows[2], "what is no label counts as a text"
    assert isinstance(first, LabelExample) and isinstance(second, LabelExample)
    assert (first.row, first.target_index, second.target_index) == (person.rows[0], 3, 0)
    assert first.label_tokens == second.label_tokens == bench.label_tokens and len(first.label_tokens) == len(LABELS)
    others = replace(person, outputs=person.outputs[1:])
    prior = neighbour_label_prior(bench, others, float(NEIGHBOUR_SETTINGS["neighbour_weight"]))
    assert first.log_prior == pytest.approx(prior(person.inputs[0])) and first.model_weight == prior.model_weight
    assert first.log_prior[3] < neighbour_label_prior(bench, person, 1.7)(person.inputs[0])[3], (
        "its own answer is not counted"
    )


def test_shots_are_texts_where_neighbours_do_not_count(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    person = tagger(base, bench.task, [LABELS[3], LABELS[0]])
    assert shot_examples(bench, person, NO_PRIOR_SETTINGS) == person.rows
    assert shot_examples(bench, person, {**NEIGHBOUR_SETTINGS, "neighbour_weight": 0.0}) == person.rows
    assert shot_examples(replace(bench, neighbour_index=None), person, NEIGHBOUR_SETTINGS) == person.rows
