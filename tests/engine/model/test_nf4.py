"""A base with NF4 weights: the decoder beside transformers' modules, LoRAs on top of it, and training through it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mta_cli.engine.generation.generate import generate_answers
from mta_cli.engine.generation.request import SamplingParams
from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights, merge_into_base
from mta_cli.engine.model.llama import LlamaDecoder, SeparateLinears
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.scoring.log_likelihood import label_scores
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.errors import IntegrityFault, UsageError
from tests.engine.answers import answer_alone
from tests.engine.lora_cases import random_lora
from tests.engine.model.test_llama import ours, random_ids, theirs

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'mta-cli[quantize]'")
PROMPT = (1, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70)


def load(path: Path, dtype: str = "float32", quantize: str = "nf4") -> LoadedBase:
    return load_base(path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype=dtype, quantize=quantize)


@pytest.fixture
def packed(tiny_base_path: Path) -> LoadedBase:
    return load(tiny_base_path)


def decoder(base: LoadedBase) -> LlamaDecoder:
    assert base.llama_decoder is not None
    return base.llama_decoder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_decoder_gives_transformers_logits_on_packed_layers(tiny_base_path: Path, dtype: str) -> None:
    base, plain, ids = load(tiny_base_path, dtype), load(tiny_base_path, dtype, "off"), random_ids(2, 40)
    assert base.quantize == "nf4" and base.number_format == f"nf4+{dtype}" and plain.number_format == dtype
    layers = [one for layer in decoder(base).layers for one in layer.projections.values()]
    assert layers and all(isinstance(one, SeparateLinears) for one in layers)
    expected = theirs(base.model, ids)
    assert (ours(decoder(base), ids) - expected).abs().mean() < (1e-4 if dtype == "float32" else 0.02) * expected.std()
    apart = (ours(decoder(plain), ids) - expected).abs().mean() / expected.std()
    assert 0.01 < apart < 0.5, "4 bits are near the plain weights, and not the same"


def test_four_bits_take_an_eighth_of_float32(tiny_base_path: Path) -> None:
    def layer_bytes(base: LoadedBase) -> int:
        return sum(weight.nbytes for path, weight in base.model.named_parameters() if "_proj" in path)

    assert layer_bytes(load(tiny_base_path)) * 8 == layer_bytes(load(tiny_base_path, quantize="off"))


@pytest.mark.parametrize("path", ["decoder", "modules"])
def test_a_merged_lora_is_added_on_top_and_taken_away_again(packed: LoadedBase, path: str) -> None:
    """Packed weights cannot take ΔW; its factors act beside them, and stay in float32."""
    lora, ids = random_lora(packed.model, 1, placement="all"), random_ids(2, 20)

    def logits() -> torch.Tensor:
        return ours(decoder(packed), ids) if path == "decoder" else theirs(packed.model, ids)

    bare = logits()
    with merge_into_base(packed, lora) as merger:
        one = logits()
        merger.set_adapter(random_lora(packed.model, 2, placement="all"))
        assert (logits() - one).abs().max() > 1e-2
        merger.set_adapter(lora)
        assert torch.equal(logits(), one), "the other LoRA is gone"
    assert torch.equal(logits(), bare) and (one - bare).abs().max() > 1e-2
    assert (one - dequantised(packed, lora, ids)).abs().max() < 1e-3


def dequantised(packed: LoadedBase, lora: LoraWeights, ids: torch.Tensor) -> torch.Tensor:
    """The logits of plain layers with the dequantised weights, and the LoRA merged."""
    from bitsandbytes.functional import dequantize_4bit

    for path, module in list(packed.model.named_modules()):
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight = torch.nn.Parameter(weight + lora.delta_weight(path) if path in lora.factors else weight)
            packed.model.set_submodule(path, plain)
    return theirs(packed.model, ids)


def test_answers_are_the_same_with_a_lora_merged_or_in_the_batch(packed: LoadedBase) -> None:
    lora = random_lora(packed.model, 3, placement="upper")
    (batched,) = generate_answers(packed, [PROMPT], [(lora,)], [0], SamplingParams(6))
    with merge_into_base(packed, lora):
        assert answer_alone(packed, PROMPT, 6) == batched
        merged = label_scores(packed, PROMPT, [(70, 71), (80,)])
    assert merged == pytest.approx(label_scores(packed, PROMPT, [(70, 71), (80,)], (lora,)), abs=1e-3)
    late = random_lora(packed.model, 4, placement="late")
    (beside,) = generate_answers(packed, [PROMPT], [(late,)], [0], SamplingParams(6))
    assert answer_alone(packed, PROMPT, 6, loras=(late,)) == beside


@pytest.mark.parametrize("fast", [True, False])
def test_a_lora_trains_above_packed_layers(tiny_base_path: Path, fast: bool) -> None:
    base = load(tiny_base_path)
    if not fast:
        base.llama_decoder = None
    rows = [TrainingRow((*PROMPT, 90 + n, 91, 92), len(PROMPT)) for n in range(4)]
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    start = init_lora_weights(base.model, "all-linear", "all", 2, 4.0, 0)
    with merge_into_base(base, random_lora(base.model, 5, placement="all")):
        trainer = Trainer(base, [GroupMember(start, rows, Schedule(12, 4, 2e-2), 0)])
        for _ in trainer.train_steps():
            pass
    steps = trainer.completed_steps[0]
    assert steps[-1].loss < 0.5 * steps[0].loss
    trained = trainer.weights(0)
    assert all(a.dtype == b.dtype == torch.float32 for a, b in trained.factors.values())
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.named_parameters())
    plain = load(tiny_base_path, quantize="off")
    with merge_into_base(plain, trained):
        assert theirs(plain.model, random_ids(1, 5)).isfinite().all(), "it loads on the plain base"


def test_a_number_that_is_not_finite_is_found_before_packing_hides_it(tiny_base_path: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityFault, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_a_base_that_is_packed_in_its_files_is_taken_as_it_is(packed: LoadedBase, tmp_path: Path) -> None:
    packed.model.save_pretrained(tmp_path)
    packed.tokenizer.save_pretrained(tmp_path)
    stored, ids = load(tmp_path, quantize="off"), random_ids(1, 20)
    assert (ours(decoder(stored), ids) - ours(decoder(packed), ids)).abs().max() < 1e-4
    with pytest.raises(UsageError, match="already packed"):
        load(tmp_path)


def test_packing_fetches_no_code(tmp_path: Path) -> None:
    """bitsandbytes would ask the package `kernels`, where it is installed, for compiled code from the hub."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')\n")
    source = "from mta_cli.engine.model.load import _import_bitsandbytes as load; load(); import bitsandbytes"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    ran = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
