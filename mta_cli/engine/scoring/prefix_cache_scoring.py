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
from mta_cli.engine.lora.batched import Crowd, blocks_of
from mta_cli.engine.model.activation_cache import KEEP, Kept, Start
from mta_cli.engine.model.llama import Pairs, Parts, Plain, causal_mask
from mta_cli.engine.scoring.prefix_tree import PROMPT, Fork
from mta_cli.engine.scoring.token_logprobs import log_likelihoods

CPU_TOKENS = 1024  # more at once is no faster on a CPU
GPU_TOKENS = 32_768
OWN_FACTORS = 0.2  # what a row's own factors add to the cost of its tokens; rows that share them share that
PADDING = -2


@dataclass(frozen=True)
class Ends:
    """What the head reads to predict answer tokens: normalised states [positions, width], each read once for all tokens
    that may follow it, and the place in the pass that each belongs to; of each token [labelled] the state it follows,
    in ascending order, its place in the pass and its branch.
    """

    states: Tensor
    at: Tensor
    tokens: Tensor
    follows: list[int]
    row: Tensor
    branch: list[int]
    rivals: list[tuple[int, ...] | None]


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods [labelled] in nats, with the place in the pass and the branch that each belongs to."""

    values: Tensor
    row: Tensor
    branch: list[int]


class _Early:
    """Keys and values before each row's start, padded on the right; a pass adds its own behind them."""

    def __init__(self, first: int, kept: Tensor) -> None:
        self._first, self._kept = first, kept  # [layers, 2, rows, kv heads, longest, head width]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValues`."""
        early_k, early_v = self._kept[layer - self._first]
        return torch.cat([early_k, k], 2), torch.cat([early_v, v], 2)


class _Recorder:
    """Keeps what passes by."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValues`."""
        self.seen.append(torch.stack([k, v]))  # [2, rows, kv heads, time, head width]
        return k, v


class Passes:
    """Forks ready to run under parts of one `placement`. `under` are frozen parts of each fork's own person, `people`.

    Where the base alone decides how a fork begins, its states are kept with the base, for whoever asks next; where
    `under` does, with these passes. More than `keep` bytes are not kept but computed anew each time. All of it is right
    as long as the base's weights stay as they are: make other passes after folding something else.
    """

    def __init__(
        self,
        plain: Plain,
        forks: Sequence[Fork],
        placement: Placement,
        *,
        under: Sequence[Crowd] = (),
        people: Sequence[int] = (),
        keep: int = KEEP,
    ) -> None:
        self.plain, self.forks, self.placement = plain, forks, placement
        self._under, self._people = [crowd for crowd in under if crowd.placement is not None], people
        nothing = placement.first == 0 and placement.late is None  # only embeddings stand before it
        wholes = [fork.whole for fork in forks]
        self._keeps = not nothing and sum(self._bytes(fork) for fork in wholes) <= keep
        self._common = all(_within(crowd.placement, placement) for crowd in self._under)
        self._kept = plain.kept if self._common else Kept(keep)
        where = (placement.first, placement.late)
        self._keys: list[Hashable] = [(fork, where) for fork in wholes] if self._common else list(range(len(forks)))

    def scores(
        self,
        chosen: Sequence[int],
        acting: Pairs,
        crowds: Sequence[Crowd] = (),
        people: Sequence[int] = (),
        also: Sequence[Parts] = (),
        shifts: Tensor | None = None,
    ) -> Scores:
        """Log-likelihoods of forks as `ends` runs them. `shifts` [rows, width] are added to the states of each row."""
        ends, head = self.ends(chosen, acting, crowds, people, also), self.plain.head
        states = ends.states if shifts is None else ends.states + shifts[ends.at]
        values = log_likelihoods(states, head.weight, head.bias, ends.tokens, ends.follows, ends.rivals)
        return Scores(values, ends.row, ends.branch)

    def ends(
        self,
        chosen: Sequence[int],
        acting: Pairs,
        crowds: Sequence[Crowd] = (),
        people: Sequence[int] = (),
        also: Sequence[Parts] = (),
    ) -> Ends:
        """Run forks number `chosen`, one row each, with `acting` and with the parts of `people` among `crowds`.

        Differentiable in `acting`. `also` are further parts of the pass. None acts before or below the placement.
        """
        starts = self._starts(chosen)
        forks = [self.forks[i] for i in chosen]
        x = torch.nn.utils.rnn.pad_sequence([start.states for start in starts], batch_first=True)
        early = self._early([start.early for start in starts])
        positions, mask = self._layout(forks, [start.at for start in starts], x.shape[1], early)
        states = self.plain.run(
            x,
            self.plain.rope(positions),
            mask,
            first=self.placement.first,
            parts=[
                Parts(acting),
                *self._own(chosen, positions),
                *self._theirs(crowds, people, forks, positions),
                *also,
            ],
            past=_Early(self.placement.first, early) if early is not None else None,
        )
        labels = sorted(
            (r, column - starts[r].at, branch, token, rivals)
            for r, fork in enumerate(forks)
            for (column, token, branch), rivals in zip(fork.labels(), fork.rivals, strict=True)
        )
        places = {place: n for n, place in enumerate(dict.fromkeys(label[:2] for label in labels))}
        at = torch.tensor(list(places), device=x.device).T  # [2, positions]
        asked = torch.tensor([(label[0], label[3]) for label in labels], device=x.device).T  # [2, labelled]
        follows, branch = [places[label[:2]] for label in labels], [label[2] for label in labels]
        rivals = [label[4] for label in labels]
        return Ends(self.plain.norm(states[at[0], at[1]]), at[0], asked[1], follows, asked[0], branch, rivals)

    def _starts(self, chosen: Sequence[int]) -> list[Start]:
        found = {i: self._kept.get(self._keys[i]) for i in dict.fromkeys(chosen)}
        starts = {i: start for i, start in found.items() if start is not None}
        missing = [i for i in found if i not in starts]
        for piece in packed([self.forks[i].whole.length for i in missing], _begun_at_once(self.plain.device)):
            batch = [missing[n] for n in piece]
            starts |= zip(batch, self._begin(batch), strict=True)
        for i in missing if self._keeps else ():
            self._kept.put(self._keys[i], starts[i])
        return [starts[i] if self.forks[i].asked is None else starts[i].only(self.forks[i].columns) for i in chosen]

    @torch.inference_mode(False)  # what is kept may serve training later
    @torch.no_grad()
    def _begin(self, chosen: Sequence[int]) -> list[Start]:
        """Starts of forks `chosen` with all their branches, computed as one batch."""
        forks, first = [self.forks[i].whole for i in chosen], self.placement.first
        ids = _padded([fork.tokens for fork in forks], self.plain.device)
        x = self.plain.embed(ids)
        ats = [self._at(fork) for fork in forks]
        if first > 0:
            positions, mask = self._layout(forks, [0] * len(forks), ids.shape[1], None)
            x = self.plain.run(x, self.plain.rope(positions), mask, last=first, parts=self._below(chosen, positions))
        early = self._before(x[:, : max(ats)], chosen) if max(ats) > 0 else None
        return [
            Start(at, x[r, at : fork.length].clone(), early[:, :, r, :, :at].clone() if early is not None else None)
            for r, (fork, at) in enumerate(zip(forks, ats, strict=True))
        ]

    def _before(self, x: Tensor, chosen: Sequence[int]) -> Tensor:
        """Keys and values from the placement's first layer on, [layers, 2, rows, kv heads, time, head width]."""
        time, recorder = x.shape[1], _Recorder()
        positions = torch.arange(time, device=x.device).expand(len(chosen), -1)
        mask = causal_mask(time, x.dtype, x.device)
        rope, parts = self.plain.rope(positions), self._below(chosen, positions)
        self.plain.run(x, rope, mask, first=self.placement.first, parts=parts, past=recorder)
        return torch.stack(recorder.seen)

    def length(self, fork: int) -> int:
        """How many tokens of fork number `fork` run in each pass."""
        return self.forks[fork].length - self._at(self.forks[fork])

    def _at(self, fork: Fork) -> int:
        """The first token on which the varying parts act."""
        return self.placement.start(len(fork.prompt))

    def _below(self, chosen: Sequence[int], positions: Tensor) -> list[Parts]:
        """What acts before or below the placement."""
        return [] if self._common else self._own(chosen, positions)

    def _own(self, chosen: Sequence[int], positions: Tensor) -> list[Parts]:
        if not self._under:
            return []
        people, forks = [self._people[i] for i in chosen], [self.forks[i] for i in chosen]
        return self._theirs(self._under, people, forks, positions)

    def _theirs(
        self, crowds: Sequence[Crowd], people: Sequence[int], forks: Sequence[Fork], positions: Tensor
    ) -> list[Parts]:
        """What `people`, one a row, have in `crowds`, each part at the positions where it acts."""
        parts = []
        for crowd in crowds:
            where = None
            if crowd.placement is not None and crowd.placement.late is not None:
                starts = [crowd.placement.start(len(fork.prompt)) for fork in forks]
                late = positions >= torch.tensor(starts, device=positions.device)[:, None]
                where = late.unsqueeze(-1).to(self.plain.dtype)
            parts.append(Parts(crowd.rows(people), where))
        return parts

    def _layout(
        self, forks: Sequence[Fork], ats: Sequence[int], time: int, early: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions [rows, time] of a pass that begins at `ats`, and its mask [rows, 1, 1, time, keys]."""
        device, dtype = self.plain.device, self.plain.dtype
        positions = _padded([fork.positions[at:] for fork, at in zip(forks, ats, strict=True)], device, time=time)
        owner = _padded([fork.owners[at:] for fork, at in zip(forks, ats, strict=True)], device, PADDING, time)
        query, key = owner[:, :, None], owner[:, None, :]
        seen = ((key == PROMPT) | (key == query)) & (positions[:, None, :] <= positions[:, :, None])
        seen &= (query != PADDING) | (key == PADDING)
        if early is not None:
            before = torch.arange(early.shape[-2], device=device) < torch.tensor(ats, device=device)[:, None]
            seen = torch.cat([before[:, None, :].expand(-1, time, -1), seen], -1)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
        return positions, mask[:, None, None]

    def _early(self, kept: Sequence[Tensor | None]) -> Tensor | None:
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

    def _bytes(self, fork: Fork) -> int:
        """How much is kept of one fork."""
        plain, at = self.plain, self._at(fork)
        above = len(plain.layers) - self.placement.first
        states = (fork.length - at) * plain.width
        return int(plain.dtype.itemsize * (states + 2 * at * above * plain.kv_heads * plain.head_width))


def _within(under: Placement | None, placement: Placement) -> bool:
    """Whether a part acts nowhere but where one of `placement` may: then the base alone decides what comes before."""
    if under is None:
        return True
    late = placement.late is None or (under.late is not None and under.late <= placement.late)
    return under.first >= placement.first and late


def tokens_at_once(device: torch.device) -> int:
    """How many tokens, padding counted, keep a device busy."""
    return GPU_TOKENS if device.type == "cuda" else CPU_TOKENS


def _begun_at_once(device: torch.device) -> int:
    """How many tokens begin together. On a CPU each fork begins alone: bfloat16 rounds by what shares a pass, and
    prompts of a hundred tokens are as fast so.
    """
    return 1 if device.type == "cpu" else tokens_at_once(device)


def by_owner(lengths: Sequence[int], owners: Sequence[int], budget: int) -> list[list[int]]:
    """As `packed`, or with all rows of an owner together, which then share their factors: whichever is the cheaper."""
    rows: dict[int, list[int]] = {}
    for i, owner in enumerate(owners):
        rows.setdefault(owner, []).append(i)
    whole: list[list[int]] = []
    each = 0  # rows of every owner in the last batch
    for own in sorted(rows.values(), key=lambda own: (len(own), max(lengths[i] for i in own))):
        longest = max(lengths[i] for i in own)
        if len(own) * longest > budget:
            whole += [[own[n] for n in piece] for piece in packed([lengths[i] for i in own], budget)]
            each = 0
        elif len(own) == each and (len(whole[-1]) + each) * longest <= budget:
            whole[-1] += own
        else:
            whole.append(list(own))
            each = len(own)
    plans = (whole, packed(lengths, budget))
    return min(plans, key=lambda plan: sum(_cost(batch, lengths, owners) for batch in plan))


def _cost(batch: Sequence[int], lengths: Sequence[int], owners: Sequence[int]) -> float:
    """What a batch costs, in tokens."""
    _, rows = blocks_of([owners[i] for i in batch])
    return len(batch) * max(lengths[i] for i in batch) * (1 + OWN_FACTORS / rows)


def packed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by similar length into batches of at most `budget` tokens, padding counted; longest last."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _padded(rows: Iterable[Sequence[int]], device: torch.device, fill: int = 0, time: int | None = None) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    joint = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    missing = (time or joint.shape[1]) - joint.shape[1]
    return torch.nn.functional.pad(joint, (0, missing), value=fill).to(device)
