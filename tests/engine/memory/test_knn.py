"""Neighbours against plain sums, and kernels against what the data were drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.memory.knn import (
    BACKGROUND_VOTES,
    QUERY_BLOCK,
    Array,
    MixtureWeights,
    NeighbourIndex,
    NeighbourKernel,
    NeighbourLabelPrior,
    Vectors,
    fit_kernel,
    fit_mixture_weights,
)
from mta_cli.engine.memory.label_prior import PRIOR_STRENGTH, label_rates, user_label_prior

LABELS = ("yes", "no", "maybe")


def units(count: int, seed: int, width: int = 4) -> Vectors:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some(count: int, seed: int = 0, people: int = 3) -> NeighbourIndex:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(LABELS), count)
    rates = np.array(label_rates([LABELS[place] for place in labels], LABELS))
    return NeighbourIndex(units(count, seed), labels, np.arange(count) % people, rates)


def by_hand(known: NeighbourIndex, query: Sequence[float], sharpness: float, stranger: int | None) -> list[float]:
    votes = [BACKGROUND_VOTES * rate for rate in known.rates]
    for vector, label, owner in zip(known.vectors, known.labels, known.item_users, strict=True):
        cosine = sum(float(a) * float(b) for a, b in zip(vector, query, strict=True))
        votes[label] += 0.0 if owner == stranger else math.exp(sharpness * (cosine - 1.0))
    return [math.log(vote / sum(votes)) for vote in votes]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 5), st.floats(0.0, 30.0), st.sampled_from([None, 0, 1]))
def test_votes_are_weighed_by_a_kernel(count: int, seed: int, sharpness: float, stranger: int | None) -> None:
    known, queries = some(count, seed), units(3, seed + 100)
    strangers = None if stranger is None else np.full(3, stranger)
    found = known.log_vote_rates(queries, sharpness, strangers)
    for row, query in zip(found, queries, strict=True):
        assert row.tolist() == pytest.approx(by_hand(known, query.tolist(), sharpness, stranger), abs=1e-4)


def test_many_queries_are_as_one_by_one() -> None:
    known, queries = some(40), units(QUERY_BLOCK + 3, 9)
    strangers = np.arange(len(queries)) % 3
    found = known.log_vote_rates(queries, 5.0, strangers)
    for place in (0, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 2):
        alone = known.log_vote_rates(queries[place : place + 1], 5.0, strangers[place : place + 1])
        assert found[place] == pytest.approx(alone[0])


def test_a_question_that_nothing_resembles_gets_peoples_rates() -> None:
    known = some(10)
    away = -known.vectors.mean(axis=0, keepdims=True)
    assert known.log_vote_rates(away / np.linalg.norm(away), 500.0)[0] == pytest.approx(np.log(known.rates), abs=1e-3)


def test_evidence_is_what_votes_and_habit_say_beyond_the_rates() -> None:
    known, queries = some(10), units(2, 5)
    habits = np.array([[0.5, -0.5, 0.0], [0.0, 1.0, -1.0]])
    found = known.label_log_ratios(NeighbourKernel(3.0, 2.0, 0.5), queries, habits)
    assert found == pytest.approx(2.0 * (known.log_vote_rates(queries, 3.0) - np.log(known.rates)) + 0.5 * habits)


def test_the_discriminant_of_all_items_is_added() -> None:
    known, queries, habits = some(20), units(4, 5), np.zeros((4, 3))
    without, linear = (
        known.label_log_ratios(NeighbourKernel(3.0, 2.0, 0.5, power), queries, habits) for power in (0.0, 0.7)
    )
    assert linear - without == pytest.approx(0.7 * known.discriminant(queries))


def test_the_discriminant_of_others_hears_nothing_of_a_persons_own_answers() -> None:
    known, items = town(2, by_item=2.0, by_person=0.0, people=7), np.arange(0, 84, 5)
    found = known.cross_fitted_scores(items)
    for person in (0, 3, 6):
        own = known.item_users == person
        liar = replace(known, labels=np.where(own, (known.labels + 1) % 3, known.labels))
        assert liar.cross_fitted_scores(items)[own[items]] == pytest.approx(found[own[items]], abs=1e-4)
    assert known.cross_fitted_scores(items[:1]) == pytest.approx(found[:1])


def test_a_guess_is_one_persons_evidence() -> None:
    known, answers, kernel = some(10), ("yes", "yes", "no"), NeighbourKernel(3.0, 1.0, 2.0, 0.5)
    guess = NeighbourLabelPrior(known, kernel, lambda texts: units(1, len(texts[0])), LABELS, answers)
    own = user_label_prior(answers, LABELS, known.rates.tolist(), PRIOR_STRENGTH)
    expected = known.label_log_ratios(kernel, units(1, 5), np.array([own]))[0]
    assert guess("12345") == pytest.approx(expected.tolist())


def test_beside_a_model_each_term_of_the_memory_has_its_weight() -> None:
    known, kernel = some(4), NeighbourKernel(3.0, 1.0, 2.0, 0.5)
    guess = NeighbourLabelPrior(known, kernel, lambda texts: units(1, 0), LABELS, ("yes",))
    mixed = guess.beside_model(MixtureWeights(0.7, 0.5, 0.25, 0.3), 2.0)
    assert mixed.kernel == NeighbourKernel(3.0, 1.0, 1.0, 0.5)
    assert guess.model_weight == 1.0 and mixed.model_weight == 0.7
    own = user_label_prior(("yes",), LABELS, known.rates.tolist(), PRIOR_STRENGTH)
    expected = known.label_log_ratios(mixed.kernel, units(1, 0), np.array([own]))[0] + 0.6 * np.log(known.rates)
    assert mixed("text") == pytest.approx(expected.tolist())


def town(seed: int, *, by_item: float, by_person: float, people: int = 40, items: int = 12) -> NeighbourIndex:
    """People who answer the same films; what they say hangs on the film, on themselves, or on neither."""
    rng = np.random.default_rng(seed)
    films, film_says = units(30, seed, 16), rng.integers(0, 3, 30)
    vectors, labels, owners = [], [], []
    for person in range(people):
        taste = rng.integers(0, 3)
        for film in rng.permutation(30)[:items]:
            scores = by_item * (np.arange(3) == film_says[film]) + by_person * (np.arange(3) == taste)
            chances = np.exp(scores) / np.exp(scores).sum()
            vectors.append(films[film])
            labels.append(int(rng.choice(3, p=chances)))
            owners.append(person)
    rates = label_rates([LABELS[place] for place in labels], LABELS)
    return NeighbourIndex(np.array(vectors), np.array(labels), np.array(owners), np.array(rates))


def likelihood(known: NeighbourIndex, kernel: NeighbourKernel, asked: NeighbourIndex) -> float:
    """Of new people's answers (nats), each guessed from the others' and from five of their own."""
    total = []
    for person in np.unique(asked.item_users):
        own = np.flatnonzero(asked.item_users == person)
        said = user_label_prior(
            [LABELS[place] for place in asked.labels[own[:5]]], LABELS, known.rates.tolist(), PRIOR_STRENGTH
        )
        scores = np.log(known.rates) + known.label_log_ratios(
            kernel, asked.vectors[own[5:]], np.array([said] * len(own[5:]))
        )
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        total += logs[np.arange(len(own) - 5), asked.labels[own[5:]]].tolist()
    return float(np.mean(total))


def test_what_is_fitted_is_what_answers_hang_on() -> None:
    by_item, by_person = (fit_kernel(town(1, by_item=a, by_person=b), LABELS) for a, b in ((3.0, 0.0), (0.0, 3.0)))
    assert by_item.votes > 0.5 > by_item.habit and by_person.habit > 0.5 > by_person.votes
    neither = fit_kernel(town(1, by_item=0.0, by_person=0.0), LABELS)
    assert neither.votes < 0.3 and neither.habit < 0.3


def test_a_fitted_kernel_is_better_for_new_people_than_nothing() -> None:
    everybody = town(3, by_item=2.0, by_person=1.5, people=80)
    here = everybody.item_users < 40
    known = NeighbourIndex(everybody.vectors[here], everybody.labels[here], everybody.item_users[here], everybody.rates)
    asked = NeighbourIndex(
        everybody.vectors[~here], everybody.labels[~here], everybody.item_users[~here], everybody.rates
    )
    kernel = fit_kernel(known, LABELS)
    found = likelihood(known, kernel, asked)
    for votes, own in ((kernel.votes, 0.0), (0.0, kernel.habit), (0.0, 0.0)):
        assert found > likelihood(known, NeighbourKernel(kernel.sharpness, votes, own), asked) + 0.02


def plane(seed: int, people: int, items: int = 12) -> NeighbourIndex:
    """Users with questions unlike anyone else's, answered by their direction: no item is near, and the discriminant
    suffices.
    """
    rng = np.random.default_rng(seed)
    vectors = units(people * items, seed, 24)
    labels = np.array([rng.choice(3, p=np.exp(6 * row[:3]) / np.exp(6 * row[:3]).sum()) for row in vectors])
    owners = np.repeat(np.arange(people), items)
    return NeighbourIndex(vectors, labels, owners, np.array(label_rates([LABELS[place] for place in labels], LABELS)))


def test_where_nothing_is_near_the_discriminant_finds_the_direction() -> None:
    kernel, asked = fit_kernel(plane(1, 60), LABELS), plane(2, 40)
    assert kernel.linear > 0.2
    found = likelihood(plane(1, 60), kernel, asked)
    assert found > likelihood(plane(1, 60), replace(kernel, linear=0.0), asked) + 0.05


def test_the_same_seed_fits_the_same() -> None:
    known = town(5, by_item=1.0, by_person=1.0)
    assert fit_kernel(known, LABELS, 7) == fit_kernel(known, LABELS, 7)


def test_one_person_has_no_neighbours() -> None:
    kernel = fit_kernel(some(9, people=1), LABELS)
    assert kernel.votes == kernel.linear == 0.0 and kernel.habit == 1.0


def fitted(known: NeighbourIndex, model: Array, memory: Array, items: np.ndarray | None = None) -> MixtureWeights:
    """The weights for a model and a memory of all items, or of those numbered `items`."""
    parts = (model, memory, known.labels, known.item_users)
    return fit_mixture_weights(*(part if items is None else part[items] for part in parts))


@pytest.mark.parametrize("seed", range(3))
def test_each_part_counts_as_much_as_it_knows(seed: int) -> None:
    """What knows the answers counts much, what guesses counts little, and equal parts count alike."""
    known, rng = town(seed, by_item=3.0, by_person=0.0), np.random.default_rng(seed)
    knowing = [3.0 * np.eye(3)[known.labels] + 2.0 * rng.normal(size=(len(known.labels), 3)) for _ in range(2)]
    guessing = 2.0 * rng.normal(size=knowing[0].shape)
    first, second = fitted(known, knowing[0], guessing), fitted(known, guessing, knowing[0])
    assert first.memory < 0.2 < 0.5 < first.model and second.model < 0.2 < 0.5 < second.memory
    assert first.memory == first.habit == first.rates
    both = fitted(known, *knowing)
    assert abs(both.model - both.memory) < 0.2
    alone = fitted(known, knowing[0], guessing, np.array([0]))
    assert abs(alone.model - 0.5) < 0.5 and abs(alone.memory - 0.5) < 0.5, "one item proves little"


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_no_worse_than_either_part(seed: int) -> None:
    """On items that the fit has not seen: better than the model, than the memory, and than both at full weight."""
    known, rng = town(seed, by_item=3.0, by_person=0.0), np.random.default_rng(seed)
    truth = np.eye(3)[known.labels]
    model = 3.0 * (truth + 0.8 * rng.normal(size=truth.shape))  # too sure of itself
    memory = truth + 1.2 * rng.normal(size=truth.shape)
    seen = known.item_users % 2 == 0
    weights = fitted(known, model, memory, np.flatnonzero(seen))

    def loss(sums: Array) -> float:
        logs = sums - np.log(np.exp(sums).sum(axis=1, keepdims=True))
        return -float(logs[np.arange(len(sums)), known.labels][~seen].mean())

    assert loss(weights.model * model + weights.memory * memory) < min(loss(model), loss(memory), loss(model + memory))


def test_everybodys_items_count_the_same_together() -> None:
    known, rng = town(5, by_item=2.0, by_person=0.0, people=6), np.random.default_rng(0)
    once = np.arange(len(known.labels))
    model, memory = (np.eye(3)[known.labels] + rng.normal(size=(len(once), 3)) for _ in range(2))
    talkative = np.concatenate([once, *[np.flatnonzero(known.item_users == 0)] * 3])  # one of them says it four times
    first, second = fitted(known, model, memory, once), fitted(known, model, memory, talkative)
    assert second.model == pytest.approx(first.model, rel=0.05)
    assert second.memory == pytest.approx(first.memory, rel=0.06)


def test_without_somebody_their_items_neither_vote_nor_show_a_direction() -> None:
    known = some(40, 3)
    owner = int(known.item_users[0])
    rest = known.without_user(owner)
    assert owner not in rest.item_users and len(rest.item_users) == int((known.item_users != owner).sum())
    queries, strangers = known.vectors[:4], np.full(4, owner)
    assert np.allclose(rest.log_vote_rates(queries, 5.0), known.log_vote_rates(queries, 5.0, strangers))
    assert not np.allclose(rest.discriminant(queries), known.discriminant(queries))
    assert known.without_user(-1) is known and np.array_equal(rest.rates, known.rates)


def test_without_the_only_one_nothing_is_known() -> None:
    known = some(6, 4)
    alone = replace(known, item_users=np.zeros_like(known.item_users)).without_user(0)
    found = alone.label_log_ratios(
        NeighbourKernel(5.0, 1.0, 0.0, 1.0), known.vectors[:2], np.zeros((2, len(known.rates)))
    )
    assert np.allclose(found, 0.0)
