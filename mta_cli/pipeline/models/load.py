"""Loads the base of a job on the machine's device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.models.memory import Use
    from store.registry import Registry


def load_on_device(
    entry: ModelEntry, machine: MachineOptions, reg: Registry | None = None, use: Use = "train"
) -> LoadedBase:
    """Load a base on the device of `machine`.

    Its files, and with `reg` the registry, are verified meanwhile, unless `machine.verify` is off; see `verify`. Raises
    the errors of `load_base`, IntegrityFault for a changed file, and UsageError if it needs more than `--max-memory`.
    """
    from mta_cli.pipeline.models.memory import loading_limits
    from mta_cli.pipeline.models.verify import verify_in_background

    limits = loading_limits(entry, machine, use)
    with verify_in_background([entry] if machine.verify else [], reg if machine.verify else None):
        from mta_cli.engine.model.load import load_base

        return load_base(
            entry.path,
            name=entry.name,
            fingerprint=entry.fingerprint,
            device=machine.device,
            dtype=machine.dtype,
            quantize=machine.quantize,
            limits=limits,
            for_answers=use == "answer",
        )
