"""Rules that need no model: ties, median and mean scores, nearest own texts, and people who gave nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mta_cli.engine.methods.majority import MEAN_METHOD, METHOD
from mta_cli.engine.methods.method import DirectAnswerer, Method, MethodContext
from mta_cli.engine.methods.personalize import build_models
from mta_cli.engine.model.load import LoadedBase
from mta_cli.options import MemoryOptions
from tests.engine.methods.contexts import a_context, a_user
from tests.engine.methods.tagging import LABELS, tag_context, tagger, with_later_items
from tests.metrics_by_hand import mae


def rule(bench: MethodContext, outputs: Sequence[str], method: Method = METHOD) -> DirectAnswerer:
    (made,) = build_models(method, bench, [tagger(bench.base, bench.task, outputs)], method.default_settings)
    assert made.loras == () and made.prior is None and made.bytes == 0 and made.answerer is not None
    return made.answerer


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([LABELS[4], LABELS[2], LABELS[4]], LABELS[4]),
        ([LABELS[4], LABELS[2]], LABELS[2]),  # equals: of equally common ones the first of the list
        ([LABELS[4], LABELS[0]], LABELS[0]),  # equals: the commoner among people
        (["none of them", "none of them", LABELS[3]], LABELS[3]),
        ([f" {LABELS[5]} ", f"{LABELS[5]}\n", LABELS[2]], LABELS[5]),
        (["none of them"], LABELS[0]),
        ([], LABELS[0]),
    ],
)
def test_the_most_frequent_label(base: LoadedBase, outputs: list[str], expected: str) -> None:
    answer, logliks = rule(tag_context(base, 0), outputs)("any film")
    assert answer == expected
    assert len(logliks) == len(LABELS) and sum(map(math.exp, logliks)) == pytest.approx(1)


def test_its_likelihoods_are_the_users_label_prior_alone(base: LoadedBase) -> None:
    """The rates count as eight answers, as beside a model with habit."""
    bench, outputs = tag_context(base, 0), [LABELS[4], LABELS[4], LABELS[2]]
    rates = bench.memory.rates
    _, logliks = rule(bench, outputs)("any film")
    counts = {4: 2, 2: 1}
    assert logliks == pytest.approx([math.log((counts.get(i, 0) + 8 * rate) / 11) for i, rate in enumerate(rates)])
    prior = bench.memory.prior_of(outputs, MemoryOptions("habit", prior_weight=1.0))
    assert prior is not None and logliks == pytest.approx(
        [math.log(rate) + extra for rate, extra in zip(rates, prior("any film"), strict=True)]
    )


def test_later_answers_of_others_decide_nothing(base: LoadedBase) -> None:
    """Neither the likelihoods nor ties."""
    bench = with_later_items(tag_context(base, 0), label=7)
    assert bench.memory.neighbours is not None
    later, outputs = bench.memory.neighbours.index, [LABELS[1], LABELS[7], LABELS[2]]
    ask = rule(bench, outputs)
    before, rates = ask("a film", "2021"), later.until("2021").rates
    expected = [math.log((outputs.count(name) + 8 * rate) / 11) for name, rate in zip(LABELS, rates, strict=True)]
    assert before[1] == pytest.approx(expected)
    assert before[0] != LABELS[7] == ask("a film", "2025")[0] == ask("a film")[0]


def test_the_commoner_of_equals_is_the_likelier_one_too(base: LoadedBase) -> None:
    bench = tag_context(base, 0)
    bench = replace(bench, memory=replace(bench.memory, rates=tuple(0.4 if i == 7 else 0.6 / 14 for i in range(15))))
    answer, logliks = rule(bench, [LABELS[1], LABELS[7], LABELS[2]])("a film")
    assert answer == LABELS[7] and max(logliks) == logliks[7]


@pytest.mark.parametrize(
    ("outputs", "median", "mean"),
    [
        (["1", "2", "5", "5", "2"], 2, 3),
        (["1", "2", "2"], 2, 2),
        (["5"], 5, 5),
        (["4", "x", "5 "], 4.5, 5),
        (["1", "1", "1", "5"], 1, 2),
        (["x"], 1, 1),
        ([], 1, 1),
    ],
)
def test_the_median_and_the_rounded_mean_score(
    base: LoadedBase, outputs: list[str], median: float, mean: float
) -> None:
    """Without a known score: the commonest among people, which is the first here."""
    for method, expected in ((METHOD, median), (MEAN_METHOD, mean)):
        answer, logliks = rule(tag_context(base, 0, task="lamp-3"), outputs, method)("a review")
        assert mae([answer], ["1"]) == pytest.approx(expected - 1, abs=1e-5)
        assert len(logliks) == 5 and sum(map(math.exp, logliks)) == pytest.approx(1)


def test_the_nearest_own_text_and_the_later_of_equals(base: LoadedBase) -> None:
    bench = a_context(base, 0)
    person = replace(
        a_user(0), inputs=("the red fox", "a blue whale", "a blue whale"), outputs=("fox", "whale", "later whale")
    )
    (made,) = build_models(METHOD, bench, [person], METHOD.default_settings)
    assert made.answerer is not None
    assert made.answerer("what does the FOX say?") == ("fox", ())
    assert made.answerer("whale") == ("later whale", ())
    assert made.answerer("nothing in common") == ("later whale", ())


def test_who_wrote_nothing_answers_nothing(base: LoadedBase) -> None:
    (made,) = build_models(METHOD, a_context(base, 0), [a_user(0)], {})
    assert made.answerer is not None and made.answerer("anything") == ("", ())
