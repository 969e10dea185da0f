"""Log-likelihoods of answers under many people's parts, where whatever no part reaches is computed once.

Below the first layer of the parts that vary, states are the same for everybody; where those parts act on late tokens
only, so are all keys and values before them. Both are kept and serve every person, every step and every epoch. Exact:
attention is causal, so no early token sees a late one. On a CPU they are the same to the last bit whoever asks first,
so that a job that goes on computes what an unbroken one would have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Placement
from mta_cli.engine.lora.batched import FrozenLoras, owner_blocks
from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES, ActivationCache, CachedPrefix
from mta_cli.engine.model.llama import BatchedLora, FusedFactors, LlamaDecoder, causal_mask
from mta_cli.engine.scoring.prefix_tree import PROMPT_SEGMENT, PromptTree
from mta_cli.engine.scoring.token_logprobs import token_log_likelihoods

CPU_BATCH_TOKENS = 1024  # more at once is no faster on a CPU
GPU_BATCH_TOKENS = 32_768
LORA_COST_PER_ROW = 0.2  # what a row's own factors add to the cost of its tokens; rows that share them share that
PADDING_SEGMENT = -2


@dataclass(frozen=True)
class PredictionStates:
    """What the head reads to predict answer tokens: normalised states [positions, width], each read once for all tokens
    that may follow it, and the place in the pass that each belongs to; of each token [labelled] the state it follows,
    in ascending order, its place in the pass and its branch.
    """

    states: Tensor
    state_row_index: Tensor
    target_ids: Tensor
    state_index: list[int]
    row: Tensor
    completion_index: list[int]
    allowed_tokens: list[tuple[int, ...] | None]


@dataclass(frozen=True)
class TokenLogLikelihoods:
    """Log-likelihoods [labelled] in nats, with the place in the pass and the branch that each belongs to."""

    log_likelihoods: Tensor
    row: Tensor
    completion_index: list[int]


class _PrefixKeyValues:
    """Keys and values before each row's start, padded on the right; a pass adds its own behind them."""

    def __init__(self, first: int, kept: Tensor) -> None:
        self._first, self._kept = first, kept  # [layers, 2, rows, kv heads, longest, head width]

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValues`."""
        early_k, early_v = self._kept[layer - self._first]
        return torch.cat([early_k, k], 2), torch.cat([early_v, v], 2)


class _KeyValueRecorder:
    """Keeps what passes by."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValues`."""
        self.seen.append(torch.stack([k, v]))  # [2, rows, kv heads, time, head width]
        return k, v


class PrefixCacheScorer:
    """Forks ready to run under parts of one `placement`. `under` are frozen parts of each fork's own person, `people`.

    Where the base alone decides how a fork begins, its states are kept with the base, for whoever asks next; where
    `under` does, with these passes. More than `keep` bytes are not kept but computed anew each time. All of it is right
    as long as the base's weights stay as they are: make other passes after folding something else.
    """

    def __init__(
        self,
        plain: LlamaDecoder,
        forks: Sequence[PromptTree],
        placement: Placement,
        *,
        under: Sequence[FrozenLoras] = (),
        people: Sequence[int] = (),
        keep: int = ACTIVATION_CACHE_BYTES,
    ) -> None:
        self.decoder, self.trees, self.placement = plain, forks, placement
        self._frozen_loras, self._tree_users = [crowd for crowd in under if crowd.placement is not None], people
        nothing = placement.first_layer == 0 and placement.late_tokens is None  # only embeddings stand before it
        wholes = [fork.full_tree for fork in forks]
        self._caches_prefixes = not nothing and sum(self._bytes(fork) for fork in wholes) <= keep
        self._prefix_is_shared = all(_acts_within(crowd.placement, placement) for crowd in self._frozen_loras)
        self._cache = plain.activation_cache if self._prefix_is_shared else ActivationCache(keep)
        where = (placement.first_layer, placement.late_tokens)
        self._keys: list[Hashable] = (
            [(fork, where) for fork in wholes] if self._prefix_is_shared else list(range(len(forks)))
        )

    def score_trees(
        self,
        chosen: Sequence[int],
        acting: FusedFactors,
        crowds: Sequence[FrozenLoras] = (),
        people: Sequence[int] = (),
        also: Sequence[BatchedLora] = (),
        shifts: Tensor | None = None,
    ) -> TokenLogLikelihoods:
        """Log-likelihoods of forks as `ends` runs them. `shifts` [rows, width] are added to the states of each row."""
        ends, head = self.compute_prediction_states(chosen, acting, crowds, people, also), self.decoder.head
        states = ends.states if shifts is None else ends.states + shifts[ends.state_row_index]
        values = token_log_likelihoods(
            states, head.weight, head.bias, ends.target_ids, ends.state_index, ends.allowed_tokens
        )
        return TokenLogLikelihoods(values, ends.row, ends.completion_index)

    def compute_prediction_states(
        self,
        chosen: Sequence[int],
        acting: FusedFactors,
        crowds: Sequence[FrozenLoras] = (),
        people: Sequence[int] = (),
        also: Sequence[BatchedLora] = (),
    ) -> PredictionStates:
        """Run forks number `chosen`, one row each, with `acting` and with the parts of `people` among `crowds`.

        Differentiable in `acting`. `also` are further parts of the pass. None acts before or below the placement.
        """
        starts = self._get_prefixes(chosen)
        forks = [self.trees[i] for i in chosen]
        x = torch.nn.utils.rnn.pad_sequence([start.states for start in starts], batch_first=True)
        early = self._pad_prefix_key_values([start.prefix_kv for start in starts])
        positions, mask = self._positions_and_mask(forks, [start.offset for start in starts], x.shape[1], early)
        states = self.decoder.run_layers(
            x,
            self.decoder.rope(positions),
            mask,
            first=self.placement.first_layer,
            parts=[
                BatchedLora(acting),
                *self._frozen_row_loras(chosen, positions),
                *self._user_loras(crowds, people, forks, positions),
                *also,
            ],
            past=_PrefixKeyValues(self.placement.first_layer, early) if early is not None else None,
        )
        labels = sorted(
            (r, column - starts[r].offset, branch, token, rivals)
            for r, fork in enumerate(forks)
            for (column, token, branch), rivals in zip(fork.prediction_targets(), fork.allowed_tokens, strict=True)
        )
        places = {place: n for n, place in enumerate(dict.fromkeys(label[:2] for label in labels))}
        at = torch.tensor(list(places), device=x.device).T  # [2, positions]
        asked = torch.tensor([(label[0], label[3]) for label in labels], device=x.device).T  # [2, labelled]
        follows, branch = [places[label[:2]] for label in labels], [label[2] for label in labels]
        rivals = [label[4] for label in labels]
        return PredictionStates(
            self.decoder.norm(states[at[0], at[1]]), at[0], asked[1], follows, asked[0], branch, rivals
        )

    def _get_prefixes(self, chosen: Sequence[int]) -> list[CachedPrefix]:
        found = {i: self._cache.get(self._keys[i]) for i in dict.fromkeys(chosen)}
        starts = {i: start for i, start in found.items() if start is not None}
        missing = [i for i in found if i not in starts]
        for piece in pack_by_length(
            [self.trees[i].full_tree.length for i in missing], _prefix_batch_tokens(self.decoder.device)
        ):
            batch = [missing[n] for n in piece]
            starts |= zip(batch, self._compute_prefixes(batch), strict=True)
        for i in missing if self._caches_prefixes else ():
            self._cache.add_prefix(self._keys[i], starts[i])
        return [
            starts[i]
            if self.trees[i].active_indices is None
            else starts[i].select_tokens(self.trees[i].columns_in_full_tree)
            for i in chosen
        ]

    @torch.inference_mode(False)  # what is kept may serve training later
    @torch.no_grad()
    def _compute_prefixes(self, chosen: Sequence[int]) -> list[CachedPrefix]:
        """Starts of forks `chosen` with all their branches, computed as one batch."""
        forks, first = [self.trees[i].full_tree for i in chosen], self.placement.first_layer
        ids = _pad_rows([fork.tokens for fork in forks], self.decoder.device)
        x = self.decoder.embed(ids)
        ats = [self._first_varying_token(fork) for fork in forks]
        if first > 0:
            positions, mask = self._positions_and_mask(forks, [0] * len(forks), ids.shape[1], None)
            x = self.decoder.run_layers(
                x, self.decoder.rope(positions), mask, last=first, parts=self._prefix_loras(chosen, positions)
            )
        early = self._prefix_key_values(x[:, : max(ats)], chosen) if max(ats) > 0 else None
        return [
            CachedPrefix(
                at, x[r, at : fork.length].clone(), early[:, :, r, :, :at].clone() if early is not None else None
            )
            for r, (fork, at) in enumerate(zip(forks, ats, strict=True))
        ]

    def _prefix_key_values(self, x: Tensor, chosen: Sequence[int]) -> Tensor:
        """Keys and values from the placement's first layer on, [layers, 2, rows, kv heads, time, head width]."""
        time, recorder = x.shape[1], _KeyValueRecorder()
        positions = torch.arange(time, device=x.device).expand(len(chosen), -1)
        mask = causal_mask(time, x.dtype, x.device)
        rope, parts = self.decoder.rope(positions), self._prefix_loras(chosen, positions)
        self.decoder.run_layers(x, rope, mask, first=self.placement.first_layer, parts=parts, past=recorder)
        return torch.stack(recorder.seen)

    def tokens_per_pass(self, fork: int) -> int:
        """How many tokens of fork number `fork` run in each pass."""
        return self.trees[fork].length - self._first_varying_token(self.trees[fork])

    def _first_varying_token(self, fork: PromptTree) -> int:
        """The first token on which the varying parts act."""
        return self.placement.first_position(len(fork.prompt))

    def _prefix_loras(self, chosen: Sequence[int], positions: Tensor) -> list[BatchedLora]:
        """What acts before or below the placement."""
        return [] if self._prefix_is_shared else self._frozen_row_loras(chosen, positions)

    def _frozen_row_loras(self, chosen: Sequence[int], positions: Tensor) -> list[BatchedLora]:
        if not self._frozen_loras:
            return []
        people, forks = [self._tree_users[i] for i in chosen], [self.trees[i] for i in chosen]
        return self._user_loras(self._frozen_loras, people, forks, positions)

    def _user_loras(
        self, crowds: Sequence[FrozenLoras], people: Sequence[int], forks: Sequence[PromptTree], positions: Tensor
    ) -> list[BatchedLora]:
        """What `people`, one a row, have in `crowds`, each part at the positions where it acts."""
        parts = []
        for crowd in crowds:
            where = None
            if crowd.placement is not None and crowd.placement.late_tokens is not None:
                starts = [crowd.placement.first_position(len(fork.prompt)) for fork in forks]
                late = positions >= torch.tensor(starts, device=positions.device)[:, None]
                where = late.unsqueeze(-1).to(self.decoder.dtype)
            parts.append(BatchedLora(crowd.factors_for_rows(people), where))
        return parts

    def _positions_and_mask(
        self, forks: Sequence[PromptTree], ats: Sequence[int], time: int, early: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions [rows, time] of a pass that begins at `ats`, and its mask [rows, 1, 1, time, keys]."""
        device, dtype = self.decoder.device, self.decoder.dtype
        positions = _pad_rows([fork.positions[at:] for fork, at in zip(forks, ats, strict=True)], device, time=time)
        owner = _pad_rows(
            [fork.segment_ids[at:] for fork, at in zip(forks, ats, strict=True)], device, PADDING_SEGMENT, time
        )
        query, key = owner[:, :, None], owner[:, None, :]
        seen = ((key == PROMPT_SEGMENT) | (key == query)) & (positions[:, None, :] <= positions[:, :, None])
        seen &= (query != PADDING_SEGMENT) | (key == PADDING_SEGMENT)
        if early is not None:
            before = torch.arange(early.shape[-2], device=device) < torch.tensor(ats, device=device)[:, None]
            seen = torch.cat([before[:, None, :].expand(-1, time, -1), seen], -1)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
        return positions, mask[:, None, None]

    def _pad_prefix_key_values(self, kept: Sequence[Tensor | None]) -> Tensor | None:
        """Early keys and values of all rows, padded on the right: [layers, 2, rows, kv heads, longest, head width]."""
        found = [(r, one) for r, one in enumerate(kept) if one is not None]
        if not found:
            return None
        layers, _, heads, _, width = found[0][1].shape
        longest = max(one.shape[3] for _, one in found)
        joint = found[0][1].new_zeros(layers, 2, len(kept), heads, longest, width)
        for r, one in found:
            joint[:, :, r, :, : one.shape[3]] = one
        return joint

    def _bytes(self, fork: PromptTree) -> int:
        """How much is kept of one fork."""
        plain, at = self.decoder, self._first_varying_token(fork)
        above = len(plain.layers) - self.placement.first_layer
        states = (fork.length - at) * plain.width
        return int(plain.dtype.itemsize * (states + 2 * at * above * plain.kv_heads * plain.head_dim))


def _acts_within(under: Placement | None, placement: Placement) -> bool:
    """Whether a part acts nowhere but where one of `placement` may: then the base alone decides what comes before."""
    if under is None:
        return True
    late = placement.late_tokens is None or (
        under.late_tokens is not None and under.late_tokens <= placement.late_tokens
    )
    return under.first_layer >= placement.first_layer and late


def device_batch_tokens(device: torch.device) -> int:
    """How many tokens, padding counted, keep a device busy."""
    return GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS


def _prefix_batch_tokens(device: torch.device) -> int:
    """How many tokens begin together. On a CPU each fork begins alone: bfloat16 rounds by what shares a pass, and
    prompts of a hundred tokens are as fast so.
    """
    return 1 if device.type == "cpu" else device_batch_tokens(device)


def pack_by_user(lengths: Sequence[int], owners: Sequence[int], budget: int) -> list[list[int]]:
    """As `packed`, or with all rows of an owner together, which then share their factors: whichever is the cheaper."""
    rows: dict[int, list[int]] = {}
    for i, owner in enumerate(owners):
        rows.setdefault(owner, []).append(i)
    whole: list[list[int]] = []
    each = 0  # rows of every owner in the last batch
    for own in sorted(rows.values(), key=lambda own: (len(own), max(lengths[i] for i in own))):
        longest = max(lengths[i] for i in own)
        if len(own) * longest > budget:
            whole += [[own[n] for n in piece] for piece in pack_by_length([lengths[i] for i in own], budget)]
            each = 0
        elif len(own) == each and (len(whole[-1]) + each) * longest <= budget:
            whole[-1] += own
        else:
            whole.append(list(own))
            each = len(own)
    plans = (whole, pack_by_length(lengths, budget))
    return min(plans, key=lambda plan: sum(_batch_cost(batch, lengths, owners) for batch in plan))


def _batch_cost(batch: Sequence[int], lengths: Sequence[int], owners: Sequence[int]) -> float:
    """What a batch costs, in tokens."""
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
