"""One LoRA per person as OPPU has it: everywhere, of rank 8, from the base or above the task adapter."""

from __future__ import annotations

import pytest

from mta_cli.engine.methods.method import Method, UserModel
from mta_cli.engine.methods.oppu import METHODS
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import mean_loss
from tests.engine.methods.benches import a_bench, a_person, settings_of


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_lora_of_rank_8_on_q_and_v_of_every_layer(base: LoadedBase, method: Method) -> None:
    person, nobody = a_person(4), a_person(0, 1)
    made, nothing = method.build_models(a_bench(base, 2), [person, nobody], settings_of(method, learning_rate=1e-2))
    (part,) = made.loras
    assert nothing == UserModel() and made.prior is None and made.answerer is None
    assert (part.rank, part.scale, str(part.placement)) == (8, 1.0, "0-1/all")
    assert made.bytes == 2 * 8 * 2 * (64 + 64 + 64 + 32)
    assert mean_loss(base, person.rows, made.loras) < mean_loss(base, person.rows) - 0.01


def test_one_begins_at_the_base_and_one_at_the_task_adapter() -> None:
    assert {method.name: method.base_level for method in METHODS} == {"oppu": "base", "oppu-pooled": "task"}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_training_that_fails_is_said(base: LoadedBase, method: Method) -> None:
    settings = settings_of(method, learning_rate=float("nan"))
    assert method.build_models(a_bench(base, 2), [a_person(2), a_person(0, 1)], settings) == [
        UserModel(failed=True),
        UserModel(),
    ]
