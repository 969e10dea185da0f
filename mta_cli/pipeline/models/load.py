"""The base of a job in memory, on the machine's device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry


def load_on_device(entry: ModelEntry, machine: MachineOptions, reg: Registry | None = None) -> LoadedBase:
    """The base on the machine's device. Raises as `load_base`.

    Unless the machine options say no, its files are verified meanwhile, and with `reg` the registry: see `verify`.
    """
    from mta_cli.pipeline.models.verify import verify_in_background

    with verify_in_background([entry] if machine.verify else [], reg if machine.verify else None):
        from mta_cli.engine.model.load import load_base

        return load_base(
            entry.path, name=entry.name, fingerprint=entry.fingerprint, device=machine.device, dtype=machine.dtype
        )
