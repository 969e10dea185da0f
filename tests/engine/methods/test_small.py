"""Small parts: what each method gives, how many bytes it keeps, and that people without shots cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mta_cli.engine.lora.adapter import init_lora_weights
from mta_cli.engine.lora.lora_xs import CoreKind
from mta_cli.engine.methods.method import Method, MethodContext, UserModel, UserShots
from mta_cli.engine.methods.small import METHODS
from mta_cli.engine.methods.stacks import fit_cores
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.rounding import LEVELS
from mta_cli.engine.scoring.log_likelihood import mean_loss
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.methods.benches import same

BY_NAME = {method.name: method for method in METHODS}
CORES, STACKS = ("gains", "code", "core"), ("stack-r1", "stack-frozen-a", "stack-8bit", "stack-4bit")


@pytest.fixture
def bench(base: LoadedBase) -> MethodContext:
    anchors = [random_lora(base.model, seed, placement="late") for seed in range(4)]
    return MethodContext(base, BUILTIN_TASKS["lamp-2"], anchors, torch.eye(4, 32), (1 / 15,) * 15, seed=3)


def people(*shots: int) -> list[UserShots]:
    return [
        UserShots(
            i,
            ("x",) * count,
            ("y",) * count,
            tuple(random_rows([22 + i + n for n in range(count)], i)),
            torch.zeros(32),
        )
        for i, count in enumerate(shots)
    ]


def make(bench: MethodContext, name: str, crowd: Sequence[UserShots], **settings: float) -> list[UserModel]:
    method = BY_NAME[name]
    return method.build_models(bench, crowd, {**method.settings, **settings})


def test_every_method_is_there_once_and_stands_on_the_task_adapter() -> None:
    assert set(BY_NAME) == {*CORES, *STACKS, "vector"} and len(METHODS) == len(BY_NAME)
    assert all(method.base_level == "task" and method.shows_history for method in METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_grid_lays_known_settings_over_the_defaults(method: Method) -> None:
    assert method.grid and all(set(laid) <= set(method.settings) for laid in method.grid)


@pytest.mark.parametrize("name", [*CORES, *STACKS])
def test_everybody_gets_a_part_of_their_own_and_who_has_no_shots_nothing(bench: MethodContext, name: str) -> None:
    made = make(bench, name, people(3, 0, 2))
    assert made[1] == UserModel()
    first, second = made[0].loras[0], made[2].loras[0]
    assert first.norm() > 0 and second.norm() > 0 and made[0].bytes == made[2].bytes > 0
    assert any(not torch.equal(first.delta_weight(path), second.delta_weight(path)) for path in first.factors)
    assert first.placement.late_tokens is not None and made[0].prior is None and made[0].answerer is None


@pytest.mark.parametrize("name", [*CORES, *STACKS])
def test_the_same_people_get_the_same_parts(bench: MethodContext, name: str) -> None:
    for one, other in zip(make(bench, name, people(3, 2)), make(bench, name, people(3, 2)), strict=True):
        for path, pair in one.loras[0].factors.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, other.loras[0].factors[path], strict=True))


@pytest.mark.parametrize("name", [*CORES, *STACKS])
def test_long_training_lowers_the_loss_on_the_shots(bench: MethodContext, name: str) -> None:
    (person,) = people(4)
    rate = 0.2 if name in CORES else 2e-2
    (made,) = make(bench, name, [person], steps=60, learning_rate=rate)
    assert mean_loss(bench.base, person.rows, made.loras) < 0.998 * mean_loss(bench.base, person.rows)


@pytest.mark.parametrize("name", [*CORES, *STACKS])
@pytest.mark.parametrize("rate", [1e6, float("nan")])
def test_a_training_that_fails_is_said(bench: MethodContext, name: str, rate: float) -> None:
    """By numbers that float16 cannot hold, and by numbers that are none."""
    assert make(bench, name, people(2, 0), steps=1, learning_rate=rate) == [UserModel(failed=True), UserModel()]


def test_bytes_are_those_of_float16_numbers_or_of_fewer_bits(bench: MethodContext) -> None:
    """64 inputs, 64 outputs of q and 32 of v; late parts stand in the upper layer alone, which has seven modules."""
    found = {name: make(bench, name, people(2))[0].bytes for name in (*CORES, *STACKS)}
    rank_1 = 64 + 64 + 64 + 32
    assert found == {
        "gains": 2 * 8 * 7,
        "code": 2 * 8,
        "core": 2 * 4 * 7,
        "stack-r1": 2 * rank_1,
        "stack-frozen-a": 2 * 2 * (64 + 32),
        "stack-8bit": 2 * rank_1 + 2 * 8,
        "stack-4bit": rank_1 + 2 * 8,
    }


def test_the_frozen_a_can_be_made_again_from_the_seed(bench: MethodContext) -> None:
    (made,) = make(bench, "stack-frozen-a", people(3))
    start = init_lora_weights(bench.base.model, "q_proj,v_proj", "late", 2, 4.0, bench.seed)
    assert list(made.loras[0].factors) == list(start.factors)
    for path, (a, _) in start.factors.items():
        assert torch.equal(made.loras[0].factors[path][0], a.half())


@pytest.mark.parametrize(("name", "bits"), [("stack-8bit", 8), ("stack-4bit", 4)])
def test_rounded_stacks_hold_few_different_numbers(bench: MethodContext, name: str, bits: int) -> None:
    (made,) = make(bench, name, people(3))
    for a, b in made.loras[0].factors.values():
        for direction in (*a, *b.T):
            assert len(direction.unique()) <= 2 * LEVELS[bits] + 1


def test_a_vector_is_kept_in_float16_and_a_training_that_fails_is_said(bench: MethodContext) -> None:
    first, nothing, last = make(bench, "vector", people(3, 0, 2))
    assert nothing == UserModel() and first.bytes == last.bytes == 2 * 64
    assert (
        first.state_shift is not None
        and last.state_shift is not None
        and not torch.equal(first.state_shift, last.state_shift)
    )
    assert torch.equal(first.state_shift, first.state_shift.half().float()) and first.loras == ()
    failed, none, _ = make(bench, "vector", people(2, 0, 2), learning_rate=1e9)
    assert failed == UserModel(failed=True) and none == UserModel()


def test_cores_are_shares_of_the_banks_directions(bench: MethodContext) -> None:
    """Every ΔW lies in the row and column spaces of the anchors' sum."""
    (made,) = make(bench, "core", people(3))
    assert made.loras[0].rank == 2
    for path, (a, _) in made.loras[0].factors.items():
        rows = torch.cat([anchor.factors[path][0] for anchor in bench.anchors])
        left = a - a @ torch.linalg.pinv(rows) @ rows
        assert float(left.norm() / a.norm()) < 1e-4


def test_an_empty_bank_gives_no_core_to_anybody(bench: MethodContext) -> None:
    for name in CORES:
        assert make(replace(bench, anchors=()), name, people(2, 1)) == [UserModel(), UserModel()]


@pytest.mark.parametrize("kind", ["core", "gains", "code"])
def test_a_core_stands_on_the_task_adapter_alone(bench: MethodContext, kind: CoreKind) -> None:
    """Its numbers are those of a core with nothing under it, of the method's own kind and rank."""
    crowd = people(3, 2)
    wanted = fit_cores(bench, crowd, [(), ()], BY_NAME[kind].settings, kind=kind)
    for made, own in zip(make(bench, kind, crowd), wanted, strict=True):
        assert own.lora is not None and len(made.loras) == 1 and same(made.loras[0], own.lora)
        assert made.bytes == own.bytes and not made.failed


def test_cores_with_a_schedule_are_not_taken_for_those_before_them() -> None:
    assert {name: BY_NAME[name].version for name in BY_NAME} == {
        **dict.fromkeys(CORES, 2),
        **dict.fromkeys((*STACKS, "vector"), 1),
    }
