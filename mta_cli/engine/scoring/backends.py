"""How rows run under LoRAs: through the plain decoder where the base has one, else through its own modules.

Both give the same numbers; only the plain one takes rows of several people in one pass, and late parts. Knows neither
optimisers nor users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, attached
from mta_cli.engine.lora.batched import Crowd, Place, joined, places
from mta_cli.engine.lora.merge import merge
from mta_cli.engine.model.llama import Plain
from mta_cli.engine.model.load import head_logits
from mta_cli.engine.scoring.prefix_cache_scoring import Passes, Scores, by_owner, packed, tokens_at_once
from mta_cli.engine.scoring.prefix_tree import Fork
from mta_cli.errors import BadInput, UsageFault

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase

T = TypeVar("T")
Halves = Mapping[str, tuple[Tensor, Tensor]]


class Lens(Protocol):
    """Runs forks under parts. `mixes`: rows of several people may share a pass. `dtype`: in what factors are given."""

    mixes: bool
    dtype: torch.dtype

    def length(self, row: int) -> int:
        """How many tokens of a fork run in each pass."""
        ...

    def scores(self, chosen: Sequence[int], factors: Halves) -> Scores:
        """Log-likelihoods of forks `chosen`, one row each.

        `factors` by module path: `A [blocks, rank, in]`, scaled `B [blocks, out, rank]`; see `parts.blocks_of`.
        """
        ...


class PlainLens:
    """Through the plain decoder."""

    mixes = True

    def __init__(
        self,
        plain: Plain,
        forks: Sequence[Fork],
        placement: Placement,
        under: Sequence[Sequence[LoraWeights]] = (),
        people: Sequence[int] = (),
    ) -> None:
        self.dtype = plain.dtype
        self._plain = plain
        self._places: dict[str, Place] = {}
        self._passes = Passes(plain, forks, placement, under=crowds(plain, under), people=people)

    def length(self, row: int) -> int:
        """See `Lens`."""
        return self._passes.length(row)

    def scores(self, chosen: Sequence[int], factors: Halves) -> Scores:
        """See `Lens`."""
        self._places = self._places or places(self._plain, list(factors))
        return self._passes.scores(chosen, joined(self._places, factors))


class ModuleLens:
    """Through the base's own modules, all rows of a pass being one person's."""

    mixes = False

    def __init__(
        self,
        base: LoadedBase,
        forks: Sequence[Fork],
        under: Sequence[Sequence[LoraWeights]] = (),
        people: Sequence[int] = (),
    ) -> None:
        self.dtype = torch.float32
        self._base, self._forks, self._people = base, forks, people
        self._under = [merge([(part, 1.0) for part in parts]) for parts in under]

    def length(self, row: int) -> int:
        """See `Lens`."""
        return sum(fork.length for _, fork in self._forks[row].alone)

    def scores(self, chosen: Sequence[int], factors: Halves) -> Scores:
        """See `Lens`."""
        under = self._under[self._people[chosen[0]]] if self._under else None
        rows = [(place, branch, fork) for place, i in enumerate(chosen) for branch, fork in self._forks[i].alone]
        with attached(self._base.model, _together(under, factors, self._base.device)):
            losses, row = module_losses(self._base, [fork for *_, fork in rows])
        where = torch.tensor([place for place, *_ in rows], device=losses.device)[row]
        return Scores(-losses, where, [rows[n][1] for n in row.tolist()])


def module_losses(base: LoadedBase, forks: Sequence[Fork]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [labelled] of forks with one branch each, and the fork that each belongs to, under
    whatever the base's modules hold now.
    """
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(fork.tokens) for fork in forks], batch_first=True)
    labels = [(r, column, token) for r, fork in enumerate(forks) for column, token, _ in fork.labels()]
    where = torch.tensor(labels, device=base.device).T  # [3, labelled]
    logits = head_logits(base, ids.to(base.device), None, where[0], where[1])
    return torch.nn.functional.cross_entropy(logits.float(), where[2], reduction="none"), where[0]


def _together(under: LoraWeights | None, factors: Halves, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Frozen and acting factors side by side along the rank."""
    result = dict(factors)
    for path, (a, b) in (under.factors if under is not None else {}).items():
        assert under is not None
        if path not in result:
            result[path] = (a.to(device, torch.float32), under.scale * b.to(device, torch.float32))
            continue
        own_a, own_b = result[path]
        wide = under.scale * b.to(own_b.device, own_b.dtype)
        result[path] = (torch.cat([a.to(own_a.device, own_a.dtype), own_a]), torch.cat([wide, own_b], 1))
    return result


def make_lens(
    base: LoadedBase,
    forks: Sequence[Fork],
    placement: Placement,
    *,
    under: Sequence[Sequence[LoraWeights]] = (),
    people: Sequence[int] = (),
) -> Lens:
    """The fastest exact lens for parts of `placement`. UsageFault when the base cannot have them."""
    if base.plain is not None:
        return PlainLens(base.plain, forks, placement, under, people)
    require_everywhere(base, [placement, *(part.placement for parts in under for part in parts)])
    return ModuleLens(base, forks, under, people)


def shared_passes(lens: Lens, rows: Sequence[int], owners: Sequence[int], tokens: int) -> list[list[int]]:
    """Places in `rows` whose rows share a pass of at most `tokens` tokens, padding counted; `owners` are theirs."""
    lengths = [lens.length(row) for row in rows]
    if lens.mixes:
        return by_owner(lengths, owners, tokens)
    own = {person: [n for n, owner in enumerate(owners) if owner == person] for person in set(owners)}
    return [
        [places[i] for i in batch] for places in own.values() for batch in packed([lengths[n] for n in places], tokens)
    ]


def crowds(plain: Plain, people: Sequence[Sequence[LoraWeights]]) -> list[Crowd]:
    """Everybody's parts as crowds, one for each kind of token position."""
    kinds = dict.fromkeys(part.placement.late for parts in people for part in parts)
    return [
        Crowd(plain, [merge([(part, 1.0) for part in parts if part.placement.late == kind]) for parts in people])
        for kind in kinds
    ]


def require_everywhere(base: LoadedBase, placements: Sequence[Placement]) -> None:
    """UsageFault when a placement is late and this base has no plain decoder, which alone keeps early tokens apart."""
    if base.plain is None and any(one.late is not None for one in placements):
        raise UsageFault(
            f"late parts need a base of the Llama family; {base.name} is none, or differs from it in some detail.",
            hint="--placement upper",
        )


class Budget:
    """How many tokens, padding counted, run at once. It is halved where memory runs out."""

    def __init__(self, base: LoadedBase, tokens: int | None = None) -> None:
        self.tokens = tokens or tokens_at_once(base.device)
        self._device = base.device

    def spend(self, batches: list[list[T]], work: Callable[[list[T]], None]) -> None:
        """Do `work` on each batch, the last first; what does not fit into memory is done in halves.

        Raises BadInput when one item alone does not fit.
        """
        waiting = list(batches)
        while waiting:
            batch = waiting.pop()
            try:
                work(batch)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                waiting += self._halves(batch)

    def _halves(self, batch: list[T]) -> list[list[T]]:
        if len(batch) == 1:
            raise BadInput(
                f"one row alone does not fit into the memory of {self._device}",
                hint="--dtype bfloat16, a lower --rank, or fewer --history-items",
            )
        self.tokens = max(1, self.tokens // 2)
        return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
