"""Many people's factors side by side: each row meets its own, and gradients find their way back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, init_lora_weights
from mta_cli.engine.lora.batched import (
    FrozenLoras,
    TrainableLoras,
    fuse_factors,
    module_slices,
    owner_blocks,
    stack_loras,
)
from mta_cli.engine.model.llama import BatchedLora, FusedFactors, LlamaDecoder
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import IntegrityFault
from tests.engine.lora_cases import random_lora

CPU = torch.device("cpu")


def decoder(base: LoadedBase) -> LlamaDecoder:
    assert base.llama_decoder is not None
    return base.llama_decoder


def crowd_of_three(base: LoadedBase) -> list[LoraWeights | None]:
    """Different ranks, scales, modules and layers, and one person with nothing."""
    return [
        random_lora(base.model, 1, rank=2, alpha=3.0, targets="q_proj,v_proj,up_proj"),
        None,
        random_lora(base.model, 2, rank=5, alpha=20.0, targets="k_proj,v_proj,down_proj,o_proj", placement="upper"),
    ]


def inputs(base: LoadedBase, rows: int) -> dict[tuple[int, str], Tensor]:
    """A random input [rows, time, in] for every joint projection."""
    generator = torch.Generator().manual_seed(3)
    return {
        (i, name): torch.randn(rows, 4, joint.weight.shape[1], generator=generator)
        for i, layer in enumerate(decoder(base).layers)
        for name, joint in layer.projections.items()
    }


def explicit(base: LoadedBase, i: int, name: str, x: Tensor, one: LoraWeights | None) -> Tensor:
    """What one person's part adds to one joint projection: each module's own s·B(A x), in the modules' order."""
    path = {"qkv": "self_attn.{}", "out": "self_attn.{}", "gate_up": "mlp.{}", "down": "mlp.{}"}[name]
    members = {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "out": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj"),
        "down": ("down_proj",),
    }[name]
    pieces = []
    for member in members:
        full = f"model.layers.{i}.{path.format(member)}"
        linear = base.model.get_submodule(full)
        factors = one.factors.get(full) if one is not None else None
        nothing = torch.zeros(*x.shape[:-1], linear.out_features)
        pieces.append(nothing if factors is None or one is None else one.scale * (x @ factors[0].T) @ factors[1].T)
    return torch.cat(pieces, -1)


def check(base: LoadedBase, pairs: FusedFactors, people: Sequence[LoraWeights | None]) -> None:
    """Every joint projection of every row gets exactly what its person's modules add."""
    for (i, name), x in inputs(base, len(people)).items():
        expected = torch.stack([explicit(base, i, name, x[row], one) for row, one in enumerate(people)])
        found = BatchedLora(pairs).add_delta((i, name), x, torch.zeros_like(expected))
        assert torch.allclose(found, expected, atol=1e-5)


def test_rows_are_cut_into_blocks_of_one_owner() -> None:
    assert owner_blocks([4]) == ([4], 1) and owner_blocks([4, 4, 4]) == ([4], 3)
    assert owner_blocks([1, 1, 0, 0, 1, 1]) == ([1, 0, 1], 2)
    assert owner_blocks([3, 3, 3, 3, 5, 5]) == ([3, 3, 5], 2)
    assert owner_blocks([3, 3, 3, 5, 5]) == ([3, 3, 3, 5, 5], 1)


@pytest.mark.parametrize("owners", [[0, 1, 2], [2, 0, 2, 1, 0], [2, 2], [1, 1], [0], [0, 0, 2, 2], [1, 1, 1, 1, 2, 2]])
def test_each_row_gets_its_own_persons_part(base: LoadedBase, owners: list[int]) -> None:
    weights = crowd_of_three(base)
    crowd = FrozenLoras(decoder(base), weights)
    check(base, crowd.factors_for_rows(owners), [weights[owner] for owner in owners])
    assert crowd.placement == Placement(0, 1)


def test_one_persons_rows_share_the_factors(base: LoadedBase) -> None:
    crowd = FrozenLoras(decoder(base), crowd_of_three(base))
    assert {a.dim() for a, _ in crowd.factors_for_rows([2, 2, 2]).values()} == {2}
    assert {a.shape[0] for a, _ in crowd.factors_for_rows([0, 2]).values()} == {2}


def test_nobody_has_anything(base: LoadedBase) -> None:
    crowd = FrozenLoras(decoder(base), [None, None])
    assert crowd.factors_for_rows([0, 1]) == {} and crowd.placement is None


def test_company_does_not_change_a_persons_numbers(base: LoadedBase) -> None:
    """What pads a smaller rank is zero, whoever else is there."""
    weights = crowd_of_three(base)
    factors = stack_loras(weights, CPU)
    for path, (a, b) in factors.items():
        for row, one in enumerate(weights):
            delta = one.delta_weight(path) if one is not None and path in one.factors else torch.zeros(())
            assert torch.allclose(b[row] @ a[row], delta.expand(b.shape[1], a.shape[2]), atol=1e-6)


def test_a_crowd_of_late_and_other_parts_is_refused(base: LoadedBase) -> None:
    with pytest.raises(IntegrityFault, match="different tokens"):
        FrozenLoras(decoder(base), [random_lora(base.model, 1), random_lora(base.model, 2, placement="late")])


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.2.mlp.up_proj",
        "model.layers.0.mlp.fc1",
        "model.layers.0.mlp.q_proj",
        "model.layers.0.self_attn.up_proj",
        "transformer.layers.0.mlp.up_proj",
        "lm_head",
    ],
)
def test_a_module_that_the_base_lacks_is_a_fault(base: LoadedBase, path: str) -> None:
    with pytest.raises(IntegrityFault, match=path.rsplit(".", 1)[-1]):
        module_slices(decoder(base), [path])
    weights = LoraWeights({path: (torch.zeros(1, 64), torch.zeros(144, 1))}, 1.0, Placement(0, 1))
    with pytest.raises(IntegrityFault):
        FrozenLoras(decoder(base), [weights])


@pytest.mark.parametrize(("inside", "outside"), [(8, 144), (64, 8)])
def test_factors_of_another_width_are_a_fault(base: LoadedBase, inside: int, outside: int) -> None:
    path = "model.layers.0.mlp.up_proj"
    wrong = LoraWeights({path: (torch.zeros(1, inside), torch.zeros(outside, 1))}, 1.0, Placement(0, 1))
    for company in ([wrong], [random_lora(base.model, 1), wrong]):
        with pytest.raises(IntegrityFault, match="up_proj"):
            FrozenLoras(decoder(base), company)


def members(base: LoadedBase) -> list[LoraWeights]:
    starts = [random_lora(base.model, i, rank=3, alpha=6.0, targets="q_proj,v_proj,down_proj") for i in range(3)]
    assert len({start.scale for start in starts}) == 1
    return starts


@pytest.mark.parametrize("owners", [[0, 1, 2], [2, 0, 2], [1, 1, 1], [2, 2, 0, 0]])
def test_a_groups_factors_are_its_members(base: LoadedBase, owners: list[int]) -> None:
    starts = members(base)
    leaves = TrainableLoras(starts, CPU).params_for_rows(owners, torch.float32)
    factors = leaves.factors()
    assert leaves.single == (len(set(owners)) == 1)
    pairs = {
        key: (a.detach(), b.detach())
        for key, (a, b) in fuse_factors(module_slices(decoder(base), list(factors)), factors).items()
    }
    check(base, pairs, [starts[owner] for owner in owners])


@pytest.mark.parametrize("owners", [[0, 1, 2], [2, 0, 2], [1, 1, 1], [2, 2, 0, 0]])
def test_gradients_equal_those_of_a_plain_formulation(base: LoadedBase, owners: list[int]) -> None:
    starts = members(base)
    group = TrainableLoras(starts, CPU)
    expected = [
        (a.clone().requires_grad_(), b.clone().requires_grad_()) for one in starts for a, b in one.factors.values()
    ]
    paths, count = list(starts[0].factors), len(starts[0].factors)
    for repeat in range(2):  # gradients add up over passes
        leaves = group.params_for_rows(owners, torch.float32)
        pairs = fuse_factors(module_slices(decoder(base), paths), leaves.factors())
        whole = inputs(base, len(owners))
        before = {key: torch.full((len(owners), 4, b.shape[-1]), float(repeat)) for key, (_, b) in pairs.items()}
        added = (BatchedLora(pairs).add_delta(key, whole[key], before[key]) for key in pairs)
        sum((one.square().sum() for one in added), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        leaves.accumulate_grads()
        for row, owner in enumerate(owners):
            factors = dict(zip(paths, expected[owner * count : (owner + 1) * count], strict=True))
            plain = LoraWeights(factors, starts[owner].scale, starts[owner].placement)
            for i, name in pairs:
                loss = (explicit(base, i, name, whole[i, name][row], plain) + repeat).square().sum()
                loss.backward()  # type: ignore[no-untyped-call]
    for person in range(3):
        for i in range(count):
            for half in (0, 1):
                grad, found = expected[person * count + i][half].grad, group.grads[2 * i + half][person]
                wanted = grad if grad is not None else torch.zeros_like(found)
                assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
                assert bool(found.abs().sum() > 0) == (person in owners)


def test_coarse_passes_keep_fine_weights(base: LoadedBase) -> None:
    starts = members(base)
    group = TrainableLoras(starts, CPU)
    leaves = group.params_for_rows([0, 1], torch.bfloat16)
    factors = leaves.factors()
    assert {tensor.dtype for pair in factors.values() for tensor in pair} == {torch.bfloat16}
    total = sum(((a.float().sum() + b.float().sum()) for a, b in factors.values()), torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    leaves.accumulate_grads()
    assert {grad.dtype for grad in group.grads} == {torch.float32}
    for path, (a, b) in group.user_weights(1).factors.items():
        assert torch.equal(a, starts[1].factors[path][0]) and torch.equal(b, starts[1].factors[path][1])


def test_what_a_group_gives_out_stays_as_it_was(base: LoadedBase) -> None:
    group = TrainableLoras([init_lora_weights(base.model, "q_proj", "upper", 2, 4.0, 0)], CPU)
    weights = group.user_weights(0)
    group.trainable[1].fill_(1.0)
    assert weights.norm() == 0 and group.user_weights(0).norm() > 0
    assert (weights.placement, weights.scale) == (Placement(1, 1), 2.0)


def test_a_group_gives_each_lora_as_its_file_has_it_and_says_which_cannot_be_kept(base: LoadedBase) -> None:
    starts = members(base)
    group = TrainableLoras(starts, CPU)
    group.trainable[1][2, 0, 0] = 1e6
    for person in (0, 1):
        assert group.stored_weights(person).to_bytes({}) == starts[person].cast_for_storage().to_bytes({})
    with pytest.raises(IntegrityFault, match="not finite"):
        group.stored_weights(2)
