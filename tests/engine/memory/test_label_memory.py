"""Label memory: what each choice adds to a model's scores, by hand, and that it never looks ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mta_cli.engine.memory.knn import MixtureWeights, NeighbourIndex, NeighbourKernel
from mta_cli.engine.memory.label_memory import FittedNeighbours, LabelMemory
from mta_cli.engine.memory.label_prior import (
    PRIOR_STRENGTH,
    add_label_prior,
    label_rates,
    user_label_prior,
)
from mta_cli.options import MemoryOptions
from tests.engine.methods.tagging import embed

LABELS = ("yes", "no", "maybe")
ANSWERS = ("yes", "yes", "no", "other")
WEIGHTS = MixtureWeights.from_parts(model=0.7, memory=0.8)


def memory(times: tuple[str, ...] = ()) -> LabelMemory:
    labels = np.arange(9) % 3
    rates = label_rates([LABELS[place] for place in labels], LABELS)
    index = NeighbourIndex(embed([f"item {n}" for n in range(9)]), labels, np.arange(9) // 3, np.array(rates), times)
    return LabelMemory(LABELS, rates, FittedNeighbours(index, NeighbourKernel(4.0, 1.5, 0.5), embed, WEIGHTS))


def test_off_leaves_the_model_alone() -> None:
    assert memory().prior_of(ANSWERS, MemoryOptions("off")) is None
    assert add_label_prior([1.0, 2.0, 3.0], None, "a text") == (1.0, 2.0, 3.0)
    assert LabelMemory().prior_of(ANSWERS, MemoryOptions()) is None, "a task of texts has no memory"
    assert not LabelMemory().uses_neighbours(MemoryOptions())


def test_habit_adds_a_share_of_the_users_label_prior() -> None:
    known, options = memory(), MemoryOptions("habit", prior_weight=0.5, prior_strength=2.0)
    own = user_label_prior(ANSWERS, LABELS, known.rates, 2.0)
    prior = known.prior_of(ANSWERS, options)
    assert prior is not None and prior("a text") == tuple(0.5 * value for value in own) and prior.model_weight == 1
    assert known.prior_of(ANSWERS, replace(options, prior_weight=0.0)) is None
    without = LabelMemory(LABELS, known.rates).prior_of(ANSWERS, replace(options, memory="neighbours"))
    assert without is not None and without("a text") == prior("a text"), "a bank without items has the habit alone"


def test_habit_knows_nothing_of_how_later_items_were_answered() -> None:
    """The rates, which the user's answers are weighed against, are those of the items until the question."""
    known, options = memory(times=("2020",) * 4 + ("2024",) * 5), MemoryOptions("habit", prior_weight=1.0)
    early = label_rates([LABELS[place % 3] for place in range(4)], LABELS)
    for time, look_ahead, rates in (("2021", False, early), ("2021", True, known.rates), (None, False, known.rates)):
        prior = known.prior_of(ANSWERS, replace(options, look_ahead=look_ahead))
        assert prior is not None
        assert prior("a text", time) == pytest.approx(user_label_prior(ANSWERS, LABELS, rates, 8.0))


def test_neighbours_are_a_memory_that_is_weighed_against_the_model() -> None:
    """a·model + b·(log r + p_v·log(v/r) + p_h·prior)."""
    known = memory()
    assert known.neighbours is not None
    index, kernel = known.neighbours.index, known.neighbours.kernel
    votes = index.log_vote_rates(embed(["a text"]), kernel.sharpness)[0] - np.log(index.rates)
    own = np.array(user_label_prior(ANSWERS, LABELS, known.rates, PRIOR_STRENGTH))
    for weight in (0.5, 5.0):
        options = MemoryOptions(neighbour_weight=weight)
        prior = known.prior_of(ANSWERS, options)
        assert prior is not None
        assert known.prior_of(ANSWERS, replace(options, prior_weight=0.0, prior_strength=1.0)) == prior
        alone = np.log(index.rates) + kernel.votes * votes + kernel.habit * own
        expected = weight * WEIGHTS.memory * alone
        assert prior("a text") == pytest.approx(expected.tolist())
        assert prior.model_weight == WEIGHTS.model
        scores = add_label_prior([-1.0, -2.0, -3.0], prior, "a text")
        assert scores == pytest.approx(
            [prior.model_weight * s + e for s, e in zip((-1, -2, -3), expected, strict=True)]
        )


def test_a_shot_is_scored_without_itself_and_without_its_users_items() -> None:
    known, options = memory(), MemoryOptions()
    prior = known.leave_one_out_prior(ANSWERS[1:], 1, options)
    assert prior is not None and 1 not in prior.neighbours.item_users and prior.answers == ANSWERS[1:]
    assert known.leave_one_out_prior(ANSWERS, 1, MemoryOptions("habit")) is None
    with pytest.raises(ValueError, match="no neighbours"):
        LabelMemory(LABELS, known.rates).neighbour_prior(ANSWERS)


def test_items_later_than_the_question_do_not_count() -> None:
    times = ("", "", "2020", "2021", "2022", "2022", "2023", "2024", "2025")
    known = memory(times)
    prior = known.prior_of(ANSWERS, MemoryOptions())
    ahead = known.prior_of(ANSWERS, MemoryOptions(look_ahead=True))
    assert prior is not None and ahead is not None and known.neighbours is not None
    index = known.neighbours.index
    assert [len(index.until(time).labels) for time in ("1999", "2020", "2022", "2022-05", "3000")] == [2, 3, 6, 6, 9]
    assert index.until(None) is index and index.until("3000") is index
    assert index.until("2022").rates.tolist() == pytest.approx(label_rates(["yes", "no", "maybe"] * 2, LABELS))
    assert prior("a text") == ahead("a text") == ahead("a text", "2022") != prior("a text", "2022")
    cut = index.until("2022")
    changed = replace(index, labels=np.where(np.arange(9) < 6, index.labels, 0))
    assert changed.until("2022").labels.tolist() == cut.labels.tolist()
    fitted = replace(known.neighbours, index=changed)
    other = replace(known, neighbours=fitted).prior_of(ANSWERS, MemoryOptions())
    assert (
        other is not None and other("a text", "2022") == prior("a text", "2022") and other("a text") != prior("a text")
    )


def test_a_user_is_left_out_with_the_times_of_their_items() -> None:
    index = memory(tuple(f"202{n}" for n in range(9))).neighbours
    assert index is not None
    others = index.index.without_user(1)
    assert others.times == ("2020", "2021", "2022", "2026", "2027", "2028") and len(others.labels) == 6
    assert others.until("2026").item_users.tolist() == [0, 0, 0, 2]
    asked, known = index.index.until("2026", 1), index.index.until("2026", 7)
    assert asked.rates.tolist() == others.until("2026").rates.tolist() != known.rates.tolist()
    assert known is index.index.until("2026") and len(asked.labels) == len(known.labels)


def test_bytes_are_two_for_each_label_that_was_given() -> None:
    assert memory().stored_bytes(ANSWERS) == 4 and memory().stored_bytes(()) == 0
