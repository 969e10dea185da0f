"""`prime`: weights of the nearest anchors found without gradients, as in PriME.

PriME (arXiv 2503.18008) finds, by an evolutionary search, the weights that merge the LoRAs of the three nearest
sharers. It maximises the user's utility minus a penalty for what the merged module reveals of a sharer. Here the search
is SciPy's differential evolution. The utility is the shots' mean log-likelihood under the exact merge (nats per
labelled token). The penalty is `pull` × the squared distance of the weights from equal shares, 1/k each: a sharer who
stands out is revealed most. With few shots, the penalty also keeps the weights from fitting noise. PriME uses the
users' task metric as the utility, which is too coarse with five shots.

Weights are between 0 and 1. The first population has equal shares, similarity shares, the task adapter alone and each
anchor alone, so the result is at least as good as each of these on the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.methods.anchor_weights import SHARE_BYTES, AnchorShare, weigh_anchors
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.weightings import uniform_weights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.options import FuseOptions, MemoryOptions

MIN_POPULATION = 5  # candidates; differential evolution needs this many to cross
CANDIDATES_PER_WEIGHT = 5  # candidates for each weight


class MergeObjective:
    """The objective to minimise: the rows' mean loss under a merge of `anchors`, plus the penalty."""

    def __init__(
        self, base: LoadedBase, anchors: Sequence[LoraWeights], rows: Sequence[TrainingRow], pull: float
    ) -> None:
        self._base, self._anchors, self._pull = base, anchors, pull
        self._trees = [PromptTree.from_row(row) for row in rows]
        self._labels = sum(len(tree.completions[0]) for tree in self._trees)

    def __call__(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values [candidates] of weights [anchors, candidates], all computed in one batch."""
        merges = [
            tuple(replace(one, scale=one.scale * w) for one, w in zip(self._anchors, weights, strict=True) if w > 0.0)
            for weights in columns.T.tolist()
        ]
        asked = [(tree, merge) for merge in range(len(merges)) for tree in range(len(self._trees))]
        found = completion_log_likelihoods(self._base, self._trees, merges, asked)
        sums = np.array([value for (value,) in found]).reshape(len(merges), -1).sum(1)
        away = np.square(columns - 1.0 / len(columns)).sum(0)
        result: NDArray[np.float64] = self._pull * away - sums / self._labels
        return result


def first_population(shares: Sequence[float], evaluations: int, seed: int) -> NDArray[np.float64]:
    """Initial candidates [candidates, anchors]: equal shares, `shares`, no anchor, each anchor alone; then random."""
    k = len(shares)
    known = [uniform_weights(k), list(shares), [0.0] * k, *np.eye(k).tolist()]
    size = max(MIN_POPULATION, len(known), min(CANDIDATES_PER_WEIGHT * k, evaluations))
    drawn = np.random.default_rng(seed).random((size - len(known), k))
    return np.concatenate([np.array(known), drawn])


def search_weights(objective: MergeObjective, shares: Sequence[float], evaluations: int, seed: int) -> list[float]:
    """Weights of the anchors with similarity shares `shares`, after at most `evaluations` merges.

    The first population is always evaluated whole: at least 5 merges, and 3 more than there are anchors.
    """
    from scipy.optimize import differential_evolution

    population = first_population(shares, evaluations, seed)
    optimum = differential_evolution(
        objective,
        [(0.0, 1.0)] * len(shares),
        init=population,
        maxiter=max(0, evaluations // len(population) - 1),
        tol=0.0,
        polish=False,
        vectorized=True,
        updating="deferred",
        seed=seed,
    )
    weights: list[float] = optimum.x.tolist()
    return weights


def build_searched_models(context: MethodContext, users: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A model for each of `users`, with the best merge of anchors found; without a LoRA for a user without shots."""
    options = FuseOptions(top_k=int(settings["top_k"]))
    near = weigh_anchors(context, users, "similarity", options, MemoryOptions("off"))
    return [_build_searched_model(context, user, shares, settings) for user, shares in zip(users, near, strict=True)]


def _build_searched_model(
    context: MethodContext, user: UserShots, shares: Sequence[AnchorShare], settings: Settings
) -> UserModel:
    if not shares or not user.rows:
        return UserModel()
    anchors = [context.anchors[share.anchor] for share in shares]
    objective = MergeObjective(context.loaded_base, anchors, user.rows, float(settings["pull"]))
    seed = (context.seed * 1_000_003 + user.number) % 2**32
    weights = search_weights(objective, [share.weight for share in shares], int(settings["evaluations"]), seed)
    merged = merge_loras(list(zip(anchors, weights, strict=True)))
    return UserModel(() if merged is None else (merged,), bytes=SHARE_BYTES * sum(weight != 0.0 for weight in weights))


METHOD = Method(
    "prime",
    "weights of the three nearest anchors by gradient-free search on the shots (as PriME)",
    overrides={"top_k": 3, "evaluations": 60, "pull": 0.1},
    grid=({"pull": 0.01}, {"pull": 0.1}, {"pull": 1.0}),
    build=build_searched_models,
)
