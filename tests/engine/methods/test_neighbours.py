"""The guess without a model: people's rates, neighbours and the habit, nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mta_cli.engine.memory.label_prior import decide_label
from mta_cli.engine.methods.label_priors import COUNT_BYTES, neighbour_label_prior
from mta_cli.engine.methods.neighbours import METHODS
from mta_cli.engine.model.load import LoadedBase
from tests.engine.methods.benches import a_bench, a_person
from tests.engine.methods.tagging import LABELS, tag_bench, tagger

(METHOD,) = METHODS


def test_it_is_the_guess_on_peoples_rates(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    person = tagger(base, bench.task, [LABELS[2], LABELS[2], LABELS[5]])
    (made,) = METHOD.build_models(bench, [person], {})
    assert METHOD.base_level == "base" and made.loras == () and made.prior is None and made.bytes == 2 * COUNT_BYTES
    assert made.answerer is not None
    answer, scores = made.answerer("item 7")
    said = neighbour_label_prior(bench, person)("item 7")
    assert scores == pytest.approx([math.log(rate) + extra for rate, extra in zip(bench.rates, said, strict=True)])
    assert answer == LABELS[scores.index(max(scores))] == LABELS[7]


def test_scores_are_answered_with_the_median(base: LoadedBase) -> None:
    bench = tag_bench(base, 0, task="lamp-3")
    (made,) = METHOD.build_models(bench, [tagger(base, bench.task, ["1", "5", "4", "5"])], {})
    assert made.answerer is not None
    answer, scores = made.answerer("item 2")
    assert answer == bench.task.labels[decide_label(scores, bench.task.labels, "mae")]


def test_it_has_nothing_to_say_of_texts(base: LoadedBase) -> None:
    (made,) = METHOD.build_models(a_bench(base, 0), [a_person(2)], {})
    assert made.answerer is not None and made.answerer("anything") == ("", ()) and made.bytes == 0


def test_without_neighbours_the_habit_speaks_alone(base: LoadedBase) -> None:
    """As where what a person gave is of another kind than what is asked."""
    bench = replace(tag_bench(base, 0), neighbour_index=None)
    (made,) = METHOD.build_models(bench, [tagger(base, bench.task, [LABELS[2], LABELS[2], LABELS[5]])], {})
    assert made.answerer is not None
    answer, scores = made.answerer("item 7")
    assert answer == LABELS[2] and len(scores) == len(LABELS) and scores == made.answerer("anything else")[1]
