"""What is counted as speed, and that the product's own code does the work."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import pytest
import torch

from mta_cli.engine import throughput
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.throughput import Throughput, measure
from mta_cli.errors import IntegrityFault


class Clock:
    """A clock that pieces move on."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def pieces(clock: Clock, *seconds: float) -> Generator[int, None, None]:
    """Ten units after each of `seconds`."""
    for one in seconds:
        clock.now += one
        yield 10


def test_the_first_pieces_do_not_count_however_long_they_take(clock: Clock) -> None:
    assert measure(pieces(clock, 100, 50, 1, 1, 1), 1.5, warm_up=2) == Throughput(20, 2.0)
    assert Throughput(20, 2.0).rate == 10.0


def test_a_piece_that_takes_longer_is_waited_for(clock: Clock) -> None:
    assert measure(pieces(clock, 7, 7, 7), 1.0) == Throughput(10, 7.0)


def test_a_process_that_ends_early_counts_as_far_as_it_came(clock: Clock) -> None:
    assert measure(pieces(clock, 1, 2, 2), 100.0) == Throughput(20, 4.0)


def test_a_step_trains_a_group_and_counts_its_tokens(base: LoadedBase) -> None:
    steps = list(itertools.islice(throughput.train_tokens(base, 2048, 0), 2))
    assert steps == [2048, 2048]


def test_one_user_and_a_batch_are_decoded_past_the_end_of_a_turn(base: LoadedBase) -> None:
    assert sum(itertools.islice(throughput.decode_tokens(base, 0), 40)) == 40
    assert list(itertools.islice(throughput.decode_batch_tokens(base, 3, 0), 40)) == [3] * 40


def test_users_are_adapted_in_larger_and_larger_groups(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, build = [], throughput.build_models

    def counted(method, context, users, settings):  # type: ignore[no-untyped-def]
        sizes.append([user.number for user in users])
        models = build(method, context, users, settings)
        assert all(len(model.loras) == 2 for model in models), "a fusion and a stack"
        return models

    monkeypatch.setattr(throughput, "build_models", counted)
    assert throughput.measure_adapting(base, 2.0, 0).rate > 0
    assert sizes[:2] == [[0], [1, 2]], "no user comes again: states of known rows would be cached"


def test_numbers_that_are_not_finite_end_the_measurement(base: LoadedBase) -> None:
    with torch.no_grad():
        base.model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(IntegrityFault, match="training failed"):
        next(throughput.train_tokens(base, 1024, 0))
