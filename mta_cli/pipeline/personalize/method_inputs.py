"""A bank and its users in the types of `engine.methods`. All commands load methods' inputs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.memory.bank_memory import BankMemory
from mta_cli.pipeline.user_weights import load_weights
from store.records import Anchor, AnchorWeight, Bank, Item, Query, Recipe, User

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.methods.anchor_weights import AnchorShare
    from mta_cli.engine.methods.method import MethodContext, UserShots
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import TrainingExample
    from mta_cli.engine.text.tasks import Task
    from mta_cli.options import MemoryOptions
    from store.registry import Registry


class StoredAnchors(Sequence["LoraWeights"]):
    """The weights of a bank's anchors, by number. Each is read and verified when it is first used."""

    def __init__(self, reg: Registry, bank: Bank, anchors: Sequence[Anchor]) -> None:
        self._reg, self._base = reg, bank.base
        self._digests = [anchor.digest for anchor in anchors]
        self._loaded: dict[int, LoraWeights] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def __getitem__(self, number: Any) -> Any:
        if number not in self._loaded:
            self._loaded[number] = load_weights(self._reg, str(self._digests[number]), self._base)
        return self._loaded[number]


@dataclass(frozen=True)
class BankContext:
    """A bank for methods. `anchors[i]` is the row of the engine's anchor number i."""

    bank: Bank
    anchors: tuple[Anchor, ...]
    memory: BankMemory
    methods: MethodContext

    def to_recipe(self, user: User, method: str, shares: Sequence[AnchorShare], items_hash: str) -> Recipe:
        """A recipe as the store keeps it; see `Recipe` for `items_hash`."""
        from mta_cli.engine.methods.anchor_weights import SHARE_BYTES

        rows = tuple(AnchorWeight(self.anchors[one.anchor].id, one.similarity, one.weight) for one in shares)
        size = SHARE_BYTES * len(rows)
        return Recipe(user.id, self.bank.task, self.bank.id, method, rows, size, items_hash=items_hash)


def load_bank_context(
    reg: Registry,
    bank: Bank,
    task: Task,
    base: LoadedBase | None,
    memory: BankMemory,
    *,
    seed: int = 0,
    rows: PromptRowBuilder | None = None,
) -> BankContext:
    """The bank's context. `base` holds its task adapter; similarity weights need no base. Profiles must exist.

    Anchors that are stale, not screened, refused by the screening, or without a profile are left out.
    """
    from torch import from_numpy

    from mta_cli.engine.methods.method import MethodContext
    from mta_cli.pipeline.bank.screening import similarity_floors, usable_anchors
    from mta_cli.pipeline.data.profiles import profile_matrix

    usable = [one for one in usable_anchors(reg, bank) if one.user_id is not None and one.digest is not None]
    ids, matrix = profile_matrix(reg, task.name, bank.embedder, [one.user_id for one in usable if one.user_id])
    row = {user_id: n for n, user_id in enumerate(ids)}
    anchors = tuple(one for one in usable if one.user_id in row)
    profiles = from_numpy(matrix[[row[one.user_id] for one in anchors if one.user_id]])
    floors = similarity_floors(reg.banks.by_id(bank.id))
    tokens = () if rows is None else tuple(tuple(rows.prompter.answer_ids(label)) for label in task.labels)
    methods = MethodContext(
        base,
        task,
        StoredAnchors(reg, bank, anchors),
        profiles,
        seed,
        memory.label_memory if base is not None else memory.without_neighbours,
        tokens,
        {n: floors[one.id] for n, one in enumerate(anchors) if one.id in floors},
    )
    return BankContext(bank, anchors, memory, methods)


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
        () if rows is None or rows.task.labels else tuple(rows.mixed_rows(items)),
    )


def query_examples(
    context: BankContext, user: User, queries: Sequence[Query], rows: PromptRowBuilder, memory: MemoryOptions
) -> list[TrainingExample]:
    """Held-out queries with their golds, scored as the shots are: beside the label memory where neighbours count."""
    from mta_cli.engine.scoring.label_examples import LabelExample, TrainingExample

    labels, scored = context.methods.task.labels, rows.query_rows(queries)
    examples = list[TrainingExample](scored)
    prior = context.memory.prior_for(user, "adapted", memory)
    if prior is None or not context.methods.memory.uses_neighbours(memory):
        return examples
    for n, query in enumerate(queries):
        if (gold := find_label(query.gold, labels)) is not None:
            tokens = context.methods.label_tokens
            examples[n] = LabelExample.from_prior(scored[n], tokens, gold, prior, query.input, query.time)
    return examples


def load_profiles(reg: Registry, task: str, embedder: str, users: Sequence[User]) -> Mapping[int, Tensor]:
    """The unit profiles [width], float32, by user id, of those of `users` who have one."""
    from torch import from_numpy

    from mta_cli.pipeline.data.profiles import profile_matrix

    ids, matrix = profile_matrix(reg, task, embedder, [user.id for user in users])
    return dict(zip(ids, from_numpy(matrix), strict=True))
