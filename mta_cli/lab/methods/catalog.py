"""Methods by name: presets, their variants with other label memories, their controls, and compositions.

`oppu-pooled+neighbours` is the preset `oppu-pooled` with another label memory. `task:evidence:lora` is composed of the
weights below, the weighting of anchors, and the stack. `permuted-mta` is a control: `mta` with each user getting
another user's LoRAs.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import get_args

from mta_cli.engine.evaluation.ladder import (
    ADAPTED,
    ANOTHERS,
    BASE,
    BASE_EXAMPLES,
    COMMON,
    COMMON_MEMORY,
    FUSED,
    NO_MODEL,
    STEP_NAMES,
)
from mta_cli.engine.methods import majority
from mta_cli.engine.methods.method import BaseLevel, Method, Settings, StackKind
from mta_cli.engine.methods.personalize import MTA
from mta_cli.engine.methods.weightings import WEIGHTINGS
from mta_cli.errors import Command, UsageError, did_you_mean
from mta_cli.lab.methods import neighbours, per_pcs, prime
from mta_cli.options import ALL_MEMORIES, MEMORIES, PERMUTED_ANSWERS, PRESETS

_PUBLISHED = {
    key.partition(".")[2]: value for key, value in PRESETS["published"].items() if key.startswith(("fuse.", "adapt."))
}
_OPPU: Settings = {"rank": 8, "alpha": 8.0, "placement": "all", "epochs": 2, "batch_size": 1, "learning_rate": 1e-4}
_OPPU_GRID = tuple(
    {"epochs": epochs, "learning_rate": rate, "placement": placement}
    for placement in ("all", "late")
    for epochs, rate in ((2, 1e-4), (2, 1e-3), (4, 1e-3))
)
# the first has the default learning rate, which depends on the kind of task
_LORA_GRID: tuple[Settings, ...] = ({}, {"learning_rate": 2e-4}, {"learning_rate": 1e-3})
_EVIDENCE_GRID = tuple(
    {"sharpness": sharpness, "scale": scale} for sharpness in (0.25, 0.5, 1.0) for scale in (0.25, 0.5, 1.0)
)
_MTA_GRID = tuple(
    {**rate, "neighbour_weight": weight} for rate in ({}, {"learning_rate": 1e-3}) for weight in (0.5, 1.0, 2.0)
)
_PERMUTED = "permuted-"
_MEMORY_GRIDS: dict[str, tuple[Settings, ...]] = {
    "off": (),
    "habit": tuple({"prior_strength": s, "prior_weight": w} for s in (2.0, 8.0) for w in (0.25, 0.5, 1.0)),
    "neighbours": tuple({"neighbour_weight": weight} for weight in (0.5, 1.0, 2.0)),
}

_MEMORY_VERSIONS = {"habit": 1}  # added to a method's version; raised when the memory's computation changes

PRESET_METHODS = (
    majority.METHOD,
    majority.MEAN_METHOD,
    neighbours.METHOD,
    Method("base", "the base alone", below="base", shows_history=False, step=BASE),
    Method("rag", "the base, with the user's own items in the prompt", below="base", step=BASE_EXAMPLES),
    Method("pooled", "the task adapter alone", shows_history=False),
    Method("pooled-rag", "the task adapter, with the user's own items in the prompt", step=COMMON),
    Method(
        "oppu",
        "a LoRA per user from the base (OPPU)",
        below="base",
        stack="lora",
        overrides=_OPPU,
        grid=_OPPU_GRID,
        version=2,
    ),
    Method(
        "oppu-pooled",
        "a LoRA per user above the task adapter",
        stack="lora",
        overrides=_OPPU,
        grid=_OPPU_GRID,
        version=2,
    ),
    Method("fusion", "the two nearest anchors merged", anchors="similarity", overrides={"top_k": 2}, version=2),
    Method("fusion-random", "two random anchors merged", anchors="random", overrides={"top_k": 2}, version=2),
    Method("stack", "a LoRA above the task adapter, no fusion", stack="lora", grid=_LORA_GRID, version=2),
    replace(MTA, grid=_MTA_GRID),
    Method(
        "mta-recipe",
        "fusion by evidence and label memory, no gradient",
        anchors="evidence",
        memory="neighbours",
        grid=_EVIDENCE_GRID,
        version=10,
        step=FUSED,
    ),
    Method(
        "mta-published",
        "the paper's own choices: no task adapter, cosine top 2, exact merge, a LoRA of rank 4, no memory",
        below="base",
        anchors="similarity",
        stack="lora",
        bank_preset="published",
        overrides={name: value for name, value in _PUBLISHED.items() if name not in ("weights", "kind")},
        version=2,
    ),
    Method(
        "mta-released",
        "what the authors' code computes: A and B averaged apart, shares swapped, a rank-4 LoRA of one epoch",
        anchors="released",
        stack="lora",
        overrides={
            "top_k": 2,
            "rank": 4,
            "alpha": 8.0,
            "targets": "all-linear",
            "placement": "late",
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 5e-5,
        },
        version=3,
    ),
    per_pcs.METHOD,
    prime.METHOD,
    Method(
        "permuted-recipes",
        "a control: mta-recipe, each user with the recipe of another",
        anchors="evidence",
        memory="neighbours",
        permuted=True,
        control_of="mta-recipe",
    ),
    Method(
        "permuted-anchors",
        "a control: mta-recipe above anchors that learned their users' answers in random order",
        anchors="evidence",
        memory="neighbours",
        bank_preset=PERMUTED_ANSWERS,
        control_of="mta-recipe",
    ),
)
PRESETS_BY_NAME: dict[str, Method] = {method.name: method for method in PRESET_METHODS}


def find_method(name: str, memory: str | None = None) -> Method:
    """The method called `name`: a preset or a composition, with an optional suffix for its label memory.

    `memory` applies to a name without a suffix. A suffix for the method's own memory is dropped: `mta+neighbours` is
    `mta`. Raises UsageError for an unknown name, and for a suffix if the method has no label memory.
    """
    stem, plus, suffix = name.partition("+")
    method = _find_stem(stem)
    wanted = suffix if plus else memory
    if wanted is None or wanted == method.memory or (not plus and method.memory is None):
        return method
    if wanted not in MEMORIES:
        raise UsageError(
            f"{name!r:.80}: {wanted!r:.40} is not a label memory", hint=f"choose one of {', '.join(MEMORIES)}"
        )
    if method.memory is None:
        raise UsageError(f"{name!r:.80}: {stem} has no label memory to choose", hint=f"write {stem} without a suffix")
    named = replace(
        method,
        name=f"{stem}+{wanted}",
        memory=wanted,
        about=f"{method.about}; label memory: {wanted}",
        version=method.version + _MEMORY_VERSIONS.get(wanted, 0),
        step={COMMON: COMMON_MEMORY, BASE: "", BASE_EXAMPLES: ""}.get(method.step, method.step),
    )
    settings = named.default_settings
    grid = tuple({name: value for name, value in trial.items() if name in settings} for trial in method.grid)
    return replace(named, grid=() if method.control_of else grid or _MEMORY_GRIDS[wanted])


def find_methods(names: Sequence[str], memory: str | None = None) -> list[Method]:
    """The methods of these names, without duplicates, in the order given; see `find_method` for `memory`.

    With `memory` `all`, a method that is named without a memory is included with each memory. Raises UsageError where
    no name is given, or one is unknown.
    """
    variants = MEMORIES if memory == ALL_MEMORIES else (memory,)
    methods = {method.name: method for name in names for method in (find_method(name, one) for one in variants)}
    if not methods:
        raise UsageError("no method was named", hint=(Command("eval methods"), " lists all"))
    return list(methods.values())


def ladder_methods(labels: bool, memory: str | None = None) -> list[str]:
    """The methods that `ladder` means in a task of `labels` or texts: one name for each step from the bottom.

    Steps with label memory are included with `memory`: with each memory for `all`, and with neighbours for None.
    """
    below, personal = ["majority", "base+off", "rag+off", "pooled-rag+off"], ["mta-recipe", "mta", "permuted-mta"]
    if not labels:
        return [*below, *personal]
    memories = MEMORIES if memory == ALL_MEMORIES else (memory or "neighbours",)
    return [*below, *(f"{name}+{own}" for name in ("pooled-rag", *personal) for own in memories)]


def methods_by_step(names: Collection[str]) -> dict[str, str]:
    """The method of each step of the ladder among these names, from the bottom, all with one label memory.

    That memory is neighbours if any step has it, else habit, else none. Unknown names are left out.
    """
    known = []
    for name in names:
        with suppress(UsageError):
            known.append(find_method(name))
    for memory in reversed(MEMORIES):
        found = {one.step: one.name for one in known if one.step in _WITHOUT_MEMORY or one.memory == memory}
        if found.keys() & {COMMON_MEMORY, FUSED, ADAPTED}:
            break
    return {step: found[step] for step in STEP_NAMES if step in found}


_WITHOUT_MEMORY = (NO_MODEL, BASE, BASE_EXAMPLES, COMMON)


def original(control: Method) -> Method:
    """The method that `control` is a control of, with the same label memory."""
    return find_method(f"{control.control_of}+{control.memory}")


def _find_stem(stem: str) -> Method:
    if stem in PRESETS_BY_NAME:
        return PRESETS_BY_NAME[stem]
    if stem.startswith(_PERMUTED):
        return _permute(_find_stem(stem.removeprefix(_PERMUTED)))
    if ":" in stem:
        return _compose(stem)
    near = difflib.get_close_matches(stem, PRESETS_BY_NAME, n=1)
    raise UsageError(
        f"there is no method {stem!r:.80}", hint=did_you_mean(near, (Command("eval methods"), " lists all"))
    )


def _permute(method: Method) -> Method:
    """The control of `method`. Raises UsageError if the method has no LoRAs or is already a control."""
    name = f"{_PERMUTED}{method.name}"
    makes_loras = method.build is not None or (method.anchors, method.stack) != ("none", "none")
    if method.control_of or method.memory is None or not makes_loras:
        reason = "is itself a control" if method.control_of else "has no LoRAs of users"
        raise UsageError(
            f"there is no method {name!r:.80}: {method.name} {reason}",
            hint=(
                f"write {_PERMUTED} before a method that gives each user LoRAs, for example {_PERMUTED}mta; ",
                Command("eval methods"),
                " lists all methods",
            ),
        )
    about = f"a control: {method.name}, each user with another's LoRAs"
    step = ANOTHERS if method.step == ADAPTED else ""
    return replace(method, name=name, about=about, grid=(), permuted=True, control_of=method.name, step=step)


def _compose(stem: str) -> Method:
    """`BELOW:ANCHORS:STACK` as a method."""
    choices = (get_args(BaseLevel), tuple(WEIGHTINGS), get_args(StackKind))
    parts = stem.split(":")
    if len(parts) != len(choices) or any(part not in known for part, known in zip(parts, choices, strict=False)):
        raise UsageError(
            f"there is no method {stem!r:.80}",
            hint="write BELOW:ANCHORS:STACK, for example task:evidence:lora; the choices are "
            + "; ".join(", ".join(known) for known in choices),
        )
    below, anchors, stack = parts
    about, version = f"composed: {below}, {anchors}, {stack}", 1 if stack == "none" else 2
    return Method(stem, about, below, anchors, stack, version=version)  # type: ignore[arg-type]
