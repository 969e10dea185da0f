"""One LoRA per person, as OPPU has it (arXiv 2402.04401): rank 8 on q and v, from the base or above a task adapter."""

from __future__ import annotations

from collections.abc import Sequence

from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import LORA_SETTINGS, fit_loras

OPPU_SETTINGS = {
    **LORA_SETTINGS,
    "rank": 8,
    "alpha": 8.0,
    "placement": "all",
    "epochs": 2,
    "batch_size": 1,
    "learning_rate": 1e-4,
}
OPPU_GRID = tuple(
    {"epochs": epochs, "learning_rate": rate, "placement": placement}
    for placement in ("all", "late")
    for epochs, rate in ((2, 1e-4), (2, 1e-3), (4, 1e-3))
)


def build_oppu_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """Each person's LoRA on what the base holds."""
    found = fit_loras(bench, people, [()] * len(people), settings)
    return [UserModel(own.loras, bytes=own.bytes, failed=own.failed) for own in found]


METHODS = (
    Method(
        "oppu",
        "a LoRA per person from the base",
        build_oppu_models,
        base_level="base",
        settings=OPPU_SETTINGS,
        grid=OPPU_GRID,
    ),
    Method(
        "oppu-pooled",
        "a LoRA per person above the task adapter",
        build_oppu_models,
        settings=OPPU_SETTINGS,
        grid=OPPU_GRID,
    ),
)
