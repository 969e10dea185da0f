"""The base of a job in memory: on the first of the machine's devices, and on as many others as have work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry


def load_on_device(
    entry: ModelEntry, machine: MachineOptions, device: str | None = None, reg: Registry | None = None
) -> LoadedBase:
    """The base on the first of the machine's devices, or on `device`. Raises as `load_base`.

    Unless the machine is told not to, its files are read meanwhile, and with `reg` the registry: see `soundness`.
    """
    from mta_cli.pipeline.models.verify import verify_in_background

    place = machine.device if device is None else device
    with verify_in_background([entry] if machine.verify else [], reg if machine.verify else None):
        from mta_cli.engine.model.load import load_base

        return load_base(entry.path, name=entry.name, fingerprint=entry.fingerprint, device=place, dtype=machine.dtype)


def load_on_other_devices(entry: ModelEntry, machine: MachineOptions, groups: int) -> list[LoadedBase]:
    """The same on the machine's further devices, for `groups` groups that train: no more bases than groups in all."""
    from mta_cli.engine.model.load import resolve_devices

    return [
        load_on_device(entry, machine, str(device))
        for device in resolve_devices(machine.device, machine.dtype)[1:groups]
    ]
