"""`mta bench` from the outside: its document, what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mta_cli.pipeline.maintenance.bench import BenchRequest
from mta_cli.pipeline.models.bases import HUB_BASES
from mta_cli.pipeline.models.manifest import ModelEntry
from tests.commands.captured import Captured
from tests.shell import mta, mta_ok

KEYS = {
    *("base", "parameters", "device", "device_name", "dtype", "decoder", "threads", "versions", "pass_tokens"),
    *("train_tokens_per_second", "adapters_per_second", "decode_tokens_per_second", "batch_tokens_per_second"),
    *("batch_users", "peak_bytes", "computed_bytes", "free_bytes"),
}
QUICK = ("--device", "cpu", "--seconds", "0.1", "--users", "2")


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> BenchRequest:
    """What the job of `mta bench WORDS` is given."""
    requests: list[BenchRequest] = []

    def job(request: BenchRequest, *, dry_run: bool) -> Any:
        requests.append(request)
        raise Captured("captured")

    monkeypatch.setattr("mta_cli.pipeline.maintenance.bench.run_bench", job)
    assert "captured" in (ran := mta("bench", *words)).err, ran.err
    return requests[0]


def test_the_configured_base_is_measured(store_root: Path) -> None:
    found = mta_ok("bench", *QUICK, "--json").json()
    assert set(found) == KEYS and found["base"] == "tiny"
    shown = mta_ok("bench", *QUICK, "--dtype", "float32").out
    assert "fast decoder" in shown and "2 users in one batch" in shown and "cpu, float32" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_flags_reach_the_job(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(monkeypatch, "--shape", "llama-1b", "--seconds", "2", "--users", "7", "--seed", "3")
    assert (request.base, request.seconds, request.users) == (HUB_BASES["llama-3.2-1b-instruct"], 2.0, 7)
    assert request.machine.seed == 3
    assert isinstance(asked(monkeypatch, "--base", "tiny").base, ModelEntry)


def test_no_store_is_needed(tmp_path: Path) -> None:
    found = mta_ok("bench", "--shape", "qwen3-0.6b", "--device", "cpu", "--dry-run", "--json").json()
    assert found["base"] == "qwen3-0.6b" and found["parameters"] == HUB_BASES["qwen3-0.6b"].parameters
    assert {line["name"] for line in found["plan"]} == {"base", "device", "memory", "free", "time"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--shape", "lama-1b"], 3, "did you mean llama-1b"),
        (["--shape", "llama-1b", "--base", "tiny"], 2, "only one can be measured"),
        (["--base", "nothing"], 3, "There is no model 'nothing'"),
        (["--shape", "llama-1b", "--device", "gpu"], 2, "'gpu' is not known"),
        (["--seconds", "0"], 2, "--seconds"),
    ],
)
def test_wrong_input_is_refused_in_a_line(store_root: Path, words: list[str], code: int, said: str) -> None:
    ran = mta("bench", *words)
    assert ran.code == code and said in ran.err and "Traceback" not in ran.err
