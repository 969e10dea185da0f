"""A plugin of vLLM: an adapter that is asked for by name is loaded from the folder that `mta serve --vllm` fills.

vLLM calls `register` in each of its processes. It does nothing unless `MTA_VLLM_ADAPTERS` names the folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from pathlib import Path

ADAPTER_NAME = re.compile(r"[0-9a-f]{64}")
FOLDER_VARIABLE = "MTA_VLLM_ADAPTERS"
CONFIG_FILE, BASE_FILE = "adapter_config.json", "base"  # the base's fingerprint, beside the adapters
log = logging.getLogger("mta.vllm")


def find_adapter(root: Path, name: str) -> Path | None:
    """The folder of the adapter `name` in `root`; None for one that is not there and for what is no adapter's name."""
    folder = root / name if ADAPTER_NAME.fullmatch(name) else None
    return folder if folder is not None and (folder / CONFIG_FILE).is_file() else None


def is_served_base(root: Path, folder: Path) -> bool:
    """Whether the base in `folder` is the one that the adapters in `root` are for; also where that cannot be told.

    Reads all weights. A base that vLLM loads by its name on a hub has no such folder.
    """
    from mta_cli.engine.model.checkpoint_files import fingerprint

    wanted = root / BASE_FILE
    return not folder.is_dir() or not wanted.is_file() or fingerprint(folder) == wanted.read_text().strip()


def register() -> None:
    """The entry point `vllm.general_plugins`."""
    if not (given := os.environ.get(FOLDER_VARIABLE)):
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    root = Path(given)

    class AdapterResolver(LoRAResolver):  # type: ignore[misc]  # vLLM has no types here
        """Adapters of mta's users."""

        checked: asyncio.Task[bool] | None = None

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """The adapter of that name, whose number vLLM chooses; None without one, and where the base is another."""
            if (folder := find_adapter(root, lora_name)) is None:
                return None
            if self.checked is None:
                self.checked = asyncio.create_task(asyncio.to_thread(is_served_base, root, Path(base_model_name)))
            if not await self.checked:
                log.error("%s is not the base of the adapters in %s", base_model_name, root)
                return None
            return LoRARequest(lora_name, 1, str(folder))

    if not os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        log.warning("vLLM asks for no adapter unless VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
    LoRAResolverRegistry.register_resolver("mta", AdapterResolver())
