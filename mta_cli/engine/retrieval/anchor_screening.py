"""Screening of anchors for poisoning: the norm of their weights, their effect on neutral prompts, and the share of
users they would serve.

An anchor is compared with the others of its bank, so that bounds do not depend on the base, the task or the learning
rate. An anchor that misbehaves only on a secret trigger passes the screening; only its weight in recipes limits its
effect. The task adapter is not screened, because there is nothing to compare it with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mta_cli.engine.generation.generate import generate_answers
from mta_cli.engine.generation.request import SamplingParams
from mta_cli.engine.lora.adapter import LoraWeights, squared_norm
from mta_cli.engine.model.load import LoadedBase, head_logits
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree

MIN_ANCHORS_TO_SCREEN = 4  # the median of fewer anchors is meaningless
TOP_TOKENS = 16  # the task adapter's likeliest next tokens, compared one by one; all other tokens count as one
MIN_PROBABILITY = 1e-6  # floor of a probability, so that a ratio is finite
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
    """Anchor number `anchor_index` fails the check `gate`: its `value` is above the `bound`, or is NaN."""

    anchor_index: int
    gate: str
    value: float
    bound: float


def module_norms(weights: LoraWeights) -> dict[str, float]:
    """Frobenius norm of ΔW of each module."""
    return {path: abs(weights.scale) * math.sqrt(squared_norm(a, b)) for path, (a, b) in weights.factors.items()}


def norm_ratios(norms: Sequence[Mapping[str, float]]) -> list[float]:
    """For each anchor, the largest ratio over modules of its norm to the median norm of all anchors.

    All 1 for fewer than `MIN_ANCHORS_TO_SCREEN` anchors.
    """
    if len(norms) < MIN_ANCHORS_TO_SCREEN:
        return [1.0] * len(norms)
    medians = {path: float(np.median([each.get(path, 0.0) for each in norms])) for each in norms for path in each}
    tiny = float(np.finfo(np.float32).tiny)
    return [max((value / max(medians[path], tiny) for path, value in each.items()), default=1.0) for each in norms]


def mean_kl_divergences(
    base: LoadedBase, prompts: Sequence[Sequence[int]], anchors: Sequence[tuple[LoraWeights, ...]]
) -> list[float]:
    """For each anchor, the KL divergence (nats) of its next-token distribution from that of `base`, into which the task
    adapter is merged; the mean over `prompts`.

    The base's `TOP_TOKENS` likeliest tokens, the end tokens and each anchor's likeliest token are compared one by one;
    all others count as one, so this is a lower bound.
    """
    # 1. one tree for each prompt, each compared token a completion
    tokens = [_tokens_to_compare(base, prompt, anchors) for prompt in prompts]
    trees = [PromptTree(tuple(prompt), tuple((t,) for t in each)) for prompt, each in zip(prompts, tokens, strict=True)]
    # 2. distributions of the base (model 0) and of each anchor, by prompt
    models: list[tuple[LoraWeights, ...]] = [(), *anchors]
    pairs = [(tree, model) for model in range(len(models)) for tree in range(len(trees))]
    logs = completion_log_likelihoods(base, trees, models, pairs)
    reference, *others = [
        [_append_rest_probability(each) for each in logs[start : start + len(trees)]]
        for start in range(0, len(logs), len(trees))
    ]
    # 3. KL(anchor ‖ base), mean over prompts
    return [
        float(np.mean([(p * np.log(p / q)).sum() for p, q in zip(anchor, reference, strict=True)])) for anchor in others
    ]


@torch.no_grad()
def _tokens_to_compare(
    base: LoadedBase, prompt: Sequence[int], anchors: Sequence[tuple[LoraWeights, ...]]
) -> list[int]:
    """The tokens after `prompt` that are compared one by one."""
    last = torch.tensor([len(prompt) - 1], device=base.device)
    ids = torch.tensor([list(prompt)], device=base.device)
    logits = head_logits(base, ids, torch.zeros_like(last), last)[0]
    likeliest = logits.float().topk(min(TOP_TOKENS, logits.shape[-1] - 1)).indices.tolist()
    firsts = generate_answers(base, [prompt] * len(anchors), anchors, range(len(anchors)), SamplingParams(1))
    return list(dict.fromkeys((*likeliest, *base.end_ids, *(token for first in firsts for token in first))))


def _append_rest_probability(logs: Sequence[float]) -> NDArray[np.float64]:
    """The probabilities of the tokens with log-probabilities `logs`, and last the probability of all other tokens
    together.
    """
    listed = np.exp(np.array(logs, np.float64))
    clipped = np.append(listed, 1.0 - listed.sum()).clip(MIN_PROBABILITY)
    probabilities: NDArray[np.float64] = clipped / clipped.sum()
    return probabilities


def find_outliers(values: Sequence[float], gate: str, bound: float, *, floor: float = 0.0) -> list[ScreeningFinding]:
    """The anchors whose value is above `bound` times the median of all, and above `floor`, or is NaN.

    The list is empty if `bound` is 0 or there are fewer than `MIN_ANCHORS_TO_SCREEN` anchors.
    """
    if bound == 0.0 or len(values) < MIN_ANCHORS_TO_SCREEN:
        return []
    most = max(floor, bound * float(np.nanmedian(values)))
    return [ScreeningFinding(place, gate, value, most) for place, value in enumerate(values) if not value <= most]


def selection_shares(cosines: NDArray[np.float32], top_k: int) -> list[float]:
    """The share of users for whom each anchor is among the `top_k` nearest, by `cosines` [users, anchors]."""
    users, anchors = cosines.shape
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
    counts = np.bincount(nearest.ravel(), minlength=anchors)
    return [float(count) / max(1, users) for count in counts]


def min_cosine_by_anchor(cosines: NDArray[np.float32], top_k: int, share: float) -> dict[int, float]:
    """For each anchor that would serve too many users, the minimum cosine of the users that it may serve.

    The cap is the larger of `share` and 2 · `top_k` / anchors, as a share of the users: twice what each anchor serves
    if all serve equally many. There is no cap if `share` is 0 or the bank has at most 2 · `top_k` anchors. An anchor
    above the cap keeps its nearest users. The others go to their next nearest anchors; if these exceed the cap then,
    they get a minimum too. `cosines` [users, anchors] are of the bank's own users, so that the result does not depend
    on later users.
    """
    users, anchors = cosines.shape
    most = max(share, 2.0 * top_k / anchors)
    floors: dict[int, float] = {}
    left = cosines.copy()
    while share > 0.0 and most < 1.0 and users > 0:
        shares = selection_shares(left, top_k)
        over = [anchor for anchor in range(anchors) if anchor not in floors and shares[anchor] > most]
        if not over:
            break
        anchor = max(over, key=lambda one: shares[one])
        kept = max(1, int(most * users))
        floors[anchor] = float(np.sort(cosines[:, anchor])[::-1][kept - 1])
        left[:, anchor] = np.where(cosines[:, anchor] < floors[anchor], -np.inf, left[:, anchor])
    return floors
