"""LoRA weights: files, targets, training layers and folding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mta_cli.engine.lora.adapter import (
    LATE_PROMPT_TOKENS,
    AdapterMerger,
    Factors,
    LoraWeights,
    Placement,
    attach_lora_layers,
    find_target_modules,
    init_lora_weights,
    merge_into_base,
    merge_placements,
)
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import BadInput, IntegrityFault, UsageError
from tests.engine.families import model
from tests.engine.lora_cases import random_lora

IDS = torch.arange(3, 40)[None]


def logits(base: LoadedBase) -> torch.Tensor:
    with torch.inference_mode():
        return base.model(input_ids=IDS).logits.clone()


def scaled(weights: LoraWeights) -> Factors:
    """Factors with the scale inside B, as `attached` takes them."""
    return {path: (a, weights.scale * b) for path, (a, b) in weights.factors.items()}


def test_a_file_gives_back_what_was_written(base: LoadedBase, tmp_path: Path) -> None:
    weights = random_lora(base.model, 1, placement="upper")
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(weights.to_bytes({"kind": "meta"}))
    read = LoraWeights.from_file(path)
    assert read.scale == weights.scale and read.placement == weights.placement
    for name, (a, b) in weights.factors.items():
        assert torch.equal(read.factors[name][0], a) and torch.equal(read.factors[name][1], b)


def test_the_same_weights_give_the_same_bytes(base: LoadedBase) -> None:
    first, second = (random_lora(base.model, 3).to_bytes({"kind": "meta", "rank": 4}) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b'{"a": 1}'])
def test_a_file_that_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    with pytest.raises(IntegrityFault):
        LoraWeights.from_file(path)


@pytest.mark.parametrize("key", ["weight", "../../etc/passwd", "base_model.model.x.lora_C.weight", "\x1b[31m"])
def test_tensors_that_are_no_lora_factors_are_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file({key: torch.zeros(2, 2)}, path, metadata={"mta": '{"scale": 1, "placement": "0-1/all"}'})
    with pytest.raises(IntegrityFault):
        LoraWeights.from_file(path)


def test_factors_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.zeros(2, 4), name.format("B"): torch.zeros(4, 3)},
        path,
        metadata={"mta": '{"scale": 1, "placement": "0-1/all"}'},
    )
    with pytest.raises(IntegrityFault, match="do not fit"):
        LoraWeights.from_file(path)


def test_numbers_that_are_not_finite_are_never_stored(base: LoadedBase) -> None:
    weights = random_lora(base.model, 1)
    a, _ = next(iter(weights.factors.values()))
    a[0, 0] = 1e9  # infinite in float16
    with pytest.raises(IntegrityFault, match="not finite"):
        weights.cast_for_storage()


def test_targets_are_found_by_name_and_layer(base: LoadedBase) -> None:
    paths, where = find_target_modules(base.model, "q_proj,v_proj", "upper")
    assert paths == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    assert where == Placement(1, 1)
    everything, where = find_target_modules(base.model, "all-linear", "all")
    assert len(everything) == 14 and where == Placement(0, 1)


@pytest.mark.parametrize("targets", ["query_key_value", "q_proj,nothing", "", " , "])
def test_unknown_targets_are_refused_with_the_known_ones(base: LoadedBase, targets: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_target_modules(base.model, targets, "all")
    assert "q_proj" in str(caught.value.hint)


def test_placement_reads_what_it_writes() -> None:
    for placement in (Placement(20, 29), Placement(20, 29, 8), Placement(0, 0, 1)):
        assert Placement.parse(str(placement)) == placement
    for text in ("20-29/late", "20-29/late0", "20-29/late-1", "20-29", "20-29/all8", "a-b/all", "20-29/late08"):
        with pytest.raises(IntegrityFault):
            Placement.parse(text)


def test_late_parts_begin_so_many_tokens_before_the_answer() -> None:
    assert [Placement(0, 1, 8).first_position(prompt) for prompt in (20, 8, 3)] == [12, 0, 0]
    assert Placement(0, 1).first_position(20) == 0
    assert Placement.from_name("late", 30) == Placement(20, 29, LATE_PROMPT_TOKENS)


def test_placements_cover_each_other_only_on_the_same_tokens() -> None:
    assert merge_placements([Placement(3, 5, 8), Placement(1, 4, 8)]) == Placement(1, 5, 8)
    for other in (Placement(1, 4), Placement(1, 4, 7)):
        with pytest.raises(IntegrityFault, match="different tokens"):
            merge_placements([Placement(3, 5, 8), other])


def test_a_fresh_lora_changes_nothing_and_is_the_same_for_the_same_seed(base: LoadedBase) -> None:
    plain = logits(base)
    first, second = (init_lora_weights(base.model, "all-linear", "all", 4, 8.0, 7) for _ in range(2))
    other = init_lora_weights(base.model, "all-linear", "all", 4, 8.0, 8)
    with attach_lora_layers(base.model, scaled(first)):
        assert torch.equal(logits(base), plain)
    path = "model.layers.0.mlp.up_proj"
    assert torch.equal(first.factors[path][0], second.factors[path][0])
    assert not torch.equal(first.factors[path][0], other.factors[path][0])


def test_folded_equals_attached_and_the_base_comes_back_bit_for_bit(base: LoadedBase) -> None:
    plain, weights = logits(base), random_lora(base.model, 1)
    with attach_lora_layers(base.model, scaled(weights)):
        beside = logits(base)
    with merge_into_base(base, weights):
        inside = logits(base)
    assert (beside - plain).abs().max() > 1e-2
    assert torch.allclose(beside, inside, atol=1e-5)
    assert torch.equal(logits(base), plain)


def test_layers_that_read_a_weight_themselves_meet_the_lora_too() -> None:
    """Mamba multiplies by `dt_proj.weight` without calling the module."""
    made = model("Mamba")
    weights = random_lora(made, 3)
    assert any(path.endswith("dt_proj") for path in weights.factors)
    plain = made(IDS).logits
    with attach_lora_layers(made, scaled(weights)):
        attached = made(IDS).logits
    for path in weights.factors:
        made.get_submodule(path).weight.add_(weights.delta_weight(path))
    merged = made(IDS).logits
    assert torch.allclose(attached, merged, atol=1e-4) and not torch.allclose(plain, merged, atol=1e-2)


def test_a_router_is_no_target() -> None:
    """It is a linear module that gives a choice of experts."""
    made = model("Llama4", config="Llama4TextConfig", num_local_experts=2, head_dim=16, intermediate_size_mlp=96)
    paths, _ = find_target_modules(made, "all-linear", "all")
    assert paths and not any("router" in path for path in paths)


def test_folding_another_user_leaves_nothing_of_the_first(base: LoadedBase) -> None:
    alice, bob = random_lora(base.model, 1), random_lora(base.model, 2, targets="q_proj", placement="upper")
    with merge_into_base(base, bob):
        expected = logits(base)
    folder = AdapterMerger(base)
    folder.set_adapter(alice)
    folder.set_adapter(bob)
    assert torch.equal(logits(base), expected)


def test_an_adapter_of_another_base_is_refused(base: LoadedBase) -> None:
    wrong_place = LoraWeights(
        {"model.layers.9.mlp.up_proj": (torch.zeros(1, 64), torch.zeros(144, 1))}, 1.0, Placement(9, 9)
    )
    wrong_shape = LoraWeights(
        {"model.layers.0.mlp.up_proj": (torch.zeros(1, 8), torch.zeros(8, 1))}, 1.0, Placement(0, 0)
    )
    for weights in (wrong_place, wrong_shape):
        with pytest.raises((IntegrityFault, BadInput)):
            AdapterMerger(base).set_adapter(weights)


def test_late_parts_are_never_folded(base: LoadedBase) -> None:
    before = logits(base)
    with pytest.raises(UsageError, match="late"):
        AdapterMerger(base).set_adapter(random_lora(base.model, 1, placement="late"))
    assert torch.equal(logits(base), before)


def test_what_cannot_be_attached_leaves_the_model_as_it_was(base: LoadedBase) -> None:
    before = logits(base)
    factors = {**scaled(random_lora(base.model, 1)), "model.layers.0.mlp": (torch.zeros(1, 64), torch.zeros(64, 1))}
    with pytest.raises(BadInput, match=r"not a torch\.nn\.Linear"), attach_lora_layers(base.model, factors):
        pass
    assert torch.equal(logits(base), before)


def test_norm_is_the_frobenius_norm_of_delta(base: LoadedBase) -> None:
    weights = random_lora(base.model, 5)
    expected = sum(float(weights.delta_weight(path).double().square().sum()) for path in weights.factors) ** 0.5
    assert weights.norm() == pytest.approx(expected, rel=1e-6)
