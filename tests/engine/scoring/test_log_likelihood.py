"""Likelihoods of answers under people's parts: equal to a slow reference in any company; and the token budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mta_cli.engine.backends import backend_of, span_user_placements
from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import (
    completion_log_likelihoods,
    mean_losses,
)
from mta_cli.engine.scoring.prefix_cache_scoring import CPU_BATCH_TOKENS
from mta_cli.engine.scoring.token_budget import TokenBudget
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.errors import BadInput, Flag, UsageError
from tests.engine.likelihoods import mean_loss, row_log_likelihoods
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.slow import random_forks, slow_sums

SHAPES = [(30, (4,)), (3, (5,)), (19, (1, 6, 2)), (8, (3, 3)), (1, (2,)), (9, (1,)), (41, (7, 1))]
Parts = tuple[LoraWeights, ...]


def late(base: LoadedBase, seed: int, tokens: int = 8) -> LoraWeights:
    made = random_lora(base.model, seed, placement="late")
    return LoraWeights(made.factors, made.scale, Placement(1, 1, tokens))


def people_of(base: LoadedBase, kind: str) -> list[Parts]:
    """Four users with no, one, several and other LoRAs, placed by `kind`."""
    if kind == "late":
        return [(), (late(base, 1),), (late(base, 2), late(base, 3, 3)), (late(base, 4, 20),)]
    if kind == "mixed":
        return [
            (),
            (late(base, 1),),
            (random_lora(base.model, 2), late(base, 3)),
            (random_lora(base.model, 4, rank=2),),
        ]
    made = [random_lora(base.model, i, rank=i, placement=kind) for i in range(1, 5)]
    return [(), (made[0],), (made[1], made[2]), (made[3],)]


def check(found: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(one) for one in found] == [len(one) for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("kind", ["all", "upper", "late", "mixed"])
def test_everybody_scores_every_fork_as_the_slow_reference(base: LoadedBase, kind: str) -> None:
    forks, people = random_forks(SHAPES), people_of(base, kind)
    asked = [(fork, person) for person in range(4) for fork in range(len(forks))]
    expected = [slow_sums(base, forks[fork], people[person]) for fork, person in asked]
    check(completion_log_likelihoods(base, forks, people, asked), expected)
    check(completion_log_likelihoods(base, forks, people, asked[::-1]), expected[::-1])
    check(completion_log_likelihoods(base, forks, people, [(6, 2)]), [slow_sums(base, forks[6], people[2])])


@pytest.mark.parametrize("kind", ["all", "upper", "late", "mixed"])
@pytest.mark.parametrize("budget", [1, 50, 300])
def test_batches_change_nothing(base: LoadedBase, kind: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forks, people = random_forks(SHAPES), people_of(base, kind)
    asked = [(fork, person) for fork in range(len(forks)) for person in range(4)]
    whole = completion_log_likelihoods(base, forks, people, asked)
    monkeypatch.setattr("mta_cli.engine.scoring.prefix_cache_scoring.CPU_BATCH_TOKENS", budget)
    check(completion_log_likelihoods(base, forks, people, asked), whole)


@pytest.mark.parametrize("kind", ["all", "upper"])
def test_a_base_without_a_plain_decoder_gives_the_same(base: LoadedBase, kind: str) -> None:
    forks, people = random_forks(SHAPES), people_of(base, kind)
    asked = [(fork, person) for fork in range(len(forks)) for person in (2, 0, 1)]
    slow = replace(base, llama_decoder=None)
    check(
        completion_log_likelihoods(slow, forks, people, asked), completion_log_likelihoods(base, forks, people, asked)
    )
    rows = random_rows([20, 12, 31])
    assert mean_loss(slow, rows, people[2]) == pytest.approx(mean_loss(base, rows, people[2]), abs=1e-5)


@pytest.mark.parametrize("kind", ["late", "mixed"])
def test_late_parts_need_a_plain_decoder(base: LoadedBase, kind: str) -> None:
    slow = replace(base, llama_decoder=None)
    forks, people = random_forks(SHAPES), people_of(base, kind)
    with pytest.raises(UsageError, match="fast path"):
        completion_log_likelihoods(slow, forks, people, [(0, 1)])
    with pytest.raises(UsageError, match="fast path"):
        backend_of(slow).tree_scorer(forks, Placement(1, 1, 8))
    with pytest.raises(UsageError, match="fast path"):
        backend_of(slow).tree_scorer(forks, Placement(1, 1), frozen_loras=people, tree_users=[1] * len(forks))
    backend_of(base).require_placements([Placement(1, 1, 8)])
    backend_of(slow).require_placements([Placement(1, 1)])


def test_scoring_leaves_the_weights_alone(base: LoadedBase) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    forks, people = random_forks(SHAPES), people_of(base, "all")
    for one in (base, replace(base, llama_decoder=None)):
        completion_log_likelihoods(one, forks, people, [(i, i % 4) for i in range(len(forks))])
        assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def test_what_is_folded_stands_below_everybody(base: LoadedBase) -> None:
    forks, below = random_forks(SHAPES), random_lora(base.model, 9)
    own = random_lora(base.model, 1)
    expected = [slow_sums(base, fork, [below, own]) for fork in forks]
    with merge_into_base(base, below):
        check(completion_log_likelihoods(base, forks, [(own,)], [(i, 0) for i in range(len(forks))]), expected)
        slow = replace(base, llama_decoder=None)
        check(completion_log_likelihoods(slow, forks, [(own,)], [(i, 0) for i in range(len(forks))]), expected)


def test_rows_are_scored_with_their_counts(base: LoadedBase) -> None:
    rows, lora = random_rows([20, 12, 31], answer=5), random_lora(base.model, 1)
    scored = row_log_likelihoods(base, rows, (lora,))
    assert [count for _, count in scored] == [5, 5, 5]
    for (value, _), row in zip(scored, rows, strict=True):
        with merge_into_base(base, lora), torch.no_grad():
            logits = base.model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
        picked = torch.log_softmax(logits, -1)[torch.arange(row.answer_start - 1, len(row.input_ids) - 1)]
        expected = picked.gather(-1, torch.tensor(row.input_ids[row.answer_start :])[:, None]).sum()
        assert value == pytest.approx(float(expected), abs=1e-4)
    total = -sum(value for value, _ in scored) / 15
    assert mean_loss(base, rows, (lora,)) == pytest.approx(total, abs=1e-5)


def test_a_mean_is_by_token_and_not_by_row(base: LoadedBase) -> None:
    rows = [*random_rows([20], answer=1), *random_rows([25], seed=1, answer=9)]
    (short, _), (long, _) = row_log_likelihoods(base, rows)
    assert mean_loss(base, rows) == pytest.approx(-(short + long) / 10, abs=1e-5)


def test_many_peoples_losses_in_common_passes(base: LoadedBase) -> None:
    people = people_of(base, "mixed")
    rows = [random_rows([12 + 3 * i] * (i + 1), seed=i, answer=2 + i) for i in range(3)]
    cases: list[tuple[list[TrainingRow], Parts]] = [
        (rows[0], people[1]),
        ([], people[2]),
        (rows[1], ()),
        (rows[2], people[3]),
    ]
    found = mean_losses(base, cases)
    assert found[1] is None
    for i in (0, 2, 3):
        assert found[i] == pytest.approx(mean_loss(base, *cases[i]), abs=1e-4)


def test_the_span_is_what_anybody_touches(base: LoadedBase) -> None:
    plain = base.llama_decoder
    assert plain is not None
    upper, everywhere = random_lora(base.model, 1, placement="upper"), random_lora(base.model, 2)
    assert span_user_placements(plain, [(), (late(base, 1),)]) == Placement(1, 1, 8)
    assert span_user_placements(plain, [(late(base, 1, 3),), (late(base, 1, 20),)]) == Placement(1, 1, 20)
    assert span_user_placements(plain, [(late(base, 1),), (upper,)]) == Placement(1, 1)
    assert span_user_placements(plain, [(late(base, 1), everywhere)]) == Placement(0, 1)
    assert span_user_placements(plain, [(), ()]) == Placement(2, 1)
    assert span_user_placements(plain, [()], [Placement(1, 1, 8), Placement(1, 1, 8)]) == Placement(1, 1, 8)
    assert span_user_placements(plain, [(late(base, 1),)], [Placement(0, 1, 20)]) == Placement(0, 1, 20)
    assert span_user_placements(plain, [()], [Placement(0, 1)]) == Placement(2, 1)


def test_nothing_asked(base: LoadedBase) -> None:
    assert completion_log_likelihoods(base, [], [()], []) == []
    assert row_log_likelihoods(base, []) == []


def full(limit: int, done: list[list[int]]):  # type: ignore[no-untyped-def]
    def work(batch: list[int]) -> None:
        if len(batch) > limit:
            raise torch.OutOfMemoryError("not enough")
        done.append(batch)

    return work


def test_a_budget_is_halved_where_memory_runs_out(base: LoadedBase) -> None:
    budget, done = TokenBudget(base, 64), []
    budget.run_batches([[1, 2, 3, 4, 5], [6]], full(2, done))
    assert sorted(i for batch in done for i in batch) == [1, 2, 3, 4, 5, 6]
    assert max(len(batch) for batch in done) == 2 and done[0] == [6]
    assert budget.tokens == 64 // 2 // 2
    budget.run_batches([[1], [2, 3]], full(2, done))
    assert budget.tokens == 16


def test_one_item_too_large_is_said_with_the_remedy(base: LoadedBase) -> None:
    with pytest.raises(BadInput, match="cpu") as caught:
        TokenBudget(base, 8).run_batches([[1, 2]], full(0, []))
    assert caught.value.hint == (
        "use ",
        Flag("dtype", "bfloat16"),
        ", a lower ",
        Flag("rank"),
        ", or fewer ",
        Flag("history_items"),
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ],
)
def test_other_devices_run_out_of_memory_too(base: LoadedBase, error: Exception) -> None:
    done: list[list[int]] = []

    def work(batch: list[int]) -> None:
        if len(batch) > 1:
            raise error
        done.append(batch)

    TokenBudget(base).run_batches([[1, 2]], work)
    assert sorted(done) == [[1], [2]]


def test_other_errors_are_not_swallowed(base: LoadedBase) -> None:
    def work(batch: list[int]) -> None:
        raise RuntimeError("shapes do not fit")

    budget = TokenBudget(base)
    with pytest.raises(RuntimeError, match="shapes"):
        budget.run_batches([[1, 2]], work)
    assert budget.tokens == CPU_BATCH_TOKENS


def test_scores_add_up_only_once_when_memory_runs_out(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.scoring.prefix_cache_scoring import PrefixCacheScorer

    forks = random_forks(SHAPES)
    asked = [(i, 0) for i in range(len(forks))]
    expected = completion_log_likelihoods(base, forks, [()], asked)
    real = PrefixCacheScorer.score_trees

    def small(self: PrefixCacheScorer, chosen, *rest, **named):  # type: ignore[no-untyped-def]
        found = real(self, chosen, *rest, **named)
        if len(chosen) > 2:
            raise torch.OutOfMemoryError("not enough")
        return found

    monkeypatch.setattr(PrefixCacheScorer, "score_trees", small)
    check(completion_log_likelihoods(base, forks, [()], asked), expected)
