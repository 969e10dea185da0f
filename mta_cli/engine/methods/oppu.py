"""One LoRA per person, as OPPU has it (arXiv 2402.04401): rank 8 on q and v, from the base or above a task adapter."""

from __future__ import annotations

from collections.abc import Sequence

from mta_cli.engine.methods.method import Bench, Made, Method, Person, Settings
from mta_cli.engine.methods.stacks import OWN, loras

PUBLISHED = {**OWN, "rank": 8, "alpha": 8.0, "placement": "all", "epochs": 2, "batch_size": 1, "learning_rate": 1e-4}
GRID = tuple(
    {"epochs": epochs, "learning_rate": rate, "placement": placement}
    for placement in ("all", "late")
    for epochs, rate in ((2, 1e-4), (2, 1e-3), (4, 1e-3))
)


def make(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Each person's LoRA on what the base holds."""
    found = loras(bench, people, [()] * len(people), settings)
    return [Made(own.parts, bytes=own.bytes, failed=own.failed) for own in found]


METHODS = (
    Method("oppu", "a LoRA per person from the base", make, below="base", settings=PUBLISHED, grid=GRID),
    Method("oppu-pooled", "a LoRA per person above the task adapter", make, settings=PUBLISHED, grid=GRID),
)
