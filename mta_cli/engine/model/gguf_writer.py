"""Writes GGUF, the format of llama.cpp, Ollama and LM Studio: a LoRA, or a whole model with its tokenizer.

Tensors have llama.cpp's names. For families whose rotary embedding uses adjacent pairs in llama.cpp, the rows of the
query and key projections are reordered, as llama.cpp's own converter does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.model.checkpoint_files import read_config, read_json
from mta_cli.errors import BadInput, Flag

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from numpy.typing import NDArray
    from torch import Tensor

    from mta_cli.engine.lora.adapter import LoraWeights

Q8_BLOCK = 32  # numbers that share a scale in q8_0
NORMAL_TOKEN, CONTROL_TOKEN, USER_TOKEN, UNUSED_TOKEN = 1, 3, 4, 5  # llama.cpp's token types
_DIGITS = {"type": "Digits", "individual_digits": True}
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class GgufFamily:
    """A model family in llama.cpp.

    `architecture` is llama.cpp's name of it. `pairs_side_by_side`: whether its rotary embedding uses adjacent pairs of
    rows there. `whole`: whether a whole model can be written, not only a LoRA.
    """

    architecture: str
    pairs_side_by_side: bool = False
    whole: bool = False


FAMILIES: Mapping[str, GgufFamily] = {  # by transformers' `model_type`
    "llama": GgufFamily("llama", pairs_side_by_side=True, whole=True),
    "mistral": GgufFamily("llama", pairs_side_by_side=True, whole=True),
    "smollm3": GgufFamily("smollm3", pairs_side_by_side=True),
    "granite": GgufFamily("granite", pairs_side_by_side=True),
    "qwen2": GgufFamily("qwen2", whole=True),
    "qwen3": GgufFamily("qwen3", whole=True),
    "gemma2": GgufFamily("gemma2"),
    "gemma3_text": GgufFamily("gemma3"),
    "olmo2": GgufFamily("olmo2"),
}


def gguf_family(config: Mapping[str, Any]) -> GgufFamily:
    """The family of a base by its `config.json`. Raises BadInput for an unknown family."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise BadInput(
            f"mta cannot write GGUF for bases of type {kind}, only for {', '.join(FAMILIES)}.",
            hint=("use ", Flag("format", "merged"), " and convert the folder with llama.cpp's convert_hf_to_gguf.py"),
        )
    return FAMILIES[kind]


def write_lora_gguf(path: Path, weights: LoraWeights, config: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """Write `weights` as a LoRA adapter for llama.cpp, in float16. All modules must have the same rank.

    `config` is the base's `config.json`; `facts` are strings for the metadata, by key. Raises BadInput if llama.cpp's
    format does not support the base's family or one of the modules.
    """
    import numpy as np
    from gguf import GGUFEndian, GGUFType, GGUFWriter, Keys

    family = gguf_family(config)
    names = _tensor_names(family, config["num_hidden_layers"])
    writer = GGUFWriter(path, family.architecture, endianess=GGUFEndian.LITTLE)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, weights.scale * weights.rank)  # llama.cpp divides it by the rank
    for key, text in facts.items():
        writer.add_string(key, text)
    for module, (a, b) in sorted(weights.factors.items()):
        heads = rotary_heads(module, config) if family.pairs_side_by_side else None
        rows = b.float() if heads is None else pair_rows(b.float(), heads)
        for half, factor in (("lora_a", a.float()), ("lora_b", rows)):
            writer.add_tensor(f"{names(module)}.weight.{half}", factor.contiguous().numpy().astype(np.float16))
    _finish(writer)


def write_model_gguf(
    path: Path,
    weights: Iterable[tuple[str, Callable[[], Tensor]]],
    folder: Path,
    number_format: str,
    facts: Mapping[str, str],
) -> None:
    """Write a whole model, with the configuration and tokenizer of the base in `folder`.

    `weights` are pairs of transformers' name and a function that loads the tensor. They are loaded one after another
    and kept in memory in `number_format` (f16, bf16 or q8_0) until all are written. `facts` are strings for the
    metadata, by key. Raises BadInput if the base's family, tokenizer or settings are not supported.
    """
    from gguf import GGUFEndian, GGUFWriter, LlamaFileType

    family, config, raw, split = require_whole_gguf(folder)
    writer = GGUFWriter(path, family.architecture, endianess=GGUFEndian.LITTLE)
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config, raw, split)
    file_types = {"f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(file_types[number_format])
    writer.add_quantization_version(2)
    for key, text in facts.items():
        writer.add_string(key, text)
    names = _tensor_names(family, config["num_hidden_layers"])
    for name, load in weights:
        module, _, kind = name.rpartition(".")
        heads = rotary_heads(module, config) if family.pairs_side_by_side else None
        weight = load().float()
        packed, raw_type = _packed(weight if heads is None else pair_rows(weight, heads), number_format)
        writer.add_tensor(f"{names(module)}.{kind}", packed, raw_dtype=raw_type)
    _finish(writer)


def require_whole_gguf(folder: Path) -> tuple[GgufFamily, dict[str, Any], dict[str, Any], str]:
    """The family, `config.json` and `tokenizer.json` of a base, and llama.cpp's name of its pre-tokenizer.

    Raises BadInput if a whole model cannot be written as GGUF.
    """
    config, raw = read_config(folder), read_json(folder / "tokenizer.json")
    family, split = gguf_family(config), _pre_tokenizer_name(raw)
    rope = config.get("rope_parameters") or {}
    scaled = rope.get("rope_type", "default") != "default" or bool(config.get("rope_scaling"))
    windows = bool(config.get("sliding_window")) and config.get("use_sliding_window", True)
    if not family.whole or split is None or scaled or windows or config.get("hidden_act", "silu") != "silu":
        raise BadInput(
            "mta cannot write this base as a whole GGUF: its family, tokenizer, scaled positions, sliding windows or "
            "activation are not supported.",
            hint=(
                "use ",
                Flag("format", "gguf-lora"),
                ", or ",
                Flag("format", "merged"),
                " and llama.cpp's convert_hf_to_gguf.py",
            ),
        )
    return family, config, raw, split


def rotary_heads(module: str, config: Mapping[str, Any]) -> int | None:
    """The number of heads of a query or key projection; None for other modules."""
    if module.endswith(".q_proj"):
        return int(config["num_attention_heads"])
    if module.endswith(".k_proj"):
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def pair_rows(weight: Tensor, heads: int) -> Tensor:
    """Reorder rows [out, …] from transformers' rotary layout (two halves) to llama.cpp's (adjacent pairs), by head."""
    rows, rest = weight.shape[0], weight.shape[1:]
    return weight.reshape(heads, 2, rows // heads // 2, *rest).transpose(1, 2).reshape(weight.shape)


def _tensor_names(family: GgufFamily, layers: int) -> Callable[[str], str]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    table = get_tensor_name_map(MODEL_ARCH[family.architecture.upper()], layers)

    def name(module: str) -> str:
        found: str | None = table.get_name(module)
        if found is None:
            raise BadInput(
                f"llama.cpp's {family.architecture} models have no tensor for {module}, so mta cannot write this GGUF.",
                hint=("use ", Flag("format", "merged"), " or ", Flag("format", "peft")),
            )
        return found

    return name


def _packed(weight: Tensor, number_format: str) -> tuple[NDArray[Any], Any]:
    """A tensor in the file's format, and llama.cpp's name of that format. Vectors stay float32."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values: NDArray[Any] = weight.contiguous().numpy().astype(np.float32)
    if values.ndim == 1:
        return values, GGMLQuantizationType.F32
    if number_format == "q8_0" and values.shape[-1] % Q8_BLOCK:
        number_format = "f16"  # as llama.cpp's own converter does
    if number_format == "f16" and float(np.abs(values).max(initial=0)) > np.finfo(np.float16).max:
        raise BadInput("The base has weights that are too large for float16.", hint=("use ", Flag("type", "bf16")))
    kind = GGMLQuantizationType[number_format.upper()]
    return (values.astype(np.float16) if number_format == "f16" else quantize(values, kind)), kind


def _add_shape(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(
    writer: GGUFWriter, folder: Path, config: Mapping[str, Any], raw: Mapping[str, Any], split: str
) -> None:
    """The vocabulary, merges, special tokens and chat template."""
    from mta_cli.engine.model.load import load_tokenizer

    known = {number: token for token, number in raw["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in raw["added_tokens"]}
    tokens, kinds = [], []
    for number in range(config["vocab_size"]):
        if number in added:
            tokens.append(added[number]["content"])
            kinds.append(CONTROL_TOKEN if added[number]["special"] else USER_TOKEN)
        else:
            tokens.append(known.get(number, f"[PAD{number}]"))
            kinds.append(NORMAL_TOKEN if number in known else UNUSED_TOKEN)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = raw["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    tokenizer = load_tokenizer(folder)
    ends = config.get("eos_token_id")
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": ends[0] if isinstance(ends, list) else ends if ends is not None else tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, number in special.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    # With a chat template, the template writes the beginning-of-sequence token; without one, the tokenizer does.
    begins = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins and not tokenizer.chat_template)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer_name(raw: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the pre-tokenizer of a byte-level BPE tokenizer; None if unknown."""
    before = raw.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    bytewise = raw["model"]["type"] == "BPE" and kinds[-1:] == ["ByteLevel"]
    if bytewise and kinds == ["Digits", "ByteLevel"] and _DIGITS.items() <= steps[0].items():
        return "smollm"
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    if bytewise and pattern == _QWEN:
        return "qwen2"
    if bytewise and pattern == _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|"):
        return "llama-bpe"
    return None


def _finish(writer: GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
