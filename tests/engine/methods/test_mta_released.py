"""The authors' arithmetic, checked by hand: what it does, and that it is not an exact merge."""

from __future__ import annotations

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.methods.fusion import SHARE_BYTES
from mta_cli.engine.methods.method import MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.mta_released import METHODS, average_factors, swap_weights
from mta_cli.engine.methods.stacks import LORA_SETTINGS, fit_loras
from mta_cli.engine.model.load import LoadedBase
from tests.engine.lora_cases import random_lora
from tests.engine.methods.benches import a_bench, a_person, same, settings_of

(METHOD,) = METHODS
LEFT, RIGHT = torch.eye(8)[0], torch.eye(8)[1]
BETWEEN = torch.nn.functional.normalize(3 * LEFT + RIGHT, dim=0)  # cosines 3 : 1


def run(bench: MethodContext, people: list[UserShots], **changes: float | int | str) -> list[UserModel]:
    return METHOD.build_models(bench, people, settings_of(METHOD, **{"placement": "upper", **changes}))


def between(base: LoadedBase) -> MethodContext:
    """A bench whose anchors 0 and 2 are near to somebody who is `BETWEEN` them, 0 nearer; 1 and 3 are far."""
    bench = a_bench(base, 4)
    profiles = torch.stack([LEFT, -LEFT, RIGHT, -RIGHT])
    return MethodContext(base, bench.task, bench.anchors, profiles, (), 0)


def test_factors_are_averaged_apart(base: LoadedBase) -> None:
    first, second = random_lora(base.model, 1), random_lora(base.model, 2)
    made, exact = average_factors([first, second], [0.3, 0.7]), merge_loras([(first, 0.3), (second, 0.7)])
    assert made is not None and exact is not None and set(made.factors) == set(first.factors)
    assert made.placement == first.placement
    for path, (a, b) in first.factors.items():
        other_a, other_b = second.factors[path]
        by_hand = first.scale * (0.3 * b + 0.7 * other_b) @ (0.3 * a + 0.7 * other_a)
        assert torch.allclose(made.delta_weight(path), by_hand, atol=1e-6)
        assert (
            float((made.delta_weight(path) - exact.delta_weight(path)).norm() / exact.delta_weight(path).norm()) > 0.4
        )


def test_an_anchors_own_part_is_scaled_by_its_share_squared(base: LoadedBase) -> None:
    anchor = random_lora(base.model, 1)
    nothing = LoraWeights(
        {path: (torch.zeros_like(a), torch.zeros_like(b)) for path, (a, b) in anchor.factors.items()},
        anchor.scale,
        anchor.placement,
    )
    made, alone = average_factors([anchor, nothing], [0.6, 0.4]), average_factors([anchor], [1.0])
    assert made is not None and alone is not None
    for path in anchor.factors:
        assert torch.allclose(made.delta_weight(path), 0.36 * anchor.delta_weight(path), atol=1e-6)
        assert torch.allclose(alone.delta_weight(path), anchor.delta_weight(path), atol=1e-6)


def test_missing_ranks_and_modules_count_as_zeros(base: LoadedBase) -> None:
    wide, narrow = random_lora(base.model, 1), random_lora(base.model, 2, rank=2, alpha=6, targets="q_proj")
    made = average_factors([wide, narrow], [0.5, 0.5])
    assert made is not None and set(made.factors) == set(wide.factors)
    query, key = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    (a, b), (other_a, other_b) = wide.factors[query], narrow.factors[query]
    a, b = 0.5 * a, 0.5 * wide.scale * b
    a[:2] += 0.5 * other_a
    b[:, :2] += 0.5 * narrow.scale * other_b
    assert torch.allclose(made.delta_weight(query), b @ a, atol=1e-6)
    assert torch.allclose(made.delta_weight(key), 0.25 * wide.delta_weight(key), atol=1e-6)


def test_nobody_to_average_is_nothing() -> None:
    assert average_factors([], []) is None


def test_shares_are_given_out_from_the_other_end() -> None:
    assert swap_weights([(4, 0.7), (1, 0.3)]) == [(4, 0.3), (1, 0.7)]
    assert swap_weights([(4, 0.5), (1, 0.3), (2, 0.2)]) == [(4, 0.2), (1, 0.3), (2, 0.5)]
    assert swap_weights([]) == []


def test_the_nearest_anchor_gets_the_smaller_share(base: LoadedBase) -> None:
    bench = between(base)
    (made,) = run(bench, [a_person(3, profile=BETWEEN)])
    expected = average_factors([bench.anchors[0], bench.anchors[2]], [0.25, 0.75])
    assert expected is not None
    for path in expected.factors:
        assert torch.allclose(made.loras[0].delta_weight(path), expected.delta_weight(path), atol=1e-6)


def test_the_stack_has_rank_four_on_all_linear_layers_and_its_bytes_are_counted(base: LoadedBase) -> None:
    (made,) = run(between(base), [a_person(3, profile=BETWEEN)])
    fusion, stack = made.loras
    assert set(stack.factors) == set(fusion.factors) and len(stack.factors) == 7
    assert stack.rank == 4 and stack.scale == 2.0 and stack.placement == fusion.placement
    assert made.bytes == 2 * SHARE_BYTES + 2 * stack.num_parameters
    assert 0 < stack.norm() < 0.01 * fusion.norm()  # one step at 5e-5 hardly moves it


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (8, 1), (9, 2)])
def test_an_epoch_is_one_step_for_every_eight_rows(base: LoadedBase, rows: int, steps: int) -> None:
    bench, person = between(base), a_person(rows, profile=BETWEEN)
    (made,) = run(bench, [person])
    own: Settings = {
        **LORA_SETTINGS,
        "rank": 4,
        "alpha": 8.0,
        "targets": "all-linear",
        "placement": "upper",
        "steps": steps,
        "batch_size": 8,
        "learning_rate": 5e-5,
    }
    (stack,) = fit_loras(bench, [person], [made.loras[:1]], own)
    assert stack.lora is not None and same(made.loras[1], stack.lora)


def test_a_stack_that_fails_is_said_and_leaves_the_fusion(base: LoadedBase) -> None:
    bench, person = between(base), a_person(3, profile=BETWEEN)
    (made,), (sound,) = run(bench, [person], learning_rate=float("nan")), run(bench, [person])
    assert made.failed and not sound.failed and made.bytes == 2 * SHARE_BYTES
    assert len(made.loras) == 1 and same(made.loras[0], sound.loras[0])


def test_somebody_without_shots_has_nothing_and_disturbs_nobody(base: LoadedBase) -> None:
    bench, person = between(base), a_person(1, profile=BETWEEN)
    nobody, somebody = run(bench, [a_person(0, 1), person])
    assert nobody == UserModel()
    assert same(somebody.loras[0], run(bench, [person])[0].loras[0])


def test_a_bank_of_one_or_none(base: LoadedBase) -> None:
    person = a_person(2)
    bench = a_bench(base, 1)
    (made,) = run(bench, [person])
    path = next(iter(bench.anchors[0].factors))
    assert torch.allclose(made.loras[0].delta_weight(path), bench.anchors[0].delta_weight(path), atol=1e-6)
    assert made.bytes == SHARE_BYTES + 2 * made.loras[1].num_parameters
    (alone,) = run(a_bench(base, 0), [person])
    assert len(alone.loras) == 1 and alone.bytes == 2 * alone.loras[0].num_parameters


def test_the_same_again(base: LoadedBase) -> None:
    people = [a_person(3), a_person(9, 1), a_person(2, 2)]
    first, second = run(a_bench(base), people), run(a_bench(base), people)
    for one, other in zip(first, second, strict=True):
        assert all(same(*pair) for pair in zip(one.loras, other.loras, strict=True)) and one.bytes == other.bytes
