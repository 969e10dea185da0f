"""Log-likelihoods of completions through a base's own modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.generation.module_batch import ModuleBatch, forward, has_keys_and_values
from mta_cli.engine.generation.request import PromptCache
from mta_cli.engine.lora.adapter import LoraWeights, merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.load import LoadedBase, head_logits
from mta_cli.engine.scoring.prefix_cache_scoring import pack_by_length
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.scoring.token_budget import TokenBudget


def module_token_losses(base: LoadedBase, trees: Sequence[PromptTree]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [predicted tokens] in nats, and the index of each predicted token's tree.

    Each tree must have exactly one completion, whose tokens are predicted. The base's modules run with their current
    weights and LoRA layers.
    """
    # 1. tokens, padded on the right  [trees, time]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tree.tokens) for tree in trees], batch_first=True)
    # 2. the tokens to predict, each with its tree and the column that predicts it  [predicted tokens]
    targets = [(row, column, token) for row, tree in enumerate(trees) for column, token, _ in tree.prediction_targets()]
    row, column, token_ids = torch.tensor(targets, device=base.device).T
    # 3. logits at these columns only  [predicted tokens, vocabulary]
    logits = head_logits(base, ids.to(base.device), row, column)
    return torch.nn.functional.cross_entropy(logits.float(), token_ids, reduction="none"), row


def module_log_likelihoods(
    base: LoadedBase,
    trees: Sequence[PromptTree],
    users: Sequence[tuple[LoraWeights, ...]],
    pairs: Sequence[tuple[int, int]],
) -> list[list[float]]:
    """See `log_likelihood.completion_log_likelihoods`; this version runs the base's own modules.

    Each user's LoRAs are merged into the weights in turn, and each completion runs as a separate row.
    """
    results = [trees[tree].zero_sums() for tree, _ in pairs]
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


@torch.inference_mode()
def module_label_scores(
    base: LoadedBase, prompt_ids: Sequence[int], label_ids: Sequence[Sequence[int]], batch: int
) -> list[float]:
    """See `log_likelihood.label_scores`; this version runs the base's own modules with their current weights.

    The prompt runs once, then the labels run after copies of its cache, `batch` labels in a pass. A cache that holds
    other states than keys and values, such as Mamba's, is not copied: then each label runs with the whole prompt.
    """
    prompt_cache = PromptCache()
    # 1. the first token of each label, from the prompt's last state
    first = torch.log_softmax(ModuleBatch(base, prompt_cache).read_prompt(prompt_ids)[0].float(), dim=-1)  # [vocab]
    scores = [float(first[label[0]]) for label in label_ids]
    # 2. the other tokens of longer labels, after copies of the prompt's cache
    longer = [place for place, label in enumerate(label_ids) if len(label) > 1]
    if longer and not has_keys_and_values(prompt_cache.cache, windows=True):
        tree = PromptTree(tuple(prompt_ids), tuple(map(tuple, label_ids)))
        return module_log_likelihoods(base, [tree], [()], [(0, 0)])[0]
    for start in range(0, len(longer), batch):
        places = longer[start : start + batch]
        for place, tail in zip(
            places, _label_tail_scores(base, prompt_cache, [label_ids[i] for i in places]), strict=True
        ):
            scores[place] += tail
    return scores


def _label_tail_scores(base: LoadedBase, prompt_cache: PromptCache, labels: Sequence[Sequence[int]]) -> list[float]:
    """Log-likelihood of each label's tokens after the first. `prompt_cache` holds the prompt and is not changed."""
    width = max(len(label) for label in labels) - 1
    # 1. token ids of the labels, padded on the right with 0. Attention is causal, so no label token attends to padding:
    #    no mask is needed, and the padding may be any token  [labels, 1 + width]
    rows = torch.tensor([list(label) + [0] * (width + 1 - len(label)) for label in labels], device=base.device)
    # 2. one pass after a copy of the cache for each label  [labels, width, vocabulary]
    cache = copy.deepcopy(prompt_cache.cache)
    cache.batch_repeat_interleave(len(labels))
    logits, _ = forward(base, rows[:, :-1], cache)
    # 3. log-probabilities of the labels' own tokens, without the padding  [labels, width]
    chosen = rows[:, 1:]
    logprobs = torch.log_softmax(logits.float(), dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    lengths = torch.tensor([len(label) - 1 for label in labels], device=base.device)
    real = torch.arange(width, device=base.device) < lengths.unsqueeze(-1)
    return [float(total) for total in logprobs.masked_fill(~real, 0.0).sum(-1)]
