"""Log-likelihoods of completions under many users' LoRAs; what is the same under all of them is computed once.

Below the first layer of the users' LoRAs, hidden states are the same for all users. If these LoRAs act on late tokens
only, the keys and values of earlier tokens are the same too. Both are cached for all users, steps and epochs. This is
exact, because attention is causal. On a CPU the bits of a cached prefix do not depend on which pass computed it, so a
resumed job gives the same result as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Placement
from mta_cli.engine.lora.batched import FrozenLoras, owner_blocks
from mta_cli.engine.model.activation_cache import ActivationCache, CachedPrefix
from mta_cli.engine.model.llama import BatchedLora, FusedFactors, LlamaDecoder, Masks, causal_mask
from mta_cli.engine.scoring.prefix_tree import PROMPT_SEGMENT, PromptTree
from mta_cli.engine.scoring.token_logprobs import token_log_likelihoods

CPU_BATCH_TOKENS = 1024  # larger batches are not faster on a CPU
GPU_BATCH_TOKENS = 32_768
LORA_COST_PER_ROW = 0.2  # extra cost per token of LoRA factors, divided by the number of rows that share them
PADDING_SEGMENT = -2


@dataclass(frozen=True)
class TokenLogLikelihoods:
    """Log-likelihoods [predicted tokens] in nats, with each token's row in the pass and the index of its completion."""

    log_likelihoods: Tensor
    row: Tensor
    completion_index: list[int]


class _PrefixKeyValues:
    """Cached keys and values before each row's offset, padded on the right. `update_kv` appends the new ones."""

    def __init__(self, first_layer: int, prefix_kv: Tensor) -> None:
        self._first_layer, self._prefix_kv = first_layer, prefix_kv  # [layers, 2, rows, kv heads, longest, head width]

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The cached keys and values followed by `k`, `v`; nothing is stored."""
        early_k, early_v = self._prefix_kv[layer - self._first_layer]
        return torch.cat([early_k, k], 2), torch.cat([early_v, v], 2)


class _KeyValueRecorder:
    """Records the keys and values of each layer that runs."""

    def __init__(self) -> None:
        self.recorded: list[Tensor] = []

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Record `k`, `v` of a layer, and return them unchanged, because no tokens come before them."""
        self.recorded.append(torch.stack([k, v]))  # [2, rows, kv heads, time, head width]
        return k, v


class PrefixCacheScorer:
    """Runs prompt trees repeatedly under LoRAs of one `placement`.

    `frozen_loras` act in every pass; tree `i` has the frozen LoRAs of user `tree_users[i]`.

    Prefixes that depend only on the base are cached with the base, for all scorers; prefixes that depend on
    `frozen_loras` are cached here. If all prefixes together need more than `cache_bytes` bytes (None: the base's
    limit), none is added to a cache, and each pass computes its prefixes again.

    A scorer is valid until the base's weights change: make a new one after a merge.
    """

    def __init__(
        self,
        decoder: LlamaDecoder,
        trees: Sequence[PromptTree],
        placement: Placement,
        *,
        frozen_loras: Sequence[FrozenLoras] = (),
        tree_users: Sequence[int] = (),
        cache_bytes: int | None = None,
    ) -> None:
        self.decoder, self.trees, self.placement = decoder, trees, placement
        cache_bytes = decoder.activation_cache.limit if cache_bytes is None else cache_bytes
        self._frozen_loras, self._tree_users = [one for one in frozen_loras if one.placement is not None], tree_users
        full_trees = [tree.full_tree for tree in trees]
        only_embeddings = placement.first_layer == 0 and placement.late_tokens is None
        self._caches_prefixes = not only_embeddings and sum(map(self._prefix_bytes, full_trees)) <= cache_bytes
        self._prefix_is_shared = all(_acts_within(one.placement, placement) for one in self._frozen_loras)
        self._cache = decoder.activation_cache if self._prefix_is_shared else ActivationCache(cache_bytes)
        where = (placement.first_layer, placement.late_tokens)
        self._keys: list[Hashable] = (
            [(tree, where) for tree in full_trees] if self._prefix_is_shared else list(range(len(trees)))
        )

    def score_trees(
        self,
        chosen: Sequence[int],
        factors: FusedFactors,
        user_loras: Sequence[FrozenLoras] = (),
        users: Sequence[int] = (),
        also: Sequence[BatchedLora] = (),
    ) -> TokenLogLikelihoods:
        """Log-likelihoods of the trees with indices `chosen`, one row each.

        The trees run under `factors`, the `user_loras` of each row's user in `users`, and the LoRAs `also`, which must
        all act inside the placement. Differentiable in `factors`.
        """
        trees = [self.trees[i] for i in chosen]
        # 1. states below the lowest adapted layer, from the cache, padded on the right  [rows, time, width]
        prefixes = self._get_prefixes(chosen)
        offsets = [prefix.offset for prefix in prefixes]
        x = torch.nn.utils.rnn.pad_sequence([prefix.states for prefix in prefixes], batch_first=True)
        # 2. keys and values of the tokens before them  [layers, 2, rows, kv heads, longest, head width]
        prefix_kv = _pad_prefix_key_values([prefix.prefix_kv for prefix in prefixes])
        # 3. the adapted layers  [rows, time, width]
        positions, mask = self._positions_and_mask(trees, offsets, x.shape[1], prefix_kv)
        states = self.decoder.run_layers(
            x,
            self.decoder.rope(positions),
            mask,
            first=self.placement.first_layer,
            loras=[
                BatchedLora(factors),
                *self._frozen_row_loras(chosen, positions),
                *(one.rows_lora(users, positions, [len(tree.prompt) for tree in trees]) for one in user_loras),
                *also,
            ],
            past=_PrefixKeyValues(self.placement.first_layer, prefix_kv) if prefix_kv is not None else None,
        )
        # 4. the tokens to predict, sorted by the state that predicts them: (row, column, completion, token, allowed)
        targets = sorted(
            (row, column - offsets[row], completion, token, allowed)
            for row, tree in enumerate(trees)
            for (column, token, completion), allowed in zip(tree.prediction_targets(), tree.allowed_tokens, strict=True)
        )
        # 5. the states that predict tokens, each once although it may predict several  [positions, width]
        state_of = {place: n for n, place in enumerate(dict.fromkeys(target[:2] for target in targets))}
        row, column = torch.tensor(list(state_of), device=x.device).T
        prediction_states = self.decoder.norm(states[row, column])
        # 6. log-likelihoods of the tokens by the head  [predicted tokens]
        target_row, target_ids = torch.tensor([(target[0], target[3]) for target in targets], device=x.device).T
        values = token_log_likelihoods(
            prediction_states,
            self.decoder.head.weight,
            self.decoder.head.bias,
            target_ids,
            [state_of[target[:2]] for target in targets],
            [target[4] for target in targets],
            self.decoder.logit_cap,
        )
        return TokenLogLikelihoods(values, target_row, [target[2] for target in targets])

    def _get_prefixes(self, chosen: Sequence[int]) -> list[CachedPrefix]:
        cached = {i: self._cache.get(self._keys[i]) for i in dict.fromkeys(chosen)}
        prefixes = {i: prefix for i, prefix in cached.items() if prefix is not None}
        missing = [i for i in cached if i not in prefixes]
        lengths = [self.trees[i].full_tree.length for i in missing]
        for piece in pack_by_length(lengths, _prefix_batch_tokens(self.decoder.device)):
            batch = [missing[n] for n in piece]
            prefixes |= zip(batch, self._compute_prefixes(batch), strict=True)
        for i in missing if self._caches_prefixes else ():
            self._cache.add_prefix(self._keys[i], prefixes[i])
        return [
            prefixes[i]
            if self.trees[i].active_indices is None
            else prefixes[i].select_tokens(self.trees[i].columns_in_full_tree)
            for i in chosen
        ]

    @torch.inference_mode(False)  # training may use the cached tensors later
    @torch.no_grad()
    def _compute_prefixes(self, chosen: Sequence[int]) -> list[CachedPrefix]:
        """Prefixes of trees `chosen` with all their completions, computed as one batch."""
        trees, first = [self.trees[i].full_tree for i in chosen], self.placement.first_layer
        offsets = [self._first_varying_token(tree) for tree in trees]
        # 1. embeddings of all tokens  [rows, time, width]
        ids = _pad_rows([tree.tokens for tree in trees], self.decoder.device)
        x = self.decoder.embed(ids)
        # 2. the layers below the placement  [rows, time, width]
        if first > 0:
            positions, mask = self._positions_and_mask(trees, [0] * len(trees), ids.shape[1], None)
            x = self.decoder.run_layers(
                x, self.decoder.rope(positions), mask, last=first, loras=self._prefix_loras(chosen, positions)
            )
        # 3. keys and values before each offset, in the layers above  [layers, 2, rows, kv heads, longest, head width]
        prefix_kv = self._prefix_key_values(x[:, : max(offsets)], chosen) if max(offsets) > 0 else None
        # 4. each row by itself: states from its offset on  [tokens, width], and its keys and values before it
        return [
            CachedPrefix(
                offset,
                x[row, offset : tree.length].clone(),
                prefix_kv[:, :, row, :, :offset].clone() if prefix_kv is not None else None,
            )
            for row, (tree, offset) in enumerate(zip(trees, offsets, strict=True))
        ]

    def _prefix_key_values(self, x: Tensor, chosen: Sequence[int]) -> Tensor:
        """Keys and values from the placement's first layer on, [layers, 2, rows, kv heads, time, head width]."""
        time, recorder = x.shape[1], _KeyValueRecorder()
        positions = torch.arange(time, device=x.device).expand(len(chosen), -1)
        mask = self.decoder.mask_windows(causal_mask(time, x.dtype, x.device), positions[:1], positions[:1])
        rope, loras = self.decoder.rope(positions), self._prefix_loras(chosen, positions)
        self.decoder.run_layers(x, rope, mask, first=self.placement.first_layer, loras=loras, past=recorder)
        return torch.stack(recorder.recorded)

    def tokens_per_pass(self, tree: int) -> int:
        """The number of tokens of the tree with index `tree` that run in each pass."""
        return self.trees[tree].length - self._first_varying_token(self.trees[tree])

    def _first_varying_token(self, tree: PromptTree) -> int:
        return self.placement.first_position(len(tree.prompt))

    def _prefix_loras(self, chosen: Sequence[int], positions: Tensor) -> list[BatchedLora]:
        """The frozen LoRAs that act on prefixes; none if prefixes are shared by all users."""
        return [] if self._prefix_is_shared else self._frozen_row_loras(chosen, positions)

    def _frozen_row_loras(self, chosen: Sequence[int], positions: Tensor) -> list[BatchedLora]:
        lengths = [len(self.trees[i].prompt) for i in chosen]
        users = [self._tree_users[i] for i in chosen] if self._frozen_loras else []
        return [one.rows_lora(users, positions, lengths) for one in self._frozen_loras]

    def _positions_and_mask(
        self, trees: Sequence[PromptTree], offsets: Sequence[int], time: int, prefix_kv: Tensor | None
    ) -> tuple[Tensor, Masks]:
        """Positions [rows, time] of a pass that begins at `offsets`, and its mask [rows, 1, 1, time, keys]."""
        device, dtype = self.decoder.device, self.decoder.dtype
        # 1. the position and the segment (prompt, completion or padding) of each token  [rows, time]
        rows = list(zip(trees, offsets, strict=True))
        positions = _pad_rows([tree.positions[offset:] for tree, offset in rows], device, time=time)
        segments = _pad_rows([tree.segment_ids[offset:] for tree, offset in rows], device, PADDING_SEGMENT, time)
        # 2. a token attends to the prompt and to its own completion up to itself; padding attends to padding, because a
        #    row of −∞ would make its softmax NaN  [rows, time, time]
        query, key = segments[:, :, None], segments[:, None, :]
        visible = ((key == PROMPT_SEGMENT) | (key == query)) & (positions[:, None, :] <= positions[:, :, None])
        visible &= (query != PADDING_SEGMENT) | (key == PADDING_SEGMENT)
        # 3. all tokens attend to the cached keys before their row's offset  [rows, time, longest + time]
        key_positions = positions
        if prefix_kv is not None:
            early = torch.arange(prefix_kv.shape[-2], device=device).expand(len(trees), -1)
            cached = early < torch.tensor(offsets, device=device)[:, None]
            visible = torch.cat([cached[:, None, :].expand(-1, time, -1), visible], -1)
            key_positions = torch.cat([early, positions], -1)
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))
        return positions, self.decoder.mask_windows(mask[:, None, None], positions, key_positions)

    def _prefix_bytes(self, tree: PromptTree) -> int:
        """The size of a tree's cached prefix."""
        decoder, offset = self.decoder, self._first_varying_token(tree)
        layers_above = len(decoder.layers) - self.placement.first_layer
        states = (tree.length - offset) * decoder.width
        key_values = 2 * offset * layers_above * decoder.kv_heads * decoder.head_dim
        return int(decoder.dtype.itemsize * (states + key_values))


def _pad_prefix_key_values(rows: Sequence[Tensor | None]) -> Tensor | None:
    """Cached keys and values of all rows, padded on the right: [layers, 2, rows, kv heads, longest, head width]."""
    cached = [(row, one) for row, one in enumerate(rows) if one is not None]
    if not cached:
        return None
    layers, _, heads, _, width = cached[0][1].shape
    longest = max(one.shape[3] for _, one in cached)
    padded = cached[0][1].new_zeros(layers, 2, len(rows), heads, longest, width)
    for row, one in cached:
        padded[:, :, row, :, : one.shape[3]] = one
    return padded


def _acts_within(frozen: Placement | None, placement: Placement) -> bool:
    """Whether a LoRA acts only inside `placement`, so that the prefix depends on the base alone."""
    if frozen is None:
        return True
    late = placement.late_tokens is None or (
        frozen.late_tokens is not None and frozen.late_tokens <= placement.late_tokens
    )
    return frozen.first_layer >= placement.first_layer and late


def device_batch_tokens(device: torch.device) -> int:
    """The number of tokens, including padding, that keep a device busy."""
    return GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS


def _prefix_batch_tokens(device: torch.device) -> int:
    """The number of tokens of prefixes that are computed together.

    On a CPU each tree's prefix runs alone: bfloat16 rounding depends on the batch, and a hundred tokens already keep
    the CPU busy.
    """
    return 1 if device.type == "cpu" else device_batch_tokens(device)


def pack_users_rows(lengths: Sequence[int], owners: Sequence[int], budget: int) -> list[list[int]]:
    """The indices of several users' rows (`owners`) in batches of at most `budget` tokens, padding counted.

    Returns the cheaper of two plans: rows of similar length together, as by `pack_by_length`, which saves padding; or
    all rows of a user side by side, so that they share LoRA factors. A row longer than `budget` is a batch by itself.
    """
    rows: dict[int, list[int]] = {}
    for i, owner in enumerate(owners):
        rows.setdefault(owner, []).append(i)
    by_owner: list[list[int]] = []
    rows_per_owner = 0  # of the last batch, in which every owner must have equally many rows
    for own in sorted(rows.values(), key=lambda own: (len(own), max(lengths[i] for i in own))):
        longest = max(lengths[i] for i in own)
        if len(own) * longest > budget:
            by_owner += [[own[n] for n in piece] for piece in pack_by_length([lengths[i] for i in own], budget)]
            rows_per_owner = 0
        elif len(own) == rows_per_owner and (len(by_owner[-1]) + rows_per_owner) * longest <= budget:
            by_owner[-1] += own
        else:
            by_owner.append(list(own))
            rows_per_owner = len(own)
    plans = (by_owner, pack_by_length(lengths, budget))
    return min(plans, key=lambda plan: sum(_batch_cost(batch, lengths, owners) for batch in plan))


def _batch_cost(batch: Sequence[int], lengths: Sequence[int], owners: Sequence[int]) -> float:
    """The cost of a batch, in tokens of a row without LoRA."""
    _, rows = owner_blocks([owners[i] for i in batch])
    return len(batch) * max(lengths[i] for i in batch) * (1 + LORA_COST_PER_ROW / rows)


def pack_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by similar length into batches of at most `budget` tokens, padding counted; longest last."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _pad_rows(rows: Iterable[Sequence[int]], device: torch.device, fill: int = 0, time: int | None = None) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    joint = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    missing = (time or joint.shape[1]) - joint.shape[1]
    return torch.nn.functional.pad(joint, (0, missing), value=fill).to(device)
