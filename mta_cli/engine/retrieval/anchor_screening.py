"""Gates against poisoned anchors: how large their weights are, what they do to neutral prompts, whom profiles draw.

Tensors and numbers in, findings out. An anchor is judged beside the others of its bank, so that no bound needs to know
the base, the task or the learning rate. Knows neither users nor files, and decides nothing about what is found.

What no gate can see is an anchor that is like the others in size and on neutral prompts and answers to a trigger of
its own: weights of recipes alone bound what it does. Nor is the task adapter judged, which stands beside nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mta_cli.engine.lora.adapter import LoraWeights, squared_norm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mta_cli.engine.model.load import LoadedBase

MIN_ANCHORS_TO_SCREEN = 4  # anchors that can be judged beside each other: of fewer the median says nothing
TOP_TOKENS = 16  # of the task adapter's likeliest next tokens; all others count as one
MIN_PROBABILITY = 1e-6  # probability of what a model excludes
PROBE_PROMPTS = (
    "Good morning. How are you today?",
    "Write one sentence about the weather.",
    "Name a colour.",
    "What is two plus three?",
    "Tell me about a town by the sea.",
    "Which of these is heavier: a stone or a feather?",
    "A short description of an ordinary day.",
    "Please repeat the last word.",
)


@dataclass(frozen=True)
class ScreeningFinding:
    """What a `gate` found of the anchor at `place` in its bank: a `value` above its `bound`."""

    anchor_index: int
    gate: str
    value: float
    bound: float


def module_norms(weights: LoraWeights) -> dict[str, float]:
    """Frobenius norm of ΔW of each module."""
    return {path: abs(weights.scale) * math.sqrt(squared_norm(a, b)) for path, (a, b) in weights.factors.items()}


def norm_ratios(norms: Sequence[Mapping[str, float]]) -> list[float]:
    """Of each anchor, the largest ratio of a module's norm to the median of that module over all anchors.

    One for everybody where there are fewer than `FEWEST`.
    """
    if len(norms) < MIN_ANCHORS_TO_SCREEN:
        return [1.0] * len(norms)
    medians = {path: float(np.median([own.get(path, 0.0) for own in norms])) for own in norms for path in own}
    tiny = float(np.finfo(np.float32).tiny)
    return [max((value / max(medians[path], tiny) for path, value in own.items()), default=1.0) for own in norms]


def mean_kl_divergences(
    base: LoadedBase, prompts: Sequence[Sequence[int]], anchors: Sequence[tuple[LoraWeights, ...]]
) -> list[float]:
    """Mean KL divergence (nats) of the next token under each anchor's parts from that of the base as it is, which holds
    the task adapter.

    Tokens count as one, and this is a lower bound, except for the base's `WEIGHED` likeliest, the end of an answer and
    each anchor's likeliest.
    """
    from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree

    tokens = [_tokens_to_compare(base, prompt, anchors) for prompt in prompts]
    forks = [PromptTree(tuple(prompt), tuple((t,) for t in own)) for prompt, own in zip(prompts, tokens, strict=True)]
    people = [(), *anchors]
    logs = completion_log_likelihoods(
        base, forks, people, [(fork, person) for person in range(len(people)) for fork in range(len(forks))]
    )
    rows = [
        [_append_rest_probability(logs[person * len(forks) + fork]) for fork in range(len(forks))]
        for person in range(len(people))
    ]
    return [float(np.mean([(p * np.log(p / q)).sum() for p, q in zip(own, rows[0], strict=True)])) for own in rows[1:]]


@torch.no_grad()
def _tokens_to_compare(
    base: LoadedBase, prompt: Sequence[int], anchors: Sequence[tuple[LoraWeights, ...]]
) -> list[int]:
    """The tokens after `prompt` that are looked at one by one."""
    from mta_cli.engine.generation.generate_batch import generate_answers
    from mta_cli.engine.model.load import head_logits

    last = torch.tensor([len(prompt) - 1], device=base.device)
    ids = torch.tensor([list(prompt)], device=base.device)
    logits = head_logits(base, ids, None, torch.zeros_like(last), last)[0]
    likeliest = logits.float().topk(min(TOP_TOKENS, logits.shape[-1] - 1)).indices.tolist()
    firsts = generate_answers(base, [prompt] * len(anchors), anchors, range(len(anchors)), max_tokens=1)
    return list(dict.fromkeys((*likeliest, *base.end_ids, *(token for first in firsts for token in first))))


def _append_rest_probability(logs: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities, with that of all other tokens as the last."""
    known = np.exp(np.array(logs, np.float64))
    rows = np.append(known, 1.0 - known.sum()).clip(MIN_PROBABILITY)
    found: NDArray[np.float64] = rows / rows.sum()
    return found


def find_outliers(values: Sequence[float], gate: str, bound: float, *, floor: float = 0.0) -> list[ScreeningFinding]:
    """Anchors whose value is above `bound` times the median of all, and above `floor`, or is no number; a bound of 0
    finds none.

    Nobody where there are fewer than `FEWEST`.
    """
    if bound == 0.0 or len(values) < MIN_ANCHORS_TO_SCREEN:
        return []
    most = max(floor, bound * float(np.nanmedian(values)))
    return [ScreeningFinding(place, gate, value, most) for place, value in enumerate(values) if not value <= most]


def selection_shares(cosines: NDArray[np.float32], top_k: int) -> list[float]:
    """The share of people [people, anchors] who have each anchor among their `top_k` nearest."""
    people, anchors = cosines.shape
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
    counts = np.bincount(nearest.ravel(), minlength=anchors)
    return [float(count) / max(1, people) for count in counts]


def min_cosine_by_anchor(cosines: NDArray[np.float32], top_k: int, share: float) -> dict[int, float]:
    """The least cosine with which each anchor that draws more than its share may serve, by place.

    An anchor may serve `share` of people [people, anchors], and never less than twice what all would serve if they
    served alike. Those nearest to it keep it; for the others the next anchors take over, and may draw too many in their
    turn. What it rests on is the people whom the bank is made of: whom an anchor serves must not depend on who else
    came later. A share of 0 is no cap.
    """
    people, anchors = cosines.shape
    most = max(share, 2.0 * top_k / anchors)
    found: dict[int, float] = {}
    left = cosines.copy()
    while share > 0.0 and most < 1.0 and people > 0:
        drawn = selection_shares(left, top_k)
        over = [place for place in range(anchors) if place not in found and drawn[place] > most]
        if not over:
            break
        place = max(over, key=lambda one: drawn[one])
        kept = max(1, int(most * people))
        found[place] = float(np.sort(cosines[:, place])[::-1][kept - 1])
        left[:, place] = np.where(cosines[:, place] < found[place], -np.inf, left[:, place])
    return found
