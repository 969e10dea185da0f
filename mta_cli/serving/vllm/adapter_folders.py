"""Users' models as PEFT folders that a vLLM server loads by name.

A name is a digest of the weights, so it does not contain the user's name.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput, Flag, system_reason
from mta_cli.pipeline.user_weights import approximate_on_all_tokens, loras_by_placement
from mta_cli.serving.vllm.vllm_resolver import ADAPTER_NAME, BASE_FILE, find_adapter
from store.files import remove_leftover_temporaries

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.user_weights import AnswerSource
    from store.records import Bank, User
    from store.registry import Registry


log = logging.getLogger("mta.serve")


@dataclass(frozen=True, eq=False)  # compared by identity: two users may have the same folder
class AdapterFolder:
    """A model at vLLM: its name there, and the size of its folder in bytes; 0 for the base."""

    name: str
    num_bytes: int


class AdapterFolders:
    """Makes a folder in `root` for each model, of rank at most `max_rank`. `base_name` is the base's name at vLLM."""

    def __init__(self, root: Path, entry: ModelEntry, base_name: str, *, max_rank: int, approximate: bool) -> None:
        self._root, self._entry, self._max_rank, self._approximate = root, entry, max_rank, approximate
        self._base_name = base_name
        self._uses, self._lock = Counter[str](), threading.Lock()
        self.bare_base = AdapterFolder(base_name, 0)
        self._own_root()

    def _own_root(self) -> None:
        """Lock the folder for this process, and remove adapters that a killed server left in it.

        Raises BadInput if another server uses the folder, or other users of the machine may write to it.
        """
        from filelock import FileLock, Timeout

        root, hint = self._root, ("choose another folder with ", Flag("adapters"))
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            there = root.lstat()
            if stat.S_ISLNK(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
                raise BadInput(f"{root} is a link, or other users of this machine may write to it.", hint=hint)
            self._held = FileLock(root / ".lock", blocking=False, thread_local=False)
            self._held.acquire()
            remove_leftover_temporaries(root)
            for left_over in root.iterdir():  # left by a killed server
                if ADAPTER_NAME.fullmatch(left_over.name):
                    shutil.rmtree(left_over)
            (root / BASE_FILE).write_text(self._entry.fingerprint)
        except Timeout as error:
            raise BadInput(f"Another server keeps its adapters in {root}.", hint=hint) from error
        except OSError as error:
            raise BadInput(f"{root} cannot hold users' adapters: {system_reason(error)}.", hint=hint) from error

    def make(
        self, reg: Registry, user: User | None, task: str, mode: str, bank: Bank
    ) -> tuple[AdapterFolder, AnswerSource]:
        """See `WeightsMaker`. Writes the folder. Raises BadInput for late LoRAs, unless `approximate` is on."""
        from mta_cli.engine.lora.merge import compress_to_rank
        from mta_cli.pipeline.personalize.export import content_digest, pad_to_uniform_rank
        from mta_cli.pipeline.personalize.export_formats import CONFIG_FILE, WEIGHTS_FILE, json_bytes, peft_config
        from mta_cli.pipeline.users.exported_folders import write_folder

        weights, late, source = loras_by_placement(reg, self._entry.fingerprint, user, task, mode)
        if late is not None:
            if not self._approximate:
                raise BadInput(
                    (
                        f"The model for {task} acts on late tokens only, which vLLM cannot do: build its bank with ",
                        Flag("placement", "upper"),
                        ", or start the server with ",
                        Flag("approximate"),
                        ".",
                    )
                )
            weights = approximate_on_all_tokens(weights, late)
        if weights is None:
            return self.bare_base, source
        if weights.rank > self._max_rank:
            weights = compress_to_rank(weights, self._max_rank)
        weights = pad_to_uniform_rank(weights)
        name = content_digest(weights).removeprefix("sha256:")
        target, config = self._root / name, peft_config(weights, self._entry, self._base_name)
        content = weights.to_bytes({})
        files = {WEIGHTS_FILE: content, CONFIG_FILE: json_bytes(config)}
        with self._lock:
            if find_adapter(self._root, name) is None:
                shutil.rmtree(target, ignore_errors=True)  # an incomplete folder
                write_folder(target, files, "An adapter for vLLM", private=True)
            self._uses[name] += 1
        return AdapterFolder(name, len(content)), source

    def still_exists(self, weights: AdapterFolder) -> bool:
        """See `WeightsMaker`."""
        return not weights.num_bytes or find_adapter(self._root, weights.name) is not None

    def drop_all_except(self, models: Iterable[AdapterFolder]) -> None:
        """See `WeightsMaker`. Does nothing, because `remove` removes each folder."""

    def remove(self, weights: AdapterFolder) -> None:
        """Remove a model's folder, unless another user's model is the same."""
        if not weights.num_bytes:
            return
        with self._lock:
            self._uses[weights.name] -= 1
            if self._uses[weights.name] <= 0:
                del self._uses[weights.name]
                self._remove_folder(weights.name)

    def remove_all(self) -> None:
        """Remove every folder, and release the lock."""
        with self._lock:
            for name in self._uses:
                self._remove_folder(name)
            self._uses.clear()
        self._held.release()

    def _remove_folder(self, name: str) -> None:
        try:
            shutil.rmtree(self._root / name)
        except FileNotFoundError:  # removed meanwhile
            pass
        except OSError as error:
            log.error("a user's adapter cannot be removed from %s: %s", self._root, system_reason(error))
