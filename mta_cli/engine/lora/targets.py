"""Which linear layers a LoRA adapts: chosen by name, and checked against a model's files before it is loaded."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from mta_cli.engine.model.checkpoint_files import weight_files
from mta_cli.engine.model.safetensors_header import read_safetensors_header
from mta_cli.errors import BadInput, Command, MtaError, UsageError
from mta_cli.options import STACK_TARGETS

ALL_LINEAR = "all-linear"
LAYER_INDEX_PATTERN = re.compile(r"\.(\d+)\.")
"""Finds the index of the decoder layer in a module's path."""


def select_target_modules(targets: str, known: Set[str]) -> Set[str]:
    """The names among `known` that `targets` (comma-separated, or `all-linear`) selects.

    The default targets of stacks select all linear layers if the base has neither, as in Phi 3 and Mamba. Raises
    UsageError for an unknown name and for an empty list. Raises BadInput for a base without linear layers.
    """
    if not known:
        raise BadInput(
            "This base has no linear layers on which a LoRA can be trained. GPT-2, for example, has other layers.",
            hint=("choose another base: ", Command("model list", available=True)),
        )
    selected: Set[str] = {name.strip() for name in targets.split(",") if name.strip()}
    if targets == ALL_LINEAR or (targets == STACK_TARGETS and not selected & known):
        selected = known
    unknown = sorted(selected - known)
    if unknown or not selected:
        raise UsageError(
            f"this base has no linear layers called {', '.join(unknown) or repr(targets)}",
            hint=f"choose among {', '.join(sorted(known))}, or {ALL_LINEAR}",
        )
    return selected


def require_targets(targets: str, folder: Path) -> None:
    """Check `targets` against the file headers of a folder's model, before it is loaded.

    Raises the errors of `select_target_modules`. Unreadable files are ignored here; loading the model reports them.
    """
    try:
        shapes = {
            name: entry["shape"]
            for file in weight_files(folder)
            for name, entry in read_safetensors_header(folder / file).tensors.items()
        }
    except (MtaError, OSError):
        return
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and LAYER_INDEX_PATTERN.search(name)
    }
    # GPT-2's Conv1D weights are [in, out] instead of [out, in]; the length of the bias shows which of the two
    turned = {
        path.rpartition(".")[2]
        for path, (rows, columns) in matrices.items()
        if rows != columns and shapes.get(f"{path}.bias") == [columns]
    }
    select_target_modules(targets, {path.rpartition(".")[2] for path in matrices} - turned)
