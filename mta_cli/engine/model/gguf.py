"""Converts a Llama from GGUF to a folder of bfloat16 safetensors, the same bytes every time.

The `gguf` library dequantises the weights. transformers' own GGUF reader is not used because it cannot save what it
reads. The library trusts a file's header, so the caller must check the file's digest first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.model.checkpoint_files import load_errors_as_bad_input
from mta_cli.errors import BadInput

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from torch import Tensor

OUTER_TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # llama.cpp's token type for control tokens


def convert_gguf(source: Path, folder: Path) -> None:
    """Writes configuration, tokenizer and weights of the GGUF file `source` into `folder`.

    Raises BadInput if the file cannot be read, or is not a Llama with a byte-level tokenizer.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    with load_errors_as_bad_input(f"{source.name} cannot be read as GGUF"):
        reader = GGUFReader(source)
        facts = {name: entry.contents() for name, entry in reader.fields.items()}
        if facts.get("general.architecture") != "llama" or facts.get("tokenizer.ggml.model") != "gpt2":
            raise BadInput(f"{source.name}: only a Llama with a byte-level tokenizer can be converted")
        config = _config(facts, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
        tokenizer, about = _tokenizer(facts)
        template = facts["tokenizer.chat_template"].encode()
        weights = _weights(reader, config)
    folder.mkdir(parents=True, exist_ok=True)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in (("config", config), ("generation_config", ends), ("tokenizer_config", about)):
        text = json.dumps(value, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_bytes(template)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _config(facts: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    width, heads = facts["llama.embedding_length"], facts["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_theta": float(facts["llama.rope.freq_base"]), "rope_type": "default"},
        "tie_word_embeddings": tied,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
    }


def _tokenizer(facts: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and its configuration."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in facts.get("tokenizer.ggml.merges", [])]
    raw = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if facts.get("tokenizer.ggml.pre") == "smollm" else []
    raw.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_of_words])
    raw.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    raw.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    numbers = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    names = {name: tokens[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in numbers.items()}
    extra = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": facts["llama.context_length"]}
    return raw, {**names, **extra}


def _weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in bfloat16, under transformers' names."""
    import torch
    from gguf.quants import dequantize

    weights: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        name = _transformers_name(tensor.name)
        unpacked = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(tensor.name.split(".")[-2])
        weights[name] = _unpermute_rope(unpacked, config[heads]) if heads else unpacked.contiguous()
    return dict(sorted(weights.items()))


def _unpermute_rope(weight: Tensor, heads: int) -> Tensor:
    """Reorder rows from llama.cpp's rotary layout (adjacent pairs) to transformers' (two halves)."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width).contiguous()


def _transformers_name(name: str) -> str:
    if name in OUTER_TENSOR_NAMES:
        return OUTER_TENSOR_NAMES[name]
    head, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.partition(".")
    if head != "blk" or part not in LAYER_TENSOR_NAMES or kind != "weight":
        raise BadInput(f"the GGUF file holds a tensor that a Llama does not have: {name}")
    return f"model.layers.{layer}.{LAYER_TENSOR_NAMES[part]}.weight"
