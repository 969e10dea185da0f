"""Whether the program computes right on a device: `make check-gpu`, for a machine with a GPU.

Everything that the decoder does is compared with transformers' modules on the CPU, in float32, for every family of
layers. Then a group trains, memory runs out, other devices take their turn, and `benchmarks/bench_base.py` measures
the speed. Each check is a line on standard error; standard output gets one JSON document. The exit code is 1 where a
check fails. On a machine without a GPU, or with `--device cpu`, the CPU is the device.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.bench_base import measure_base
from benchmarks.harness import MODEL
from mta_cli.engine.lora.adapter import init_lora_weights
from mta_cli.engine.model.load import LoadedBase, resolve_device, with_decoder
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.errors import MtaError, words_to_text
from mta_cli.pipeline.models.bases import HUB_BASES, HubBase
from mta_cli.pipeline.runs import library_versions
from tests.engine.families import EXACT, FAMILIES
from tests.engine.family_comparisons import COMPARISONS, Pair, relative_difference
from tests.engine.lora_cases import random_rows

TOLERANCE = 1e-4  # relative; another device adds up in another order
STEPS = 5
TOO_LONG = 8000  # tokens of a row whose mask is far larger than `little_memory` leaves
Finding = dict[str, Any]


class Skipped(Exception):
    """A check that cannot be made here, with the reason."""


def tiny_base(device: torch.device) -> LoadedBase:
    """A random base in float32."""
    return with_decoder(LoadedBase(EXACT["llama"]().to(device), None, "random", "tiny", device, torch.float32, ()))


def trained_losses(base: LoadedBase, lengths: Sequence[int] = (30, 12, 45, 20)) -> torch.Tensor:
    """The losses of a group of three users, step by step, [steps, users]."""
    start = init_lora_weights(base.model, "all-linear", "upper", 4, 8.0, 0)
    members = [GroupMember(start, random_rows(lengths, user), Schedule(STEPS, 2, 1e-2), user) for user in range(3)]
    return torch.tensor([[step[user].loss for user in range(3)] for step in Trainer(base, members).train_steps()])


def training(device: torch.device) -> Iterator[Pair]:
    """The same losses as on the CPU, which fall."""
    ours, theirs = trained_losses(tiny_base(device)), trained_losses(tiny_base(torch.device("cpu")))
    assert (theirs[-1] < theirs[0]).all()
    yield ours, theirs


@contextmanager
def little_memory(device: torch.device) -> Iterator[None]:
    """As good as no further memory on the device until exit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(device) / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    elif device.type == "cpu" and sys.platform == "linux":
        import resource  # other systems may not have it

        before = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    else:
        raise Skipped(f"the memory of {device} cannot be bounded here")


def out_of_memory(device: torch.device) -> Iterator[Pair]:
    """A row that does not fit is refused in words, and the process goes on."""
    base = tiny_base(device)
    before = trained_losses(base)
    with little_memory(device):
        try:
            trained_losses(base, [TOO_LONG])
        except MtaError as error:
            assert "memory" in str(error) and error.hint, str(error)
        else:
            raise AssertionError(f"a row of {TOO_LONG:,} tokens was trained")
    yield trained_losses(base), before


def other_devices(device: torch.device) -> Iterator[Pair]:
    """Every other CUDA device computes what the CPU does, while the first is the current one."""
    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    others = [card for card in cards if card.index != (device.index or 0)] if device.type == "cuda" else []
    if not others:
        raise Skipped("there is one device")
    for card in others:
        for comparison in COMPARISONS.values():
            yield from comparison(FAMILIES[0], card)
        yield from training(card)


def run_check(name: str, check: Callable[[], Iterator[Pair]], tolerance: float) -> Finding:
    """The finding of a check: `{name, ok, largest_difference, detail}`; `ok` is None where it was skipped."""
    largest: float | None = None
    try:
        for pair in check():
            largest = max(largest or 0.0, relative_difference(*pair))
    except Skipped as reason:
        return {"name": name, "ok": None, "largest_difference": None, "detail": f"skipped: {reason}"}
    except Exception as error:  # the others still run
        detail = f"{type(error).__name__}: {error}"
        return {"name": name, "ok": False, "largest_difference": largest, "detail": detail}
    ok = largest is not None and largest < tolerance
    return {"name": name, "ok": ok, "largest_difference": largest, "detail": ""}


def run_checks(
    device: torch.device,
    shape: HubBase,
    *,
    families: Sequence[str] = FAMILIES,
    seconds: float = 5.0,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """All checks and the speed, as one document."""
    checks = {
        f"{family}: {name}": partial(comparison, family, device)
        for family in families
        for name, comparison in COMPARISONS.items()
    }
    checks["training a group"] = partial(training, device)
    checks["out of memory"] = partial(out_of_memory, device)
    checks["other devices"] = partial(other_devices, device)
    findings = []
    for name, check in checks.items():
        findings.append(run_check(name, check, tolerance))
        _say(findings[-1])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    findings.append(_speed(device, shape, seconds))
    _say(findings[-1])
    return {
        "ok": all(finding["ok"] is not False for finding in findings),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "reference": "transformers' modules on the CPU, float32",
        "is_reference_device": device.type == "cpu",
        "tolerance": tolerance,
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **library_versions()},
        "checks": findings,
    }


def _speed(device: torch.device, shape: HubBase, seconds: float) -> Finding:
    try:
        row = measure_base(shape, str(device), "auto", seconds)
    except Exception as error:
        return {"name": "speed", "ok": False, "detail": f"{type(error).__name__}: {error}"}
    ok = all(value > 0 for name, value in row.items() if name.endswith("/s"))
    return {"name": "speed", "ok": ok, "detail": "", "result": row}


def _say(finding: Finding) -> None:
    word = {True: "ok", False: "FAULT", None: "–"}[finding["ok"]]
    largest = finding.get("largest_difference")
    rest = [] if largest is None else [f"largest relative difference {largest:.1e}"]
    print(word.ljust(6), ", ".join([finding["name"], *rest, *filter(None, [finding["detail"]])]), file=sys.stderr)


def main() -> int:
    """Run everything, and print the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--shape", choices=list(HUB_BASES), default=MODEL, help="the base whose speed is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of speed")
    chosen = parser.parse_args()
    try:
        device = resolve_device(chosen.device)
    except MtaError as error:
        parser.error(f"{error} ({words_to_text(error.hint or '')})")
    if device.type == "cpu":
        print("the device is the CPU itself: no GPU is checked", file=sys.stderr)
    document = run_checks(device, HUB_BASES[chosen.shape], seconds=chosen.seconds)
    print(json.dumps(document, indent=1))
    return 0 if document["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
