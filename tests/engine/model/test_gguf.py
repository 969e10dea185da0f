"""A Llama written as GGUF the way llama.cpp does comes back with the same logits and the same bytes each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mta_cli.engine.model.checkpoint_files import weight_dtypes
from mta_cli.engine.model.gguf import LAYER_TENSOR_NAMES, OUTER_TENSOR_NAMES, convert_gguf
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.errors import BadInput
from tests.tiny import CHAT_TEMPLATE, SPECIALS


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rotary rows."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(path: Path, base: LoadedBase, *, architecture: str = "llama") -> Path:
    config = base.model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens = base.tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    theirs = {ours: name for name, ours in OUTER_TENSOR_NAMES.items()}
    for name, weight in base.model.state_dict().items():
        array = weight.float().numpy()
        if name in theirs:
            if name != "lm_head.weight":
                writer.add_tensor(theirs[name], array)
            continue
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        short = next(key for key, value in LAYER_TENSOR_NAMES.items() if part == f"{value}.weight")
        array = turned(array, heads[short]) if short in heads else array
        writer.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def base(tiny_base_path: Path) -> LoadedBase:
    return load_base(tiny_base_path, name="tiny", fingerprint="x", device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def source(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", base)


def test_there_and_back(base: LoadedBase, source: Path, tmp_path: Path) -> None:
    convert_gguf(source, tmp_path / "back")
    assert weight_dtypes(tmp_path / "back") == ["BF16"]
    back = load_base(tmp_path / "back", name="back", fingerprint="y", device="cpu", dtype="bfloat16")
    ids = torch.arange(3, 60)[None]
    assert torch.equal(back.model(ids).logits, base.model(ids).logits)
    assert back.end_ids == base.end_ids
    text = "<|im_start|>user\nIn 2024: naïve 日本<|im_end|>\n"
    assert back.tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    assert back.tokenizer.decode(back.tokenizer(text)["input_ids"]) == text
    turns = [{"role": "user", "content": "hi"}]
    for tokenizer in (back.tokenizer, base.tokenizer):
        assert tokenizer.apply_chat_template(turns, tokenize=False).startswith("<|im_start|>user\nhi<|im_end|>")


def test_the_same_bytes_every_time(source: Path, tmp_path: Path) -> None:
    seen = []
    for name in ("one", "two"):
        convert_gguf(source, tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        seen.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert seen[0] == seen[1]


def test_another_architecture_is_refused(base: LoadedBase, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "other.gguf", base, architecture="gemma")
    with pytest.raises(BadInput, match="only a Llama"):
        convert_gguf(source, tmp_path / "back")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but long enough to look like one"])
def test_what_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as GGUF"):
        convert_gguf(tmp_path / "broken.gguf", tmp_path / "back")


def test_a_truncated_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(BadInput, match="cannot be read as GGUF"):
        convert_gguf(tmp_path / "cut.gguf", tmp_path / "back")
