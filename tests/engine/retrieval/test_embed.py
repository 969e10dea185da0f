"""Sentence embeddings: unit rows in order, nothing cut off, independent of what shares the batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mta_cli.engine.retrieval.embed import Embedder
from mta_cli.errors import BadInput, IntegrityFault, NotFound
from tests.tiny import EMBEDDER_WINDOW


@pytest.fixture(scope="module")
def embedder(tiny_embedder_path: Path) -> Embedder:
    return Embedder(tiny_embedder_path, "cpu")


def test_rows_are_unit_length_and_in_order(embedder: Embedder) -> None:
    texts = ["good film", "", "a" * 500, "tax law\nsecond line"]
    rows = embedder.embed(texts)
    assert rows.shape == (4, 32)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[::-1], embedder.embed(texts[::-1]), atol=1e-5)


def test_no_texts(embedder: Embedder) -> None:
    assert len(embedder.embed([])) == 0


def test_a_text_alone_is_what_it_is_in_company(embedder: Embedder) -> None:
    texts = [f"text number {number} " * (1 + number % 7) for number in range(70)]
    together = embedder.embed(texts)
    assert np.allclose(together[33], embedder.embed([texts[33]])[0], atol=1e-5)


def test_what_stands_beyond_the_window_counts(embedder: Embedder) -> None:
    assert embedder.window == EMBEDDER_WINDOW
    same = "x" * (EMBEDDER_WINDOW * 2)
    first, second = embedder.embed([same + "apples and pears", same + "QUARKS (1964)"])
    assert first @ second < 0.9999


def test_a_long_text_is_the_mean_of_its_windows(embedder: Embedder) -> None:
    room = EMBEDDER_WINDOW - 2  # the two special tokens of each window
    text = "ab" * (room // 2) + "." * room
    halves = embedder.embed([text[:room], text[room:]])
    mean = halves.mean(axis=0)
    assert np.allclose(embedder.embed([text])[0], mean / np.linalg.norm(mean), atol=0.05)


def test_short_texts_are_what_sentence_transformers_gives(embedder: Embedder, tiny_embedder_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["good film", "x", "Twice (2) told!"]
    plain = SentenceTransformer(str(tiny_embedder_path), device="cpu", local_files_only=True)
    assert np.allclose(embedder.embed(texts), plain.encode(texts, normalize_embeddings=True), atol=1e-5)


def test_a_base_is_no_embedder_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Embedder(tmp_path / "none", "cpu")


def test_a_broken_embedder_is_explained(tiny_embedder_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_embedder_path, tmp_path / "copy"))
    (copy / "1_Pooling" / "config.json").write_text("{}")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="cannot be loaded as a sentence embedder"):
        Embedder(copy, "cpu")


def test_numbers_that_are_not_finite(tiny_embedder_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_embedder_path, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    next(value for name, value in weights.items() if "word_embeddings" in name).fill_(float("nan"))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityFault, match="NaN or infinity"):
        Embedder(copy, "cpu").embed(["x"])
