"""Every stage, typed as a user types it, on bases of other families than Llama."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.whole_run import FAMILIES, TINY, USER, commands, make_base
from tests.shell import mta_ok
from tests.tiny import byte_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_of_another_family_goes_through_every_stage(family: str, store_root: Path, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", family, TINY, byte_tokenizer())
    *before, compare = commands(folder, "other", ["--device", "cpu", "--dtype", "float32"])
    for command in before:
        mta_ok(*command)
    answers = mta_ok(*compare, "--json").json()
    assert answers["user"] == USER and set(answers["answers"]) == {"base", "common", "fused", "adapted"}
    shown = mta_ok("model", "show", "other", "--json").json()
    assert mta_ok("bank", "show", "taste", "--json").json()["base"] == shown["fingerprint"]
    (user,) = [each for each in mta_ok("user", "list", "--json").json() if each["name"] == USER]
    assert user["status"] == "adapted"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_makes_the_same_base(family: str, tmp_path: Path) -> None:
    made = [make_base(tmp_path / name, family, TINY, byte_tokenizer(), seed=seed) for name, seed in NAMED_SEEDS]
    first, again, other = [(folder / "model.safetensors").read_bytes() for folder in made]
    assert first == again != other


NAMED_SEEDS = (("first", 0), ("again", 0), ("other", 1))
