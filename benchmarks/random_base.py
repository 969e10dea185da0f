"""A base with random weights, made from its shape alone: speed and memory do not depend on the weights' values."""

from __future__ import annotations

from typing import Any

import torch

from mta_cli.engine.model.load import LoadedBase, quiet_libraries, resolve_device, resolve_dtype, with_decoder
from mta_cli.pipeline.models.bases import HubBase
from mta_cli.pipeline.models.memory import CONTEXT_TOKENS

# with these settings the fast decoder does not support the random base, as it does not support the real one
FAMILY_SETTINGS = {"granite": {"residual_multiplier": 0.22, "logits_scaling": 8.0}}


def make_random_base(shape: HubBase, *, device: str = "auto", dtype: str = "auto", seed: int = 0) -> LoadedBase:
    """A base of this shape, on its device. It has no tokenizer.

    The same seed, device and number format give the same weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    cards = [place.index or 0] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), place:  # weights are made where they are needed
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(shape.family, **config(shape)), dtype=number
        )
    model = model.eval().requires_grad_(False)
    return with_decoder(LoadedBase(model, None, f"random:{seed}", shape.family, place, number, ()))


def config(shape: HubBase) -> dict[str, Any]:
    """The settings of the base's `config.json`, by transformers' names."""
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.inner,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": 0,
        "max_position_embeddings": CONTEXT_TOKENS,
        **FAMILY_SETTINGS.get(shape.family, {}),
    }
