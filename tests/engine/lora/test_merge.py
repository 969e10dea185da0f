"""Merging is exact in ΔW; weights are what their definitions say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.lora.merge import compress_to_rank, merge_loras
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import IntegrityFault
from tests.engine.lora_cases import explicit_delta, random_lora

PATH = "model.layers.1.self_attn.q_proj"


def error(merged: LoraWeights | None, parts: list[tuple[LoraWeights, float]]) -> float:
    assert merged is not None
    paths = {path for part, _ in parts for path in part.factors}
    assert set(merged.factors) == paths
    return max(float((merged.delta_weight(path).double() - explicit_delta(parts, path)).abs().max()) for path in paths)


def test_merging_equals_the_explicit_sum(base: LoadedBase) -> None:
    parts = [(random_lora(base.model, seed), weight) for seed, weight in ((1, 0.5), (2, 0.3), (3, 0.15), (4, 0.05))]
    assert error(merge_loras(parts), parts) < 1e-6


def test_mixed_ranks_alphas_modules_and_placements_merge(base: LoadedBase) -> None:
    parts = [
        (random_lora(base.model, 1, rank=8, alpha=16), 1.0),
        (random_lora(base.model, 2, rank=1, alpha=3, targets="q_proj,v_proj"), 0.7),
        (random_lora(base.model, 3, rank=3, alpha=1, placement="upper"), 0.2),
    ]
    merged = merge_loras(parts)
    assert error(merged, parts) < 1e-6
    assert merged is not None and merged.rank == 12


def test_files_merge_as_what_is_in_memory_does(base: LoadedBase, tmp_path: Path) -> None:
    """Bit for bit: the numbers stand in mapped files, in memory, or in both."""
    inside = [(random_lora(base.model, seed, rank=seed).cast_for_storage(), 0.25 * seed) for seed in (1, 2, 3)]
    outside = []
    for i, (weights, share) in enumerate(inside):
        (tmp_path / f"{i}").write_bytes(weights.to_bytes({"kind": "meta"}))
        outside.append((LoraWeights.from_file(tmp_path / f"{i}"), share))
    expected = merge_loras(inside)
    assert expected is not None and error(expected, inside) < 1e-6
    for merged in (merge_loras(outside), merge_loras([outside[0], inside[1], outside[2]])):
        assert merged is not None and set(merged.factors) == set(expected.factors)
        for path, pair in expected.factors.items():
            assert all(torch.equal(*both) for both in zip(merged.factors[path], pair, strict=True))


def test_a_trained_stack_merges_with_stored_parts(base: LoadedBase) -> None:
    """Float32 factors beside float16 ones lose nothing."""
    parts = [
        (random_lora(base.model, 1).cast_for_storage(), 0.5),
        (random_lora(base.model, 2, rank=1, targets="v_proj"), 1.0),
    ]
    assert error(merge_loras(parts), parts) < 1e-6


def test_parts_of_different_bases_are_refused(base: LoadedBase) -> None:
    small = LoraWeights({PATH: (torch.ones(1, 8), torch.ones(8, 1))}, 1.0, Placement(1, 1))
    with pytest.raises(IntegrityFault, match="the same shape"):
        merge_loras([(random_lora(base.model, 1), 1.0), (small, 1.0)])


def test_order_does_not_matter(base: LoadedBase) -> None:
    parts = [(random_lora(base.model, seed), 0.25) for seed in range(4)]
    forward, backward = merge_loras(parts), merge_loras(parts[::-1])
    assert forward is not None and backward is not None
    assert torch.allclose(forward.delta_weight(PATH), backward.delta_weight(PATH), atol=1e-6)


def test_one_anchor_with_weight_one_is_that_anchor(base: LoadedBase) -> None:
    anchor = random_lora(base.model, 9)
    merged = merge_loras([(anchor, 1.0)])
    assert merged is not None
    for path in anchor.factors:
        assert torch.allclose(merged.delta_weight(path), anchor.delta_weight(path), atol=1e-7)


def test_averaging_factors_would_not_be_exact(base: LoadedBase) -> None:
    """The cross terms that merging A and B separately adds are as large as the signal itself."""
    first, second = random_lora(base.model, 1), random_lora(base.model, 2)
    exact = explicit_delta([(first, 0.5), (second, 0.5)], PATH)
    (a1, b1), (a2, b2) = first.factors[PATH], second.factors[PATH]
    averaged = first.scale * ((b1 + b2) / 2) @ ((a1 + a2) / 2)
    assert float((averaged - exact).norm() / exact.norm()) > 0.5


def test_nothing_to_merge_is_nothing(base: LoadedBase) -> None:
    assert merge_loras([]) is None
    assert merge_loras([(random_lora(base.model, 1), 0.0)]) is None


def test_compressing_to_the_full_rank_is_exact_and_to_less_is_the_best(base: LoadedBase) -> None:
    merged = merge_loras([(random_lora(base.model, 1), 0.6), (random_lora(base.model, 2), 0.4)])
    assert merged is not None
    assert torch.allclose(
        compress_to_rank(merged, merged.rank).delta_weight(PATH), merged.delta_weight(PATH), atol=1e-6
    )
    small = compress_to_rank(merged, 3)
    assert small.rank == 3
    singular = torch.linalg.svdvals(merged.delta_weight(PATH))
    best = float(singular[3:].square().sum().sqrt())
    assert float((small.delta_weight(PATH) - merged.delta_weight(PATH)).norm()) == pytest.approx(best, rel=1e-4)


def test_peft_gives_the_same_logits(base: LoadedBase, tiny_base_path: Path, tmp_path: Path) -> None:
    """A merged adapter written as a PEFT folder is, loaded by PEFT, the same model as ours."""
    import json

    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    merged = merge_loras([(random_lora(base.model, 1), 0.7), (random_lora(base.model, 2, rank=2), 0.3)])
    assert merged is not None
    tensors = {}
    for path, (a, b) in merged.factors.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    modules = sorted({path.rsplit(".", 1)[-1] for path in merged.factors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": merged.rank,
        "lora_alpha": merged.rank,
        "target_modules": modules,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32), tmp_path
    )
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode(), merge_into_base(base, merged):
        assert torch.allclose(base.model(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5)
