"""Intervals, tests and power, against enumeration, plain computation and simulated people whose truth is known."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mta_cli.engine.evaluation import statistics
from mta_cli.engine.evaluation.statistics import (
    bootstrap_metrics,
    holm_adjusted,
    minimum_detectable_effect,
    paired_difference,
    planned_detectable_effect,
)
from mta_cli.engine.evaluation.user_sums import UserSums, sum_by_user
from tests.metrics_by_hand import score

LABELS = ("a", "b", "c", "d")
SCORES = ("1", "2", "3", "4", "5")
WORDS = ("one", "two", "three")
CHOICES = {"accuracy": LABELS, "mae": SCORES, "rouge": WORDS}
METRICS = {"accuracy": ("accuracy", "macro_f1"), "mae": ("mae", "rmse"), "rouge": ("rouge_1", "rouge_l")}
FAMILIES = list(CHOICES)


class Town:
    """People with 1 to 5 queries each, answered by methods that are right with a probability of their own."""

    def __init__(self, metric: str, people: int, seed: int) -> None:
        self.metric, self.draw = metric, random.Random(seed)
        self.labels = CHOICES[metric] if metric != "rouge" else ()
        self.users = [user for user in range(people) for _ in range(self.draw.randint(1, 5))]
        self.golds = [self.text() for _ in self.users]

    def text(self) -> str:
        many = 4 if self.metric == "rouge" else 1
        return " ".join(self.draw.choices(CHOICES[self.metric], k=many))

    def answers(self, right: float) -> list[str]:
        return [gold if self.draw.random() < right else self.text() for gold in self.golds]

    def tally(self, answers: Sequence[str]) -> UserSums:
        return sum_by_user(self.metric, self.labels, self.users, answers, self.golds, [None] * len(answers))

    def score(self, answers: Sequence[str], chosen: Sequence[int] | None = None) -> dict[str, float]:
        """The plain metrics of the answers' queries, or of some of them, by repetition."""
        kept = range(len(self.users)) if chosen is None else chosen
        return score(self.metric, [answers[i] for i in kept], [self.golds[i] for i in kept], self.labels)

    def own(self, user: int) -> list[int]:
        return [i for i, other in enumerate(self.users) if other == user]


def likelihoods(values: np.ndarray) -> UserSums:
    """A tally of given log-likelihoods, `[users, queries]`, under answers that are all right."""
    count = values.size
    users = [user for user in range(len(values)) for _ in range(values.shape[1])]
    return sum_by_user("accuracy", ("a",), users, ["a"] * count, ["a"] * count, values.ravel().tolist())


def clustered(rng: np.random.Generator, users: int, queries: int, between: float) -> np.ndarray:
    """Normal numbers of variance 1, `[users, queries]`, with correlation `between` within a user."""
    own = rng.normal(size=(users, 1)) * math.sqrt(between)
    return own + rng.normal(size=(users, queries)) * math.sqrt(1 - between)


@pytest.mark.parametrize("metric", FAMILIES)
def test_intervals_are_those_of_a_plain_bootstrap_over_users(metric: str) -> None:
    town = Town(metric, 15, seed=1)
    a, b = town.answers(0.6), town.answers(0.4)
    alone, paired = bootstrap_metrics(town.tally(a), seed=3), paired_difference(town.tally(a), town.tally(b), seed=3)
    draw, groups = random.Random(5), [town.own(user) for user in range(15)]
    samples = [[i for _ in groups for i in draw.choice(groups)] for _ in range(1000)]
    ours, theirs = [town.score(a, sample) for sample in samples], [town.score(b, sample) for sample in samples]
    for name in METRICS[metric]:
        assert alone[name]["value"] == pytest.approx(town.score(a)[name])
        assert paired[name]["value"] == pytest.approx(town.score(a)[name] - town.score(b)[name])
        gaps = [mine[name] - yours[name] for mine, yours in zip(ours, theirs, strict=True)]
        for found, drawn in ((alone[name], [one[name] for one in ours]), (paired[name], gaps)):
            near = 0.3 * float(np.std(drawn))
            assert (found["low"], found["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=near)


@pytest.mark.parametrize("metric", FAMILIES)
def test_p_is_the_share_of_all_swaps_that_are_as_extreme(metric: str) -> None:
    town = Town(metric, 6, seed=2)
    a, b = town.answers(0.9), town.answers(0.2)
    found = paired_difference(town.tally(a), town.tally(b), seed=0)
    gaps = []
    for swap in itertools.product((False, True), repeat=6):
        left = [y if swap[user] else x for user, x, y in zip(town.users, a, b, strict=True)]
        right = [x if swap[user] else y for user, x, y in zip(town.users, a, b, strict=True)]
        ours, theirs = town.score(left), town.score(right)
        gaps.append({name: ours[name] - theirs[name] for name in ours})
    for name in METRICS[metric]:
        exact = np.mean([abs(gap[name]) >= abs(gaps[0][name]) - 1e-9 for gap in gaps])
        assert found[name]["p"] == pytest.approx(exact, abs=0.02)


def test_p_is_scipys_where_scipy_can_tell() -> None:
    rng = np.random.default_rng(4)
    a = clustered(rng, 30, 3, 0.4)
    b = a - 0.15 + rng.normal(size=a.shape) * 0.6
    p = paired_difference(likelihoods(a), likelihoods(b), seed=0)["gold_loglik"]["p"]
    result = stats.permutation_test(
        (a.mean(axis=1), b.mean(axis=1)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    assert p == pytest.approx(result.pvalue, abs=0.01)
    assert 0.001 < p < 0.5


def test_holm_by_hand() -> None:
    # Ordered .01, .02, .03, .04: times 4, 3, 2, 1 is .04, .06, .06, .04, and none may fall below an earlier one.
    assert holm_adjusted([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_adjusted([0.5, 0.9]) == [1.0, 1.0] and holm_adjusted([0.2]) == [0.2] and holm_adjusted([]) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_its_step_down_rejects(p_values: list[float], level: float) -> None:
    """Holm's own wording: reject the smallest p while it is at most α over the number of those not rejected yet."""
    rejected: set[int] = set()
    for index in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[index] * (len(p_values) - len(rejected)) > level:
            break
        rejected.add(index)
    assert {index for index, adjusted in enumerate(holm_adjusted(p_values)) if adjusted <= level} == rejected


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(1000):
        found = bootstrap_metrics(likelihoods(clustered(rng, 60, 2, 0.5) - 2), seed=trial, draws=300)["gold_loglik"]
        held += found["low"] <= -2 <= found["high"]
    assert (
        0.92 <= held / 1000 <= 0.965
    )  # 94 % in theory: a bootstrap of 60 users does not know that it estimates a spread


def test_an_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        a = clustered(rng, 40, 3, 0.5)
        b = a + 0.3 + clustered(rng, 40, 3, 0.5)
        found = paired_difference(likelihoods(a), likelihoods(b), seed=trial, draws=400)["gold_loglik"]
        held += found["low"] <= -0.3 <= found["high"]
    assert 0.905 <= held / 300 <= 0.98


def test_p_is_uniform_where_methods_are_alike() -> None:
    """Also for macro-F1, and where the answers to one person's queries depend on each other."""
    rng = np.random.default_rng(2)
    found: dict[str, list[float]] = {"gold_loglik": [], "macro_f1": []}
    for trial in range(200):
        town = Town("accuracy", 30, seed=trial)
        tallies = []
        for _ in range(2):
            own = rng.normal(size=30)
            logliks = [float(own[user] + rng.normal()) for user in town.users]
            tallies.append(sum_by_user("accuracy", LABELS, town.users, town.answers(0.4), town.golds, logliks))
        for name, values in paired_difference(*tallies, seed=trial, draws=300).items():
            if name in found:
                found[name].append(values["p"])
    for ps in found.values():
        assert stats.kstest(ps, "uniform").pvalue > 0.01
        assert np.mean(np.array(ps) <= 0.05) <= 0.09


@pytest.mark.parametrize("metric", FAMILIES)
def test_an_effect_that_is_there_is_found(metric: str) -> None:
    town = Town(metric, 60, seed=3)
    found = paired_difference(town.tally(town.answers(0.8)), town.tally(town.answers(0.3)), seed=0, draws=2000)
    better = -1 if metric == "mae" else 1
    for name in METRICS[metric]:
        assert found[name]["p"] == pytest.approx(1 / 2001)
        assert min(found[name]["low"] * better, found[name]["high"] * better) > 0


def test_what_is_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    effect, hits, told = planned_detectable_effect([3] * 40, 1.0, 0.3), 0, []
    for trial in range(300):
        a = clustered(rng, 40, 3, 0.6)
        tallies = likelihoods(a + effect + clustered(rng, 40, 3, 0.3)), likelihoods(a)
        hits += paired_difference(*tallies, seed=trial, draws=300)["gold_loglik"]["p"] <= 0.05
        told.append(minimum_detectable_effect(*tallies, "gold_loglik"))
    assert 0.74 <= hits / 300 <= 0.86
    assert np.mean(told) == pytest.approx(effect, rel=0.03)


@pytest.mark.parametrize("metric", FAMILIES)
def test_detectable_follows_the_bootstraps_standard_error(metric: str) -> None:
    town = Town(metric, 150, seed=4)
    a, b = town.tally(town.answers(0.6)), town.tally(town.answers(0.5))
    found = paired_difference(a, b, seed=0, draws=4000)
    for name in METRICS[metric]:
        error = (found[name]["high"] - found[name]["low"]) / (2 * 1.96)
        assert minimum_detectable_effect(a, b, name) == pytest.approx(2.8 * error, rel=0.1)
        assert minimum_detectable_effect(b, a, name) == pytest.approx(minimum_detectable_effect(a, b, name))


def test_detectable_before_counts_queries_as_far_as_they_are_independent() -> None:
    assert planned_detectable_effect([1] * 100, 0.5, 0.9) == pytest.approx(2.8 * 0.5 / 10)
    assert planned_detectable_effect([4] * 25, 0.5, 0.0) == pytest.approx(2.8 * 0.5 / 10)
    assert planned_detectable_effect([4] * 25, 0.5, 1.0) == pytest.approx(2.8 * 0.5 / 5)
    assert planned_detectable_effect([1, 7], 1.0, 0.5) > planned_detectable_effect([4, 4], 1.0, 0.5)
    for design in (([], 1.0, 0.5), ([0], 1.0, 0.5), ([3], -1.0, 0.5), ([3], 1.0, 1.5)):
        with pytest.raises(ValueError, match="impossible design"):
            planned_detectable_effect(*design)


def test_detectable_before_for_people_of_different_numbers_of_queries() -> None:
    rng, counts = np.random.default_rng(5), [1, 2, 3, 12] * 10
    means = []
    for _ in range(2000):
        own = np.repeat(rng.normal(size=40), counts) * math.sqrt(0.4)
        means.append((own + rng.normal(size=sum(counts)) * math.sqrt(0.6)).mean())
    assert planned_detectable_effect(counts, 1.0, 0.4) == pytest.approx(2.8 * np.std(means), rel=0.06)


def test_one_user_alone_proves_nothing() -> None:
    a, b = likelihoods(np.array([[-1.0, -2.0]])), likelihoods(np.array([[-2.0, -4.0]]))
    assert minimum_detectable_effect(a, b, "gold_loglik") == math.inf
    assert paired_difference(a, b, seed=0)["gold_loglik"] == {"value": 1.5, "low": 1.5, "high": 1.5, "p": 1.0}


@settings(deadline=None, max_examples=25)
@given(metric=st.sampled_from(FAMILIES), seed=st.integers(0, 99), people=st.integers(1, 9))
def test_a_method_does_not_differ_from_itself(metric: str, seed: int, people: int) -> None:
    town = Town(metric, people, seed)
    own = town.tally(town.answers(0.5))
    for found in paired_difference(own, own, seed=seed, draws=50).values():
        assert found == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@settings(deadline=None, max_examples=25)
@given(metric=st.sampled_from(FAMILIES), seed=st.integers(0, 99))
def test_a_difference_turns_with_its_sides(metric: str, seed: int) -> None:
    town = Town(metric, 8, seed)
    a, b = town.tally(town.answers(0.7)), town.tally(town.answers(0.3))
    there, back = paired_difference(a, b, seed=seed, draws=60), paired_difference(b, a, seed=seed, draws=60)
    for name, found in there.items():
        turned = {"value": -found["value"], "low": -found["high"], "high": -found["low"], "p": found["p"]}
        assert back[name] == pytest.approx(turned)


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(8)))
def test_who_is_who_does_not_matter_to_values(names: list[int]) -> None:
    town = Town("accuracy", 8, seed=0)
    a, b = town.answers(0.7), town.answers(0.3)
    before = paired_difference(town.tally(a), town.tally(b), seed=0, draws=20)
    power = minimum_detectable_effect(town.tally(a), town.tally(b), "macro_f1")
    town.users = [names[user] for user in town.users]
    after = paired_difference(town.tally(a), town.tally(b), seed=0, draws=20)
    assert [one["value"] for one in after.values()] == pytest.approx([one["value"] for one in before.values()])
    assert minimum_detectable_effect(town.tally(a), town.tally(b), "macro_f1") == pytest.approx(power)


def test_a_seed_fixes_everything_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town("mae", 12, seed=6)
    a, b = town.tally(town.answers(0.7)), town.tally(town.answers(0.5))

    def everything(seed: int) -> list[dict[str, dict[str, float]]]:
        return [bootstrap_metrics(a, seed=seed, draws=100), paired_difference(a, b, seed=seed, draws=100)]

    first, other = everything(1), everything(2)
    assert first == everything(1) != other
    monkeypatch.setattr(statistics, "MAX_WEIGHTS_IN_MEMORY", 50)
    for whole, pieces in zip(first, everything(1), strict=True):
        for name, found in whole.items():
            assert pieces[name] == pytest.approx(found)


def test_likelihoods_that_one_method_lacks_are_left_out() -> None:
    a = likelihoods(np.array([[-1.0], [-2.0]]))
    b = sum_by_user("accuracy", ("a",), [0, 1], ["a", "a"], ["a", "a"], [None, None])
    assert set(paired_difference(a, b, seed=0, draws=10)) == {"accuracy", "macro_f1"}
    with pytest.raises(ValueError, match="gold_loglik"):
        minimum_detectable_effect(a, b, "gold_loglik")


@pytest.mark.parametrize(
    "compare", [lambda a, b: paired_difference(a, b, seed=0), lambda a, b: minimum_detectable_effect(a, b, "accuracy")]
)
def test_methods_that_answered_something_else_are_not_compared(compare: Callable[[UserSums, UserSums], object]) -> None:
    def one(metric: str, users: list[int], golds: list[str]) -> UserSums:
        return sum_by_user(metric, LABELS if metric == "accuracy" else (), users, ["a", "a"], golds, [None, None])

    first = one("accuracy", [1, 2], ["a", "b"])
    for other, reason in (
        (one("rouge", [1, 2], ["a", "b"]), "different tasks"),
        (one("accuracy", [1, 3], ["a", "b"]), "different users"),
        (one("accuracy", [1, 2], ["b", "a"]), "different queries"),
        (one("accuracy", [1, 1], ["a", "b"]), "different users"),
    ):
        with pytest.raises(ValueError, match=reason):
            compare(first, other)
