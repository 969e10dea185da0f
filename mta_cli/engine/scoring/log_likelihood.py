"""How likely people's models find given answers. Trains nothing and knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, folded
from mta_cli.engine.lora.merge import merge
from mta_cli.engine.scoring.backends import Budget, crowds, module_losses, require_everywhere
from mta_cli.engine.scoring.label_examples import Choice, Taught, fork_of, log_likelihood, weight_of
from mta_cli.engine.scoring.prefix_cache_scoring import Passes, by_owner, packed
from mta_cli.engine.scoring.prefix_tree import Fork
from mta_cli.engine.vectors import require_plain, stacked

if TYPE_CHECKING:
    from mta_cli.engine.model.llama import Plain
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import Row

PARTS = tuple[LoraWeights, ...]
NOBODY: PARTS = ()


@torch.no_grad()
def likelihoods(
    base: LoadedBase,
    forks: Sequence[Fork],
    people: Sequence[PARTS],
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
    if base.plain is not None:
        return _plainly(base, base.plain, forks, people, asked, shifts, also)
    require_plain(base, shifts)
    require_everywhere(base, [part.placement for parts in people for part in parts])
    return _one_by_one(base, forks, people, asked)


def score(base: LoadedBase, rows: Sequence[Row], parts: PARTS = NOBODY) -> list[tuple[float, int]]:
    """Of each row: the log-likelihood of its labelled tokens (nats, summed) and how many there are."""
    forks = [Fork.of(row) for row in rows]
    values = likelihoods(base, forks, [parts], [(i, 0) for i in range(len(forks))])
    return [(value, len(fork.branches[0])) for (value,), fork in zip(values, forks, strict=True)]


def mean_loss(base: LoadedBase, rows: Sequence[Taught], parts: PARTS = NOBODY) -> float:
    """Mean negative log-likelihood of what rows teach (nats): per labelled token, or per choice."""
    (loss,) = mean_losses(base, [(rows, parts)])
    return 0.0 if loss is None else loss


def mean_losses(base: LoadedBase, cases: Sequence[tuple[Sequence[Taught], PARTS]]) -> list[float | None]:
    """`mean_loss` of several people's rows, each under their own parts, in common passes; None where there are none."""
    taught = [(one, i) for i, (rows, _) in enumerate(cases) for one in rows]
    forks, asked = [fork_of(one) for one, _ in taught], [(n, i) for n, (_, i) in enumerate(taught)]
    values = likelihoods(base, forks, [parts for _, parts in cases], asked)
    totals, counts = [0.0] * len(cases), [0] * len(cases)
    for (one, i), branches in zip(taught, values, strict=True):
        totals[i] -= log_likelihood(one, branches)
        counts[i] += weight_of(one)
    return [total / count if count else None for total, count in zip(totals, counts, strict=True)]


def abridged(
    base: LoadedBase, cases: Sequence[tuple[Sequence[Taught], PARTS]], placements: Sequence[Placement] = ()
) -> list[list[Taught]]:
    """People's rows made cheap to run many times under parts of `placements` that differ little from theirs.

    A choice loses the labels that next to nothing speaks for, and, where the base has a plain decoder, what other words
    take from a label is measured once (see `Choice.enclosed`): then the vocabulary is not read again.
    """
    places = [(i, n) for i, (rows, _) in enumerate(cases) for n, one in enumerate(rows) if isinstance(one, Choice)]
    found = [list(rows) for rows, _ in cases]
    if not places:
        return found
    forks, asked = [fork_of(found[i][n]) for i, n in places], [(fork, i) for fork, (i, _) in enumerate(places)]
    people = [parts for _, parts in cases]
    values = likelihoods(base, forks, people, asked, also=placements)
    closed = [replace(fork, closed=True) for fork in forks]
    inner = likelihoods(base, closed, people, asked, also=placements) if base.plain is not None else []
    for k, (i, n) in enumerate(places):
        one = found[i][n]
        assert isinstance(one, Choice)
        short = one.narrowed(values[k])
        found[i][n] = short.enclosed(values[k], inner[k]) if inner else short
    return found


def spanning(plain: Plain, people: Sequence[PARTS], also: Sequence[Placement] = ()) -> Placement:
    """The layers and tokens that any of the people's parts may touch: what else there is, is the same for all.

    With those of parts placed as `also` says, where these leave anything that could serve them.
    """
    useful = (one for one in also if one.first > 0 or one.late is not None)
    where = [*(part.placement for parts in people for part in parts), *useful]
    top = len(plain.layers)
    lates = [one.late for one in where if one.late is not None]
    late = max(lates) if where and len(lates) == len(where) else None
    return Placement(min([one.first for one in where], default=top), top - 1, late)


def _plainly(
    base: LoadedBase,
    plain: Plain,
    forks: Sequence[Fork],
    people: Sequence[PARTS],
    asked: Sequence[tuple[int, int]],
    shifts: Sequence[Tensor | None],
    also: Sequence[Placement],
) -> list[list[float]]:
    passes = Passes(plain, forks, spanning(plain, people, also))
    everybody, added = crowds(plain, people), stacked(plain, shifts)
    results = [_unread(forks[fork]) for fork, _ in asked]

    def run(batch: list[int]) -> None:
        owners = [asked[i][1] for i in batch]
        own = added[owners] if added is not None else None
        scores = passes.scores([asked[i][0] for i in batch], {}, everybody, owners, shifts=own)
        for value, row, branch in zip(scores.values.tolist(), scores.row.tolist(), scores.branch, strict=True):
            results[batch[row]][branch] += value

    budget = Budget(base)
    lengths, owners = [passes.length(fork) for fork, _ in asked], [person for _, person in asked]
    budget.spend(by_owner(lengths, owners, budget.tokens), run)
    return results


def _unread(fork: Fork) -> list[float]:
    """Sums over no token yet, by branch."""
    sums = [float("-inf")] * len(fork.branches)
    for branch, _ in fork.running:
        sums[branch] = 0.0
    return sums


def _one_by_one(
    base: LoadedBase, forks: Sequence[Fork], people: Sequence[PARTS], asked: Sequence[tuple[int, int]]
) -> list[list[float]]:
    """Through the base's own modules: each person's parts folded in turn, each branch a row of its own."""
    results = [_unread(forks[fork]) for fork, _ in asked]
    budget = Budget(base)
    for person in dict.fromkeys(owner for _, owner in asked):
        rows = [
            (i, b, alone) for i, (fork, owner) in enumerate(asked) if owner == person for b, alone in forks[fork].alone
        ]

        def run(batch: list[int], rows: list[tuple[int, int, Fork]] = rows) -> None:
            losses, row = module_losses(base, [rows[n][2] for n in batch])
            for loss, place in zip(losses.tolist(), row.tolist(), strict=True):
                i, branch, _ = rows[batch[place]]
                results[i][branch] -= loss

        with folded(base, merge([(part, 1.0) for part in people[person]])):
            budget.spend(packed([fork.length for *_, fork in rows], budget.tokens), run)
    return results
