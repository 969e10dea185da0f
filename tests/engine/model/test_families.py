"""Every family that the decoder covers, held against transformers' modules in all that the decoder is used for."""

from __future__ import annotations

import pytest
import torch

from mta_cli.engine.generation import llama_batches
from tests.engine.families import FAMILIES
from tests.engine.family_comparisons import COMPARISONS, relative_difference

TOLERANCE = 1e-5  # relative
CPU = torch.device("cpu")


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_gives_what_the_modules_give(family: str, comparison: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_batches, "PREFILL_CHUNK_TOKENS", 30)  # prompts are read in pieces
    differences = [relative_difference(*pair) for pair in COMPARISONS[comparison](family, CPU)]
    assert differences and max(differences) < TOLERANCE
