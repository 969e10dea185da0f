"""Shots as choices: the loss uses the same sum as the decision of an answer, in both forms and in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mta_cli.engine.backends import backend_of
from mta_cli.engine.lora.adapter import Placement, init_lora_weights
from mta_cli.engine.memory.label_prior import add_label_prior
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring import prefix_cache_scoring
from mta_cli.engine.scoring.label_examples import (
    EXCLUDED_LOG_PRIOR,
    MAX_RESTRICTION_SPREAD,
    MIN_LABEL_PROBABILITY,
    LabelExample,
    TrainingExample,
    build_prompt_tree,
    count_loss_terms,
    example_log_likelihood,
    example_losses,
    prompt_answer_row,
)
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, prune_examples
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.memory.fixed_prior import FixedPrior

LABELS = ((7, 2), (9, 11, 2), (9, 12, 13, 2), (30, 2))
KNOWN = (0.5, -1.0, 0.0, 0.25)
LATE = Placement(1, 1, 8)


def choices(
    lengths: Sequence[int] = (24, 19, 31), known: Sequence[float] = KNOWN, share: float = 0.6
) -> list[LabelExample]:
    return [
        LabelExample(row, LABELS, i % len(LABELS), tuple(known), share) for i, row in enumerate(random_rows(lengths))
    ]


def mixed() -> list[TrainingExample]:
    """Texts, and choices among more labels and among fewer."""
    wide, narrow, last = choices()
    text, other = random_rows([22, 17], seed=5)
    return [text, wide, LabelExample(narrow.row, LABELS[:2], 0, KNOWN[:2], 1.0), other, last]


@pytest.fixture
def unabridged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs, to the end."""
    monkeypatch.setattr("mta_cli.engine.scoring.label_examples.MIN_LABEL_PROBABILITY", 0.0)
    monkeypatch.setattr("mta_cli.engine.scoring.label_examples.MAX_RESTRICTION_SPREAD", -1.0)


def decided(base: LoadedBase, one: TrainingExample, part: int | None = None) -> float:
    """The log-likelihood of what it teaches, added up plainly."""
    parts = () if part is None else (random_lora(base.model, part, placement="upper"),)
    (branches,) = completion_log_likelihoods(base, [build_prompt_tree(one)], [parts], [(0, 0)])
    if not isinstance(one, LabelExample):
        return branches[0]
    sums = torch.tensor(add_label_prior(branches, FixedPrior(one.log_prior, one.model_weight), ""))
    return float(sums.log_softmax(0)[one.target_index])


@pytest.mark.parametrize("plain", [True, False])
def test_losses_are_those_of_the_decision(base: LoadedBase, plain: bool) -> None:
    taught, part = mixed(), random_lora(base.model, 3, placement="upper")
    own = base if plain else replace(base, llama_decoder=None)
    lens = backend_of(own).tree_scorer([build_prompt_tree(one) for one in taught], part.placement)
    factors = {path: (a, part.scale * b) for path, (a, b) in part.factors.items()}
    found, place = example_losses(lens.score_rows(range(len(taught)), factors), taught)
    for i, one in enumerate(taught):
        mine = found[place == i]
        assert len(mine) == count_loss_terms(one)
        assert float(mine.sum()) == pytest.approx(-decided(base, one, 3), abs=2e-4)
    assert len(found) == sum(map(count_loss_terms, taught))


def test_a_pass_of_texts_alone_is_as_it_was(base: LoadedBase) -> None:
    rows, part = random_rows([20, 15]), random_lora(base.model, 1, placement="upper")
    lens = backend_of(base).tree_scorer([build_prompt_tree(row) for row in rows], part.placement)
    scores = lens.score_rows([0, 1], {path: (a, part.scale * b) for path, (a, b) in part.factors.items()})
    found, place = example_losses(scores, rows)
    assert torch.equal(found, -scores.log_likelihoods) and torch.equal(place, scores.row)


def test_what_is_weighed_is_what_is_trained(base: LoadedBase) -> None:
    for one in mixed():
        (branches,) = completion_log_likelihoods(base, [build_prompt_tree(one)], [()], [(0, 0)])
        assert example_log_likelihood(one, branches) == pytest.approx(decided(base, one), abs=1e-5)


def test_a_choice_knows_what_a_prior_says() -> None:
    (row,) = random_rows([12])
    one = LabelExample.from_prior(row, [[7, 2], [9, 2]], 1, FixedPrior((0.5, -0.5), 0.7), "whatever is asked")
    assert one == LabelExample(row, ((7, 2), (9, 2)), 1, (0.5, -0.5), 0.7)
    assert prompt_answer_row(one) is row and prompt_answer_row(row) is row
    assert build_prompt_tree(one).prompt == row.input_ids[: row.answer_start] and build_prompt_tree(
        one
    ).completions == ((7, 2), (9, 2))


def trained(base: LoadedBase, taught: Sequence[TrainingExample], steps: int = 8) -> Trainer:
    start = init_lora_weights(base.model, "all-linear", "upper", 2, 4.0, 0)
    trainer = Trainer(base, [GroupMember(start, taught, Schedule(steps, len(taught), 1e-2), 0)])
    list(trainer.train_steps())
    return trainer


def test_training_makes_the_right_choices_likelier(base: LoadedBase, unabridged: None) -> None:
    taught = choices()
    trainer = trained(base, taught)
    first = trainer.completed_steps[0][0].loss
    assert first == pytest.approx(-sum(decided(base, one) for one in taught) / len(taught), abs=1e-4)
    values = completion_log_likelihoods(
        base, [build_prompt_tree(one) for one in taught], [(trainer.weights(0),)], [(i, 0) for i in range(3)]
    )
    after = -sum(example_log_likelihood(one, own) for one, own in zip(taught, values, strict=True)) / len(taught)
    assert after < 0.8 * first


def test_training_is_the_same_without_a_plain_decoder(base: LoadedBase, unabridged: None) -> None:
    ours, theirs = (trained(one, mixed(), 3) for one in (base, replace(base, llama_decoder=None)))
    assert [step.loss for step in ours.completed_steps[0]] == pytest.approx(
        [step.loss for step in theirs.completed_steps[0]], abs=1e-4
    )


def test_what_is_known_need_not_be_learned(base: LoadedBase) -> None:
    """Where neighbours and habit are sure of the answers, a gradient is left only where they are wrong."""
    sure = tuple(40.0 * (label == 0) for label in range(len(LABELS)))
    right = [replace(one, target_index=0, log_prior=sure) for one in choices()]
    trainer = trained(base, right)
    assert trainer.completed_steps[0][0].loss < 1e-6
    wrong = [replace(one, target_index=1, log_prior=sure) for one in choices()]
    assert trained(base, wrong).completed_steps[0][0].loss > 30.0


def test_labels_out_of_the_question_do_not_run() -> None:
    one = choices()[1]
    assert build_prompt_tree(one).active_indices is None
    without = replace(one, log_prior=(EXCLUDED_LOG_PRIOR, *KNOWN[1:3], EXCLUDED_LOG_PRIOR))
    assert build_prompt_tree(without).active_indices == (1, 2) and build_prompt_tree(
        without
    ).full_tree == build_prompt_tree(one)


@pytest.mark.parametrize("plain", [True, False])
def test_the_others_count_as_if_those_were_not_there(base: LoadedBase, plain: bool) -> None:
    own = base if plain else replace(base, llama_decoder=None)
    wide = choices()[1]
    some = replace(wide, log_prior=(EXCLUDED_LOG_PRIOR, *KNOWN[1:3], EXCLUDED_LOG_PRIOR))
    alike = LabelExample(wide.row, LABELS[1:3], 0, KNOWN[1:3], wide.model_weight)
    (left,), (right,) = ([trained(own, [one], 4)] for one in (some, alike))
    assert [step.loss for step in left.completed_steps[0]] == pytest.approx(
        [step.loss for step in right.completed_steps[0]], abs=1e-4
    )
    (branches,) = completion_log_likelihoods(own, [build_prompt_tree(some)], [()], [(0, 0)])
    assert branches[0] == branches[3] == EXCLUDED_LOG_PRIOR
    assert example_log_likelihood(some, branches) == pytest.approx(decided(own, alike), abs=1e-4)


def test_what_next_to_nothing_speaks_for_is_left_out_but_not_the_answer(base: LoadedBase) -> None:
    small, none = (math.log(MIN_LABEL_PROBABILITY * factor) for factor in (8.0, 0.001))
    sure = [replace(one, target_index=1, log_prior=(0.0, none, small, none), model_weight=1e-9) for one in choices()]
    text = random_rows([14])[0]
    (mine, theirs), other = prune_examples(base, [(sure[:2], ()), ([text], ())])
    assert other == [text]
    for one, before in ((mine, sure[0]), (theirs, sure[1])):
        assert isinstance(one, LabelExample) and one == replace(
            before, log_prior=(0.0, none, small, EXCLUDED_LOG_PRIOR)
        )
    assert prune_examples(base, [([text], ())]) == [[text]]


@pytest.mark.parametrize("plain", [True, False])
def test_under_somebodys_parts_others_are_left_out(
    base: LoadedBase, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is next to impossible is asked of the person's own model."""
    monkeypatch.setattr("mta_cli.engine.scoring.label_examples.MAX_RESTRICTION_SPREAD", -1.0)
    own = base if plain else replace(base, llama_decoder=None)
    part = replace(random_lora(base.model, 3, placement="upper"), scale=40.0)
    taught = choices(known=(0.0,) * 4, share=8.0)
    without, under = prune_examples(own, [(taught, ()), (taught, (part,))])
    assert without != under
    values = completion_log_likelihoods(
        own, [build_prompt_tree(one) for one in taught], [(part,)], [(i, 0) for i in range(3)]
    )
    assert under == [one.pruned(branches) for one, branches in zip(taught, values, strict=True)]


def test_what_is_read_to_abridge_serves_the_parts_that_follow(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts run once below the anchors, whoever is asked first, and nothing comes out otherwise."""
    taught, part = choices(), replace(random_lora(base.model, 3, placement="upper"), placement=LATE)
    assert base.llama_decoder is not None
    base.llama_decoder.activation_cache.clear()
    apart = prune_examples(base, [(taught, ())])
    base.llama_decoder.activation_cache.clear()
    together = prune_examples(base, [(taught, ())], [part.placement])
    for left, right in zip(apart[0], together[0], strict=True):
        assert isinstance(left, LabelExample) and isinstance(right, LabelExample)
        assert (
            right.log_prior == pytest.approx(left.log_prior, abs=1e-4)
            and replace(right, log_prior=left.log_prior) == left
        )
    embed, embedded = LlamaDecoder.embed, list[int]()

    def seen(plain: LlamaDecoder, ids: torch.Tensor) -> torch.Tensor:
        embedded.append(ids.numel())
        return embed(plain, ids)

    monkeypatch.setattr(LlamaDecoder, "embed", seen)
    completion_log_likelihoods(
        base, [build_prompt_tree(one) for one in together[0]], [(part,)], [(i, 0) for i in range(3)]
    )
    assert embedded == []
    completion_log_likelihoods(base, [build_prompt_tree(one) for one in together[0]], [()], [(i, 0) for i in range(3)])
    assert sum(embedded) == sum(
        build_prompt_tree(one).full_tree.length for one in taught
    )  # what no part reaches is kept elsewhere


def test_what_other_words_take_from_labels_counts_as_it_is() -> None:
    one = replace(choices()[0], log_prior=(0.5, EXCLUDED_LOG_PRIOR, 0.0, 0.25))
    open_to, inner = (-1.4, EXCLUDED_LOG_PRIOR, -2.5, -3.05), (-0.4, EXCLUDED_LOG_PRIOR, -1.6, -2.0)
    found = one.restricted(open_to, inner)
    assert found.constrained and found.log_prior == pytest.approx(
        (0.5 - 0.6, EXCLUDED_LOG_PRIOR, 0.0 - 0.54, 0.25 - 0.63)
    )
    assert found.label_log_probs(inner).tolist() == pytest.approx(one.label_log_probs(open_to).tolist())
    assert (
        build_prompt_tree(found).constrained
        and build_prompt_tree(found).active_indices == (0, 2, 3)
        and found.restricted(inner, inner) is found
    )
    assert (
        one.restricted((-1.4, EXCLUDED_LOG_PRIOR, -2.5, -2.0 - 1.0 - MAX_RESTRICTION_SPREAD - 0.01), inner) is one
    )  # it cannot spell the last


def short() -> list[TrainingExample]:
    """Choices of one token each, which other words hinder all alike; of them two are open to each, and a text."""
    found = [
        replace(one, label_tokens=tuple(label[:1] for label in LABELS), target_index=i % 2)
        for i, one in enumerate(choices())
    ]
    return [*(replace(one, log_prior=(0.0, 0.5, -29.0, -29.0), model_weight=0.05) for one in found), *random_rows([15])]


def test_what_is_abridged_is_taught_to_the_same_end(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens run, and the vocabulary is not read for labels."""
    run, read = prefix_cache_scoring.token_log_likelihoods, list[tuple[Any, ...]]()

    def seen(*args: Any) -> torch.Tensor:
        read.append(args)
        return run(*args)

    def taught() -> list[float]:
        return [step.loss for step in trained(base, short()).completed_steps[0]]

    monkeypatch.setattr(prefix_cache_scoring, "token_log_likelihoods", seen)
    quick, quickly = taught(), read.copy()
    read.clear()
    monkeypatch.setattr(
        "mta_cli.engine.training.trainer.prune_examples", lambda base, cases, *_: [rows for rows, _ in cases]
    )
    assert quick == pytest.approx(taught(), abs=1e-4)
    assert len(quickly) == len(read) + 2  # to see what may be left out
    _, _, _, tokens, _, allowed, _ = quickly[-1]
    assert len(tokens) < 0.8 * len(read[-1][3])
    assert all(rivals is None for *_, rivals_of_tokens, _ in read for rivals in rivals_of_tokens)
    assert len([rivals for rivals in allowed if rivals is not None]) == 6
