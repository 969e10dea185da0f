"""One base under all folds: what methods are given of a fold, and people as methods see them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mta_cli.errors import IntegrityFault
from mta_cli.events import Event, Note
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.data.profiles import normalise_rows, profile_matrix
from mta_cli.pipeline.evaluation.design import Design, EvalRequest
from mta_cli.pipeline.memory.knn import cache_embedding, load_embedder, load_fitted_neighbours
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.personalize.weights import load_weights
from store.records import Bank

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.memory.knn import EmbedFunction, Vectors
    from mta_cli.engine.methods.method import BaseLevel, MethodContext, UserShots
    from store.registry import Registry


class EvalContext:
    """Where methods are compared: the loaded base, and below it whatever a method stands on in a fold."""

    def __init__(
        self, reg: Registry, request: EvalRequest, plan: Design, banks: Sequence[Bank], profiles: dict[int, Tensor]
    ) -> None:
        from mta_cli.engine.lora.adapter import AdapterMerger

        self.reg, self.request, self.design, self.banks = reg, request, plan, banks
        self.base = load_on_device(request.base, request.machine)
        self._profiles, self._folder = profiles, AdapterMerger(self.base)
        self._folded_bank: Bank | None = None
        self._method_contexts: dict[int, MethodContext] = {}
        self._embedder: EmbedFunction | None = None
        among = {user: [item.id for item in items] for user, items in plan.shots.items()}
        self.history_examples = PromptRowBuilder(reg, self.base, request.task, request.prompt.history_items, among)
        self.plain_examples = PromptRowBuilder(reg, self.base, request.task, 0)

    def examples(self, history: bool) -> PromptRowBuilder:
        """Prompts with people's shots in them, or without."""
        return self.history_examples if history else self.plain_examples

    def fold_in_task_adapter(self, fold: int, below: BaseLevel) -> None:
        """Make the base hold what is `below`: nothing, or the task adapter of a fold."""
        wanted = self.banks[fold] if below == "task" else None
        if wanted is self._folded_bank:
            return
        digest = wanted.task_adapter if wanted is not None else None
        self._folder.set_adapter(load_weights(self.reg, digest, self.base.fingerprint) if digest else None)
        self._folded_bank = wanted

    def method_context(self, fold: int) -> MethodContext:
        """What a fold's people share, the same one each time: methods leave in it what others need."""
        if fold not in self._method_contexts:
            self._method_contexts[fold] = self._build_method_context(fold)
        return self._method_contexts[fold]

    def _build_method_context(self, fold: int) -> MethodContext:
        from torch import from_numpy

        from mta_cli.engine.memory.label_prior import label_rates
        from mta_cli.engine.methods.method import MethodContext

        bank, task = self.banks[fold], self.request.task
        anchors = [anchor for anchor in self.reg.banks.anchors(bank.id) if anchor.user_id is not None]
        ids, matrix = profile_matrix(self.reg, task.name, bank.embedder, [a.user_id for a in anchors if a.user_id])
        row = {user: i for i, user in enumerate(ids)}
        if missing := [anchor.id for anchor in anchors if anchor.user_id not in row or anchor.digest is None]:
            raise IntegrityFault(f"Anchors {missing} of fold {fold + 1} have no profile.", hint="mta doctor")
        weights = [load_weights(self.reg, anchor.digest, bank.base) for anchor in anchors if anchor.digest]
        profiles = from_numpy(matrix[[row[a.user_id] for a in anchors if a.user_id is not None]])
        given = [
            item.output
            for user in self.design.folds[fold].bank
            if self.reg.users.by_id(user).can_anchor  # who is in no part of the bank is in no rate either
            for item in self.reg.items.recent_items(user, task.name, self.request.bank.max_items or None)
        ]
        rates = label_rates(given, task.labels) if task.labels else ()
        items = load_fitted_neighbours(self.reg, bank, task, self._embed)
        answers = tuple(tuple(self.history_examples.prompter.answer_ids(label)) for label in task.labels)
        return MethodContext(self.base, task, weights, profiles, rates, self.request.machine.seed, items, answers)

    def without_cached_states(self, bench: MethodContext) -> MethodContext:
        """The bench as if nobody had been met yet, with the embedder loaded where one is needed: to take times on."""
        items = bench.neighbour_index
        if items is None:
            return replace(bench, cache={})
        self._embed([""])
        return replace(bench, cache={}, neighbour_index=(items[0], items[1], cache_embedding(self._embed)))

    def _embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions; the embedder is loaded with the first."""
        if self._embedder is None:
            self._embedder = load_embedder(self.request.embedder, self.request.machine.device)
        return self._embedder(texts)

    def method_users(self, users: Sequence[int]) -> list[UserShots]:
        """People as methods see them, in the order of `users`."""
        return [self._method_users_by_id[user] for user in users]

    @cached_property
    def _method_users_by_id(self) -> dict[int, UserShots]:
        from mta_cli.engine.methods.method import UserShots

        return {
            user: UserShots(
                user,
                tuple(item.input for item in shots),
                tuple(item.output for item in shots),
                tuple(self.history_examples.training_rows(shots)),
                self._profiles[user],
            )
            for user, shots in self.design.shots.items()
        }


def embed_shot_profiles(request: EvalRequest, plan: Design) -> Generator[Event, None, dict[int, Tensor]]:
    """`return`s everybody's profile by user id, made from their shots alone: unit vectors `[width]`, float32."""
    import numpy as np
    from torch import from_numpy

    from mta_cli.engine.retrieval.embed import Embedder

    users = [user for user, shots in plan.shots.items() if shots]
    texts = [f"{item.input}\n{item.output}" for user in users for item in plan.shots[user]]
    yield Note(f"Embedding {len(texts):,} shots with {request.embedder.name}.")
    rows = Embedder(request.embedder.path, request.machine.device.split(",")[0]).embed(texts)
    ends = np.cumsum([len(plan.shots[user]) for user in users])
    sums = np.stack([own.sum(axis=0) for own in np.split(rows, ends[:-1])]) if users else rows
    return dict(zip(users, from_numpy(normalise_rows(sums)), strict=True))
