"""Scores of a task's labels after one prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.scoring.log_likelihood import label_scores
from mta_cli.errors import BadInput
from tests.engine.generation.test_generate import ids_of


@pytest.fixture(scope="module", params=["plain", "modules"])
def base(request: pytest.FixtureRequest, tiny_base_path: Path) -> LoadedBase:
    """The tiny base in float32, with its decoder and as if it had none."""
    loaded = load_base(tiny_base_path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype="float32")
    return loaded if request.param == "plain" else replace(loaded, llama_decoder=None)


def test_label_scores_equal_the_naive_sum(base: LoadedBase) -> None:
    prompt = ids_of(base, "which one?")
    labels = [ids_of(base, text) for text in ("a", "comedy", "dark comedy", "日本")]
    naive = []
    for label in labels:
        logits = base.model(torch.tensor([prompt + label])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1)
        naive.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(label)))
    assert label_scores(base, prompt, labels) == pytest.approx(naive, abs=1e-4)


def test_label_batches_do_not_change_scores(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ids_of(base, "q")
    labels = [ids_of(base, "label " * n) for n in range(1, 6)]
    together = label_scores(base, prompt, labels)
    monkeypatch.setattr("mta_cli.engine.scoring.log_likelihood.MAX_SCORED_LOGITS", 1)
    assert label_scores(base, prompt, labels) == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("labels", [[], [[1], []]])
def test_labels_without_tokens_are_refused(base: LoadedBase, labels: list[list[int]]) -> None:
    with pytest.raises(BadInput):
        label_scores(base, [1, 2], labels)
