"""Shots as choices: the loss is that of the sum on which an answer is decided, through both lenses and in training."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mta_cli.engine.base import LoadedBase
from mta_cli.engine.choices import Choice, Taught, fork_of, log_likelihood, losses, row_of, weight_of
from mta_cli.engine.labels import Habit, weighed
from mta_cli.engine.learned import learn_weights
from mta_cli.engine.lens import make_lens
from mta_cli.engine.lora import initial
from mta_cli.engine.score import likelihoods
from mta_cli.engine.train import Member, Schedule, Trainer
from tests.engine.lora_cases import random_lora, random_rows

LABELS = ((7, 2), (9, 11, 2), (9, 12, 13, 2), (30, 2))
KNOWN = (0.5, -1.0, 0.0, 0.25)


def choices(lengths: Sequence[int] = (24, 19, 31), known: Sequence[float] = KNOWN, share: float = 0.6) -> list[Choice]:
    return [Choice(row, LABELS, i % len(LABELS), tuple(known), share) for i, row in enumerate(random_rows(lengths))]


def mixed() -> list[Taught]:
    """Texts, and choices among more labels and among fewer."""
    wide, narrow, last = choices()
    text, other = random_rows([22, 17], seed=5)
    return [text, wide, Choice(narrow.row, LABELS[:2], 0, KNOWN[:2], 1.0), other, last]


def decided(base: LoadedBase, one: Taught, part: int | None = None) -> float:
    """The log-likelihood of what it teaches, added up plainly."""
    parts = () if part is None else (random_lora(base.model, part, placement="upper"),)
    (branches,) = likelihoods(base, [fork_of(one)], [parts], [(0, 0)])
    if not isinstance(one, Choice):
        return branches[0]
    sums = torch.tensor(weighed(branches, Habit(one.known, one.share), ""))
    return float(sums.log_softmax(0)[one.right])


@pytest.mark.parametrize("plain", [True, False])
def test_losses_are_those_of_the_decision(base: LoadedBase, plain: bool) -> None:
    taught, part = mixed(), random_lora(base.model, 3, placement="upper")
    own = base if plain else replace(base, plain=None)
    lens = make_lens(own, [fork_of(one) for one in taught], part.placement)
    factors = {path: (a, part.scale * b) for path, (a, b) in part.factors.items()}
    found, place = losses(lens.scores(range(len(taught)), factors), taught)
    for i, one in enumerate(taught):
        mine = found[place == i]
        assert len(mine) == weight_of(one)
        assert float(mine.sum()) == pytest.approx(-decided(base, one, 3), abs=2e-4)
    assert len(found) == sum(map(weight_of, taught))


def test_a_pass_of_texts_alone_is_as_it_was(base: LoadedBase) -> None:
    rows, part = random_rows([20, 15]), random_lora(base.model, 1, placement="upper")
    lens = make_lens(base, [fork_of(row) for row in rows], part.placement)
    scores = lens.scores([0, 1], {path: (a, part.scale * b) for path, (a, b) in part.factors.items()})
    found, place = losses(scores, rows)
    assert torch.equal(found, -scores.values) and torch.equal(place, scores.row)


def test_what_is_weighed_is_what_is_trained(base: LoadedBase) -> None:
    for one in mixed():
        (branches,) = likelihoods(base, [fork_of(one)], [()], [(0, 0)])
        assert log_likelihood(one, branches) == pytest.approx(decided(base, one), abs=1e-5)


def test_a_choice_knows_what_a_prior_says() -> None:
    (row,) = random_rows([12])
    one = Choice.of(row, [[7, 2], [9, 2]], 1, Habit((0.5, -0.5), 0.7), "whatever is asked")
    assert one == Choice(row, ((7, 2), (9, 2)), 1, (0.5, -0.5), 0.7)
    assert row_of(one) is row and row_of(row) is row
    assert fork_of(one).prompt == row.input_ids[: row.answer_start] and fork_of(one).branches == ((7, 2), (9, 2))


def trained(base: LoadedBase, taught: Sequence[Taught], steps: int = 8) -> Trainer:
    start = initial(base.model, "all-linear", "upper", 2, 4.0, 0)
    trainer = Trainer(base, [Member(start, taught, Schedule(steps, len(taught), 1e-2), 0)])
    list(trainer.steps())
    return trainer


def test_training_makes_the_right_choices_likelier(base: LoadedBase) -> None:
    taught = choices()
    trainer = trained(base, taught)
    first = trainer.taken[0][0].loss
    assert first == pytest.approx(-sum(decided(base, one) for one in taught) / len(taught), abs=1e-4)
    values = likelihoods(base, [fork_of(one) for one in taught], [(trainer.weights(0),)], [(i, 0) for i in range(3)])
    after = -sum(log_likelihood(one, own) for one, own in zip(taught, values, strict=True)) / len(taught)
    assert after < 0.8 * first


def test_training_is_the_same_without_a_plain_decoder(base: LoadedBase) -> None:
    ours, theirs = (trained(one, mixed(), 3) for one in (base, replace(base, plain=None)))
    assert [step.loss for step in ours.taken[0]] == pytest.approx([step.loss for step in theirs.taken[0]], abs=1e-4)


def test_what_is_known_need_not_be_learned(base: LoadedBase) -> None:
    """Where neighbours and habit are sure of the answers, a gradient is left only where they are wrong."""
    sure = tuple(40.0 * (label == 0) for label in range(len(LABELS)))
    right = [replace(one, right=0, known=sure) for one in choices()]
    trainer = trained(base, right)
    assert trainer.taken[0][0].loss < 1e-6
    wrong = [replace(one, right=1, known=sure) for one in choices()]
    assert trained(base, wrong).taken[0][0].loss > 30.0


def test_learned_weights_are_fitted_to_choices(base: LoadedBase) -> None:
    anchors = [random_lora(base.model, i, placement="upper") for i in range(2)]
    taught = choices()

    def loss(weights: Sequence[float]) -> float:
        parts = [replace(anchor, scale=anchor.scale * weight) for anchor, weight in zip(anchors, weights, strict=True)]
        values = likelihoods(base, [fork_of(one) for one in taught], [tuple(parts)], [(i, 0) for i in range(3)])
        return -sum(log_likelihood(one, own) for one, own in zip(taught, values, strict=True))

    found = learn_weights(base, anchors, [0.2, 0.2], taught, steps=30, pull=0.0)
    assert loss(found) < loss([0.2, 0.2]) - 0.01
