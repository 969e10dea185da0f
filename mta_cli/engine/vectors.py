"""One vector a person, added to the last normalised state before the head: the smallest thing that a gradient can fit.

It moves every token's logit by the same amount wherever it stands, so it learns which words somebody likes and nothing
about when. States do not depend on it: they are computed once, and training runs through the head alone. Knows neither
users nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Placement
from mta_cli.engine.scoring.prefix_cache_scoring import (
    PredictionStates,
    PrefixCacheScorer,
    device_batch_tokens,
    pack_by_length,
)
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.scoring.token_logprobs import token_log_likelihoods
from mta_cli.errors import UsageError

if TYPE_CHECKING:
    from mta_cli.engine.model.llama import LlamaDecoder
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow


def vectors(
    base: LoadedBase, people: Sequence[Sequence[TrainingRow]], *, steps: int, rate: float, pull: float
) -> list[Tensor | None]:
    """Everybody's vector, `[width]` float32 as float16 gives it back; None without rows, or where it is not finite.

    `steps` of Adam at `rate` on the mean loss of a person's labelled tokens, to which `pull` times the vector's mean
    square is added. Nobody's vector depends on who else there is. Raises UsageFault for a base without plain decoder.
    """
    rows = [row for own in people for row in own]
    owners = [i for i, own in enumerate(people) for _ in own]
    if not rows:
        return [None for _ in people]
    if base.llama_decoder is None:
        raise _no_place(base)
    plain = base.llama_decoder
    states, tokens, owner = _ends(plain, rows, owners)
    share = (1 / torch.bincount(owner, minlength=len(people)))[owner]  # of a person's mean
    found = torch.zeros(len(people), plain.width, device=plain.device, requires_grad=True)
    optimiser = torch.optim.Adam([found], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        shifted = states + found[owner].to(states.dtype)
        values = token_log_likelihoods(shifted, plain.head.weight, plain.head.bias, tokens)
        loss = (pull * found.square().mean(1)).sum() - (share * values).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    kept = found.detach().cpu().half().float()
    return [one if own and bool(torch.isfinite(one).all()) else None for one, own in zip(kept, people, strict=True)]


@torch.no_grad()
def _ends(plain: LlamaDecoder, rows: Sequence[TrainingRow], owners: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The states before every labelled token, `[labelled, width]`, the tokens, and whose each is."""
    passes = PrefixCacheScorer(
        plain, [PromptTree.from_row(row) for row in rows], Placement(len(plain.layers), len(plain.layers) - 1)
    )
    batches = pack_by_length([passes.tokens_per_pass(i) for i in range(len(rows))], device_batch_tokens(plain.device))
    found: list[tuple[list[int], PredictionStates]] = [
        (batch, passes.compute_prediction_states(batch, {})) for batch in batches
    ]
    whose = [torch.tensor([owners[i] for i in batch], device=plain.device)[ends.row] for batch, ends in found]
    return (
        torch.cat([e.states[e.state_index] for _, e in found]),
        torch.cat([e.target_ids for _, e in found]),
        torch.cat(whose),
    )


def stacked(plain: LlamaDecoder, shifts: Sequence[Tensor | None]) -> Tensor | None:
    """Vectors side by side, `[people, width]`, zeros for those who have none; None where nobody has one."""
    if all(shift is None for shift in shifts):
        return None
    nothing = torch.zeros(plain.width)
    return torch.stack([nothing if one is None else one.cpu() for one in shifts]).to(plain.device, plain.dtype)


def require_plain(base: LoadedBase, shifts: Sequence[Tensor | None]) -> None:
    """UsageFault when somebody has a vector and this base has no plain decoder, which alone adds it."""
    if base.llama_decoder is None and any(shift is not None for shift in shifts):
        raise _no_place(base)


def _no_place(base: LoadedBase) -> UsageError:
    return UsageError(
        f"vectors need a base of the Llama family; {base.name} is none, or differs from it in some detail.",
        hint="leave the method vector out",
    )
