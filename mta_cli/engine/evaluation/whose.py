"""Authorship: how often a user's own model gives the user's answer a higher likelihood than other users' models do.

By chance, the own model has the highest likelihood among n other models with probability 1 / (n + 1).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mta_cli.engine.evaluation.user_sums import Array

TIE = 1e-6  # nats; log-likelihoods that differ by no more than this are ties, because they are stored as float32


@dataclass(frozen=True)
class WhoseSums:
    """Sums over each user's answers.

    `sums` is [users, 4]: questions; times the own model came first; times expected by chance; summed lead of the own
    model over the mean of the others (nats).
    """

    users: tuple[int, ...]
    sums: Array


def pack_logliks(own: float, others: Sequence[float]) -> bytes:
    """One answer's log-likelihoods as the store keeps them: own model first, little-endian float32."""
    return struct.pack(f"<{1 + len(others)}f", own, *others)


def unpack_logliks(packed: bytes) -> tuple[float, ...]:
    """The log-likelihoods that `pack_logliks` packed."""
    return struct.unpack(f"<{len(packed) // 4}f", packed)


def sum_whose(users: Sequence[int], logliks: Sequence[Sequence[float]]) -> WhoseSums | None:
    """The authorship sums of answers by user; None if no answer was scored under other users' models.

    `logliks` has, for each answer, the log-likelihood under the user's own model, then under each other user's model.
    If the own model ties with n others for the first place, it counts as 1 / (n + 1) first places.
    """
    rows = [(user, own) for user, own in zip(users, logliks, strict=True) if len(own) > 1]
    if not rows:
        return None
    names, places = np.unique([user for user, _ in rows], return_inverse=True)
    sums = np.zeros((len(names), 4))
    for place, (_, (own, *others)) in zip(places, rows, strict=True):
        rivals = np.asarray(others, dtype=np.float64)
        level = int((np.abs(rivals - own) <= TIE).sum())
        first = 0.0 if (rivals > own + TIE).any() else 1 / (1 + level)
        sums[place] += (1.0, first, 1 / (1 + len(rivals)), own - rivals.mean())
    return WhoseSums(tuple(names.tolist()), sums)


def add_whose_sums(parts: Sequence[WhoseSums]) -> WhoseSums:
    """The sums of several seeds, added for each user. Raises ValueError if the users differ."""
    if any(part.users != parts[0].users for part in parts):
        raise ValueError("the sums are of different users")
    return WhoseSums(parts[0].users, np.sum([part.sums for part in parts], axis=0))


def identify(found: WhoseSums, *, seed: int, draws: int = 2000) -> dict[str, float]:
    """Statistics of how often the own model is first: {first, questions, chance, share, low, high, ahead, users, p,
    difference}.

    `chance` is the number expected if all models were equal. `low` and `high` bound `share` by a 95 % percentile
    bootstrap over users. `ahead` counts users whose answers are, on average, likelier under their own model than under
    the mean of the others; `p` is its two-sided sign test (ties are left out). `difference` is the mean difference in
    nats.
    """
    from scipy.stats import binomtest

    rng = np.random.default_rng(seed)
    questions, first, chance, difference = found.sums.sum(axis=0)
    drawn = found.sums[rng.integers(len(found.users), size=(draws, len(found.users)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    ahead, behind = int((found.sums[:, 3] > TIE).sum()), int((found.sums[:, 3] < -TIE).sum())
    return {
        "first": float(first),
        "questions": int(questions),
        "chance": float(chance),
        "share": float(first / questions),
        "low": float(low),
        "high": float(high),
        "ahead": ahead,
        "users": len(found.users),
        "p": float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0,
        "difference": float(difference / questions),
    }


def lead_over_others(found: WhoseSums, *, seed: int, draws: int = 10_000) -> dict[str, float]:
    """The mean lead of the own model over the mean of the other users' models, nats per answer: {value, low, high, p}.

    The interval is a 95 % percentile bootstrap over users. p is two-sided, from a permutation test that swaps own and
    others within users; the observed assignment counts as one of the draws.
    """
    rng, (questions, lead) = np.random.default_rng(seed), found.sums[:, (0, 3)].T
    drawn = rng.integers(len(lead), size=(draws, len(lead)))  # [draws, users]
    low, high = np.quantile(lead[drawn].sum(axis=1) / questions[drawn].sum(axis=1), [0.025, 0.975])
    swapped = np.abs(rng.choice((-1.0, 1.0), size=(draws, len(lead))) @ lead)
    p = (1 + (swapped >= abs(lead.sum()) - TIE).sum()) / (1 + draws)
    return {"value": float(lead.sum() / questions.sum()), "low": float(low), "high": float(high), "p": float(p)}
