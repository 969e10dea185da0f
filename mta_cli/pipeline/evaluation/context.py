"""One base under all folds: what methods are given of a fold, and people as methods see them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mta_cli.errors import IntegrityFault
from mta_cli.events import Event, Note
from mta_cli.pipeline.data.examples import Examples
from mta_cli.pipeline.data.profiles import profile_matrix, unit_rows
from mta_cli.pipeline.evaluation.design import Design, EvalRequest
from mta_cli.pipeline.memory.knn import fitted, load_embedder, remembering
from mta_cli.pipeline.models.load import load
from mta_cli.pipeline.personalize.weights import load_weights
from store.records import Bank

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.memory.knn import Embed, Vectors
    from mta_cli.engine.methods.method import Below, Bench, Person
    from store.registry import Registry


class Field:
    """Where methods are compared: the loaded base, and below it whatever a method stands on in a fold."""

    def __init__(
        self, reg: Registry, request: EvalRequest, plan: Design, banks: Sequence[Bank], profiles: dict[int, Tensor]
    ) -> None:
        from mta_cli.engine.lora.adapter import Folder

        self.reg, self.request, self.plan, self.banks = reg, request, plan, banks
        self.base = load(request.base, request.machine)
        self._profiles, self._folder = profiles, Folder(self.base)
        self._holds: Bank | None = None
        self._benches: dict[int, Bench] = {}
        self._embedder: Embed | None = None
        among = {user: [item.id for item in items] for user, items in plan.shots.items()}
        self.shown = Examples(reg, self.base, request.task, request.prompt.history_items, among)
        self.bare = Examples(reg, self.base, request.task, 0)

    def examples(self, history: bool) -> Examples:
        """Prompts with people's shots in them, or without."""
        return self.shown if history else self.bare

    def stand_on(self, fold: int, below: Below) -> None:
        """Make the base hold what is `below`: nothing, or the task adapter of a fold."""
        wanted = self.banks[fold] if below == "task" else None
        if wanted is self._holds:
            return
        digest = wanted.task_adapter if wanted is not None else None
        self._folder.set(load_weights(self.reg, digest, self.base.fingerprint) if digest else None)
        self._holds = wanted

    def bench(self, fold: int) -> Bench:
        """What a fold's people share, the same one each time: methods leave in it what others need."""
        if fold not in self._benches:
            self._benches[fold] = self._made(fold)
        return self._benches[fold]

    def _made(self, fold: int) -> Bench:
        from torch import from_numpy

        from mta_cli.engine.memory.label_prior import label_rates
        from mta_cli.engine.methods.method import Bench

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
            for user in self.plan.folds[fold].bank
            if self.reg.users.by_id(user).can_anchor  # who is in no part of the bank is in no rate either
            for item in self.reg.items.recent(user, task.name, self.request.bank.max_items or None)
        ]
        rates = label_rates(given, task.labels) if task.labels else ()
        items = fitted(self.reg, bank, task, self._embed)
        answers = tuple(tuple(self.shown.prompter.answer_ids(label)) for label in task.labels)
        return Bench(self.base, task, weights, profiles, rates, self.request.machine.seed, items, answers)

    def anew(self, bench: Bench) -> Bench:
        """The bench as if nobody had been met yet, with the embedder loaded where one is needed: to take times on."""
        items = bench.items
        if items is None:
            return replace(bench, known={})
        self._embed([""])
        return replace(bench, known={}, items=(items[0], items[1], remembering(self._embed)))

    def _embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions; the embedder is loaded with the first."""
        if self._embedder is None:
            self._embedder = load_embedder(self.request.embedder, self.request.machine.device)
        return self._embedder(texts)

    def people(self, users: Sequence[int]) -> list[Person]:
        """People as methods see them, in the order of `users`."""
        return [self._people[user] for user in users]

    @cached_property
    def _people(self) -> dict[int, Person]:
        from mta_cli.engine.methods.method import Person

        return {
            user: Person(
                user,
                tuple(item.input for item in shots),
                tuple(item.output for item in shots),
                tuple(self.shown.rows(shots)),
                self._profiles[user],
            )
            for user, shots in self.plan.shots.items()
        }


def shot_profiles(request: EvalRequest, plan: Design) -> Generator[Event, None, dict[int, Tensor]]:
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
    return dict(zip(users, from_numpy(unit_rows(sums)), strict=True))
