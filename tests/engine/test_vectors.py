"""Vectors: the gradient is that of the whole model, nobody's depends on the others, and answers are each person's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mta_cli.engine.generation.generate_batch import generate_answers
from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, mean_loss
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.scoring.token_logprobs import token_log_likelihoods
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.vectors import vectors
from mta_cli.errors import UsageError
from tests.engine.lora_cases import random_lora, random_rows

WIDTH = 64  # of the tiny base
FIT = {"steps": 30, "rate": 0.05, "pull": 0.0}


def states(base: LoadedBase, ids: Sequence[int]) -> Tensor:
    """What the head reads at every token, from transformers' own modules."""
    with torch.no_grad():
        return base.model.model(torch.tensor([ids], device=base.device)).last_hidden_state[0]  # type: ignore[no-any-return]


def slow_loss(base: LoadedBase, rows: Sequence[TrainingRow], shift: Tensor) -> Tensor:
    """The mean loss of all labelled tokens when `shift` is added to every state; differentiable."""
    head, losses = base.model.get_output_embeddings(), []
    for row in rows:
        start = row.answer_start
        logits = head(states(base, row.input_ids)[start - 1 : -1] + shift)
        wanted = torch.tensor(row.input_ids[start:])
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(losses).mean()


def test_it_learns_what_adam_learns_on_the_whole_model(base: LoadedBase) -> None:
    rows = random_rows([20, 31, 24])
    (found,) = vectors(base, [rows], steps=12, rate=0.03, pull=0.5)
    expected = torch.zeros(WIDTH, requires_grad=True)
    optimiser = torch.optim.Adam([expected], lr=0.03)
    for _ in range(12):
        optimiser.zero_grad()
        (slow_loss(base, rows, expected) + 0.5 * expected.square().mean()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert found is not None and found.shape == (WIDTH,) and found.norm() > 0.1
    assert (found - expected.detach()).abs().max() < 1e-3


def test_nobodys_vector_depends_on_the_others(base: LoadedBase) -> None:
    people = [random_rows([20, 31], 1), [], random_rows([24, 18, 22], 2)]
    together = vectors(base, people, **FIT)
    alone = [vectors(base, [rows], **FIT)[0] for rows in people]
    assert together[1] is None and alone[1] is None
    for ours, theirs in ((together[0], alone[0]), (together[2], alone[2])):
        assert ours is not None and theirs is not None and (ours - theirs).abs().max() < 1e-3
    assert together[0] is not None and together[2] is not None and (together[0] - together[2]).abs().max() > 0.1


def test_a_pull_holds_it_near_nothing(base: LoadedBase) -> None:
    rows = random_rows([20, 31])
    free, held = (vectors(base, [rows], steps=60, rate=0.05, pull=pull)[0] for pull in (0.0, 30.0))
    assert free is not None and held is not None and held.norm() < 0.5 * free.norm()


def test_the_loss_on_the_shots_falls_and_scores_are_those_of_shifted_states(base: LoadedBase) -> None:
    rows = random_rows([20, 31, 24])
    (shift,) = vectors(base, [rows], **FIT)
    assert shift is not None
    forks = [PromptTree.from_row(row) for row in rows]
    values = completion_log_likelihoods(base, forks, [(), ()], [(i, 1) for i in range(3)], [None, shift])
    total = sum(value for (value,) in values) / sum(len(fork.completions[0]) for fork in forks)
    assert -total == pytest.approx(float(slow_loss(base, rows, shift)), abs=1e-4)
    assert -total < mean_loss(base, rows) - 0.1


def test_scores_of_several_people_are_each_ones_own(base: LoadedBase) -> None:
    draw = torch.Generator().manual_seed(5)
    shifts = [None, torch.randn(WIDTH, generator=draw), torch.randn(WIDTH, generator=draw)]
    people: list[tuple[LoraWeights, ...]] = [(), (random_lora(base.model, 1, placement="late"),), ()]
    forks = [PromptTree(tuple(range(4, 20)), ((5, 6), (7,))), PromptTree(tuple(range(9, 18)), ((3,), (8, 9, 4)))]
    asked = [(0, 2), (1, 1), (0, 0), (1, 2), (0, 1)]
    found = completion_log_likelihoods(base, forks, people, asked, shifts)
    for (fork, person), values in zip(asked, found, strict=True):
        (alone,) = completion_log_likelihoods(base, [forks[fork]], [people[person]], [(0, 0)], [shifts[person]])
        assert values == pytest.approx(alone, abs=1e-4)
    plain = completion_log_likelihoods(base, forks, people, asked)
    assert plain[2] == pytest.approx(found[2]) and abs(plain[0][0] - found[0][0]) > 0.1


def test_answers_are_the_likeliest_words_of_shifted_states(base: LoadedBase) -> None:
    shift = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(6))
    head, expected = base.model.get_output_embeddings(), []
    for person in (shift, torch.zeros(WIDTH)):
        ids = [4, 9, 12, 7]
        for _ in range(6):
            ids.append(int((head(states(base, ids)[-1] + person)).argmax()))
        expected.append(ids[4:])
    prompts = [(4, 9, 12, 7)] * 3
    found = generate_answers(base, prompts, [(), ()], [0, 1, 0], max_tokens=6, shifts=[shift, None])
    ended = [answer[: next((i for i, token in enumerate(answer) if token in base.end_ids), 6)] for answer in expected]
    assert found == [ended[0], ended[1], ended[0]] and ended[0] != ended[1]


def test_a_base_without_a_plain_decoder_says_so(base: LoadedBase) -> None:
    other, rows = replace(base, llama_decoder=None), random_rows([20])
    shift, fork = torch.ones(WIDTH), PromptTree.from_row(rows[0])
    with pytest.raises(UsageError, match="vectors need a base of the Llama family"):
        vectors(other, [rows], **FIT)
    with pytest.raises(UsageError, match="vectors need"):
        completion_log_likelihoods(other, [fork], [()], [(0, 0)], [shift])
    with pytest.raises(UsageError, match="vectors need"):
        generate_answers(other, [(4, 5)], [()], [0], max_tokens=2, shifts=[shift])
    assert len(completion_log_likelihoods(other, [fork], [()], [(0, 0)], [None])) == 1


def test_gradients_of_likelihoods_reach_the_states_alone() -> None:
    weight = torch.randn(40, 8, requires_grad=True)
    state = torch.randn(3, 8, requires_grad=True)
    token_log_likelihoods(state, weight, None, torch.tensor([1, 5, 7])).sum().backward()  # type: ignore[no-untyped-call]
    assert state.grad is not None and weight.grad is None
