"""A user's model as one PEFT adapter folder: task adapter, fusion and stack with their ranks concatenated.

PEFT and vLLM load the folder as it is. The export loads no model and writes no user's name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.model.safetensors_header import read_safetensors_header
from mta_cli.errors import BadInput, MtaError, NotFound
from mta_cli.events import ArtifactSaved, Event, JobResult, Note
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.user_weights import AnswerSource, merge_user_weights, most_personal_mode
from mta_cli.pipeline.users.exported_folders import record_export, resolve_export_folder, write_folder
from store.files import sha256

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

FILES_KEY = "files"  # in the metadata of the weights: the SHA-256 of the other files
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "adapter_model.safetensors", "adapter_config.json", "README.md"
_HUB = re.compile(r"hf:(?P<repository>[^@]+)(?:@(?P<revision>.+))?")


def export_user(
    reg: Registry,
    base_entry: ModelEntry,
    user: User,
    task: str,
    to: Path,
    *,
    rank: int | None = None,
    replace: bool = False,
) -> Iterator[Event]:
    """Write the user's most personal model of `task` to the folder `to`, which appears whole or not at all.

    `rank` reduces it to the nearest adapter of that rank. A folder with content is refused unless `replace`; then the
    files of an earlier export in it are replaced. Raises BadInput where another file would be.
    """
    target = resolve_export_folder(
        reg,
        to,
        "an adapter",
        replace=replace,
        hint="Name another folder with --to, or replace the adapter in it with --yes.",
    )
    mode = most_personal_mode(reg, user, task, base_entry.fingerprint)
    if mode == "base":
        raise NotFound(
            f"{user.name} has no fusion for {task} on {base_entry.name}, so there is nothing to export.",
            hint=f"mta user fuse {shlex.quote(user.name)} --task {task}",
        )
    weights, source = merge_user_weights(reg, base_entry.fingerprint, user, task, mode)
    if weights is None:
        raise NotFound(f"{user.name}'s model for {task} is the base itself: there is nothing to export.")
    padded = pad_to_uniform_rank((yield from _compress_to_rank(weights, rank)))
    digest = content_digest(padded)
    texts = {
        CONFIG_FILE: _json(peft_config(padded, base_entry)),
        CARD_FILE: _card(base_entry, find_task(reg, task), padded.rank).encode(),
    }
    digests = {name: sha256(content) for name, content in texts.items()}
    about = _adapter_metadata(base_entry, task, source, digest) | {FILES_KEY: digests}
    files = {WEIGHTS_FILE: padded.to_bytes(about), **texts}
    _require_own_files(target)
    with record_export(reg, user, target, "adapter"):
        write_folder(target, files, "The adapter")
    yield ArtifactSaved("adapter folder", str(target), f"rank {padded.rank}")
    yield JobResult(
        {
            "user": user.name,
            "to": str(target),
            "task": task,
            "base": base_entry.fingerprint,
            "source": source.as_json(),
            "rank": padded.rank,
            "modules": len(padded.factors),
            "bytes": sum(len(content) for content in files.values()),
            "digest": digest,
        }
    )


def _require_own_files(target: Path) -> None:
    """Raises BadInput for a file that an export would replace and that no earlier export wrote as it is."""
    there = [name for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE) if (target / name).exists()]
    digests: dict[str, str] = {}
    with suppress(MtaError, OSError, ValueError, KeyError, TypeError):
        about = json.loads(read_safetensors_header(target / WEIGHTS_FILE).metadata["mta"])
        digests = {WEIGHTS_FILE: "", **about[FILES_KEY]}
    for name in there:
        if name not in digests or digests[name] not in ("", sha256((target / name).read_bytes())):
            raise BadInput(
                f"{target / name} is not as an export of mta wrote it, and would be replaced.",
                hint="Name another folder with --to, or move the file.",
            )


def _compress_to_rank(weights: LoraWeights, rank: int | None) -> Generator[Event, None, LoraWeights]:
    """The nearest weights of rank `rank`, where the rank is higher; a note says how much is lost."""
    from mta_cli.engine.lora.merge import compress_to_rank

    if rank is None or rank >= weights.rank:
        return weights
    small = compress_to_rank(weights, rank)
    lost = 1 - (small.norm() / weights.norm()) ** 2 if weights.norm() else 0.0
    yield Note(f"Rank {weights.rank} was reduced to {rank}: {max(lost, 0.0):.1%} of the change's energy is lost.")
    return small


def pad_to_uniform_rank(weights: LoraWeights) -> LoraWeights:
    """The same ΔW with one rank in every module and scale 1: missing ranks are zeros.

    Some readers ignore a rank per module; all of them read a common rank.
    """
    import torch

    from mta_cli.engine.lora.adapter import LoraWeights

    rank, factors = weights.rank, {}
    for path, (a, b) in weights.factors.items():
        lacking = rank - a.shape[0]
        wide = torch.nn.functional.pad(weights.scale * b.float(), (0, lacking))  # [out, rank]
        factors[path] = (torch.nn.functional.pad(a.float(), (0, 0, 0, lacking)), wide)
    return LoraWeights(factors, 1.0, weights.placement)


def content_digest(weights: LoraWeights) -> str:
    """SHA-256 over module names and factors: it depends on the content and not on the file format."""
    digest = hashlib.sha256()
    for path, (a, b) in sorted(weights.factors.items()):
        digest.update(f"{path}\0{tuple(a.shape)}\0{tuple(b.shape)}\0".encode())
        for tensor in (a, b):
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def peft_config(weights: LoraWeights, entry: ModelEntry) -> dict[str, Any]:
    """`adapter_config.json`: alpha equals the rank, so PEFT's scale is 1. Modules are named by their full paths."""
    hub = _HUB.fullmatch(entry.name)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub["repository"] if hub else str(entry.path),
        "revision": hub["revision"] if hub else None,
        "r": weights.rank,
        "lora_alpha": weights.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(weights.factors),
    }


def _adapter_metadata(entry: ModelEntry, task: str, source: AnswerSource, digest: str) -> dict[str, Any]:
    """The metadata of the file. It names neither the user nor the anchors, because the folder may be shared."""
    return {
        "digest": digest,
        "base": entry.fingerprint,
        "base_name": _public_base_name(entry),
        "task": task,
        "mode": source.mode,
        "bank": source.bank,
        "bank_version": source.version,
    }


def _public_base_name(entry: ModelEntry) -> str:
    return entry.name if _HUB.fullmatch(entry.name) else Path(entry.name).name


def _card(entry: ModelEntry, task: Task, rank: int) -> str:
    """A README on how to prompt this adapter: the messages it was trained with, for readers that do not use mta."""
    from mta_cli.engine.text.tasks import TEMPLATE_SYSTEM_MESSAGE

    system = [] if task.system == TEMPLATE_SYSTEM_MESSAGE else [{"role": "system", "content": task.system}]
    messages = [*system, {"role": "user", "content": task.prompt}]
    return (
        f"---\nlibrary_name: peft\ntags: [lora]\n---\n\nA LoRA of rank {rank} for {_public_base_name(entry)}, "
        f"fingerprint `{entry.fingerprint}`.\n\nIt was trained under the base's own chat template with these messages, "
        f"`{{input}}` being the question:\n\n```json\n{json.dumps(messages, indent=2, ensure_ascii=False)}\n```\n"
    )


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
