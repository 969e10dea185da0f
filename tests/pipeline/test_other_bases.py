"""Bases without attention have a plan and can be trained on; those without linear layers are refused at the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from mta_cli.errors import BadInput, Command
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.models.memory import answering_bytes, loading_limits, read_shape, training_bytes
from mta_cli.pipeline.models.pull import register_folder
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest
from store.registry import Registry
from tests import tiny
from tests.pipeline.town import CPU, QUICK, bank_request, finish, fuse_request

SIZES = {"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 3}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
WITHOUT_ATTENTION: dict[str, dict[str, Any]] = {
    "Mamba": {},
    "FalconMamba": {},
    "Mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "Rwkv": {},
    "xLSTM": {"num_heads": 4},
}


def registered(
    folder: Path, kind: str, suffix: str = "ForCausalLM", config_suffix: str = "Config", **settings: Any
) -> ModelEntry:
    """A random model of transformers' `kind` with these settings alone, registered as `other`."""
    config = getattr(transformers, kind + config_suffix)(**SIZES, **TOKENS, **settings)
    getattr(transformers, kind + suffix)(config).save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    register_folder(folder, name="other")
    return resolve_model("other", "base")


@pytest.mark.parametrize("kind", WITHOUT_ATTENTION)
def test_a_base_without_attention_has_a_shape(models_root: Path, tmp_path: Path, kind: str) -> None:
    entry = registered(tmp_path / "other", kind, **WITHOUT_ATTENTION[kind])
    shape = read_shape(entry, fast=False)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads) == (3, 64, 0, 0)
    assert 0.4 < shape.projections / shape.parameters < 1.0
    assert training_bytes(shape, "float32") > answering_bytes(shape, "float32") > 4 * shape.parameters
    limits = loading_limits(entry, replace(CPU, max_memory="1GB"), "train")
    assert limits.group_bytes > 0


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="this transformers has no Gemma 4")
def test_the_shape_of_layers_of_several_sizes_is_the_largest(models_root: Path, tmp_path: Path) -> None:
    entry = registered(
        tmp_path / "other",
        "Gemma4",
        config_suffix="TextConfig",
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=32,
        intermediate_size=128,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=259,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    shape = read_shape(entry, fast=False)
    assert (shape.layers, shape.heads, shape.head_dim, shape.inner) == (3, 2, 32, 128)


def test_a_bank_and_a_stack_on_mamba(peopled: Registry, tmp_path: Path) -> None:
    entry = registered(tmp_path / "other", "Mamba")
    finish(build_bank(peopled, replace(bank_request(), base=entry)))
    ida = peopled.users.get("ida")
    ((result,), _) = finish(adapt_users(peopled, AdaptRequest([ida], QUICK, replace(fuse_request(), base=entry))))
    assert result["stack_bytes"] > 0 and result["steps"] == 6


def test_a_base_without_linear_layers_is_refused_at_the_plan(peopled: Registry, tmp_path: Path) -> None:
    entry = registered(tmp_path / "other", "GPT2", "LMHeadModel", n_head=4)
    request = bank_request()
    for targets in ("all-linear", "c_attn"):
        options = replace(request.options, targets=targets)
        with pytest.raises(BadInput, match="no linear layers on which a LoRA can be trained") as caught:
            next(iter(build_bank(peopled, replace(request, base=entry, options=options), plan=(), dry_run=True)))
        assert caught.value.hint == ("choose another base: ", Command("model list", available=True))
