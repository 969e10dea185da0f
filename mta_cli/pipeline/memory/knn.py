"""A bank's neighbours: its users' labelled items, their embeddings by the bank's embedder, and the fitted kernel.

Only tasks with labels have neighbours. They are stored with the bank and removed with their user.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mta_cli.engine.text.labels import find_label
from mta_cli.errors import Command, IntegrityFault
from mta_cli.events import Event, JobProgress, JobStarted, Note
from store.records import Bank, Item, Neighbour, User

if TYPE_CHECKING:
    from mta_cli.engine.memory.knn import EmbedFunction, MixtureWeights, NeighbourIndex
    from mta_cli.engine.memory.label_memory import FittedNeighbours
    from mta_cli.engine.retrieval.embed import Embedder
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

EMBED_BATCH = 256  # items embedded and stored together; an interruption loses at most this work
LABEL_RATES_KEY = "label_rates"  # in a bank's config: the label frequencies of its users
FITTED_ITEMS_KEY = "fitted_items"  # in a bank's config: a digest of the items on which its kernel is fitted
FIT_IS_DUE = "due"  # replaces the digest while neighbours change, until the kernel is fitted again
MIXTURE_WEIGHTS_KEY = "memory_weights"  # in a bank's config: the weights of model and memory in their weighted sum
EMBED_CACHE_SIZE = 4096  # cached embeddings of questions

OwnedItem = tuple[Item, User]


@dataclass(frozen=True)
class NeighbourChange:
    """The difference between a bank's neighbours and its users' current items: items to embed, and item ids to remove.

    `needs_fit` says that the kernel and label rates were fitted on other items.
    """

    new_items: list[OwnedItem]
    removed_ids: set[int]
    needs_fit: bool

    def __bool__(self) -> bool:
        return bool(self.new_items or self.removed_ids or self.needs_fit)


@dataclass(frozen=True)
class NeighbourVote:
    """An item of a bank's user, and its share of all votes on a question's label."""

    user: str
    input: str
    label: str
    share: float


@dataclass(frozen=True)
class NeighbourVotes:
    """The votes of `count` items of other users on a question: each label's share, and the `strongest` votes."""

    count: int
    label_shares: tuple[float, ...]
    strongest: tuple[NeighbourVote, ...]


def find_neighbour_change(
    reg: Registry, bank: Bank, task: Task, histories: Iterable[tuple[User, Sequence[Item]]]
) -> NeighbourChange:
    """The difference between the bank's neighbours and the items of `histories` whose outputs are labels."""
    labelled = [(item, user) for user, items in histories for item in items if _is_label(item, task)]
    known, bank = reg.neighbours.item_ids(bank.id), reg.banks.by_id(bank.id)
    new = [(item, user) for item, user in labelled if item.id not in known]
    outdated = FITTED_ITEMS_KEY in bank.config and bank.config[FITTED_ITEMS_KEY] != _digest_items(known)
    return NeighbourChange(new, known - {item.id for item, _ in labelled}, outdated)


def _digest_items(item_ids: Iterable[int]) -> str:
    """SHA-256 of the ids of items. The content of an item never changes."""
    return hashlib.sha256(json.dumps(sorted(item_ids)).encode()).hexdigest()


def update_neighbours(
    reg: Registry,
    bank: Bank,
    task: Task,
    histories: Sequence[tuple[User, Sequence[Item]]],
    embedder: ModelEntry,
    device: str,
) -> Iterator[Event]:
    """Replace the bank's neighbours by the items of `histories` whose outputs are labels.

    Embeds their inputs, fits the kernel and counts the label rates. After an interruption, the next call continues
    where this one ended. Does nothing if nothing has changed or the task has no labels.
    """
    change = find_neighbour_change(reg, bank, task, histories)
    if not change:
        return
    from mta_cli.engine.memory.knn import fit_kernel
    from mta_cli.engine.memory.label_prior import label_rates

    with reg.transaction():  # the old kernel stays in use until a new one is fitted
        reg.neighbours.remove_neighbours(bank.id, change.removed_ids)
        reg.banks.set_bank_config(bank.id, {**reg.banks.by_id(bank.id).config, FITTED_ITEMS_KEY: FIT_IS_DUE})
    if change.new_items:
        yield from _embed_items(reg, bank, task, change.new_items, embedder, device)
    neighbours = load_neighbours(reg, bank, task)
    kernel = fit_kernel(neighbours, task.labels, bank.seed) if neighbours is not None else None
    rates = label_rates([item.output for _, items in histories for item in items], task.labels)
    with reg.transaction():
        reg.banks.set_kernel(bank.id, None if kernel is None else asdict(kernel))
        fitted = {
            FITTED_ITEMS_KEY: _digest_items(reg.neighbours.item_ids(bank.id)),
            LABEL_RATES_KEY: list(rates),
        }
        reg.banks.set_bank_config(bank.id, {**reg.banks.by_id(bank.id).config, **fitted})


def _embed_items(
    reg: Registry, bank: Bank, task: Task, new: Sequence[OwnedItem], embedder: ModelEntry, device: str
) -> Iterator[Event]:
    import numpy as np

    embed = load_embedder(embedder, device).embed
    yield Note(f"Embedding the inputs of {len(new):,} history items with {embedder.name}.", detail=True)
    yield JobStarted(f"neighbours of {task.name}", len(new), "items")
    for start in range(0, len(new), EMBED_BATCH):
        piece, began = new[start : start + EMBED_BATCH], time.monotonic()
        rows = embed([item.input for item, _ in piece]).astype(np.float16)  # [items, width]
        both = zip(piece, rows, strict=True)
        reg.neighbours.add_neighbours(bank.id, [(item.id, row.tobytes()) for (item, _), row in both])
        yield JobProgress(task.name, start + len(piece), seconds=time.monotonic() - began)


def load_embedder(embedder: ModelEntry, device: str) -> Embedder:
    """Load an embedder on `device` (the first, if it is a list). Raises IntegrityFault if its files have changed."""
    from mta_cli.engine.retrieval.embed import Embedder
    from mta_cli.pipeline.models.verify import verify_in_background

    with verify_in_background([embedder]):
        return Embedder(embedder.path, device.split(",")[0])


def labelled_items(reg: Registry, bank: Bank, task: Task) -> list[Neighbour]:
    """The bank's neighbours that are labelled and whose users consent to serve others, in the order of item ids."""
    return [one for one in reg.neighbours.consenting_neighbours(bank.id) if _is_label(one, task)]


def _is_label(one: Item | Neighbour, task: Task) -> bool:
    return find_label(one.output, task.labels) is not None


def load_neighbours(reg: Registry, bank: Bank, task: Task) -> NeighbourIndex | None:
    """The index of the bank's `labelled_items`; None if there are none.

    Raises IntegrityFault if the stored embeddings differ in length.
    """
    return _index_items(labelled_items(reg, bank, task), bank, task)


def neighbour_votes(
    reg: Registry, bank: Bank, task: Task, fitted: FittedNeighbours, user: User, question: str, named: int
) -> NeighbourVotes | None:
    """The votes on the label of the user's question, listing the `named` strongest; None without other users' items."""
    import numpy as np

    from mta_cli.engine.memory.knn import BACKGROUND_VOTES

    items = labelled_items(reg, bank, task)
    if (index := _index_items(items, bank, task)) is None or not (others := index.item_users != user.id).any():
        return None
    vector, sharpness = fitted.embed([question]), fitted.kernel.sharpness
    weights = np.where(others, index.vote_weights(vector, sharpness)[0], 0.0)  # [items]
    shares, count = weights / (weights.sum() + BACKGROUND_VOTES), int(others.sum())
    order = np.argsort(-weights, kind="stable")[: min(named, count)].tolist()
    best = [(items[place], float(shares[place])) for place in order]
    texts = reg.items.by_ids([item.item_id for item, _ in best])
    strongest = (
        NeighbourVote(reg.users.by_id(item.user_id).name, texts[item.item_id].input, item.output, share)
        for item, share in best
    )
    by_label = np.exp(index.log_vote_rates(vector, sharpness, np.array([user.id]))[0])
    return NeighbourVotes(count, tuple(by_label.tolist()), tuple(strongest))


def _index_items(items: Sequence[Neighbour], bank: Bank, task: Task) -> NeighbourIndex | None:
    import numpy as np

    from mta_cli.engine.memory.knn import NeighbourIndex
    from mta_cli.engine.memory.label_prior import label_rates

    if not items:
        return None
    if len({len(one.vector) for one in items}) > 1:
        raise IntegrityFault(
            f"The stored embeddings of the neighbours of bank {bank.name} v{bank.version} differ in length.",
            hint=("build a new bank: ", Command("bank build", task=bank.task)),
        )
    times = tuple(one.time or "" for one in items)
    vectors = np.frombuffer(b"".join(one.vector for one in items), "<f2").reshape(len(items), -1).astype(np.float32)
    labels = np.array([find_label(one.output, task.labels) for one in items], np.int64)
    rates = np.array(label_rates([one.output for one in items], task.labels))
    users = np.array([one.user_id for one in items], np.int64)
    return NeighbourIndex(vectors, labels, users, rates, times if any(times) else ())


def load_fitted_neighbours(reg: Registry, bank: Bank, task: Task, embed: EmbedFunction) -> FittedNeighbours | None:
    """The bank's neighbours, kernel and mixture weights, with `embed` behind a cache; None without neighbours."""
    from mta_cli.engine.memory.knn import NeighbourKernel
    from mta_cli.engine.memory.label_memory import FittedNeighbours

    if bank.kernel is None or (index := load_neighbours(reg, bank, task)) is None:
        return None
    return FittedNeighbours(index, NeighbourKernel(**bank.kernel), cache_embedding(embed), mixture_weights(bank))


def mixture_weights(bank: Bank) -> MixtureWeights:
    """The bank's weights of model and label memory in their weighted sum; equal before they are fitted."""
    from mta_cli.engine.memory.knn import EQUAL_WEIGHT, MixtureWeights

    equal = {"model": EQUAL_WEIGHT, "memory": EQUAL_WEIGHT}
    return MixtureWeights.from_parts(**bank.config.get(MIXTURE_WEIGHTS_KEY, equal))


def cache_embedding(embed: EmbedFunction) -> EmbedFunction:
    """`embed` with a cache of `EMBED_CACHE_SIZE` texts. The returned function takes a sequence of exactly one text."""
    once = lru_cache(EMBED_CACHE_SIZE)(lambda text: embed([text]))
    return lambda texts: once(texts[0])
