"""Label memory by nearest neighbours: the answers of a bank's users to inputs similar to the query. No language model.

A kernel estimate in the space of an embedder (Nadaraya and Watson, 1964; for language models kNN-LM, arXiv 1911.00172):
each item of the bank votes for its label with `exp(sharpness · (cosine − 1))`. A linear discriminant of the same items
extrapolates where no item is near. The sharpness and the powers (exponents) of votes, discriminant and label prior are
fitted on the bank's users, each predicted from the other users' items.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import logsumexp

from mta_cli.engine.memory.label_prior import PRIOR_STRENGTH, user_label_prior
from mta_cli.engine.memory.linear_discriminant import LinearDiscriminant, Moments

Array = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
EmbedFunction = Callable[[Sequence[str]], Vectors]  # turns texts into unit vectors [texts, width]

SHARPNESSES = (2.0, 4.0, 6.0, 8.0, 10.0, 14.0, 20.0)
BACKGROUND_VOTES = 0.1  # votes distributed by the label rates, for queries without a near item
FIT_SHOTS = 5  # a user's answers that are known when another item is predicted, as for a new user
INITIAL_POWERS, POWER_BOUNDS = (1.0, 1.0, 0.1), [(0.0, 4.0)] * 3  # powers of votes, label prior and discriminant
MAX_FIT_ITEMS = 2_000  # limit on the items to fit on, divided equally among the users, at least one each
EQUAL_WEIGHT, WEIGHT_BOUNDS = 0.5, [(0.02, 2.0), (0.0, 2.0)]  # weights of model and memory in their sum
WEIGHTS_PRIOR_ITEMS = 20.0  # nats added to the items' summed loss for a squared distance of 1 from equal weights
CROSS_FIT_FOLDS = 5  # folds of users: each fold is scored by a discriminant of the other folds
MAX_CACHED_TIMES = 8  # question times for which the earlier items are cached
MAX_CACHED_ASKERS = 256  # users for whom a discriminant without their items is cached
QUERY_BLOCK = 256  # queries at once, since [block, items] weights are in memory


@dataclass(frozen=True)
class NeighbourKernel:
    """The kernel's `sharpness`, and the powers of the votes, the user's label prior (`habit`) and the discriminant."""

    sharpness: float
    votes: float
    habit: float
    linear: float = 0.0


@dataclass(frozen=True)
class MixtureWeights:
    """The weights of the log-linear mixture of a model and the terms of the memory.

    The score of l is `model · m(l) + memory · (votes(l) + discriminant(l)) + habit · prior(l) + rates · log r(l)`.
    """

    model: float
    memory: float
    habit: float
    rates: float

    @classmethod
    def from_parts(cls, model: float, memory: float) -> MixtureWeights:
        """The mixture in which all terms of the memory have the weight `memory`."""
        return cls(model, memory, memory, memory)


@dataclass(frozen=True)
class NeighbourIndex:
    """The labelled items of a bank.

    `vectors` [items, width] are unit embeddings of their inputs, `labels` [items] label indices, `item_users` [items]
    user numbers. `rates` [labels] are the label frequencies, which sum to one. `times` [items] are ISO 8601, an empty
    text if unknown; an empty tuple if all are unknown.
    """

    vectors: Vectors
    labels: npt.NDArray[np.int64]
    item_users: npt.NDArray[np.int64]
    rates: Array
    times: tuple[str, ...] = ()

    def until(self, time: str | None, asker: int | None = None) -> NeighbourIndex:
        """The items up to `time` (times compare as text), with label rates counted on these items; all items if `time`
        is None.

        If any items are left out, items of the user `asker` are not counted in the rates.
        """
        if time is None or self._latest <= time:
            return self
        return self._cached_until(time, asker if (self.item_users == asker).any() else None)

    @cached_property
    def _latest(self) -> str:
        return max(self.times, default="")

    @cached_property
    def _cached_until(self) -> Callable[[str, int | None], NeighbourIndex]:
        """`_items_until` with a cache, because the questions of an evaluation share their times."""
        return lru_cache(MAX_CACHED_TIMES)(self._items_until)

    def _items_until(self, time: str, asker: int | None) -> NeighbourIndex:
        """The items that are not later than `time`; their label rates leave out the user `asker`."""
        kept = np.array([known <= time for known in self.times])
        earlier = self._select(kept)
        counted = earlier.labels[earlier.item_users != asker]
        counts = np.bincount(counted, minlength=len(self.rates)) + 1.0  # Laplace smoothing, as in `label_rates`
        return replace(earlier, rates=counts / counts.sum())

    def _select(self, kept: npt.NDArray[np.bool_]) -> NeighbourIndex:
        times = tuple(itertools.compress(self.times, kept.tolist()))
        return NeighbourIndex(self.vectors[kept], self.labels[kept], self.item_users[kept], self.rates, times)

    def log_vote_rates(
        self, queries: Vectors, sharpness: float, excluded_users: npt.NDArray[np.int64] | None = None
    ) -> Array:
        """Log label rates [queries, labels] among the neighbours of unit `queries` [queries, width].

        With `excluded_users` [queries], the items of query i's excluded user do not vote on query i.
        """
        one_hot = np.eye(len(self.rates))[self.labels]  # [items, labels]
        votes = np.empty((len(queries), len(self.rates)))
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            # 1. the kernel of each query with each item  [block, items]
            weights = self.vote_weights(queries[block], sharpness)
            # 2. items of excluded users do not vote
            if excluded_users is not None:
                weights[excluded_users[block, None] == self.item_users] = 0.0
            # 3. the votes for each label, plus the background votes  [block, labels]
            votes[block] = weights @ one_hot + BACKGROUND_VOTES * self.rates
        logs: Array = np.log(votes / votes.sum(axis=1, keepdims=True))
        return logs

    def vote_weights(self, queries: Vectors, sharpness: float) -> Array:
        """The weight of each item's vote on unit `queries` [queries, width]: the kernel [queries, items]."""
        weights: Array = np.exp(sharpness * (queries @ self.vectors.T - 1.0)).astype(np.float64)
        return weights

    def without_user(self, user: int) -> NeighbourIndex:
        """The items of all users except `user`; the rates stay the same."""
        others = self.item_users != user
        return self if others.all() else self._select(others)

    @cached_property
    def _moments(self) -> Moments:
        return Moments.from_labelled_vectors(self.vectors, self.labels, len(self.rates))

    @cached_property
    def discriminant(self) -> LinearDiscriminant:
        """The discriminant of all items."""
        return self._moments.fit_discriminant()

    @cached_property
    def discriminant_without(self) -> Callable[[int], LinearDiscriminant]:
        """A cached function from a user's number to the discriminant fitted without the user's items."""
        return lru_cache(MAX_CACHED_ASKERS)(self._fit_without)

    def _fit_without(self, user: int) -> LinearDiscriminant:
        own = self.item_users == user
        if not own.any():
            return self.discriminant
        others = self._moments - Moments.from_labelled_vectors(self.vectors[own], self.labels[own], len(self.rates))
        return others.fit_discriminant()

    def label_log_ratios(
        self, kernel: NeighbourKernel, queries: Vectors, user_priors: Array, asker: int | None = None
    ) -> Array:
        """The memory's log-score of each label beyond the population's rates [queries, labels], nats.

        `user_priors` [queries, labels] are the askers' label priors (see `label_prior.user_label_prior`). The items of
        the user `asker` do not count.
        """
        askers = None if asker is None else np.full(len(queries), asker)
        votes = self.log_vote_rates(queries, kernel.sharpness, askers) - np.log(self.rates)
        ratios = kernel.votes * votes + kernel.habit * user_priors
        if not kernel.linear:
            return ratios
        discriminant = self.discriminant if asker is None else self.discriminant_without(asker)
        return ratios + kernel.linear * discriminant(queries)

    def cross_fitted_scores(self, items: npt.NDArray[np.int64]) -> Array:
        """Discriminant scores of these items [items, labels], nats. Each item is scored by a discriminant that was
        fitted without the users of its fold (cross-fitting).

        The users are divided into `CROSS_FIT_FOLDS` folds.
        """
        count = len(self.rates)
        # 1. the fold of each item, by its user; the statistics of all items
        _, user_index = np.unique(self.item_users, return_inverse=True)
        part = user_index % CROSS_FIT_FOLDS  # [items of the bank]
        scores = np.zeros((len(items), count))
        for fold in range(CROSS_FIT_FOLDS):
            # 2. the discriminant of the items outside the fold
            inside, asked = part == fold, part[items] == fold
            others = self._moments - Moments.from_labelled_vectors(self.vectors[inside], self.labels[inside], count)
            # 3. the scores of the fold's items
            scores[asked] = others.fit_discriminant()(self.vectors[items[asked]])
        return scores


@dataclass(frozen=True)
class NeighbourLabelPrior:
    """A user's label prior (see `label_prior.LabelPrior`) from neighbours and from the user's own `answers`.

    Neighbours later than the question count only with `look_ahead`; items of the user `asker` never count.
    """

    neighbours: NeighbourIndex
    kernel: NeighbourKernel
    embed: EmbedFunction
    task_labels: tuple[str, ...]
    answers: tuple[str, ...]
    look_ahead: bool = False
    asker: int | None = None
    model_weight: float = 1.0
    rates_weight: float = 0.0

    def beside_model(self, weights: MixtureWeights, factor: float = 1.0) -> NeighbourLabelPrior:
        """The same prior, weighted for a sum with a model's log-likelihoods; the memory's weights are multiplied by
        `factor`.
        """
        own, powers = factor * weights.memory, self.kernel
        kernel = NeighbourKernel(
            powers.sharpness, own * powers.votes, factor * weights.habit * powers.habit, own * powers.linear
        )
        return replace(self, kernel=kernel, model_weight=weights.model, rates_weight=factor * weights.rates)

    def __call__(self, text: str, time: str | None = None) -> tuple[float, ...]:
        """See `LabelPrior`."""
        known = self.neighbours if self.look_ahead else self.neighbours.until(time, self.asker)
        user_prior = user_label_prior(self.answers, self.task_labels, known.rates.tolist(), PRIOR_STRENGTH)
        ratios = known.label_log_ratios(self.kernel, self.embed([text]), np.array([user_prior]), self.asker)
        return tuple((ratios[0] + self.rates_weight * np.log(known.rates)).tolist())


def fit_kernel(known: NeighbourIndex, labels: Sequence[str], seed: int = 0) -> NeighbourKernel:
    """The maximum-likelihood kernel for the labels of the bank's users.

    Each item is predicted from other users' items and from `FIT_SHOTS` other answers of its own user; every user has
    the same weight. The kernel of a bank with a single user uses only the label prior.
    """
    best, least = NeighbourKernel(SHARPNESSES[0], 0.0, 1.0), np.inf
    if len(np.unique(known.item_users)) < 2:
        return best
    # 1. the items to predict; their users' label priors and scores by discriminants of other users  [items, labels]
    guessed, weights, user_priors = _fit_examples(known, labels, np.random.default_rng(seed))
    golds, base, linear = known.labels[guessed], np.log(known.rates), known.cross_fitted_scores(guessed)
    for sharpness in SHARPNESSES:
        # 2. the three terms of the score  [3, items, labels]
        votes = known.log_vote_rates(known.vectors[guessed], sharpness, known.item_users[guessed]) - base
        terms = np.stack([votes, user_priors, linear])
        # 3. the powers that maximise the likelihood of the items' labels
        fit: Any = minimize(
            _loss_and_gradient, INITIAL_POWERS, (terms, base, golds, weights), "L-BFGS-B", jac=True, bounds=POWER_BOUNDS
        )
        if fit.fun < least:
            best, least = NeighbourKernel(sharpness, *map(float, fit.x)), float(fit.fun)
    return best


def fit_mixture_weights(
    model: Array, memory: Array, golds: npt.NDArray[np.int64], users: npt.NDArray[np.int64]
) -> MixtureWeights:
    """The weights that maximise the likelihood of the `golds` [items]; each of `users` [items] has the same weight.

    `model` are log-likelihoods of the labels and `memory` the scores of the memory alone (each [items, labels], nats).
    The squared distance of the weights from ½ (equal shares), times `WEIGHTS_PRIOR_ITEMS` nats, is added to the items'
    summed loss.
    """
    _, user_index, each = np.unique(users, return_inverse=True, return_counts=True)
    shares = 1.0 / (len(each) * each[user_index])
    rows = np.arange(len(golds))

    def penalised_loss(weights: Array) -> float:
        sums = weights[0] * model + weights[1] * memory  # [items, labels]
        chosen = sums[rows, golds] - logsumexp(sums, axis=1)
        away: float = np.square(weights - EQUAL_WEIGHT).sum()
        return float(-shares @ chosen + WEIGHTS_PRIOR_ITEMS * away / len(golds))

    best: Any = minimize(penalised_loss, np.full(2, EQUAL_WEIGHT), method="L-BFGS-B", bounds=WEIGHT_BOUNDS)
    return MixtureWeights.from_parts(*map(float, best.x))


def _fit_examples(
    known: NeighbourIndex, labels: Sequence[str], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], Array, Array]:
    """Items to predict, their weights, and their users' label priors from a few other answers [items, labels]."""
    users = np.unique(known.item_users)
    items_per_user = max(1, MAX_FIT_ITEMS // len(users))
    guessed: list[int] = []
    weights: list[float] = []
    user_priors: list[tuple[float, ...]] = []
    for user in users:
        items = np.flatnonzero(known.item_users == user)
        chosen = rng.permutation(items)[:items_per_user]
        for item in chosen:
            others = items[items != item]
            shown = rng.permutation(others)[:FIT_SHOTS]
            user_priors.append(
                user_label_prior(
                    [labels[place] for place in known.labels[shown]], labels, known.rates.tolist(), PRIOR_STRENGTH
                )
            )
        guessed += chosen.tolist()
        weights += [1.0 / len(chosen)] * len(chosen)
    return np.array(guessed, np.int64), np.array(weights) / len(users), np.array(user_priors)


def _loss_and_gradient(
    powers: Array, terms: Array, base: Array, golds: npt.NDArray[np.int64], weights: Array
) -> tuple[float, Array]:
    """Mean negative log-likelihood of the golds (nats), and its gradient with respect to `powers`.

    `terms` are [3, items, labels].
    """
    scores = base + np.tensordot(powers, terms, 1)
    logs = scores - logsumexp(scores, axis=1, keepdims=True)
    rows = np.arange(len(golds))
    surprise = np.exp(logs)
    surprise[rows, golds] -= 1.0
    return float(-weights @ logs[rows, golds]), np.einsum("i,il,kil->k", weights, surprise, terms)
