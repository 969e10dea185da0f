"""Llama's modules without transformers: the numbers of transformers' model, and which bases have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mta_cli.engine.generation.generate import generate_answers
from mta_cli.engine.generation.request import SamplingParams
from mta_cli.engine.model.load import load_base
from mta_cli.engine.model.plain_llama import PlainLlama, read_plain_config
from mta_cli.errors import BadInput, IntegrityFault
from tests.tiny import make_base


def change_config(path: Path, **settings: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **settings}))


def untie(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    change_config(path, tie_word_embeddings=False)


@pytest.mark.parametrize("change", [lambda path: None, untie, lambda path: change_config(path, rms_norm_eps=0.01)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_computes_what_transformers_model_computes(
    tmp_path: Path, change: Callable[[Path], None], dtype: str
) -> None:
    path = make_base(tmp_path / "base")
    change(path)
    ours, theirs = (load_base(path, device="cpu", dtype=dtype, for_answers=one) for one in (True, False))
    assert isinstance(ours.model, PlainLlama) and not isinstance(theirs.model, PlainLlama)
    assert (ours.end_ids, ours.window, ours.dtype) == (theirs.end_ids, theirs.window, theirs.dtype)
    assert dict(ours.model.named_parameters()).keys() == dict(theirs.model.named_parameters()).keys()
    ids, positions = torch.tensor([[5, 80, 9, 200, 31, 7]]), torch.arange(6)[None]
    states = [
        one.decoder.run_layers(one.decoder.embed(ids), one.decoder.rope(positions), None) for one in (ours, theirs)
    ]
    assert torch.equal(*states)
    prompts = [[5, 80, 9], [200, 31, 7, 12]]
    answers = [generate_answers(one, prompts, [()], [0, 0], SamplingParams(9)) for one in (ours, theirs)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"a_setting_of_a_later_version": 1},
    ],
)
def test_other_settings_are_left_to_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = make_base(tmp_path / "base")
    assert read_plain_config(path) is not None
    change_config(path, **settings)
    assert read_plain_config(path) is None


def test_settings_of_earlier_versions_are_known(tmp_path: Path) -> None:
    path = make_base(tmp_path / "base")
    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    (path / "config.json").write_text(json.dumps({**config, "rope_theta": rope["rope_theta"], "rope_scaling": None}))
    found = read_plain_config(path)
    assert found is not None and found["rope_parameters"] == rope


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = make_base(tmp_path / "base")
    weights = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for change, error, said in (
        (lambda: weights.pop(name), IntegrityFault, "1 missing"),
        (lambda: weights.update({name: torch.zeros(3, 3)}), IntegrityFault, name),
        (lambda: weights.update({name: torch.full((144, 64), float("nan"))}), IntegrityFault, "not finite"),
    ):
        change()
        save_file(weights, path / "model.safetensors")
        with pytest.raises(error, match=said):
            load_base(path, device="cpu", for_answers=True)
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput):
        load_base(path, device="cpu", for_answers=True)
