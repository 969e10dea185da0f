"""Other engines as rivals: the files that they get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

from benchmarks import llamacpp


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
