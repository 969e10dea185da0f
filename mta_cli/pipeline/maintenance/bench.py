"""The job behind `mta bench`: measures the speed and memory of a base on this machine.

A shape of the catalog is measured with random weights and needs no download, an installed base with its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, Flag
from mta_cli.events import Event, JobPlan, JobProgress, JobResult, JobStarted, PlanLine
from mta_cli.options import BankOptions, FuseOptions, MachineOptions
from mta_cli.pipeline.models.bases import HUB_BASES, HubBase, full_name
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.models.memory import PASS_TOKENS, PROGRAM_BYTES, key_value_bytes, training_pass_bytes

if TYPE_CHECKING:
    import torch

    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.throughput import Throughput

DEFAULT_SECONDS, DEFAULT_USERS = 5.0, 16
MIN_PASS_TOKENS = PASS_TOKENS  # smaller passes would not be representative of training


@dataclass(frozen=True)
class BenchRequest:
    """The request of a bench: the shape of a base, or an installed base, and `seconds` for each of four measurements.

    `users` is the number of users in one decoding batch.
    """

    base: HubBase | ModelEntry
    machine: MachineOptions
    seconds: float = DEFAULT_SECONDS
    users: int = DEFAULT_USERS


@dataclass(frozen=True)
class BenchPlan:
    """The plan of a bench: device, tokens in a training pass, and the most memory that it needs.

    `computed` is None for a base whose shape is not in the catalog, `free` if the system does not report it.
    """

    name: str
    parameters: int
    device: torch.device
    dtype: torch.dtype
    pass_tokens: int
    computed: int | None
    free: int | None


def run_bench(request: BenchRequest, *, dry_run: bool = False) -> Iterator[Event]:
    """Run the measurements. `JobResult.result` is the JSON document of `mta bench --json`.

    Raises BadInput, before anything large is allocated, if the memory is too small.
    """
    plan = plan_bench(request)
    yield JobPlan("bench", _plan_lines(plan, request))
    if dry_run:
        yield JobResult({"dry_run": True, **_plan_json(plan)})
        return
    _require_memory(plan)
    yield JobStarted("bench", 5, "measurements")
    from mta_cli.engine.backends import backend_of
    from mta_cli.engine.model import device_memory

    device_memory.reset_peak(plan.device)
    base = _load(request)
    yield JobProgress("base", 1)
    rates = {}
    for number, (name, measurement) in enumerate(_measurements(base, request, plan.pass_tokens), 2):
        try:
            rates[f"{name}_per_second"] = measurement().rate
        except (RuntimeError, MemoryError) as error:
            if not device_memory.is_out_of_memory(error):
                raise
            raise BadInput(
                f"{plan.name}: the memory of {plan.device} ran out ({name.replace('_', ' ')})",
                hint=("lower ", Flag("users"), ", or choose a smaller shape: ", Command("model list", available=True)),
            ) from error
        yield JobProgress(name.replace("_", " "), number)
    yield JobResult(
        {
            **_plan_json(plan),
            "decoder": backend_of(base).name,
            "batch_users": request.users,
            **rates,
            "peak_bytes": device_memory.peak_bytes(plan.device),
            **_environment(plan.device),
        }
    )


def _measurements(
    base: LoadedBase, request: BenchRequest, pass_tokens: int
) -> Iterator[tuple[str, Callable[[], Throughput]]]:
    """The measurements by name. Training comes last, after the decoder's copies of the weights are dropped."""
    from mta_cli.engine import throughput

    seed, seconds = request.machine.seed, request.seconds
    one, many = throughput.decode_tokens(base, seed), throughput.decode_batch_tokens(base, request.users, seed)
    # warm-up: the prompt, and packing the weights
    yield "decode_tokens", lambda: throughput.measure(one, seconds, warm_up=2)
    yield "batch_tokens", lambda: throughput.measure(many, seconds, warm_up=2)
    base.invalidate_caches()
    yield "adapters", lambda: throughput.measure_adapting(base, seconds, seed)
    yield "train_tokens", lambda: throughput.measure(throughput.train_tokens(base, pass_tokens, seed), seconds)


def plan_bench(request: BenchRequest) -> BenchPlan:
    """Plan a bench. Raises UsageError for a device or number format that this machine lacks."""
    from mta_cli.engine.model.device_memory import free_bytes
    from mta_cli.engine.model.load import resolve_device, resolve_dtype
    from mta_cli.engine.scoring.prefix_cache_scoring import device_batch_tokens

    device = resolve_device(request.machine.device)
    dtype = resolve_dtype(request.machine.dtype, device)
    shape, free, tokens = _shape(request.base), free_bytes(device), device_batch_tokens(device)
    parameters = request.base.parameters if isinstance(request.base, HubBase) else request.base.detail["parameters"]
    computed = None
    if shape is not None:
        file_is_read = not isinstance(request.base, HubBase)
        computed = computed_bytes(shape, device.type, dtype.itemsize, tokens, request.users, file_is_read=file_is_read)
        while free is not None and computed > free and tokens > MIN_PASS_TOKENS:  # as a training does
            tokens //= 2
            computed = computed_bytes(
                shape, device.type, dtype.itemsize, tokens, request.users, file_is_read=file_is_read
            )
    return BenchPlan(request.base.name, parameters, device, dtype, tokens, computed, free)


def computed_bytes(
    shape: HubBase, device: str, number_bytes: int, pass_tokens: int, users: int, *, file_is_read: bool
) -> int:
    """The most memory of a bench: by the formulas of `pipeline/models/memory.py`, plus the LoRAs in memory.

    A base from a file has one more copy of its weights on a CPU, the mapped file.
    """
    from mta_cli.engine.methods.anchor_weights import MAX_USERS_PER_BATCH
    from mta_cli.engine.throughput import ADAPT_SHOTS, BATCH_CONTEXT, GROUP_USERS, ROW_TOKENS

    on_cpu = device == "cpu"
    copies = 1 + (on_cpu and file_is_read)
    packed = 2 if on_cpu and shape.fast and number_bytes == 2 else 0  # for steps of one row, and of several
    sizes, precision = shape.shape, "float32" if number_bytes == 4 else "bfloat16"
    weights = number_bytes * sizes.parameters
    fixed = (PROGRAM_BYTES if on_cpu else 0) + copies * weights
    compute = partial(training_pass_bytes, sizes, precision, row=ROW_TOKENS, layers=sizes.layers)
    upper, frozen = lora_parameter_count(shape, max(1, shape.layers // 3)), 4 + 3 * number_bytes  # float32, cast, fused
    # 1. a group in all layers: factors, gradients and two moments in float32; the pass's own factors and gradients
    train = compute(tokens=pass_tokens) + GROUP_USERS * lora_parameter_count(shape, shape.layers) * (
        4 * 4 + 2 * number_bytes
    )
    # 2. users on their merged anchors, in the upper third
    shots = min(pass_tokens, MAX_USERS_PER_BATCH * ADAPT_SHOTS * ROW_TOKENS)
    adapt = compute(tokens=shots // 3) + MAX_USERS_PER_BATCH * FuseOptions().top_k * upper * frozen
    # 3. a batch of answers
    serve = packed * weights + key_value_bytes(sizes, precision, users * BATCH_CONTEXT) + users * upper * frozen
    return fixed + max(train, adapt, serve)


def lora_parameter_count(shape: HubBase, layers: int) -> int:
    """The number of parameters of a LoRA of the default bank in `layers` layers."""
    return layers * BankOptions().rank * shape.shape.factor_widths


def _shape(base: HubBase | ModelEntry) -> HubBase | None:
    """The shape of a base; None if it is not in the catalog."""
    if isinstance(base, HubBase):
        return base
    return next((shape for name, shape in HUB_BASES.items() if full_name(name) == base.name), None)


def _require_memory(plan: BenchPlan) -> None:
    if plan.computed is not None and plan.free is not None and plan.computed > plan.free:
        raise BadInput(
            f"{plan.name} needs about {plan.computed / 1e9:.1f} GB on {plan.device} in {str(plan.dtype)[6:]}; "
            f"{plan.free / 1e9:.1f} GB are free",
            hint=("choose a smaller shape: ", Command("model list", available=True)),
        )


def _load(request: BenchRequest) -> LoadedBase:
    machine = request.machine
    if isinstance(request.base, HubBase):
        from mta_cli.engine.model.random_base import make_random_base

        shape = request.base
        return make_random_base(
            shape.family, shape.config, device=machine.device, dtype=machine.dtype, seed=machine.seed
        )
    from mta_cli.pipeline.models.load import load_on_device

    return load_on_device(request.base, machine)


def _plan_lines(plan: BenchPlan, request: BenchRequest) -> tuple[PlanLine, ...]:
    weights = "random weights" if isinstance(request.base, HubBase) else "its own weights"
    needed, free = (
        "not known" if size is None else f"about {size / 1e9:.1f} GB" for size in (plan.computed, plan.free)
    )
    return (
        PlanLine("base", f"{plan.name}, {plan.parameters:,} parameters, {weights}"),
        PlanLine("device", f"{plan.device}, {str(plan.dtype)[6:]}"),
        PlanLine("memory", needed),
        PlanLine("free", free),
        PlanLine("time", f"{request.seconds:g} s or somewhat more for each of 4 measurements"),
    )


def _plan_json(plan: BenchPlan) -> dict[str, Any]:
    return {
        "base": plan.name,
        "parameters": plan.parameters,
        "device": str(plan.device),
        "dtype": str(plan.dtype)[6:],
        "pass_tokens": plan.pass_tokens,
        "computed_bytes": plan.computed,
        "free_bytes": plan.free,
    }


def _environment(device: torch.device) -> dict[str, Any]:
    import torch

    from mta_cli import __version__
    from mta_cli.pipeline.runs import library_versions

    return {
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "versions": {"mta": __version__, **library_versions()},
    }
