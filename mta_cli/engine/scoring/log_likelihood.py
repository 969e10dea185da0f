"""Log-likelihoods of given completions under users' models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.backends import (
    TokenBudget,
    group_frozen_loras,
    module_token_losses,
    require_supported_placements,
)
from mta_cli.engine.scoring.label_examples import (
    LabelExample,
    TrainingExample,
    build_prompt_tree,
    count_loss_terms,
    example_log_likelihood,
)
from mta_cli.engine.scoring.prefix_cache_scoring import PrefixCacheScorer, pack_by_length, pack_by_user
from mta_cli.engine.scoring.prefix_tree import PromptTree

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
    """Log-likelihoods (nats, summed over tokens) of every completion, for each (tree number, user number) of `pairs`.

    A user is the LoRAs above the base as it is. Prefixes that several users share are computed once, and cached so that
    LoRAs placed as `also` says can use them later. An inactive completion has −∞.
    """
    if base.llama_decoder is not None:
        return _score_with_decoder(base, base.llama_decoder, trees, users, pairs, also)
    require_supported_placements(base, [lora.placement for own in users for lora in own])
    return _score_with_modules(base, trees, users, pairs)


def mean_losses(base: LoadedBase, cases: Sequence[tuple[Sequence[TrainingExample], UserLoras]]) -> list[float | None]:
    """Mean negative log-likelihood (nats) of each user's examples under the user's LoRAs.

    It is per answer token, or per label; None for a user without examples. Users share passes.
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
    """Each user's examples, made cheap to run many times under LoRAs of `placements` that differ little from theirs.

    A label example loses the labels of next to no probability. Where the base has a Llama decoder, the probability of
    tokens that are no label's is measured once (see `LabelExample.restricted`): then the vocabulary is not read again.
    """
    pruned = [list(examples) for examples, _ in cases]
    places = [(i, n) for i, own in enumerate(pruned) for n, one in enumerate(own) if isinstance(one, LabelExample)]
    if not places:
        return pruned
    # 1. log-likelihoods of the labels among all tokens, and among the labels' own
    trees = [build_prompt_tree(pruned[i][n]) for i, n in places]
    pairs = [(tree, user) for tree, (user, _) in enumerate(places)]
    users = [loras for _, loras in cases]
    values = completion_log_likelihoods(base, trees, users, pairs, also=placements)
    inner: list[list[float]] = []
    if base.llama_decoder is not None:
        constrained = [replace(tree, constrained=True) for tree in trees]
        inner = completion_log_likelihoods(base, constrained, users, pairs, also=placements)
    # 2. each label example in its shorter form
    for k, (i, n) in enumerate(places):
        example = pruned[i][n]
        assert isinstance(example, LabelExample)
        short = example.pruned(values[k])
        pruned[i][n] = short.restricted(values[k], inner[k]) if inner else short
    return pruned


def span_user_placements(
    decoder: LlamaDecoder, users: Sequence[UserLoras], also: Sequence[Placement] = ()
) -> Placement:
    """The layers and tokens that any of the users' LoRAs may touch; everything else is the same for all of them.

    Placements `also` count too, unless they act on all layers and tokens and so leave nothing to share.
    """
    shareable = (one for one in also if one.first_layer > 0 or one.late_tokens is not None)
    placements = [*(lora.placement for own in users for lora in own), *shareable]
    layers = len(decoder.layers)
    lates = [one.late_tokens for one in placements if one.late_tokens is not None]
    late_tokens = max(lates) if placements and len(lates) == len(placements) else None
    return Placement(min([one.first_layer for one in placements], default=layers), layers - 1, late_tokens)


def _score_with_decoder(
    base: LoadedBase,
    decoder: LlamaDecoder,
    trees: Sequence[PromptTree],
    users: Sequence[UserLoras],
    pairs: Sequence[tuple[int, int]],
    also: Sequence[Placement],
) -> list[list[float]]:
    scorer = PrefixCacheScorer(decoder, trees, span_user_placements(decoder, users, also))
    user_loras = group_frozen_loras(decoder, users)
    results = [_zero_sums(trees[tree]) for tree, _ in pairs]

    def run(batch: list[int]) -> None:
        owners = [pairs[i][1] for i in batch]
        scores = scorer.score_trees([pairs[i][0] for i in batch], {}, user_loras, owners)
        for value, row, completion in zip(
            scores.log_likelihoods.tolist(), scores.row.tolist(), scores.completion_index, strict=True
        ):
            results[batch[row]][completion] += value

    budget = TokenBudget(base)
    lengths, owners = [scorer.tokens_per_pass(tree) for tree, _ in pairs], [user for _, user in pairs]
    budget.run_batches(pack_by_user(lengths, owners, budget.tokens), run)
    return results


def _zero_sums(tree: PromptTree) -> list[float]:
    """By completion: 0 where it is active, else −∞."""
    sums = [float("-inf")] * len(tree.completions)
    for completion, _ in tree.active_completions:
        sums[completion] = 0.0
    return sums


def _score_with_modules(
    base: LoadedBase, trees: Sequence[PromptTree], users: Sequence[UserLoras], pairs: Sequence[tuple[int, int]]
) -> list[list[float]]:
    """Through the base's own modules: each user's LoRAs merged in turn, each completion a row of its own."""
    results = [_zero_sums(trees[tree]) for tree, _ in pairs]
    budget = TokenBudget(base)
    for user in dict.fromkeys(owner for _, owner in pairs):
        rows = [
            (i, completion, alone)
            for i, (tree, owner) in enumerate(pairs)
            if owner == user
            for completion, alone in trees[tree].single_completion_trees
        ]

        def run(batch: list[int], rows: list[tuple[int, int, PromptTree]] = rows) -> None:
            losses, row = module_token_losses(base, [rows[n][2] for n in batch])
            for loss, place in zip(losses.tolist(), row.tolist(), strict=True):
                i, completion, _ = rows[batch[place]]
                results[i][completion] -= loss

        with merge_into_base(base, merge_loras([(lora, 1.0) for lora in users[user]])):
            budget.run_batches(pack_by_length([tree.length for *_, tree in rows], budget.tokens), run)
    return results
