"""Log-likelihoods of given completions under users' models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mta_cli.engine.backends import backend_of
from mta_cli.engine.generation.request import require_window
from mta_cli.engine.lora.adapter import LoraWeights, Placement
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.label_examples import (
    LabelExample,
    TrainingExample,
    build_prompt_tree,
    count_loss_terms,
    example_log_likelihood,
)
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.errors import BadInput

MAX_SCORED_LOGITS = 32_000_000  # the most logits in memory while labels are scored: 128 MB in float32
UserLoras = tuple[LoraWeights, ...]
NO_LORAS: UserLoras = ()


@torch.no_grad()
def completion_log_likelihoods(
    base: LoadedBase,
    trees: Sequence[PromptTree],
    users: Sequence[UserLoras],
    pairs: Sequence[tuple[int, int]],
    *,
    also: Sequence[Placement] = (),
) -> list[list[float]]:
    """For each (tree index, user index) in `pairs`: the log-likelihood (nats, summed over tokens) of each completion.

    A user is a tuple of LoRAs that are added to the current base. Prefixes that several users share are computed once.
    They are cached in a form that later calls with LoRAs of placements `also` can use. An inactive completion has −∞.
    """
    return backend_of(base).completion_log_likelihoods(trees, users, pairs, also)


@torch.no_grad()
def label_scores(
    base: LoadedBase, prompt: Sequence[int], labels: Sequence[Sequence[int]], loras: UserLoras = NO_LORAS
) -> list[float]:
    """Log-likelihood (nats) of each label's tokens after the prompt. The prompt runs once for each batch of labels.

    Raises BadInput if there are no labels, if a label has no tokens, or if prompt and label exceed the window.
    """
    if not labels or not all(labels):
        raise BadInput(
            "The labels cannot be scored: there are none, or one has no tokens.",
            hint="Give at least one label, and no empty one.",
        )
    longest = max(len(label) for label in labels)
    require_window(base, prompt, longest)
    at_once = max(1, MAX_SCORED_LOGITS // (len(base.tokenizer) * longest))
    return backend_of(base).label_scores(prompt, [tuple(label) for label in labels], loras, at_once)


def mean_losses(base: LoadedBase, cases: Sequence[tuple[Sequence[TrainingExample], UserLoras]]) -> list[float | None]:
    """Mean negative log-likelihood (nats) of each user's examples under the user's LoRAs.

    The mean is over losses: one for each answer token, or one for a label example. It is None for a user without
    examples. Examples of several users run in the same passes.
    """
    examples = [(example, user) for user, (examples_of_user, _) in enumerate(cases) for example in examples_of_user]
    trees = [build_prompt_tree(example) for example, _ in examples]
    pairs = [(tree, user) for tree, (_, user) in enumerate(examples)]
    values = completion_log_likelihoods(base, trees, [loras for _, loras in cases], pairs)
    totals, counts = [0.0] * len(cases), [0] * len(cases)
    for (example, user), completions in zip(examples, values, strict=True):
        totals[user] -= example_log_likelihood(example, completions)
        counts[user] += count_loss_terms(example)
    return [total / count if count else None for total, count in zip(totals, counts, strict=True)]


def prune_examples(
    base: LoadedBase, cases: Sequence[tuple[Sequence[TrainingExample], UserLoras]], placements: Sequence[Placement] = ()
) -> list[list[TrainingExample]]:
    """Each user's examples, reduced so that many passes under similar LoRAs of `placements` are cheap.

    Labels of very low probability are removed from the label examples. If the backend supports constrained trees, the
    log-probability that labels lose to other tokens is measured once (see `LabelExample.restricted`), so that later
    passes need not compute logits of the whole vocabulary.
    """
    pruned = [list(examples) for examples, _ in cases]
    places = [(i, n) for i, own in enumerate(pruned) for n, one in enumerate(own) if isinstance(one, LabelExample)]
    if not places:
        return pruned
    # 1. each label's log-likelihood, normalised over the whole vocabulary, and over the tokens that continue a label
    trees = [build_prompt_tree(pruned[i][n]) for i, n in places]
    pairs = [(tree, user) for tree, (user, _) in enumerate(places)]
    users = [loras for _, loras in cases]
    values = completion_log_likelihoods(base, trees, users, pairs, also=placements)
    inner: list[list[float]] = []
    if backend_of(base).takes_constrained_trees:
        constrained = [replace(tree, constrained=True) for tree in trees]
        inner = completion_log_likelihoods(base, constrained, users, pairs, also=placements)
    # 2. replace each label example by its reduced form
    for k, (i, n) in enumerate(places):
        example = pruned[i][n]
        assert isinstance(example, LabelExample)
        short = example.pruned(values[k])
        pruned[i][n] = short.restricted(values[k], inner[k]) if inner else short
    return pruned
