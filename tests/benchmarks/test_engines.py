"""Other engines as rivals: the files that they get, and the pipe through which vLLM is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

from benchmarks import llamacpp, vllm_engine

STUB = """
class SamplingParams:
    def __init__(self, **given):
        self.given = given

class LLM:
    def __init__(self, model, dtype, **shape):
        print("loading", model, dtype, "on standard output")
        if model == "broken":
            raise ValueError("no such model")

    def generate(self, prompt, choice, lora_request, use_tqdm):
        print("computing, on standard output")
        ids = prompt["prompt_token_ids"] + [lora_request] * choice.given["max_tokens"]
        return [type("Found", (), {"outputs": [type("Output", (), {"token_ids": ids})]})]
"""


def test_a_file_in_q4_0_keeps_its_facts_and_is_near_the_exact_one(tmp_path: Path) -> None:
    path, exact = tmp_path / "base.gguf", np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 3])
    for name, values in (("token_embd.weight", exact), ("blk.0.ffn_up.weight", exact), ("norm.weight", exact[0])):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    llamacpp._round_to_q4_0(path)
    reader = GGUFReader(path)
    assert reader.fields["llama.block_count"].contents() == 3
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert reader.fields["tokenizer.ggml.token_type"].contents() == [1, 3]
    embedding, up, norm = reader.tensors
    kinds = GGMLQuantizationType
    assert [one.tensor_type for one in (embedding, up, norm)] == [kinds.Q8_0, kinds.Q4_0, kinds.F32]
    for one, most in ((embedding, 0.02), (up, 0.2)):
        missed = dequantize(one.data, one.tensor_type) - exact
        assert 0 < np.linalg.norm(missed) < most * np.linalg.norm(exact)
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python as the one that has vLLM, with a stub in vLLM's place that answers the prompt and the adapter."""
    (tmp_path / "vllm" / "lora").mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text(STUB)
    (tmp_path / "vllm" / "lora" / "__init__.py").touch()
    (tmp_path / "vllm" / "lora" / "request.py").write_text("def LoRARequest(name, number, path): return int(path)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(vllm_engine.PYTHON, sys.executable)


def test_vllm_answers_one_prompt_after_another_whatever_it_prints(stub: None) -> None:
    assert vllm_engine.why_not() is None
    with vllm_engine.engine(Path("base"), Path("7"), 8, "bfloat16", 1) as answer:
        assert [answer([1, 2], 3), answer([5], 1)] == [[1, 2, 7, 7, 7], [5, 7]]


def test_a_vllm_that_ends_says_why(stub: None) -> None:
    with (
        pytest.raises(RuntimeError, match="no such model"),
        vllm_engine.engine(Path("broken"), Path("7"), 8, "bfloat16", 1),
    ):
        pass


def test_vllm_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_engine.PYTHON, raising=False)
    assert vllm_engine.why_not() == "MTA_BENCH_VLLM names no Python that has vLLM"
