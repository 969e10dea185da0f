"""Label memory: a prior over a user's answer, from known answers, without a language model. It is not in the paper.

`habit` is the user's label prior, from the user's own answers (see `label_prior.user_label_prior`):

    score(l) = model(l) + prior_weight · log((n_l + κ r_l) / ((n + κ) r_l))

`neighbours` adds other users' answers to similar inputs (see `knn`): kernel votes `v` and a linear discriminant `d`.
The powers `p` and the weights `a` and `b` are fitted when the bank is built:

    memory(l) = log r_l + p_v · log(v(l | x) / r_l) + p_d · d(l | x) + p_h · log((n_l + κ r_l) / ((n + κ) r_l))
    score(l) = a · model(l) + b · memory(l)

`r` are the population's label rates up to the time of the question, `n` the user's label counts, and κ a prior count.
`off` uses the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.engine.memory.label_prior import FrequencyLabelPrior, LabelPrior
from mta_cli.engine.text.labels import find_label

if TYPE_CHECKING:
    from mta_cli.engine.memory.knn import (
        EmbedFunction,
        MixtureWeights,
        NeighbourIndex,
        NeighbourKernel,
        NeighbourLabelPrior,
    )
    from mta_cli.options import MemoryOptions

BYTES_PER_LABEL = 2  # a label's index and its count, for each label that the user gave


@dataclass(frozen=True)
class FittedNeighbours:
    """A bank's items, the kernel fitted to them, the embedder of questions, and the weights of model and memory."""

    index: NeighbourIndex
    kernel: NeighbourKernel
    embed: EmbedFunction
    weights: MixtureWeights


@dataclass(frozen=True)
class LabelMemory:
    """The answers of a bank's users. `rates` [labels] are their label rates, which sum to one; empty if unknown.

    Tasks of texts have no label memory.
    """

    labels: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    neighbours: FittedNeighbours | None = None

    def uses_neighbours(self, options: MemoryOptions) -> bool:
        """Whether neighbours are used: the options ask for them and the bank has some."""
        return options.memory == "neighbours" and self.neighbours is not None

    def prior_of(self, answers: Sequence[str], options: MemoryOptions, asker: int | None = None) -> LabelPrior | None:
        """The label prior of a user with these `answers`; None if the memory is off, has no data, or has weight 0.

        Items of the user `asker` are not used as neighbours.
        """
        if options.memory == "off" or not self.rates:
            return None
        if self.neighbours is not None and self.uses_neighbours(options):
            prior = replace(self.neighbour_prior(answers, look_ahead=options.look_ahead), asker=asker)
            return prior.beside_model(self.neighbours.weights, options.neighbour_weight)
        if options.prior_weight == 0.0:
            return None
        rates = partial(self.rates_until, look_ahead=options.look_ahead)
        return FrequencyLabelPrior(tuple(answers), self.labels, rates, options.prior_strength, options.prior_weight)

    def rates_until(self, time: str | None, *, look_ahead: bool = False) -> Sequence[float]:
        """The label rates of the items up to `time`; items of unknown time count.

        With `look_ahead`, or if the bank keeps no neighbours, these are the rates of all answers.
        """
        if self.neighbours is None or look_ahead:
            return self.rates
        known = self.neighbours.index.until(time)
        return self.rates if known is self.neighbours.index else tuple(known.rates.tolist())

    def leave_one_out_prior(
        self, answers: Sequence[str], user: int, options: MemoryOptions
    ) -> NeighbourLabelPrior | None:
        """The prior for an item of the user, from the user's other `answers` and other users' items.

        None if neighbours are not used; the model is then trained without a label prior.
        """
        if self.neighbours is None or not self.uses_neighbours(options):
            return None
        prior = self.neighbour_prior(answers, without_user=user, look_ahead=options.look_ahead)
        return prior.beside_model(self.neighbours.weights, options.neighbour_weight)

    def neighbour_prior(
        self, answers: Sequence[str], *, without_user: int | None = None, look_ahead: bool = False
    ) -> NeighbourLabelPrior:
        """The prior from neighbours and the user's answers, for use without a model. Raises ValueError without
        neighbours.
        """
        from mta_cli.engine.memory.knn import NeighbourLabelPrior

        if self.neighbours is None:
            raise ValueError("this bank keeps no neighbours")
        index = self.neighbours.index
        if without_user is not None:
            index = index.without_user(without_user)
        return NeighbourLabelPrior(
            index, self.neighbours.kernel, self.neighbours.embed, self.labels, tuple(answers), look_ahead
        )

    def stored_bytes(self, answers: Sequence[str]) -> int:
        """The size of a user's label counts in bytes."""
        return BYTES_PER_LABEL * len({find_label(answer, self.labels) for answer in answers} - {None})
