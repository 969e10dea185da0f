"""The parts that a job on one task and one base needs: base, prompts, label memory, anchors and executor.

It also turns a bank and its users into the types of `engine.methods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from mta_cli.engine.text.labels import find_label
from mta_cli.pipeline.anchors import StoredAnchors, similarity_floors, usable_anchors
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.data.profiles import load_profiles, profile_matrix
from mta_cli.pipeline.executors import Executors
from mta_cli.pipeline.executors.local import Executor, LocalExecutor
from mta_cli.pipeline.memory.bank_memory import BankMemory
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.user_weights import load_weights

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.knn import EmbedFunction
    from mta_cli.engine.methods.method import MethodContext, UserShots
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import TrainingExample
    from mta_cli.options import MemoryOptions
    from mta_cli.pipeline.requests import JobSpec
    from store.records import Anchor, Bank, Item, User
    from store.registry import Registry

SpecT = TypeVar("SpecT", bound="JobSpec")


class Workbench(Generic[SpecT]):
    """The loaded base, prompts, memory and anchors of a job, each made when first used. `spec` is the job's request.

    A given `base` or `rows` is used instead of opening one. With `loads_base` False the base is not loaded, which is
    enough for weights by similarity. `until`: see `PromptRowBuilder`. `embed` is the bank's embedder, if loaded.
    """

    def __init__(
        self,
        reg: Registry,
        spec: SpecT,
        bank: Bank,
        executors: Executors | None = None,
        *,
        base: LoadedBase | None = None,
        rows: PromptRowBuilder | None = None,
        loads_base: bool = True,
        until: str | None = None,
        embed: EmbedFunction | None = None,
    ) -> None:
        self.reg, self.spec, self.task, self.loads_base = reg, spec, spec.task, loads_base
        self._bank_id, self._executors, self._until, self._embed = bank.id, executors, until, embed
        self._task_adapter: tuple[str, LoraWeights] | None = None
        if base is not None:
            self.base = base
        if rows is not None:
            self.rows = rows

    @property
    def bank(self) -> Bank:
        """The bank's current row in the store."""
        return self.reg.banks.by_id(self._bank_id)

    @cached_property
    def base(self) -> LoadedBase:
        """The base without adapters."""
        return load_on_device(self.spec.base, self.spec.machine, reg=self.reg)

    @cached_property
    def rows(self) -> PromptRowBuilder:
        """The prompt builder of the task, with the job's number of history items."""
        return PromptRowBuilder(self.reg, self.base, self.task, self.spec.prompt.history_items, until=self._until)

    @cached_property
    def executor(self) -> Executor:
        """The executor that runs trainings and computes evidence."""
        if self._executors is None:
            return LocalExecutor(self.base)
        return self._executors.for_base(self.base, self.spec.base.path)

    @property
    def task_adapter(self) -> LoraWeights | None:
        """The bank's task adapter, read once; None if the bank has none (yet)."""
        if (digest := self.bank.task_adapter) is None:
            return None
        if self._task_adapter is None or self._task_adapter[0] != digest:
            self._task_adapter = digest, load_weights(self.reg, digest, self.base.fingerprint)
        return self._task_adapter[1]

    @contextmanager
    def holding_task_adapter(self) -> Iterator[None]:
        """Inside the block, the bank's task adapter is merged into the base. Does nothing if no base is loaded."""
        if not self.loads_base:
            yield
            return
        from mta_cli.engine.lora.adapter import merge_into_base

        with merge_into_base(self.base, self.task_adapter):
            yield

    @cached_property
    def memory(self) -> BankMemory:
        """The bank's label memory."""
        return BankMemory(self.reg, self.task, self.bank, device=self.spec.machine.device, embed=self._embed)

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The usable anchors with a profile. `anchors[i]` is the engine's anchor number i."""
        return self._anchors_and_profiles[0]

    @cached_property
    def methods(self) -> MethodContext:
        """The bank as the context of `engine.methods`. Needs stored profiles of its anchors.

        The methods expect the task adapter to be merged into the base: see `holding_task_adapter`.
        """
        from mta_cli.engine.methods.method import MethodContext

        floors = similarity_floors(self.bank)
        rows = self.rows if self.loads_base else None
        return MethodContext(
            self.base if self.loads_base else None,
            self.task,
            StoredAnchors(self.reg, self.bank, self.anchors),
            self._anchors_and_profiles[1],
            self.spec.machine.seed,
            self.memory.label_memory if self.loads_base else self.memory.without_neighbours,
            () if rows is None else tuple(tuple(rows.prompter.answer_ids(label)) for label in self.task.labels),
            {n: floors[one.id] for n, one in enumerate(self.anchors) if one.id in floors},
        )

    @cached_property
    def _anchors_and_profiles(self) -> tuple[tuple[Anchor, ...], Tensor]:
        """The usable anchors with a profile, and their profiles [anchors, width], float32."""
        from torch import from_numpy

        bank = self.bank
        usable = [one for one in usable_anchors(self.reg, bank) if one.user_id is not None and one.digest is not None]
        ids, matrix = profile_matrix(
            self.reg, self.task.name, bank.embedder, [one.user_id for one in usable if one.user_id]
        )
        row = {user_id: n for n, user_id in enumerate(ids)}
        anchors = tuple(one for one in usable if one.user_id in row)
        return anchors, from_numpy(matrix[[row[one.user_id] for one in anchors if one.user_id]])

    def user_shots(self, user: User, items: Sequence[Item]) -> UserShots:
        """The user with these `items` as shots and the stored profile."""
        profile = load_profiles(self.reg, self.task.name, self.bank.embedder, [user.id]).get(user.id)
        recent = self.memory.recent_items(user) if self.task.labels else ()
        return user_shots(user, items, profile, self.rows if self.loads_base else None, recent)

    def query_examples(self, user: User, memory: MemoryOptions) -> list[TrainingExample]:
        """The user's held-out queries with their gold answers, for measuring losses.

        As with shots, a label is scored together with the label memory if this uses neighbours.
        """
        from mta_cli.engine.scoring.label_examples import LabelExample, TrainingExample

        queries = self.reg.items.queries(user.id, self.task.name)
        scored, methods = self.rows.query_rows(queries), self.methods
        examples = list[TrainingExample](scored)
        prior = self.memory.prior_for(user, "adapted", memory)
        if prior is None or not methods.memory.uses_neighbours(memory):
            return examples
        for n, query in enumerate(queries):
            if (gold := find_label(query.gold, self.task.labels)) is not None:
                tokens = methods.label_tokens
                examples[n] = LabelExample.from_prior(scored[n], tokens, gold, prior, query.input, query.time)
        return examples


def user_shots(
    user: User,
    items: Sequence[Item],
    profile: Tensor | None,
    rows: PromptRowBuilder | None = None,
    recent: Sequence[Item] = (),
) -> UserShots:
    """A user with the shots `items`. The answers of the `recent` items count in the label prior, shots or not.

    Without `rows`, which need the base's tokenizer, only similarity weights can be computed.
    """
    from mta_cli.engine.methods.method import UserShots

    shot_ids = {item.id for item in items}
    return UserShots(
        user.id,
        tuple(item.input for item in items),
        tuple(item.output for item in items),
        tuple(rows.training_rows(items)) if rows is not None else (),
        profile,
        tuple(item.time for item in items),
        tuple(item.output for item in recent if item.id not in shot_ids),
        () if rows is None or rows.task.labels else tuple(rows.rows_for_every_history_count(items)),
    )
