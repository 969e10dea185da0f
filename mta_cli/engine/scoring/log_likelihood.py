"""How likely people's models find given answers. Trains nothing and knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.lora.merge import merge_loras
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
from mta_cli.engine.vectors import require_plain, stacked

if TYPE_CHECKING:
    from mta_cli.engine.model.llama import LlamaDecoder
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow

UserLoras = tuple[LoraWeights, ...]
NO_LORAS: UserLoras = ()


@torch.no_grad()
def completion_log_likelihoods(
    base: LoadedBase,
    forks: Sequence[PromptTree],
    people: Sequence[UserLoras],
    asked: Sequence[tuple[int, int]],
    shifts: Sequence[Tensor | None] = (),
    *,
    also: Sequence[Placement] = (),
) -> list[list[float]]:
    """Log-likelihoods (nats, summed over tokens) of every branch, for each (fork, person) number asked.

    A person is the parts that stand above the base as it is, and, where `shifts` are given, what is added to the last
    normalised state (see `vectors`). What is the same for several people is computed once, and serves whoever runs
    the same forks under parts placed as `also` says next. A branch that is not asked has −∞.
    """
    if base.llama_decoder is not None:
        return _score_with_decoder(base, base.llama_decoder, forks, people, asked, shifts, also)
    require_plain(base, shifts)
    require_supported_placements(base, [part.placement for parts in people for part in parts])
    return _score_with_modules(base, forks, people, asked)


def row_log_likelihoods(
    base: LoadedBase, rows: Sequence[TrainingRow], parts: UserLoras = NO_LORAS
) -> list[tuple[float, int]]:
    """Of each row: the log-likelihood of its labelled tokens (nats, summed) and how many there are."""
    forks = [PromptTree.from_row(row) for row in rows]
    values = completion_log_likelihoods(base, forks, [parts], [(i, 0) for i in range(len(forks))])
    return [(value, len(fork.completions[0])) for (value,), fork in zip(values, forks, strict=True)]


def mean_loss(base: LoadedBase, rows: Sequence[TrainingExample], parts: UserLoras = NO_LORAS) -> float:
    """Mean negative log-likelihood of what rows teach (nats): per labelled token, or per choice."""
    (loss,) = mean_losses(base, [(rows, parts)])
    return 0.0 if loss is None else loss


def mean_losses(base: LoadedBase, cases: Sequence[tuple[Sequence[TrainingExample], UserLoras]]) -> list[float | None]:
    """`mean_loss` of several people's rows, each under their own parts, in common passes; None where there are none."""
    taught = [(one, i) for i, (rows, _) in enumerate(cases) for one in rows]
    forks, asked = [build_prompt_tree(one) for one, _ in taught], [(n, i) for n, (_, i) in enumerate(taught)]
    values = completion_log_likelihoods(base, forks, [parts for _, parts in cases], asked)
    totals, counts = [0.0] * len(cases), [0] * len(cases)
    for (one, i), branches in zip(taught, values, strict=True):
        totals[i] -= example_log_likelihood(one, branches)
        counts[i] += count_loss_terms(one)
    return [total / count if count else None for total, count in zip(totals, counts, strict=True)]


def prune_examples(
    base: LoadedBase, cases: Sequence[tuple[Sequence[TrainingExample], UserLoras]], placements: Sequence[Placement] = ()
) -> list[list[TrainingExample]]:
    """People's rows made cheap to run many times under parts of `placements` that differ little from theirs.

    A choice loses the labels that next to nothing speaks for, and, where the base has a plain decoder, what other words
    take from a label is measured once (see `Choice.enclosed`): then the vocabulary is not read again.
    """
    places = [
        (i, n) for i, (rows, _) in enumerate(cases) for n, one in enumerate(rows) if isinstance(one, LabelExample)
    ]
    found = [list(rows) for rows, _ in cases]
    if not places:
        return found
    forks, asked = (
        [build_prompt_tree(found[i][n]) for i, n in places],
        [(fork, i) for fork, (i, _) in enumerate(places)],
    )
    people = [parts for _, parts in cases]
    values = completion_log_likelihoods(base, forks, people, asked, also=placements)
    closed = [replace(fork, constrained=True) for fork in forks]
    inner = (
        completion_log_likelihoods(base, closed, people, asked, also=placements)
        if base.llama_decoder is not None
        else []
    )
    for k, (i, n) in enumerate(places):
        one = found[i][n]
        assert isinstance(one, LabelExample)
        short = one.pruned(values[k])
        found[i][n] = short.restricted(values[k], inner[k]) if inner else short
    return found


def span_user_placements(plain: LlamaDecoder, people: Sequence[UserLoras], also: Sequence[Placement] = ()) -> Placement:
    """The layers and tokens that any of the people's parts may touch: what else there is, is the same for all.

    With those of parts placed as `also` says, where these leave anything that could serve them.
    """
    useful = (one for one in also if one.first_layer > 0 or one.late_tokens is not None)
    where = [*(part.placement for parts in people for part in parts), *useful]
    top = len(plain.layers)
    lates = [one.late_tokens for one in where if one.late_tokens is not None]
    late = max(lates) if where and len(lates) == len(where) else None
    return Placement(min([one.first_layer for one in where], default=top), top - 1, late)


def _score_with_decoder(
    base: LoadedBase,
    plain: LlamaDecoder,
    forks: Sequence[PromptTree],
    people: Sequence[UserLoras],
    asked: Sequence[tuple[int, int]],
    shifts: Sequence[Tensor | None],
    also: Sequence[Placement],
) -> list[list[float]]:
    passes = PrefixCacheScorer(plain, forks, span_user_placements(plain, people, also))
    everybody, added = group_frozen_loras(plain, people), stacked(plain, shifts)
    results = [_zero_sums(forks[fork]) for fork, _ in asked]

    def run(batch: list[int]) -> None:
        owners = [asked[i][1] for i in batch]
        own = added[owners] if added is not None else None
        scores = passes.score_trees([asked[i][0] for i in batch], {}, everybody, owners, shifts=own)
        for value, row, branch in zip(
            scores.log_likelihoods.tolist(), scores.row.tolist(), scores.completion_index, strict=True
        ):
            results[batch[row]][branch] += value

    budget = TokenBudget(base)
    lengths, owners = [passes.tokens_per_pass(fork) for fork, _ in asked], [person for _, person in asked]
    budget.run_batches(pack_by_user(lengths, owners, budget.tokens), run)
    return results


def _zero_sums(fork: PromptTree) -> list[float]:
    """Sums over no token yet, by branch."""
    sums = [float("-inf")] * len(fork.completions)
    for branch, _ in fork.active_completions:
        sums[branch] = 0.0
    return sums


def _score_with_modules(
    base: LoadedBase, forks: Sequence[PromptTree], people: Sequence[UserLoras], asked: Sequence[tuple[int, int]]
) -> list[list[float]]:
    """Through the base's own modules: each person's parts folded in turn, each branch a row of its own."""
    results = [_zero_sums(forks[fork]) for fork, _ in asked]
    budget = TokenBudget(base)
    for person in dict.fromkeys(owner for _, owner in asked):
        rows = [
            (i, b, alone)
            for i, (fork, owner) in enumerate(asked)
            if owner == person
            for b, alone in forks[fork].single_completion_trees
        ]

        def run(batch: list[int], rows: list[tuple[int, int, PromptTree]] = rows) -> None:
            losses, row = module_token_losses(base, [rows[n][2] for n in batch])
            for loss, place in zip(losses.tolist(), row.tolist(), strict=True):
                i, branch, _ = rows[batch[place]]
                results[i][branch] -= loss

        with merge_into_base(base, merge_loras([(part, 1.0) for part in people[person]])):
            budget.run_batches(pack_by_length([fork.length for *_, fork in rows], budget.tokens), run)
    return results
