"""How rows run under LoRAs: through the plain decoder where the base has one, else through its own modules.

Both give the same numbers; only the plain one takes rows of several people in one pass, and late parts. Knows neither
optimisers nor users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, attach_lora_layers
from mta_cli.engine.lora.batched import FrozenLoras, ModuleSlice, fuse_factors, module_slices
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import head_logits
from mta_cli.engine.scoring.prefix_cache_scoring import (
    PrefixCacheScorer,
    TokenLogLikelihoods,
    device_batch_tokens,
    pack_by_length,
    pack_by_user,
)
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.errors import BadInput, UsageError

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase

T = TypeVar("T")
FactorPairs = Mapping[str, tuple[Tensor, Tensor]]


class ScoringBackend(Protocol):
    """Runs forks under parts. `mixes`: rows of several people may share a pass. `dtype`: in what factors are given."""

    mixes_users: bool
    dtype: torch.dtype

    def tokens_per_pass(self, row: int) -> int:
        """How many tokens of a fork run in each pass."""
        ...

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """Log-likelihoods of forks `chosen`, one row each.

        `factors` by module path: `A [blocks, rank, in]`, scaled `B [blocks, out, rank]`; see `parts.blocks_of`.
        """
        ...


class LlamaBackend:
    """Through the plain decoder."""

    mixes_users = True

    def __init__(
        self,
        plain: LlamaDecoder,
        forks: Sequence[PromptTree],
        placement: Placement,
        under: Sequence[Sequence[LoraWeights]] = (),
        people: Sequence[int] = (),
    ) -> None:
        self.dtype = plain.dtype
        self._decoder = plain
        self._module_slices: dict[str, ModuleSlice] = {}
        self._scorer = PrefixCacheScorer(plain, forks, placement, under=group_frozen_loras(plain, under), people=people)

    def tokens_per_pass(self, row: int) -> int:
        """See `Lens`."""
        return self._scorer.tokens_per_pass(row)

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """See `Lens`."""
        self._module_slices = self._module_slices or module_slices(self._decoder, list(factors))
        return self._scorer.score_trees(chosen, fuse_factors(self._module_slices, factors))


class ModuleBackend:
    """Through the base's own modules, all rows of a pass being one person's."""

    mixes_users = False

    def __init__(
        self,
        base: LoadedBase,
        forks: Sequence[PromptTree],
        under: Sequence[Sequence[LoraWeights]] = (),
        people: Sequence[int] = (),
    ) -> None:
        self.dtype = torch.float32
        self._base, self._trees, self._tree_users = base, forks, people
        self._frozen_loras = [merge_loras([(part, 1.0) for part in parts]) for parts in under]

    def tokens_per_pass(self, row: int) -> int:
        """See `Lens`."""
        return sum(fork.length for _, fork in self._trees[row].single_completion_trees)

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """See `Lens`."""
        under = self._frozen_loras[self._tree_users[chosen[0]]] if self._frozen_loras else None
        rows = [
            (place, branch, fork)
            for place, i in enumerate(chosen)
            for branch, fork in self._trees[i].single_completion_trees
        ]
        with attach_lora_layers(self._base.model, _concat_factors(under, factors, self._base.device)):
            losses, row = module_token_losses(self._base, [fork for *_, fork in rows])
        where = torch.tensor([place for place, *_ in rows], device=losses.device)[row]
        return TokenLogLikelihoods(-losses, where, [rows[n][1] for n in row.tolist()])


def module_token_losses(base: LoadedBase, forks: Sequence[PromptTree]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [labelled] of forks with one branch each, and the fork that each belongs to, under
    whatever the base's modules hold now.
    """
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(fork.tokens) for fork in forks], batch_first=True)
    labels = [(r, column, token) for r, fork in enumerate(forks) for column, token, _ in fork.prediction_targets()]
    where = torch.tensor(labels, device=base.device).T  # [3, labelled]
    logits = head_logits(base, ids.to(base.device), None, where[0], where[1])
    return torch.nn.functional.cross_entropy(logits.float(), where[2], reduction="none"), where[0]


def _concat_factors(
    under: LoraWeights | None, factors: FactorPairs, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
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


def make_scoring_backend(
    base: LoadedBase,
    forks: Sequence[PromptTree],
    placement: Placement,
    *,
    under: Sequence[Sequence[LoraWeights]] = (),
    people: Sequence[int] = (),
) -> ScoringBackend:
    """The fastest exact lens for parts of `placement`. UsageFault when the base cannot have them."""
    if base.llama_decoder is not None:
        return LlamaBackend(base.llama_decoder, forks, placement, under, people)
    require_supported_placements(base, [placement, *(part.placement for parts in under for part in parts)])
    return ModuleBackend(base, forks, under, people)


def plan_batches(lens: ScoringBackend, rows: Sequence[int], owners: Sequence[int], tokens: int) -> list[list[int]]:
    """Places in `rows` whose rows share a pass of at most `tokens` tokens, padding counted; `owners` are theirs."""
    lengths = [lens.tokens_per_pass(row) for row in rows]
    if lens.mixes_users:
        return pack_by_user(lengths, owners, tokens)
    own = {person: [n for n, owner in enumerate(owners) if owner == person] for person in set(owners)}
    return [
        [places[i] for i in batch]
        for places in own.values()
        for batch in pack_by_length([lengths[n] for n in places], tokens)
    ]


def group_frozen_loras(plain: LlamaDecoder, people: Sequence[Sequence[LoraWeights]]) -> list[FrozenLoras]:
    """Everybody's parts as crowds, one for each kind of token position."""
    kinds = dict.fromkeys(part.placement.late_tokens for parts in people for part in parts)
    return [
        FrozenLoras(
            plain,
            [merge_loras([(part, 1.0) for part in parts if part.placement.late_tokens == kind]) for parts in people],
        )
        for kind in kinds
    ]


def require_supported_placements(base: LoadedBase, placements: Sequence[Placement]) -> None:
    """UsageFault when a placement is late and this base has no plain decoder, which alone keeps early tokens apart."""
    if base.llama_decoder is None and any(one.late_tokens is not None for one in placements):
        raise UsageError(
            f"late parts need a base of the Llama family; {base.name} is none, or differs from it in some detail.",
            hint="--placement upper",
        )


class TokenBudget:
    """How many tokens, padding counted, run at once. It is halved where memory runs out."""

    def __init__(self, base: LoadedBase, tokens: int | None = None) -> None:
        self.tokens = tokens or device_batch_tokens(base.device)
        self._device = base.device

    def run_batches(self, batches: list[list[T]], work: Callable[[list[T]], None]) -> None:
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
                waiting += self._split_batch(batch)

    def _split_batch(self, batch: list[T]) -> list[list[T]]:
        if len(batch) == 1:
            raise BadInput(
                f"one row alone does not fit into the memory of {self._device}",
                hint="--dtype bfloat16, a lower --rank, or fewer --history-items",
            )
        self.tokens = max(1, self.tokens // 2)
        return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
