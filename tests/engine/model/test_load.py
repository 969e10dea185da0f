"""The base: loaded frozen and safely, in the right place and format, with the model's own logits at chosen places."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from mta_cli.engine.model.checkpoint_files import fingerprint
from mta_cli.engine.model.load import (
    LoadedBase,
    family_without_decoder,
    head_logits,
    load_base,
    resolve_device,
    resolve_dtype,
)
from mta_cli.errors import BadInput, IntegrityFault, NotFound, UsageError
from tests.engine.families import EXACT
from tests.tiny import byte_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny_base_path: Path) -> LoadedBase:
    return load_base(tiny_base_path, name="tiny", fingerprint="sha256:x", device="cpu", dtype="float32")


@pytest.fixture
def copy(tiny_base_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))


def loaded(path: Path) -> LoadedBase:
    return load_base(path, name="copy", fingerprint="sha256:x", device="cpu", dtype="float32")


def full(*_: object) -> None:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")


def batch() -> torch.Tensor:
    return torch.randint(3, 250, (3, 9), generator=torch.Generator().manual_seed(1))


def test_a_loaded_base_is_frozen_and_knows_how_answers_end(base: LoadedBase) -> None:
    assert not base.model.training
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert base.end_ids == (base.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert (base.dtype, base.device, base.window) == (torch.float32, CPU, 2048)
    assert 50_000 < sum(weight.numel() for weight in base.model.parameters()) < 200_000


def test_without_a_name_a_base_has_its_folders(copy: Path) -> None:
    found = load_base(copy, device="cpu")
    assert (found.name, found.fingerprint) == ("copy", "")


@pytest.mark.parametrize("exact", [True, False])
def test_head_logits_are_the_models_own(base: LoadedBase, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.head_is_exact
    monkeypatch.setattr(base, "head_is_exact", exact)
    ids = batch()
    rows, cols = torch.tensor([0, 2, 1, 0]), torch.tensor([8, 3, 0, 5])
    whole = base.model(input_ids=ids).logits
    assert torch.allclose(head_logits(base, ids, rows, cols), whole[rows, cols], atol=1e-5)


def test_gradients_flow_through_head_logits(base: LoadedBase) -> None:
    ids = batch()
    layer = base.model.model.layers[0].self_attn.q_proj
    layer.weight.requires_grad_(True)
    try:
        head_logits(base, ids, torch.tensor([0, 1]), torch.tensor([8, 2])).sum().backward()
        assert layer.weight.grad.abs().sum() > 0
    finally:
        layer.weight.requires_grad_(False)
        layer.weight.grad = None


def test_a_model_that_scales_its_logits_takes_the_long_way(tiny_base_path: Path, tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    shutil.copytree(tiny_base_path, tmp_path / "granite", ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    config = GraniteConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=3.0,
        initializer_range=0.2,
        pad_token_id=2,
        eos_token_id=2,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path / "granite")
    scaled = loaded(tmp_path / "granite")
    assert not scaled.head_is_exact
    ids = batch()
    rows, cols = torch.tensor([1, 2, 1]), torch.tensor([8, 5, 8])
    whole = scaled.model(input_ids=ids).logits
    assert torch.allclose(head_logits(scaled, ids, rows, cols), whole[rows, cols], atol=1e-5)


def test_logits_with_a_cap_that_the_decoder_knows_are_not_the_heads_own(tiny_base_path: Path, tmp_path: Path) -> None:
    made = EXACT["gemma2"]()
    shutil.copytree(tiny_base_path, tmp_path / "gemma2", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    made.save_pretrained(tmp_path / "gemma2")
    capped = loaded(tmp_path / "gemma2")
    assert capped.llama_decoder is not None and not capped.head_is_exact
    ids, rows, cols = batch(), torch.tensor([1, 2, 1]), torch.tensor([8, 5, 8])
    whole = capped.model(input_ids=ids).logits
    assert torch.allclose(head_logits(capped, ids, rows, cols), whole[rows, cols], atol=1e-5)


def test_a_base_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model folder"):
        loaded(tmp_path / "nowhere")


def test_missing_weights_are_not_replaced_by_random_ones(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityFault, match="up_proj"):
        loaded(copy)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(copy: Path, poison: float) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] = poison
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityFault, match=r"model\.norm\.weight"):
        loaded(copy)


def test_an_encoder_that_fills_gaps_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    encoder = BertForMaskedLM(BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    encoder.save_pretrained(tmp_path / "encoder")
    byte_tokenizer().save_pretrained(tmp_path / "encoder")
    for load in (loaded, family_without_decoder):
        with pytest.raises(BadInput, match=r"is an encoder \(bert\)"):
            load(tmp_path / "encoder")


def test_an_embedder_is_no_causal_language_model(tiny_embedder_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is an encoder \(bert\)"):
        loaded(tiny_embedder_path)


def test_an_unknown_architecture_is_explained(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(BadInput, match="cannot be loaded as a causal language model"):
        loaded(copy)


def test_a_base_that_does_not_fit_into_a_devices_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(BadInput, match="does not fit into cpu's memory"):
        loaded(copy)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cuda:x", "meta", "cpu,cpu"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UsageError):
        resolve_device(name)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CUDA devices, of which only the first computes in bfloat16."""
    current = [0]

    @contextmanager
    def chosen(device: torch.device) -> Iterator[None]:
        current.append(device.index or 0)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 0)


def test_each_card_is_asked_for_its_own_number_format(two_cards: None) -> None:
    assert resolve_dtype("auto", torch.device("cuda:0")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cuda:1")) == torch.float32


def test_an_unknown_number_format() -> None:
    with pytest.raises(UsageError, match="not known"):
        resolve_dtype("int8", CPU)


@pytest.mark.parametrize(
    ("amx", "avx", "expected"), [(1, 0, torch.bfloat16), (0, 1, torch.bfloat16), (0, 0, torch.float32)]
)
def test_automatic_format_follows_the_cpu(
    amx: int, avx: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx), raising=False)
    assert resolve_dtype("auto", CPU) == expected


def test_a_torch_without_those_probes_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert resolve_dtype("auto", CPU) == torch.float32


def test_fingerprint_covers_config_and_weights_but_not_who_saved_them(copy: Path, tiny_base_path: Path) -> None:
    original = fingerprint(tiny_base_path)
    assert fingerprint(copy) == original
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "_name_or_path": "elsewhere"}))
    (copy / "README.md").write_text("hello")
    assert fingerprint(copy) == original
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert fingerprint(copy) != original
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != original


def test_onednn_keeps_few_kernels() -> None:
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) <= 64
