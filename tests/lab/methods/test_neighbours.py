"""Label memory without a model: label rates, neighbours and the user's label prior, nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mta_cli.engine.memory.label_memory import BYTES_PER_LABEL
from mta_cli.engine.memory.label_prior import decide_label
from mta_cli.engine.methods.personalize import build_models
from mta_cli.engine.model.load import LoadedBase
from mta_cli.lab.methods.neighbours import METHOD
from tests.engine.methods.contexts import a_context, a_user
from tests.engine.methods.tagging import LABELS, tag_context, tagger, with_index, with_later_items


def test_it_is_the_guess_on_peoples_rates(base: LoadedBase) -> None:
    bench = tag_context(base, 0)
    person = tagger(base, bench.task, [LABELS[2], LABELS[2], LABELS[5]])
    (made,) = build_models(METHOD, bench, [person], METHOD.default_settings)
    assert METHOD.below == "base" and made.loras == () and made.prior is None and made.bytes == 2 * BYTES_PER_LABEL
    assert made.answerer is not None
    answer, scores = made.answerer("item 7")
    said = bench.memory.neighbour_prior(person.outputs)("item 7")
    assert scores == pytest.approx(
        [math.log(rate) + extra for rate, extra in zip(bench.memory.rates, said, strict=True)]
    )
    assert answer == LABELS[scores.index(max(scores))] == LABELS[7]


def test_nothing_of_later_items_counts(base: LoadedBase) -> None:
    """Not even how often each label is given: the scores are those of a memory without the later items."""
    bench = with_later_items(tag_context(base, 0), label=3)
    assert bench.memory.neighbours is not None
    later = bench.memory.neighbours.index
    asked = [with_index(bench, known) for known in (later, later.until("2021"))]
    person = tagger(base, bench.task, [LABELS[2], LABELS[2], LABELS[5]])
    before, after = [], []
    for one in asked:
        (made,) = build_models(METHOD, one, [person], METHOD.default_settings)
        assert made.answerer is not None
        before.append(made.answerer("item 7", "2021")[1])
        after.append(made.answerer("item 7", "2025")[1])
    assert before[0] == pytest.approx(before[1])
    assert max(after[0]) == after[0][3] and after[0] != pytest.approx(before[0])


def test_scores_are_answered_with_the_median(base: LoadedBase) -> None:
    bench = tag_context(base, 0, task="lamp-3")
    (made,) = build_models(METHOD, bench, [tagger(base, bench.task, ["1", "5", "4", "5"])], METHOD.default_settings)
    assert made.answerer is not None
    answer, scores = made.answerer("item 2")
    assert answer == bench.task.labels[decide_label(scores, bench.task.labels, "mae")]


def test_it_has_nothing_to_say_of_texts(base: LoadedBase) -> None:
    (made,) = build_models(METHOD, a_context(base, 0), [a_user(2)], METHOD.default_settings)
    assert made.answerer is not None and made.answerer("anything") == ("", ()) and made.bytes == 0


def test_without_neighbours_the_habit_speaks_alone(base: LoadedBase) -> None:
    """As where what a person gave is of another kind than what is asked."""
    bench = tag_context(base, 0)
    bench = replace(bench, memory=replace(bench.memory, neighbours=None))
    (made,) = build_models(
        METHOD, bench, [tagger(base, bench.task, [LABELS[2], LABELS[2], LABELS[5]])], METHOD.default_settings
    )
    assert made.answerer is not None
    answer, scores = made.answerer("item 7")
    assert answer == LABELS[2] and len(scores) == len(LABELS) and scores == made.answerer("anything else")[1]
