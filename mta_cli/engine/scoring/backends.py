"""How prompt trees run under LoRAs: through the Llama decoder where the base has one, else through its own modules.

Both give the same numbers. Only the Llama decoder takes rows of several users in one pass, and late LoRAs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, attach_lora_layers
from mta_cli.engine.lora.batched import FrozenLoras, ModuleSlice, fuse_factors, module_slices
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.device_memory import is_out_of_memory
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase, head_logits
from mta_cli.engine.scoring.prefix_cache_scoring import (
    PrefixCacheScorer,
    TokenLogLikelihoods,
    device_batch_tokens,
    pack_by_length,
    pack_by_user,
)
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.errors import BadInput, UsageError

T = TypeVar("T")
FactorPairs = Mapping[str, tuple[Tensor, Tensor]]


class LlamaBackend:
    """Through the Llama decoder. `mixes_users`: rows of several users may share a pass. Factors are in `dtype`."""

    mixes_users = True

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
        """How many tokens of tree number `row` run in each pass."""
        return self._scorer.tokens_per_pass(row)

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """Log-likelihoods of trees `chosen`, one row each.

        `factors` by module path: `A [blocks, rank, in]`, scaled `B [blocks, out, rank]`; see `owner_blocks`.
        """
        self._module_slices = self._module_slices or module_slices(self._decoder, list(factors))
        return self._scorer.score_trees(chosen, fuse_factors(self._module_slices, factors))


class ModuleBackend:
    """Through the base's own modules; all rows of a pass are one user's."""

    mixes_users = False

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
        """See `LlamaBackend`."""
        return sum(tree.length for _, tree in self._trees[row].single_completion_trees)

    def score_rows(self, chosen: Sequence[int], factors: FactorPairs) -> TokenLogLikelihoods:
        """See `LlamaBackend`."""
        frozen = self._frozen_loras[self._tree_users[chosen[0]]] if self._frozen_loras else None
        # 1. each completion as a row of its own, with the place of its tree in `chosen`
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


ScoringBackend = LlamaBackend | ModuleBackend


def module_token_losses(base: LoadedBase, trees: Sequence[PromptTree]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [predicted tokens] of trees with one completion each, and the tree of each token.

    The base's modules run as they are now.
    """
    # 1. tokens, padded on the right  [trees, time]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tree.tokens) for tree in trees], batch_first=True)
    # 2. what is predicted: tree, column and token  [predicted tokens] each
    targets = [(row, column, token) for row, tree in enumerate(trees) for column, token, _ in tree.prediction_targets()]
    row, column, token_ids = torch.tensor(targets, device=base.device).T
    # 3. logits at these columns alone  [predicted tokens, vocabulary]
    logits = head_logits(base, ids.to(base.device), row, column)
    return torch.nn.functional.cross_entropy(logits.float(), token_ids, reduction="none"), row


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


def make_scoring_backend(
    base: LoadedBase,
    trees: Sequence[PromptTree],
    placement: Placement,
    *,
    frozen_loras: Sequence[Sequence[LoraWeights]] = (),
    tree_users: Sequence[int] = (),
) -> ScoringBackend:
    """The fastest exact backend for LoRAs of `placement`. Tree `i` always has the `frozen_loras` of `tree_users[i]`.

    Raises UsageError when the base cannot have such LoRAs.
    """
    if base.llama_decoder is not None:
        return LlamaBackend(base.llama_decoder, trees, placement, frozen_loras, tree_users)
    require_supported_placements(base, [placement, *(lora.placement for own in frozen_loras for lora in own)])
    return ModuleBackend(base, trees, frozen_loras, tree_users)


def plan_batches(backend: ScoringBackend, rows: Sequence[int], owners: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices into `rows` (numbers of trees, of users `owners`), in passes of at most `tokens` tokens with padding."""
    lengths = [backend.tokens_per_pass(row) for row in rows]
    if backend.mixes_users:
        return pack_by_user(lengths, owners, tokens)
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


def require_supported_placements(base: LoadedBase, placements: Sequence[Placement]) -> None:
    """Raises UsageError for a late placement on a base without Llama decoder, which alone keeps early tokens apart."""
    if base.llama_decoder is None and any(one.late_tokens is not None for one in placements):
        raise UsageError(
            f"late parts need a base with a fast path; {base.name} ({base.model.config.model_type}) has none.",
            hint="--placement upper",
        )


class TokenBudget:
    """How many tokens run at once, with padding; halved where memory runs out."""

    def __init__(self, base: LoadedBase, tokens: int | None = None) -> None:
        self.tokens = tokens or base.limits.batch_tokens or device_batch_tokens(base.device)
        self._device = base.device

    def run_batches(
        self,
        batches: list[list[T]],
        work: Callable[[list[T]], None],
        work_in_less: Callable[[list[T]], None] | None = None,
    ) -> None:
        """Do `work` on each batch, the last first; a batch that does not fit into memory is done in halves.

        One item that does not fit alone is done by `work_in_less`. Raises BadInput when it does not fit there either,
        or there is none.
        """
        waiting = list(batches)
        while waiting:
            batch = waiting.pop()
            if self._fits(work, batch):
                continue
            if len(batch) > 1:
                self.tokens = max(1, self.tokens // 2)
                waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            elif work_in_less is None or not self._fits(work_in_less, batch):
                raise BadInput(
                    f"one row alone does not fit into the memory of {self._device}",
                    hint="--dtype bfloat16, a lower --rank, or fewer --history-items",
                )

    @staticmethod
    def _fits(work: Callable[[list[T]], None], batch: list[T]) -> bool:
        """Do `work`; False where memory runs out."""
        try:
            work(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True
