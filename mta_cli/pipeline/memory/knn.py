"""A bank's neighbours: what its people answered to what, embedded by its embedder, and the kernel fitted to them.

For tasks with labels alone. Kept with the bank, gone with an item's person. Trains nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mta_cli.errors import IntegrityFault
from mta_cli.events import Event, Note, Started, Step
from mta_cli.pipeline.leaving import staying
from mta_cli.pipeline.users.dependents import some
from store.records import Bank, Item, User

if TYPE_CHECKING:
    from mta_cli.engine.memory.knn import Embed, Kernel, Neighbours
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

PIECE = 256  # items embedded and stored together; an interruption costs at most this much work
BESIDE = "beside_model"  # key of a bank's config: how much they count beside its model; see `weighing`
FITTED = ("sharpness", "votes", "habit", "linear")  # of a kernel, without a model
QUESTIONS = 4096  # whose embeddings are kept in memory

Owned = tuple[Item, User]


@dataclass(frozen=True)
class Change:
    """What makes a bank's neighbours those of its people of now: items to be embedded, and numbers of items that go.

    `unfitted`: no kernel was fitted to those that are there, or one of an earlier version.
    """

    new: list[Owned]
    old: set[int]
    unfitted: bool

    def __bool__(self) -> bool:
        return bool(self.new or self.old or self.unfitted)


def wanted(reg: Registry, bank: Bank, task: Task, people: Iterable[tuple[User, Sequence[Item]]]) -> Change:
    """How the bank's neighbours differ from those `people`'s items whose outputs are labels."""
    labelled = [(item, user) for user, items in people for item in items if item.output.strip() in task.labels]
    known = reg.neighbours.known(bank.id)
    new = [(item, user) for item, user in labelled if item.id not in known]
    unfitted = bool(known) and not is_fitted(reg.banks.by_id(bank.id))
    return Change(new, known - {item.id for item, _ in labelled}, unfitted)


def is_fitted(bank: Bank) -> bool:
    """Whether a kernel was fitted to the bank's neighbours, with all that this version knows of one."""
    return set(bank.kernel or {}) == set(FITTED)


def keep_neighbours(
    reg: Registry,
    bank: Bank,
    task: Task,
    people: Iterable[tuple[User, Sequence[Item]]],
    embedder: ModelEntry,
    device: str,
) -> Iterator[Event]:
    """Make a bank's neighbours those of `people`'s items whose outputs are labels: embed their inputs, fit its kernel.

    Goes on where it stopped; does nothing where all is there or the task has no labels.
    """
    change = wanted(reg, bank, task, people)
    if not change:
        return
    from mta_cli.engine.memory.knn import fit

    with reg.transaction():
        reg.neighbours.remove(bank.id, change.old)
        reg.banks.set_kernel(bank.id, None)  # so that whoever goes on after a stop fits it
    if change.new:
        yield from _embed(reg, bank, task, change.new, embedder, device)
    neighbours = neighbours_of(reg, bank, task)
    kernel = asdict(fit(neighbours, task.labels, bank.seed)) if neighbours is not None else None
    reg.banks.set_kernel(bank.id, kernel and {name: kernel[name] for name in FITTED})


def _embed(
    reg: Registry, bank: Bank, task: Task, new: Sequence[Owned], embedder: ModelEntry, device: str
) -> Iterator[Event]:
    """Embed and keep what is new, but for items of people who leave meanwhile."""
    import numpy as np

    embed = load_embedder(embedder, device)
    yield Note(f"Embedding what {len(new):,} history items answer, with {embedder.name}.")
    yield Started(f"neighbours of {task.name}", len(new), "items")
    gone: set[str] = set()
    for start in range(0, len(new), PIECE):
        piece, began = new[start : start + PIECE], time.monotonic()
        rows = embed([item.input for item, _ in piece]).astype(np.float16)  # [items, width]
        with reg.transaction():
            there = staying(reg, [user for _, user in piece])
            both = zip(piece, rows, strict=True)
            reg.neighbours.add(bank.id, [(item.id, row.tobytes()) for (item, user), row in both if user.id in there])
        gone |= {user.name for _, user in piece if user.id not in there}
        yield Step(task.name, start + len(piece), seconds=time.monotonic() - began)
    if gone:
        yield Note(f"{some(sorted(gone))} left meanwhile: their items are no neighbours.", warning=True)


def load_embedder(embedder: ModelEntry, device: str) -> Embed:
    """The embedder's function from texts to unit vectors, on the first of the machine's devices."""
    from mta_cli.engine.retrieval.embed import Embedder
    from mta_cli.pipeline.models.verify import vouched

    with vouched([embedder]):
        return Embedder(embedder.path, device.split(",")[0]).embed


def neighbours_of(reg: Registry, bank: Bank, task: Task) -> Neighbours | None:
    """What a bank keeps of its people's answers; None where that is nothing.

    IntegrityFault where its vectors differ in length.
    """
    import numpy as np

    from mta_cli.engine.memory.knn import Neighbours
    from mta_cli.engine.memory.label_prior import label_rates

    found = [one for one in reg.neighbours.of_bank(bank.id) if one.output.strip() in task.labels]
    if not found:
        return None
    if len({len(one.vector) for one in found}) > 1:
        raise IntegrityFault(
            f"The neighbours of bank {bank.name} v{bank.version} differ in length.", hint="mta bank build makes another"
        )
    vectors = np.frombuffer(b"".join(one.vector for one in found), "<f2").reshape(len(found), -1).astype(np.float32)
    labels = np.array([task.labels.index(one.output.strip()) for one in found], np.int64)
    rates = label_rates([one.output for one in found], task.labels)
    return Neighbours(vectors, labels, np.array([one.user_id for one in found], np.int64), np.array(rates))


def fitted(reg: Registry, bank: Bank, task: Task, embed: Embed) -> tuple[Neighbours, Kernel, Embed] | None:
    """The bank's neighbours, their kernel, and `embed` with a memory for questions; None where it keeps none."""
    from mta_cli.engine.memory.knn import Kernel

    if bank.kernel is None:
        return None
    known = neighbours_of(reg, bank, task)
    kernel = Kernel(**bank.kernel, beside=bank.config.get(BESIDE, 1.0))
    return None if known is None else (known, kernel, remembering(embed))


def remembering(embed: Embed) -> Embed:
    """The same for one text at a time, without doing so twice."""
    once = lru_cache(QUESTIONS)(lambda text: embed([text]))
    return lambda texts: once(texts[0])
