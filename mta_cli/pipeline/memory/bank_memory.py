"""Reads a bank's label memory from the store. `engine.memory.label_memory` defines the computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mta_cli.engine.memory.label_memory import LabelMemory
from mta_cli.pipeline.memory.knn import LABEL_RATES_KEY
from store.records import Bank, Item, User

if TYPE_CHECKING:
    from mta_cli.engine.memory.knn import EmbedFunction, Vectors
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.text.tasks import Task
    from mta_cli.options import MemoryOptions
    from mta_cli.pipeline.memory.knn import NeighbourVotes
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

MAX_RECENT_ANSWERS = 200  # a user's latest answers that the label prior uses


class BankMemory:
    """The label memory of `bank`, loaded when first needed; empty without a bank and for a task without labels.

    `embed` turns questions into vectors. Without it, the bank's embedder is loaded on `device`.
    """

    def __init__(
        self, reg: Registry, task: Task, bank: Bank | None, *, device: str = "auto", embed: EmbedFunction | None = None
    ) -> None:
        self._reg, self._task, self._device, self._embed = reg, task, device, embed
        self._bank = bank if task.labels else None

    @cached_property
    def label_memory(self) -> LabelMemory:
        """The bank's label memory; without neighbours if the bank has none or its embedder is not installed."""
        from mta_cli.pipeline.memory.knn import load_embedder

        if self._bank is None or self._bank.kernel is None or (self._embed is None and self._embedder is None):
            return self.without_neighbours
        embed = self._embed or load_embedder(self._embedder, self._device).embed  # type: ignore[arg-type]
        return self._load_label_memory(embed)

    @cached_property
    def without_votes(self) -> LabelMemory:
        """The memory for the option value `habit`. Embeds no text.

        Neighbours do not vote; their items only give the label rates at the time of a question.
        """
        return self._load_label_memory(_raise_on_embedding)

    def _load_label_memory(self, embed: EmbedFunction) -> LabelMemory:
        from mta_cli.pipeline.memory.knn import load_fitted_neighbours

        if self._bank is None or (found := load_fitted_neighbours(self._reg, self._bank, self._task, embed)) is None:
            return self.without_neighbours
        return LabelMemory(self._task.labels, tuple(found.index.rates.tolist()), found)

    @property
    def without_neighbours(self) -> LabelMemory:
        """The memory with the bank's stored label rates and no neighbours; needs no embedder."""
        rates = tuple(self._bank.config.get(LABEL_RATES_KEY, ())) if self._bank is not None else ()
        # the bank may be of an earlier version of the task, with other labels
        return LabelMemory(self._task.labels, rates if len(rates) == len(self._task.labels) else ())

    def prior_for(self, user: User | None, mode: str, options: MemoryOptions) -> LabelPrior | None:
        """The user's label prior, to add to the label log-likelihoods of their model in `mode`.

        None without a user, a bank or label rates, in mode `base`, and if `options` turn memory off.
        """
        if user is None or mode == "base" or options.memory == "off" or self._bank is None:
            return None
        # `habit` is tested first, because `label_memory` may load the embedder
        if options.memory == "habit" or (memory := self.label_memory).neighbours is None:
            memory, options = self.without_votes, replace(options, memory="habit")
        return memory.prior_of([item.output for item in self.recent_items(user)], options, user.id)

    def recent_items(self, user: User) -> list[Item]:
        """The user's latest `MAX_RECENT_ANSWERS` items of the task; the label prior uses their answers."""
        return self._reg.items.recent_items(user.id, self._task.name, MAX_RECENT_ANSWERS)

    def votes_on(self, user: User, question: str, options: MemoryOptions, named: int) -> NeighbourVotes | None:
        """The votes of other users' items on the label of the user's question, listing the `named` strongest.

        None if neighbours are not used or no other user has labelled items.
        """
        from mta_cli.pipeline.memory.knn import neighbour_votes

        if self._bank is None or options.memory != "neighbours" or (fitted := self.label_memory.neighbours) is None:
            return None
        return neighbour_votes(self._reg, self._bank, self._task, fitted, user, question, named)

    def neighbour_settings(self, options: MemoryOptions) -> dict[str, Any]:
        """The kernel, weights and options that decide how neighbours change answers; empty if neighbours are not used.

        They are part of a stack's configuration: if they change, the stack is trained again.
        """
        if options.memory != "neighbours" or (neighbours := self.label_memory.neighbours) is None:
            return {}
        weights = {**asdict(neighbours.weights), "factor": options.neighbour_weight}
        known: dict[str, Any] = {"kernel": asdict(neighbours.kernel), "weights": weights}
        return {**known, "look_ahead": options.look_ahead} if neighbours.index.times else known

    def missing_embedder_note(self, options: MemoryOptions) -> str | None:
        """A message if the bank has neighbours but its embedder is not installed; otherwise None."""
        if options.memory != "neighbours" or self._bank is None or self._bank.kernel is None:
            return None
        if self._embed is not None or self._embedder is not None:
            return None
        name = self._reg.models.get(self._bank.embedder).name
        return (
            f"The embedder {name} is not installed, so labels are predicted without the bank's neighbours. "
            f"To install it, run mta model pull {name}."
        )

    @cached_property
    def _embedder(self) -> ModelEntry | None:
        from mta_cli.pipeline.models.installed import list_models

        wanted = self._bank.embedder if self._bank is not None else None
        return next((one for one in list_models() if one.fingerprint == wanted and "fault" not in one.detail), None)


def _raise_on_embedding(texts: Sequence[str]) -> Vectors:
    raise AssertionError("memory `habit` must not embed questions")


class BankMemories:
    """The label memories of all tasks on one base. `base` is the fingerprint of the base."""

    def __init__(self, reg: Registry, base: str, device: str) -> None:
        self._reg, self._base, self._device = reg, base, device
        self._known: dict[str, tuple[tuple[Task, Bank | None, int], BankMemory]] = {}

    def of_task(self, task: Task) -> BankMemory:
        """The memory of the task's newest ready bank, loaded again if the bank or its neighbours have changed."""
        bank = self._reg.banks.latest_ready_bank(task.name, self._base)
        seal = (task, bank, self._reg.neighbours.count_neighbours(bank.id) if bank is not None else 0)
        known = self._known.get(task.name)
        if known is None or known[0] != seal:
            known = seal, BankMemory(self._reg, task, bank, device=self._device)
            self._known[task.name] = known
        return known[1]

    def clear(self) -> None:
        """Drop all loaded memories."""
        self._known.clear()
