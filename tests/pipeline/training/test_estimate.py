"""Estimates: from what was measured here before, else from one matrix product."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES
from mta_cli.engine.model.load import MemoryLimits
from mta_cli.errors import UsageError
from mta_cli.events import PlanLine
from mta_cli.options import MachineOptions
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.models.bases import HUB_BASES
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.training import estimate
from mta_cli.pipeline.training.estimate import (
    RowTokens,
    TokenLoad,
    cost_lines,
    dtype_slowdown,
    estimate_memory,
    format_duration,
    measure_matmul_rate,
    measured_token_rate,
    sample_row_tokens,
    slow_path_lines,
)
from store.records import Adapter
from store.registry import Registry
from tests.engine.families import EXACT, REFUSED
from tests.pipeline.town import CPU, TASK, built

ROWS = RowTokens(10.0, 20)


def lines(reg: Registry, machine: MachineOptions, *trainings: TokenLoad) -> dict[str, PlanLine]:
    return {line.name: line for line in cost_lines(reg, resolve_model("tiny", "base"), machine, trainings, ROWS, 8)}


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


def test_memory_grows_with_the_step_the_longest_row_and_the_base() -> None:
    small, large = HUB_BASES["smollm2-135m-instruct"].shape, HUB_BASES["qwen3-0.6b"].shape
    load = [TokenLoad(1000, "all")]
    least = estimate_memory(small, "bfloat16", load, ROWS, 100)
    assert estimate_memory(small, "bfloat16", load, ROWS, 1000) > least
    assert estimate_memory(small, "bfloat16", load, replace(ROWS, longest=900), 100) > least
    assert estimate_memory(large, "bfloat16", load, ROWS, 100) > least
    assert estimate_memory(small, "bfloat16", [TokenLoad(1000, "upper")], ROWS, 100) < least
    assert estimate_memory(small, "bfloat16", [TokenLoad(1000, "all", adapters=16, rank=64)], ROWS, 100) > least
    stacks = [TokenLoad(1000, "all", adapters=16)]
    above = estimate_memory(small, "bfloat16", [replace(stacks[0], frozen_rank=32)], ROWS, 100)
    assert above == estimate_memory(small, "bfloat16", [replace(stacks[0], rank=8)], ROWS, 100)
    ended = estimate_memory(small, "bfloat16", load, ROWS, 10**6)
    assert ended == estimate_memory(small, "bfloat16", load, ROWS, 10**5), "a pass has a most"
    assert estimate_memory(small, "bfloat16", load, ROWS, 10**6, MemoryLimits(batch_tokens=200)) < ended
    long, most = replace(ROWS, longest=900), MemoryLimits(batch_tokens=200)
    recomputed = estimate_memory(small, "bfloat16", load, long, 100, most)
    assert recomputed < estimate_memory(small, "bfloat16", load, long, 100) / 1.1
    assert recomputed < estimate_memory(replace(small, fast=False), "bfloat16", load, long, 100, most)


def test_what_is_kept_counts_up_to_its_limit() -> None:
    shape = HUB_BASES["smollm2-135m-instruct"].shape
    loads = [[TokenLoad(1, "late", distinct)] for distinct in (0, 10**5, 10**9)]
    few, many, endless = (estimate_memory(shape, "bfloat16", load, ROWS, 100) for load in loads)
    assert few < many < endless == few + ACTIVATION_CACHE_BYTES
    assert many - few == 10**5 * 2 * 3840, "keys and values of 3 heads of width 64 in 10 layers, of 2 bytes each"
    assert estimate_memory(shape, "bfloat16", loads[2], ROWS, 100, MemoryLimits(cache_bytes=5)) == few + 5


def test_tokens_are_those_of_the_data(peopled: Registry) -> None:
    """Not the task's budgets, which a short history does not fill."""
    entry, items = resolve_model("tiny", "base"), peopled.items.recent_items(peopled.users.get("user0").id, TASK.name)
    few, many = (sample_row_tokens(peopled, entry, TASK, items, shown) for shown in (0, 3))
    assert few.mean <= few.longest < many.longest and few.mean < many.mean <= many.longest
    base = load_on_device(entry, CPU)
    lengths = [len(row.input_ids) for row in PromptRowBuilder(peopled, base, TASK, 3).training_rows(items)]
    assert many == RowTokens(sum(lengths) / len(lengths), max(lengths))
    longer = sample_row_tokens(peopled, entry, replace(TASK, query_tokens=1000, item_tokens=1000), items, 3)
    assert longer.longest < 1000
    assert sample_row_tokens(peopled, entry, TASK, [], 3) == RowTokens(0.0, 0)


def test_a_plan_beyond_the_most_memory_is_refused(peopled: Registry) -> None:
    with pytest.raises(UsageError, match=r"takes about 0\.\d GB, and --max-memory is 0\.5 GB"):
        lines(peopled, replace(CPU, max_memory="500MB"), TokenLoad(1000, "all"))
    assert "memory" in lines(peopled, replace(CPU, max_memory="1GB"), TokenLoad(1000, "all"))
    with pytest.raises(UsageError, match="is not a size"):
        lines(peopled, replace(CPU, max_memory="much"), TokenLoad(1000, "all"))


def test_minutes_and_hours_for_what_takes_long(peopled: Registry) -> None:
    assert [format_duration(s) for s in (119, 121, 7199, 7200, 4e6)] == ["119 s", "2 min", "120 min", "2 h", "1,111 h"]
    huge = replace(resolve_model("tiny", "base"), detail={"parameters": 10**11})
    (time,) = (
        line for line in cost_lines(peopled, huge, CPU, [TokenLoad(10**7, "all")], ROWS, 8) if line.name == "time"
    )
    assert time.value.endswith(" h")
    assert measure_matmul_rate("cpu", "float32") > 1e6


@pytest.mark.parametrize(
    ("family", "said"),
    [("gemma3", None), ("granite", "granite"), ("gelu", "llama"), ("phi3-longrope", "phi3"), ("opt", "opt")],
)
def test_a_plan_says_where_there_is_no_fast_path(tmp_path: Path, family: str, said: str | None) -> None:
    made = {**EXACT, **REFUSED}[family]()
    made.config.save_pretrained(tmp_path)  # the plan needs no weights
    found = [line.value for line in slow_path_lines(ModelEntry("x", "base", tmp_path, "sha256:x"))]
    assert found == ([] if said is None else [f"slower: no fast path for {said}"])


def test_a_plan_of_a_quantized_base_says_so_and_of_an_unreadable_one_nothing(tmp_path: Path) -> None:
    entry = ModelEntry("x", "base", tmp_path, "sha256:x")
    assert slow_path_lines(entry) == ()
    for method, said in (("gptq", ["slower: no fast path for llama"]), ("bitsandbytes", [])):
        config = {"model_type": "llama", "quantization_config": {"quant_method": method, "bits": 4}}
        (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 32, "num_hidden_layers": 1}))
        assert [line.value for line in slow_path_lines(entry)] == said


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
