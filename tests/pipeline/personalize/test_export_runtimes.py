"""A user of the real base, trained here, exported in every format and answered by the programs that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runtimes
from benchmarks.runtimes import RUNTIMES, VLLM_VARIABLE, Question, answerers, differences, is_here
from benchmarks.whole_run import SAMPLE
from mta_cli.pipeline.models.installed import resolve_model
from store.registry import Registry
from tests.network import allow_hosts
from tests.shell import mta_ok

BASE, TASK, USER = "smollm2-135m-instruct", "voice", "fleur"
NEAR_TIE = 0.1  # of logits: by so much may float32 sums in another order, and float16 factors, turn two tokens round
ROUNDED_TIE = 0.5  # by so much may the change's rounding to the base's bfloat16
EXACT = 18  # of 20 prompts, at least so many are the same to the last token
EXACT_ROUNDED = 12
MISSING = {
    "llama.cpp": "xllamacpp is missing: pip install 'mta-cli[bench]'",
    "vLLM": f"{VLLM_VARIABLE} names no program vllm",
}


@dataclass(frozen=True)
class Exported:
    """All exports of one user, below `root`, and what was asked of each."""

    base: Path
    root: Path
    results: dict[str, Any]
    question: Question


@pytest.fixture(scope="module")
def exported(real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """A small bank with anchors and a stack in the upper third, and the user's model in all formats."""
    if not any(is_here(runtime) for runtime in RUNTIMES if runtime.partition(",")[0] in MISSING):
        pytest.skip(" and ".join(MISSING.values()))  # training takes minutes, and PEFT reads tiny models elsewhere
    root = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        settings = root / "settings.toml"
        settings.touch()
        for name, value in (("STORE", root / "store"), ("MODELS", real_models), ("CONFIG", settings)):
            patch.setenv(f"MTA_{name}", str(value))
        mta_ok("init")
        mta_ok("task", "add", SAMPLE / "voice.toml")
        mta_ok("data", "import", "users", SAMPLE / "voice.users.json", "--task", TASK)
        small = ("--anchors", 2, "--epochs", 1, "--task-epochs", 1, "--max-items", 3, "--min-items", 6)
        mta_ok("bank", "build", "--task", TASK, *small)
        mta_ok("user", "adapt", USER, "--task", TASK)
        with Registry.open(root / "store") as reg:
            entry, user = resolve_model(BASE, "base"), reg.users.get(USER)
            results = runtimes.export_all(reg, entry, user, TASK, root)
            yield Exported(entry.path, root, results, runtimes.ask_ourselves(reg, entry, user, TASK))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_answers_as_we_do(exported: Exported, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same greedy tokens, but for near ties."""
    if not is_here(runtime):
        pytest.skip(MISSING[runtime.partition(",")[0]])
    allow_hosts(monkeypatch)
    question = exported.question
    answer = answerers(exported.base, exported.root, exported.results, question)[runtime]
    found = differences(question, answer())
    rounded = RUNTIMES[runtime] == "merged"
    assert len(question.prompts) == runtimes.PROMPTS and sum(map(len, question.ours)) > runtimes.PROMPTS
    assert all(one.gap < (ROUNDED_TIE if rounded else NEAR_TIE) for one in found), found
    assert len(question.prompts) - len(found) >= (EXACT_ROUNDED if rounded else EXACT), found


@pytest.mark.slow
def test_the_base_alone_answers_otherwise(exported: Exported) -> None:
    """Else none of the comparisons would notice an adapter that does nothing."""
    found = differences(exported.question, runtimes.merged_tokens(exported.base, exported.question))
    assert len(found) > EXACT // 2 and max(one.gap for one in found) > ROUNDED_TIE
