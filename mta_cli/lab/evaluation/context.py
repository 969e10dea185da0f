"""The loaded base of all folds, and the context that methods get for a fold and its users."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mta_cli.errors import Command, IntegrityFault
from mta_cli.events import Event, Note, forward_events
from mta_cli.lab.evaluation.banks import FoldBanks
from mta_cli.lab.evaluation.design import Design
from mta_cli.pipeline.anchors import usable_anchors
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.data.profiles import normalise_rows, refresh_profiles
from mta_cli.pipeline.memory.knn import cache_embedding, load_embedder
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.requests import EvalRequest
from mta_cli.pipeline.user_weights import load_weights
from mta_cli.pipeline.workbench import Workbench, user_shots
from store.records import Bank

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.knn import EmbedFunction, Vectors
    from mta_cli.engine.methods.method import Method, MethodContext, UserShots
    from store.registry import Registry


class EvalContext:
    """Loads, for a method and a fold, the bank, the task adapter and the users. The base is loaded once."""

    def __init__(
        self, reg: Registry, request: EvalRequest, plan: Design, banks: FoldBanks, profiles: dict[int, Tensor]
    ) -> None:
        from mta_cli.engine.lora.adapter import AdapterMerger

        self.reg, self.request, self.design, self.banks = reg, request, plan, banks
        self.base = load_on_device(request.base, request.machine, reg=reg)
        self._profiles, self._merger = profiles, AdapterMerger(self.base)
        self._merged_bank: Bank | None = None
        self.below: LoraWeights | None = None  # the task adapter that is merged into the base
        self._benches: dict[tuple[int, str], Workbench[EvalRequest]] = {}
        self._method_contexts: dict[tuple[int, str, str], MethodContext] = {}
        self._embedder: EmbedFunction | None = None
        among = {user: [item.id for item in items] for user, items in plan.shots.items()}
        self.history_examples = PromptRowBuilder(reg, self.base, request.task, request.prompt.history_items, among)
        self.plain_examples = PromptRowBuilder(reg, self.base, request.task, 0)

    def examples(self, history: bool) -> PromptRowBuilder:
        """A builder of prompts with the users' shots in them, or without."""
        return self.history_examples if history else self.plain_examples

    def merge_task_adapter(self, fold: int, method: Method) -> None:
        """Merge the task adapter of the method's bank in this fold into the base.

        For a method whose LoRAs lie on the bare base (`below` is not "task"), restore the base instead.
        """
        wanted = self.banks[fold, method.bank_preset] if method.below == "task" else None
        if wanted is self._merged_bank:
            return
        digest = wanted.task_adapter if wanted is not None else None
        self.below = load_weights(self.reg, digest, self.base.fingerprint) if digest else None
        self._merger.set_adapter(self.below)
        self._merged_bank = wanted

    def workbench(self, fold: int, preset: str = "") -> Workbench[EvalRequest]:
        """The `Workbench` of a fold's bank on this context's base. Raises IntegrityFault for a missing profile."""
        key = (fold, preset)
        if key not in self._benches:
            bank = self.banks[key]
            found = Workbench(
                self.reg, self.request, bank, base=self.base, rows=self.history_examples, embed=self._embed
            )
            known = {anchor.id for anchor in found.anchors}
            if missing := [one.id for one in usable_anchors(self.reg, bank) if one.id not in known]:
                raise IntegrityFault(
                    f"Anchors {missing} of fold {fold + 1} have no profile.",
                    hint=(Command("doctor"), " checks the store"),
                )
            self._benches[key] = found
        return self._benches[key]

    def method_context(self, fold: int, method: Method) -> MethodContext:
        """The context of a method in a fold. Methods above the same weights share it, with the results in its cache."""
        key = (fold, method.bank_preset, method.below)
        if key not in self._method_contexts:
            self._method_contexts[key] = replace(self.workbench(fold, method.bank_preset).methods, cache={})
        return self._method_contexts[key]

    def without_cached_states(self, context: MethodContext) -> MethodContext:
        """The context without cached states, with the embedder loaded where one is needed: for timing."""
        known = context.memory.neighbours
        if known is None:
            return replace(context, cache={})
        self._embed([""])
        neighbours = replace(known, embed=cache_embedding(self._embed))
        return replace(context, cache={}, memory=replace(context.memory, neighbours=neighbours))

    def _embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions [texts, width]; the embedder is loaded on first use."""
        if self._embedder is None:
            self._embedder = load_embedder(self.request.embedder, self.request.machine.device).embed
        return self._embedder(texts)

    def method_users(self, users: Sequence[int]) -> list[UserShots]:
        """The `UserShots` of `users`, in the same order."""
        return [self._method_users_by_id[user] for user in users]

    @cached_property
    def _method_users_by_id(self) -> dict[int, UserShots]:
        rows = self.history_examples
        return {
            number: user_shots(self.reg.users.by_id(number), shots, self._profiles.get(number), rows)
            for number, shots in self.design.shots.items()
        }


def refresh_anchor_profiles(reg: Registry, request: EvalRequest, banks: FoldBanks) -> Iterator[Event]:
    """Bring the profiles of all anchors up to date, because removing an item also removes its user's profile."""
    anchors = {anchor.user_id for bank in banks.values() for anchor in usable_anchors(reg, bank)}
    users = [reg.users.by_id(user) for user in sorted(user for user in anchors if user is not None)]
    job = refresh_profiles(reg, request.task.name, request.embedder, users, request.machine.device)
    yield from forward_events(job)


def embed_shot_profiles(request: EvalRequest, plan: Design) -> Generator[Event, None, dict[int, Tensor]]:
    """Each user's profile by user id, as the generator's return value. Profiles are unit vectors [width], float32, made
    from the shots only.
    """
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
