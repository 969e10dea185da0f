"""A vLLM plugin that loads adapters by name from the folder of `mta serve --vllm`.

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
CONFIG_FILE, BASE_FILE = "adapter_config.json", "base"  # `base` holds the base's fingerprint, beside the adapters
log = logging.getLogger("mta.vllm")


def find_adapter(root: Path, name: str) -> Path | None:
    """The folder of the adapter `name` in `root`; None if it does not exist or the name is invalid."""
    folder = root / name if ADAPTER_NAME.fullmatch(name) else None
    return folder if folder is not None and (folder / CONFIG_FILE).is_file() else None


def served_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the base in `folder`; None if vLLM loads the base by its hub name. Reads all weights."""
    from mta_cli.engine.model.checkpoint_files import fingerprint

    return fingerprint(folder) if folder.is_dir() else None


def wanted_fingerprint(root: Path) -> str | None:
    """The fingerprint of the base of the adapters in `root`; None if not recorded."""
    wanted = root / BASE_FILE
    return wanted.read_text().strip() if wanted.is_file() else None


def register() -> None:
    """Register the resolver of adapters with vLLM, which calls this entry point of `vllm.general_plugins`."""
    if not (given := os.environ.get(FOLDER_VARIABLE)):
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    root = Path(given)

    class AdapterResolver(LoRAResolver):  # type: ignore[misc]  # vLLM has no types here
        """Resolves adapters of mta's users."""

        reading: asyncio.Task[str | None] | None = None

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """The adapter of that name; None if it does not exist or the base differs. vLLM replaces its number, 1."""
            if (folder := find_adapter(root, lora_name)) is None:
                return None
            if self.reading is None:
                self.reading = asyncio.create_task(asyncio.to_thread(served_fingerprint, Path(base_model_name)))
            served, wanted = await self.reading, wanted_fingerprint(root)
            if None not in (served, wanted) and served != wanted:
                log.error("%s is not the base of the adapters in %s", base_model_name, root)
                return None
            return LoRARequest(lora_name, 1, str(folder))

    if not os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        log.warning("vLLM loads no adapters of mta unless VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is set")
    LoRAResolverRegistry.register_resolver("mta", AdapterResolver())
