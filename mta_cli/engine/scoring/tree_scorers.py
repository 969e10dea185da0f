"""Runs prompt trees under LoRAs in training: through the Llama decoder, or through a base's own modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, attach_lora_layers
from mta_cli.engine.lora.batched import FrozenLoras, ModuleSlice, fuse_factors, module_slices
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.module_scoring import module_token_losses
from mta_cli.engine.scoring.prefix_cache_scoring import (
    PrefixCacheScorer,
    TokenLogLikelihoods,
    pack_by_length,
    pack_users_rows,
)
from mta_cli.engine.scoring.prefix_tree import PromptTree

FactorPairs = Mapping[str, tuple[Tensor, Tensor]]


class LlamaTreeScorer:
    """Scores trees with the Llama decoder.

    `mixes_users`: whether rows of several users may share a pass. `can_recompute`: whether the backward pass can
    compute layers again to save memory. `dtype` is the number format of the factors in a pass.
    """

    mixes_users = can_recompute = True

    def __init__(
        self,
        decoder: LlamaDecoder,
        trees: Sequence[PromptTree],
        placement: Placement,
        frozen_loras: Sequence[Sequence[LoraWeights]],
        tree_users: Sequence[int],
    ) -> None:
        self.dtype = decoder.dtype
        self._decoder = decoder
        self._module_slices: dict[str, ModuleSlice] = {}
        frozen = group_frozen_loras(decoder, frozen_loras)
        self._scorer = PrefixCacheScorer(decoder, trees, placement, frozen_loras=frozen, tree_users=tree_users)

    def tokens_per_pass(self, row: int) -> int:
        """The number of tokens of the tree with index `row` that run in each pass."""
        return self._scorer.tokens_per_pass(row)

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """Log-likelihoods of the trees with indices `chosen`, one row each.

        `factors` has, by module path, `A [blocks, rank, in]` and scaled `B [blocks, out, rank]`; see `owner_blocks`.
        """
        self._module_slices = self._module_slices or module_slices(self._decoder, list(factors))
        return self._scorer.score_trees(chosen, fuse_factors(self._module_slices, factors))

    def recomputing_layers(self, recomputes: bool) -> AbstractContextManager[None]:
        """See `LlamaDecoder.recomputing_layers`."""
        return self._decoder.recomputing_layers(recomputes)


class ModuleTreeScorer:
    """Scores trees with the base's own modules; all rows of a pass must belong to one user."""

    mixes_users = can_recompute = False

    def __init__(
        self,
        base: LoadedBase,
        trees: Sequence[PromptTree],
        frozen_loras: Sequence[Sequence[LoraWeights]],
        tree_users: Sequence[int],
    ) -> None:
        self.dtype = torch.float32
        self._base, self._trees, self._tree_users = base, trees, tree_users
        self._frozen_loras = [merge_loras([(lora, 1.0) for lora in own]) for own in frozen_loras]

    def tokens_per_pass(self, row: int) -> int:
        """See `LlamaTreeScorer`."""
        return sum(tree.length for _, tree in self._trees[row].single_completion_trees)

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """See `LlamaTreeScorer`."""
        frozen = self._frozen_loras[self._tree_users[chosen[0]]] if self._frozen_loras else None
        # 1. each completion as a separate row, with the place of its tree in `chosen`
        rows = [
            (place, completion, tree)
            for place, i in enumerate(chosen)
            for completion, tree in self._trees[i].single_completion_trees
        ]
        # 2. losses and rows of all predicted tokens  [predicted tokens]
        with attach_lora_layers(self._base.model, _concat_factors(frozen, factors, self._base.device)):
            losses, row = module_token_losses(self._base, [tree for *_, tree in rows])
        # 3. from rows back to trees
        tree_row = torch.tensor([place for place, *_ in rows], device=losses.device)[row]
        return TokenLogLikelihoods(-losses, tree_row, [rows[n][1] for n in row.tolist()])

    def recomputing_layers(self, recomputes: bool) -> AbstractContextManager[None]:
        """Do nothing: the modules cannot compute layers again."""
        return nullcontext()


TreeScorer = LlamaTreeScorer | ModuleTreeScorer


def _concat_factors(
    frozen: LoraWeights | None, factors: FactorPairs, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Frozen and given factors, concatenated along the rank."""
    result = dict(factors)
    if frozen is None:
        return result
    for path, (a, b) in frozen.factors.items():
        if path not in result:
            result[path] = (a.to(device, torch.float32), frozen.scale * b.to(device, torch.float32))
            continue
        own_a, own_b = result[path]
        scaled_b = frozen.scale * b.to(own_b.device, own_b.dtype)
        result[path] = (torch.cat([a.to(own_a.device, own_a.dtype), own_a]), torch.cat([scaled_b, own_b], 1))
    return result


def plan_batches(scorer: TreeScorer, rows: Sequence[int], owners: Sequence[int], tokens: int) -> list[list[int]]:
    """Divides trees into passes of at most `tokens` tokens, padding counted; returns indices into `rows` for each pass.

    `rows` are indices of trees, and `owners` their users.
    """
    lengths = [scorer.tokens_per_pass(row) for row in rows]
    if scorer.mixes_users:
        return pack_users_rows(lengths, owners, tokens)
    by_user = {user: [n for n, owner in enumerate(owners) if owner == user] for user in set(owners)}
    return [
        [own[i] for i in batch]
        for own in by_user.values()
        for batch in pack_by_length([lengths[n] for n in own], tokens)
    ]


def group_frozen_loras(decoder: LlamaDecoder, users: Sequence[Sequence[LoraWeights]]) -> list[FrozenLoras]:
    """The LoRAs of all users, merged by the tokens they act on: one `FrozenLoras` for each value of `late_tokens`."""
    late_tokens = dict.fromkeys(lora.placement.late_tokens for own in users for lora in own)
    return [
        FrozenLoras(
            decoder, [merge_loras([(lora, 1.0) for lora in own if lora.placement.late_tokens == late]) for own in users]
        )
        for late in late_tokens
    ]
