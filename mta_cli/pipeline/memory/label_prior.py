"""A person's label prior: what they and others answered before says of the next answer, before a model reads it.

The same is said of answers that were given, for whoever learns the rest of them. Renders and trains nothing. Where the
bank keeps neighbours and its embedder is here, they and the person's habit speak together; else a share of the habit
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING

from mta_cli.options import MemoryOptions
from store.records import Bank, Item, User

if TYPE_CHECKING:
    from mta_cli.engine.memory.knn import EmbedFunction, NeighbourIndex, NeighbourKernel, NeighbourLabelPrior
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

MAX_RECENT_ANSWERS = 200  # of a person's answers count
LABEL_RATES_KEY = "label_rates"
PERSONAL_MODES = ("fused", "adapted")


class LabelPriors:
    """The label priors of everybody, for one task on one base (a fingerprint); what they share is read once."""

    def __init__(self, reg: Registry, task: Task, base: str, options: MemoryOptions, device: str = "auto") -> None:
        self._reg, self._task, self._options, self._device = reg, task, options, device
        self._bank = reg.banks.latest_ready_bank(task.name, base) if task.labels else None

    def prior_for(self, user: User | None, mode: str) -> LabelPrior | None:
        """What labels are weighed with in a personal `mode`; None where nothing is known.

        The person's rates stand against those of the people whom the task's current bank is made of.
        """
        from mta_cli.engine.memory.label_prior import FrequencyLabelPrior, user_label_prior

        if self._options.memory == "off" or user is None or mode not in PERSONAL_MODES or self._bank is None:
            return None
        given = [item.output for item in self._recent_items(user)]
        labels, options = self._task.labels, self._options
        if self._fitted_neighbours is not None:
            return self._neighbour_prior(self._fitted_neighbours[0], given)
        rates = bank_label_rates(self._bank)
        if options.prior_weight == 0.0 or len(rates) != len(labels):  # a bank of another form of the task, or older
            return None
        values = user_label_prior(given, labels, rates, options.prior_strength)
        return FrequencyLabelPrior(tuple(options.prior_weight * value for value in values))

    def leave_one_out_priors(self, user: User, items: Sequence[Item]) -> list[NeighbourLabelPrior] | None:
        """What was to be known of the answer to each of a person's own `items` without it: what others answered to the
        like, and the habit that their other answers show. None where no neighbours count.
        """
        if self._fitted_neighbours is None:
            return None
        given, others = self._recent_items(user), self._fitted_neighbours[0].without_user(user.id)
        return [self._neighbour_prior(others, [each.output for each in given if each.id != item.id]) for item in items]

    @property
    def neighbour_settings(self) -> dict[str, float]:
        """What decides how neighbours count, besides themselves; empty where none do."""
        if self._fitted_neighbours is None:
            return {}
        return {**asdict(self._fitted_neighbours[1]), "weight": self._options.neighbour_weight}

    def _recent_items(self, user: User) -> list[Item]:
        return self._reg.items.recent_items(user.id, self._task.name, MAX_RECENT_ANSWERS)

    def _neighbour_prior(self, known: NeighbourIndex, given: Sequence[str]) -> NeighbourLabelPrior:
        from mta_cli.engine.memory.knn import PRIOR_STRENGTH, NeighbourLabelPrior
        from mta_cli.engine.memory.label_prior import user_label_prior

        assert self._fitted_neighbours is not None
        _, kernel, embed = self._fitted_neighbours
        own = user_label_prior(given, self._task.labels, known.rates.tolist(), PRIOR_STRENGTH)
        return NeighbourLabelPrior(known, kernel, embed, own).with_model_weight(self._options.neighbour_weight)

    @property
    def missing_embedder_note(self) -> str | None:
        """What is to be said where neighbours are there and cannot be found, as their embedder is not."""
        if self._options.memory != "neighbours" or self._bank is None or self._bank.kernel is None:
            return None
        if self._embedder is not None:
            return None
        name = self._reg.models.get(self._bank.embedder).name
        return f"The embedder {name} is not here: labels are weighed without the bank's neighbours."

    @cached_property
    def _embedder(self) -> ModelEntry | None:
        from mta_cli.pipeline.models.lookup import list_models

        wanted = self._bank.embedder if self._bank is not None else None
        return next((one for one in list_models() if one.fingerprint == wanted and "fault" not in one.detail), None)

    @cached_property
    def _fitted_neighbours(self) -> tuple[NeighbourIndex, NeighbourKernel, EmbedFunction] | None:
        """Those that count in answers."""
        from mta_cli.pipeline.memory.knn import load_embedder, load_fitted_neighbours

        if self._options.memory != "neighbours" or self._bank is None or self._bank.kernel is None:
            return None
        if self._embedder is None:
            return None
        return load_fitted_neighbours(self._reg, self._bank, self._task, load_embedder(self._embedder, self._device))


def bank_label_rates(bank: Bank) -> tuple[float, ...]:
    """How often the people whom a bank is made of give each label; nothing where it does not know."""
    return tuple(bank.config.get(LABEL_RATES_KEY, ()))
