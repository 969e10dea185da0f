"""The catalog of bases: shapes as transformers builds them, computed sizes, and what the fast decoder takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.random_base import config
from mta_cli.engine.model.llama import build_llama_decoder
from mta_cli.pipeline.models.bases import (
    FAST_FAMILIES,
    HUB_BASES,
    HubBase,
    can_be_pulled,
    installed_name,
    near_names,
)
from mta_cli.pipeline.models.catalog import SMOLLM2
from tests.engine import families

MODELS = {**families.EXACT, **families.REFUSED}
FAMILIES = {
    "granite": "granite",
    "llama": "llama3-rope",
    "mistral": "mistral",
    "olmo2": "olmo2",
    "qwen2": "qwen2-tied",
    "qwen3": "qwen3-tied",
    "smollm3": "smollm3",
}


def tiny_model(family: str) -> Any:
    """A small random model of a family of the catalog."""
    if family != "gemma3_text":
        return MODELS[FAMILIES[family]]()
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**families.SIZES, head_dim=16)).eval()


def empty_model(base: HubBase) -> Any:
    """transformers' own model of the base's shape, without memory for weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(base.family, **config(base))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(made)


@pytest.mark.parametrize("name", HUB_BASES)
def test_parameters_are_those_of_the_model_that_transformers_builds(name: str) -> None:
    assert HUB_BASES[name].parameters == empty_model(HUB_BASES[name]).num_parameters()


def test_the_embedded_base_has_its_shape() -> None:
    base = HUB_BASES[SMOLLM2.name]
    assert base.parameters == 134_515_008
    assert 0 < SMOLLM2.bytes - base.download_bytes < 10 * 10**6, "its files are the weights and a tokenizer"


@pytest.mark.parametrize(("name", "stored"), [("qwen3-0.6b", 1_503_264_768), ("qwen3-8b", 16_381_470_720)])
def test_the_download_is_what_the_files_hold(name: str, stored: int) -> None:
    assert HUB_BASES[name].download_bytes == stored


@pytest.mark.parametrize("family", sorted({base.family for base in HUB_BASES.values()}))
def test_fast_is_what_the_fast_decoder_takes(family: str) -> None:
    decoder = build_llama_decoder(tiny_model(family))
    assert (decoder is not None) == (family in FAST_FAMILIES)


def test_a_short_name_stands_for_the_hub_name() -> None:
    assert installed_name("qwen3-0.6b") == "hf:Qwen/Qwen3-0.6B"
    assert installed_name("smollm2-135m-instruct") == "smollm2-135m-instruct", "the embedded base comes first"
    assert installed_name("hf:org/name") == "hf:org/name"
    assert can_be_pulled("qwen3-0.6b") and can_be_pulled("hf:org/name") and can_be_pulled("minilm-l6")
    assert not can_be_pulled("qwen3")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("qwen3-06b", ["qwen3-0.6b"]),
        ("Qwen3", ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b"]),
        ("mistral", ["mistral-7b-instruct-v0.3"]),
        ("smolm2-135m-instruct", ["smollm2-135m-instruct"]),
        ("", []),
        ("-", []),
        ("nothing like it", []),
    ],
)
def test_near_names(name: str, near: list[str]) -> None:
    assert near_names(name, HUB_BASES)[: len(near) or 5] == near
