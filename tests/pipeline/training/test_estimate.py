"""Estimates: from what was measured here before, else from one matrix product."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES
from mta_cli.events import PlanLine
from mta_cli.options import MachineOptions
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.training import estimate
from mta_cli.pipeline.training.estimate import (
    TokenLoad,
    cost_lines,
    dtype_slowdown,
    estimate_memory_gb,
    format_duration,
    measure_matmul_rate,
    measured_token_rate,
    speed_lines,
)
from store.records import Adapter
from store.registry import Registry
from tests.engine.families import EXACT, REFUSED
from tests.pipeline.town import CPU, built


def lines(reg: Registry, machine: MachineOptions, *trainings: TokenLoad) -> dict[str, PlanLine]:
    return {line.name: line for line in cost_lines(reg, resolve_model("tiny", "base"), machine, trainings, 10)}


def test_the_first_estimate_is_a_guess_and_later_ones_are_measured(peopled: Registry) -> None:
    base = resolve_model("tiny", "base").fingerprint
    assert measured_token_rate(peopled, base, "float32", "all") is None
    assert lines(peopled, CPU, TokenLoad(1000, "all"))["time"].origin == "a matrix product"
    built(peopled)
    for kind, placement in (("task", "all"), ("meta", "upper")):
        made = [a for a in peopled.adapters.all() if a.kind == kind]
        rate = measured_token_rate(peopled, base, "float32", placement)
        assert rate == pytest.approx(sum(a.tokens for a in made) / sum(a.seconds for a in made))
    both = TokenLoad(1000, "all"), TokenLoad(1000, "upper")
    assert lines(peopled, CPU, *both)["time"].origin == "earlier trainings"
    assert lines(peopled, CPU, *both, TokenLoad(0, "late"))["time"].origin == "earlier trainings"
    assert lines(peopled, CPU, *both, TokenLoad(1000, "late"))["time"].origin == "a matrix product"
    assert measured_token_rate(peopled, base, "float32", "late") is None
    assert measured_token_rate(peopled, base, "bfloat16", "all") is None
    assert measured_token_rate(peopled, "sha256:other", "float32", "all") is None


def test_a_speed_is_that_of_the_latest_and_reads_no_more(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, size = peopled.files.write(b"0")
    known = Adapter(
        digest,
        "stack",
        "base",
        None,
        1,
        1.0,
        "q_proj",
        "2-3/late8",
        "float32",
        0,
        "d",
        size,
        {"compute": "float32"},
    )
    for number in range(estimate.RECENT_ADAPTERS + 2):
        digest, _ = peopled.files.write(b"%d" % number)
        seconds, created = (100.0, "2025") if number < 2 else (1.0, f"2026-01-{number:02}")
        peopled.adapters.add_adapter(replace(known, digest=digest, tokens=number, seconds=seconds, created=created))
    monkeypatch.setattr(type(peopled.adapters), "all", lambda _: pytest.fail("reads every adapter"))
    assert measured_token_rate(peopled, "base", "float32", "late") == sum(range(2, 10)) / 8
    assert measured_token_rate(peopled, "base", "float32", "upper") is None


def test_each_placement_has_its_own_speed(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measured_token_rate", lambda *asked: {"all": 10.0, "late": 1000.0}.get(asked[-1]))
    assert lines(peopled, CPU, TokenLoad(500, "all"), TokenLoad(5000, "late"))["time"].value == "about 55 s"
    monkeypatch.setattr(estimate, "measured_token_rate", lambda *_: None)
    monkeypatch.setattr(
        estimate, "measure_matmul_rate", lambda *_: 800.0 * resolve_model("tiny", "base").detail["parameters"]
    )
    assert lines(peopled, CPU, TokenLoad(5000, "all"))["time"].value == "about 50 s"
    assert lines(peopled, CPU, TokenLoad(5000, "late"))["time"].value == "about 2 s"


def test_memory_grows_with_the_step_and_the_base() -> None:
    least = estimate_memory_gb(1_000_000, 0, 100, "float32")
    assert (
        estimate_memory_gb(1_000_000, 0, 1000, "float32") > least < estimate_memory_gb(10_000_000, 0, 100, "bfloat16")
    )


def test_what_is_kept_counts_up_to_its_limit() -> None:
    few, many, endless = (estimate_memory_gb(10**8, tokens, 100, "bfloat16") for tokens in (10, 10**5, 10**9))
    assert few < many < endless == pytest.approx(few + ACTIVATION_CACHE_BYTES / 1e9, rel=1e-3)


def test_minutes_and_hours_for_what_takes_long(peopled: Registry) -> None:
    assert [format_duration(s) for s in (119, 121, 7199, 7200, 4e6)] == ["119 s", "2 min", "120 min", "2 h", "1,111 h"]
    huge = replace(resolve_model("tiny", "base"), detail={"parameters": 10**11})
    (time,) = (line for line in cost_lines(peopled, huge, CPU, [TokenLoad(10**7, "all")], 100) if line.name == "time")
    assert time.value.endswith(" h")
    assert measure_matmul_rate("cpu", "float32") > 1e6


@pytest.mark.parametrize(
    ("family", "said"),
    [("gemma3", None), ("granite", "granite"), ("gelu", "llama"), ("phi3-longrope", "phi3"), ("opt", "opt")],
)
def test_a_plan_says_where_there_is_no_fast_path(tmp_path: Path, family: str, said: str | None) -> None:
    made = {**EXACT, **REFUSED}[family]()
    made.config.save_pretrained(tmp_path)  # the plan needs no weights
    found = [line.value for line in speed_lines(ModelEntry("x", "base", tmp_path, "sha256:x"))]
    assert found == ([] if said is None else [f"several times slower: no fast path for {said}"])


def test_a_plan_of_a_quantized_base_says_so_and_of_an_unreadable_one_nothing(tmp_path: Path) -> None:
    entry = ModelEntry("x", "base", tmp_path, "sha256:x")
    assert speed_lines(entry) == ()
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 32, "num_hidden_layers": 1}))
    assert [line.value for line in speed_lines(entry)] == ["several times slower: no fast path for llama"]


def test_a_format_that_a_cpu_emulates_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def rate(device: str, dtype: str, *_: int) -> float:
        asked.append(dtype)
        return {"float32": 70e9, "bfloat16": 1e9}[dtype]

    assert dtype_slowdown(replace(CPU, dtype="bfloat16")) > 0
    monkeypatch.setattr(estimate, "measure_matmul_rate", rate)
    assert dtype_slowdown(CPU) == dtype_slowdown(replace(CPU, dtype="auto")) == 1 and not asked
    assert dtype_slowdown(replace(CPU, dtype="bfloat16")) == 70
    monkeypatch.setattr("mta_cli.engine.model.load.resolve_device", lambda _: torch.device("cuda"))
    assert dtype_slowdown(replace(CPU, dtype="bfloat16")) == 1
