"""The checks of a device, with the CPU as the device."""

from __future__ import annotations

import torch

from mta_cli.pipeline.models.bases import HubBase
from tests import check_gpu
from tests.benchmarks.test_bench_base import TINY
from tests.engine.family_comparisons import COMPARISONS, Pair

CPU = torch.device("cpu")


def run(shape: HubBase = TINY, tolerance: float = check_gpu.TOLERANCE) -> dict[str, object]:
    return check_gpu.run_checks(CPU, shape, families=["qwen3"], seconds=0.1, tolerance=tolerance)


def test_the_cpu_passes_as_its_own_device(capsys) -> None:  # type: ignore[no-untyped-def]
    found = run()
    by_name = {check["name"]: check for check in found["checks"]}  # type: ignore[attr-defined]
    assert (
        found["ok"]
        and found["is_reference_device"]
        and (found["device"], found["reference"][-7:])
        == (  # type: ignore[index]
            "cpu",
            "float32",
        )
    )
    compared = {f"qwen3: {name}" for name in COMPARISONS} | {"training a group", "out of memory"}
    assert set(by_name) == compared | {"other devices", "speed"}
    assert all(0 <= by_name[name]["largest_difference"] < 1e-5 for name in compared)
    assert by_name["other devices"]["ok"] is None and by_name["speed"]["result"]["adapting, users/s"] > 0
    assert len(capsys.readouterr().err.splitlines()) == len(by_name)


def test_a_difference_that_is_too_large_is_a_fault() -> None:
    found = run(tolerance=1e-12)
    assert not found["ok"]


def test_a_check_that_raises_is_a_fault_and_names_its_error() -> None:
    def broken() -> object:
        yield torch.ones(2), torch.ones(2)
        raise RuntimeError("two devices")

    finding = check_gpu.run_check("one", broken, 1e-4)  # type: ignore[arg-type]
    assert finding == {"name": "one", "ok": False, "largest_difference": 0.0, "detail": "RuntimeError: two devices"}


def test_a_check_that_compares_nothing_is_a_fault() -> None:
    pairs: list[Pair] = []
    assert not check_gpu.run_check("none", lambda: iter(pairs), 1e-4)["ok"]
