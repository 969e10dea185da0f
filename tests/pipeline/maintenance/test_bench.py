"""`mta bench` on tiny shapes: what it measures, what it computes beforehand, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mta_cli.engine import throughput
from mta_cli.engine.model import device_memory
from mta_cli.engine.model.random_base import make_random_base
from mta_cli.errors import BadInput, Flag, UsageError
from mta_cli.events import JobPlan, JobProgress
from mta_cli.options import MachineOptions
from mta_cli.pipeline.maintenance.bench import BenchRequest, computed_bytes, lora_parameter_count, plan_bench, run_bench
from mta_cli.pipeline.models import memory
from mta_cli.pipeline.models.bases import HUB_BASES, HubBase
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.memory import PROGRAM_BYTES, training_bytes
from tests.pipeline.town import finish

TINY = HubBase("mta/tiny", "llama", "none", 3, 64, 4, 2, 16, 96, 300)
RATES = ("train_tokens", "adapters", "decode_tokens", "batch_tokens")
CPU = MachineOptions(device="cpu", dtype="float32")


def measured(base: Any, machine: MachineOptions = CPU, **rest: Any) -> dict[str, Any]:
    result, _ = finish(run_bench(BenchRequest(base, machine, 0.1, 3, **rest)))
    assert isinstance(result, dict)
    return result


def test_a_shape_is_measured_with_random_weights() -> None:
    found = measured(TINY)
    assert (found["base"], found["parameters"]) == ("tiny", TINY.parameters)
    assert (found["device"], found["dtype"], found["decoder"]) == ("cpu", "float32", "fast")
    assert all(found[f"{name}_per_second"] > 0 for name in RATES) and found["batch_users"] == 3
    assert found["computed_bytes"] > PROGRAM_BYTES and found["peak_bytes"] > TINY.parameters * 4
    assert found["versions"]["torch"] == torch.__version__


def test_a_family_without_the_fast_decoder_is_measured_by_its_modules() -> None:
    found = measured(replace(TINY, family="granite"))
    assert found["decoder"] == "transformers" and all(found[f"{name}_per_second"] > 0 for name in RATES)


def test_an_installed_base_is_measured_with_its_own_weights(store_root: Path) -> None:
    found = measured(resolve_model("tiny", "base"))
    assert found["base"] == "tiny" and found["computed_bytes"] is None, "its shape is not in the catalog"
    assert all(found[f"{name}_per_second"] > 0 for name in RATES)


def test_every_family_of_the_catalog_has_a_random_base_of_its_shape() -> None:
    for family in sorted({base.family for base in HUB_BASES.values()}):
        shape = replace(TINY, family=family)
        base = make_random_base(family, shape.config, device="cpu", dtype="bfloat16")
        assert base.model.num_parameters() == shape.parameters
        assert (base.llama_decoder is not None) == shape.fast, family
        assert base.dtype == torch.bfloat16 and not any(w.requires_grad for w in base.model.parameters())


def test_the_seed_makes_the_weights() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        make_random_base("llama", TINY.config, device="cpu", dtype="float32", seed=seed).model.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_missing_memory_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr("mta_cli.engine.model.random_base.make_random_base", None)
    with pytest.raises(BadInput, match=r"llama-3.1-8b-instruct needs about \d+\.\d GB on cpu in bfloat16; 1\.0 GB"):
        measured(HUB_BASES["llama-3.1-8b-instruct"], MachineOptions(device="cpu", dtype="bfloat16"))


def test_memory_that_runs_out_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*rest: Any) -> Any:
        yield 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(throughput, "decode_batch_tokens", full)
    with pytest.raises(BadInput, match=r"tiny: the memory of cpu ran out \(batch tokens\)") as refused:
        measured(TINY)
    assert isinstance(refused.value.hint, tuple) and Flag("users") in refused.value.hint


def test_where_free_memory_is_not_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: None)
    assert measured(TINY)["free_bytes"] is None


def test_a_gpu_takes_smaller_passes_where_large_ones_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = HUB_BASES["llama-3.2-1b-instruct"]
    whole = computed_bytes(shape, "cuda", 2, 32_768, 16, file_is_read=False)
    small = computed_bytes(shape, "cuda", 2, 4_096, 16, file_is_read=False)
    assert whole > small > shape.parameters * 2
    monkeypatch.setattr("mta_cli.engine.model.load.resolve_device", lambda name: torch.device("cuda"))
    for free, tokens in ((whole, 32_768), (small, 4_096), (0, 1_024)):
        monkeypatch.setattr(device_memory, "free_bytes", lambda device, free=free: free)
        plan = plan_bench(BenchRequest(shape, MachineOptions(dtype="bfloat16")))
        assert plan.pass_tokens == tokens


def test_computed_memory_is_that_of_the_catalog_where_it_is_the_same_work() -> None:
    shape = HUB_BASES["smollm2-135m-instruct"]
    weights, below_task_adapter = 2 * shape.parameters, 2 * shape.shape.projections
    for mapped in (False, True):
        computed = computed_bytes(shape, "cpu", 2, 1_024, 1, file_is_read=mapped)
        assert computed >= training_bytes(shape.shape, "bfloat16") - below_task_adapter - (0 if mapped else weights)
    assert computed_bytes(shape, "cuda", 2, 1_024, 1, file_is_read=True) < computed - PROGRAM_BYTES


def test_rows_are_as_long_as_the_computed_memory_assumes() -> None:
    assert throughput.ROW_TOKENS == memory.ROW_TOKENS
    assert throughput.ANSWER_TOKENS == memory.ROW_TOKENS * memory.ANSWER_SHARE


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_the_numbers_of_a_lora_are_counted(family: str) -> None:
    shape = replace(TINY, family=family, layers=6, kv_heads=1, head_dim=24)
    base = make_random_base(family, shape.config, device="cpu", dtype="float32")
    assert throughput.random_lora(base, 0).num_parameters == lora_parameter_count(shape, 2), "the upper third"


def test_the_copies_for_decoding_are_gone_when_users_are_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def adapt(base: Any, seconds: float, seed: int) -> throughput.Throughput:
        kept.extend(projection.has_half for projection in base.llama_decoder.all_projections())
        return throughput.Throughput(1, 1.0)

    monkeypatch.setattr(throughput, "measure_adapting", adapt)
    measured(TINY, MachineOptions(device="cpu", dtype="bfloat16"))
    assert kept and not any(kept)


def test_a_plan_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.engine.model.random_base.make_random_base", None)
    result, events = finish(run_bench(BenchRequest(TINY, CPU), dry_run=True))
    assert isinstance(events[0], JobPlan) and {"base", "device", "memory"} <= {line.name for line in events[0].lines}
    assert result["dry_run"] and result["computed_bytes"] > 0


def test_each_measurement_reports_its_end() -> None:
    _, events = finish(run_bench(BenchRequest(TINY, CPU, 0.1, 2)))
    assert [event.done for event in events if isinstance(event, JobProgress)] == [1, 2, 3, 4, 5]


def test_a_missing_device_is_said() -> None:
    with pytest.raises(UsageError, match="cuda:99"):
        measured(TINY, MachineOptions(device="cuda:99"))
