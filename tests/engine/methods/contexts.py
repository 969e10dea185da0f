"""Contexts and users on the tiny base, for the tests of methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserShots
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from tests.engine.lora_cases import random_lora, random_rows

WIDTH = 8


def units(count: int, seed: int) -> Tensor:
    """Random unit vectors [count, width]."""
    drawn = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def a_context(
    base: LoadedBase, anchors: Sequence[LoraWeights] | int = 5, *, placement: str = "upper", seed: int = 0
) -> MethodContext:
    """A context with `anchors`, or with as many random ones, and random profiles."""
    if isinstance(anchors, int):
        anchors = [random_lora(base.model, i, placement=placement) for i in range(anchors)]
    given = list(anchors)
    return MethodContext(base, BUILTIN_TASKS["free"], given, units(len(given), 7), seed)


def a_user(rows: Sequence[TrainingRow] | int, number: int = 0, profile: Tensor | None = None) -> UserShots:
    """A user with `rows`, or with as many random ones."""
    if isinstance(rows, int):
        rows = random_rows([14 + (5 * n + 3 * number) % 17 for n in range(rows)], seed=number)
    words = tuple(f"{n}" for n in range(len(rows)))
    return UserShots(number, words, words, tuple(rows), units(1, 100 + number)[0] if profile is None else profile)


def settings_of(method: Method, **changes: float | int | str | bool) -> Settings:
    """The method's settings with changes."""
    own = method.default_settings
    assert set(changes) <= {*own, "steps", "epochs", "learning_rate"}
    return {**own, **changes}


def same(ours: LoraWeights, theirs: LoraWeights) -> bool:
    """Whether two LoRAs are equal bit for bit."""
    return ours.to_bytes({}) == theirs.to_bytes({})
