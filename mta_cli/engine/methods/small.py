"""Personal parts of few bytes: numbers between the bank's main directions, and stacks that are kept small.

All stand on the task adapter alone. Knows tensors and rows; how the bank came to be is others' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mta_cli.engine.lora.lora_xs import CoreKind
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import CORE_SETTINGS, LORA_GRID, LORA_SETTINGS, UserStack, fit_cores, fit_loras
from mta_cli.engine.rounding import rounded
from mta_cli.engine.vectors import vectors

VECTOR = {"steps": 30, "learning_rate": 0.03, "pull": 0.1}
VECTORS = tuple({"learning_rate": rate, "pull": pull} for rate in (0.01, 0.03, 0.1) for pull in (0.01, 0.1, 1.0))
RATES = tuple({"learning_rate": rate} for rate in (0.03, 0.1, 0.3))


def make_cores(
    kind: CoreKind, bench: MethodContext, people: Sequence[UserShots], settings: Settings
) -> list[UserModel]:
    """Numbers between the bank's main directions; nothing where the bank has none."""
    return _made(fit_cores(bench, people, [()] * len(people), settings, kind=kind))


def make_stack(bits: int, bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """LoRAs kept in `bits` bits a number."""
    found = fit_loras(bench, people, [()] * len(people), settings)
    return _made([UserStack(*rounded(own.lora, bits)) if own.lora is not None else own for own in found])


def make_frozen_a(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """LoRAs whose A is made again from the seed, so that B alone is kept, in float16."""
    found = fit_loras(bench, people, [()] * len(people), settings, frozen_a=True)
    sizes = [2 * sum(b.numel() for _, b in own.lora.factors.values()) if own.lora is not None else 0 for own in found]
    return _made([UserStack(own.lora, size, own.failed) for own, size in zip(found, sizes, strict=True)])


def make_vectors(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A vector that is added to the last normalised state; trained on what the task adapter leaves there, kept once."""
    fitted = vectors(
        bench.base,
        [person.rows for person in people],
        steps=int(settings["steps"]),
        rate=float(settings["learning_rate"]),
        pull=float(settings["pull"]),
    )
    return [
        UserModel(state_shift=shift, bytes=2 * shift.numel())
        if shift is not None
        else UserModel(failed=bool(person.rows))
        for person, shift in zip(people, fitted, strict=True)
    ]


def _made(found: Sequence[UserStack]) -> list[UserModel]:
    return [UserModel(own.loras, bytes=own.bytes, failed=own.failed) for own in found]


METHODS = (
    Method(
        "gains",
        "a gain for each of the bank's main directions in every module",
        partial(make_cores, "gains"),
        settings={**CORE_SETTINGS, "rank": 8},
        grid=RATES,
        version=2,
    ),
    Method(
        "code",
        "one gain for each of the bank's main directions, the same in every module",
        partial(make_cores, "code"),
        settings={**CORE_SETTINGS, "rank": 8},
        grid=RATES,
        version=2,
    ),
    Method(
        "core",
        "a small matrix between the bank's main directions in every module (LoRA-XS)",
        partial(make_cores, "core"),
        settings=CORE_SETTINGS,
        grid=RATES,
        version=2,
    ),
    Method(
        "stack-r1",
        "a LoRA of rank 1",
        partial(make_stack, 16),
        settings={**LORA_SETTINGS, "rank": 1, "alpha": 2.0},
        grid=LORA_GRID,
    ),
    Method(
        "stack-frozen-a",
        "a LoRA whose A stays as the seed made it",
        make_frozen_a,
        settings=LORA_SETTINGS,
        grid=LORA_GRID,
    ),
    Method(
        "stack-8bit", "a LoRA kept in 8 bits a number", partial(make_stack, 8), settings=LORA_SETTINGS, grid=LORA_GRID
    ),
    Method(
        "stack-4bit", "a LoRA kept in 4 bits a number", partial(make_stack, 4), settings=LORA_SETTINGS, grid=LORA_GRID
    ),
    Method(
        "vector",
        "a vector added to the last state, trained on cached states without a pass through the model",
        make_vectors,
        settings=VECTOR,
        grid=VECTORS,
    ),
)
