"""The example of the engine as a library runs on the tiny models, and its steps do what they say."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "one_user.py"


def test_it_goes_from_histories_to_the_answers_of_three_models(
    tiny_base_path: Path,
    tiny_embedder_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(EXAMPLE), "--base", str(tiny_base_path), "--embedder", str(tiny_embedder_path)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    answers, _, table = capsys.readouterr().out.partition("Log-likelihood")
    for model in ("base", "common", "mina's own"):
        assert re.search(rf"^  {model} +\S", answers, re.M), answers
    found = re.findall(r"^  (common|fused|mina's own) +(\S+) +(\S+)$", table, re.M)
    likelihoods = {model: (float(history), float(held_out)) for model, history, held_out in found}
    assert list(likelihoods) == ["common", "fused", "mina's own"]
    assert all(math.isfinite(one) for both in likelihoods.values() for one in both)
    assert likelihoods["mina's own"][0] > likelihoods["fused"][0], "the stack learns its shots"
