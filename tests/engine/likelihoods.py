"""Likelihoods of rows under one user's LoRAs, by the product's scoring of many users."""

from __future__ import annotations

from collections.abc import Sequence

from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.label_examples import TrainingExample
from mta_cli.engine.scoring.log_likelihood import NO_LORAS, UserLoras, completion_log_likelihoods, mean_losses
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.text.prompts import TrainingRow


def row_log_likelihoods(
    base: LoadedBase, rows: Sequence[TrainingRow], loras: UserLoras = NO_LORAS
) -> list[tuple[float, int]]:
    """Of each row: the log-likelihood of its answer's tokens (nats, summed) and how many there are."""
    trees = [PromptTree.from_row(row) for row in rows]
    values = completion_log_likelihoods(base, trees, [loras], [(i, 0) for i in range(len(trees))])
    return [(value, len(tree.completions[0])) for (value,), tree in zip(values, trees, strict=True)]


def mean_loss(base: LoadedBase, examples: Sequence[TrainingExample], loras: UserLoras = NO_LORAS) -> float:
    """Mean negative log-likelihood of the examples (nats), of which there is at least one."""
    (loss,) = mean_losses(base, [(examples, loras)])
    assert loss is not None
    return loss
