"""The settings of methods: defaults, the grid of `mta eval tune`, and settings that a user gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.errors import UsageError
from mta_cli.options import PLACEMENTS
from mta_cli.pipeline.requests import EvalRequest

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import Method

POSITIVE_SETTINGS = frozenset(
    (
        "rank",
        "alpha",
        "steps",
        "batch_size",
        "learning_rate",
        "top_k",
        "evaluations",
        "prior_strength",
        "neighbour_weight",
        "epochs",
        "candidates",
    )
)


def parse_settings(given: Sequence[str]) -> dict[str, dict[str, str]]:
    """`METHOD.SETTING=VALUE` texts by method. Raises UsageError for a text of another form."""
    found: dict[str, dict[str, str]] = {}
    for text in given:
        place, equals, value = text.partition("=")
        method, dot, name = (part.strip() for part in place.partition("."))
        if not (equals and dot and method and name):
            raise UsageError(
                f"{text!r:.80} is not a setting of a method",
                hint="write METHOD.SETTING=VALUE, for example mta.steps=20",
            )
        found.setdefault(method, {})[name] = value.strip()
    return found


def trials(method: Method, request: EvalRequest) -> list[dict[str, Any]]:
    """The settings that tuning tries: the method's defaults, then each entry of its grid, without duplicates."""
    from mta_cli.engine.methods.method import MEMORY_SETTINGS

    useless = () if request.task.labels else MEMORY_SETTINGS["neighbours"]  # texts have no label memory
    grid = [{key: value for key, value in own.items() if key not in useless} for own in method.grid]
    found = [resolve_settings(method, request, own) for own in ({}, *grid)]
    return [own for i, own in enumerate(found) if own not in found[:i]]


def resolve_settings(method: Method, request: EvalRequest, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings: its defaults, then the `chosen` ones, then those given by the user.

    Raises UsageError for an unknown setting and for a value out of bounds.
    """
    given, defaults = request.method_settings.get(method.name, {}), method.default_settings
    types = {name: type(value) for name, value in defaults.items()}
    # these have no defaults: `stack_schedule` derives them from the shots and the kind of task
    if method.stack != "none":
        types |= {"steps": int, "epochs": int, "learning_rate": float}
    if unknown := sorted(set(given) - set(types)):
        raise UsageError(
            f"{method.name} has no setting {', '.join(unknown)}", hint=f"it has {', '.join(types) or 'none'}"
        )
    settings = {**defaults, **chosen}
    if "steps" in given and "epochs" not in given:
        settings.pop("epochs", None)  # epochs take precedence over steps
    if settings.get("placement", "all") != "all":
        settings["placement"] = request.options.placement  # the placement of the fold's anchors
    converted = {key: _convert_setting(f"{method.name}.{key}", types[key], value) for key, value in given.items()}
    return {**settings, **converted, **method.version_settings}


def label_memory_of(settings: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The label memory that settings imply: neighbours, habit or off. A sequence has the settings of each fold."""
    names: Mapping[str, Any] = settings if isinstance(settings, Mapping) else next(iter(settings), {})
    return "neighbours" if "neighbour_weight" in names else "habit" if "prior_weight" in names else "off"


def _convert_setting(name: str, kind: type, value: Any) -> Any:
    """`value` as a `kind`. Raises UsageError for an invalid value and for one out of bounds."""
    key = name.rpartition(".")[2]
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise UsageError(f"{name} = {value!r:.80}: this must be true or false")
        return str(value).lower() == "true"
    try:
        found: Any = kind(value)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, "a text")
        raise UsageError(f"{name} = {value!r:.80}: this must be {what}") from None
    if (wanted := _out_of_bounds(key, found)) is not None:
        raise UsageError(f"{name} = {value!r:.80}: {wanted}")
    return found


def _out_of_bounds(key: str, value: Any) -> str | None:
    """The bounds of a setting as text; None where `value` is within them."""
    if isinstance(value, str):
        return f"choose one of {', '.join(PLACEMENTS)}" if key == "placement" and value not in PLACEMENTS else None
    if math.isfinite(value) and (value > 0 or (value == 0 and key not in POSITIVE_SETTINGS)):
        return None
    return f"this must be a number {'above 0' if key in POSITIVE_SETTINGS else 'of at least 0'}"


def method_rows() -> list[dict[str, Any]]:
    """Every method that can be compared: {method, step, ladder, about, settings}.

    `step` is the method's step of the ladder, or None; `ladder` says whether `--methods ladder` includes the method.
    """
    from mta_cli.lab.methods.catalog import PRESET_METHODS, find_method, ladder_methods

    in_ladder = {method.name: method for method in map(find_method, ladder_methods(labels=True))}
    return [
        {
            "method": one.name,
            "step": one.step or None,
            "ladder": one.name in in_ladder,
            "about": one.about,
            "settings": dict(one.default_settings),
        }
        for one in {**{one.name: one for one in PRESET_METHODS}, **in_ladder}.values()
    ]
