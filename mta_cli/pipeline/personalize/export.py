"""A user's model as a folder for other programs: task adapter, fusion and stack with their ranks concatenated.

The folder contains one LoRA or a whole model, for PEFT, vLLM, llama.cpp or Ollama. No user's name is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.model.checkpoint_files import read_config, sha256_file
from mta_cli.errors import BadInput, NotFound
from mta_cli.events import ArtifactSaved, Event, JobResult, Note
from mta_cli.options import MachineOptions, PromptOptions
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.personalize.export_card import MODELFILE, ExportCard
from mta_cli.pipeline.personalize.export_formats import (
    CARD_FILE,
    LIST_FILE,
    ExportedModel,
    ExportFormat,
    base_revision,
    loadable_base_name,
    peft_notes,
    public_base_name,
)
from mta_cli.pipeline.user_weights import (
    AnswerSource,
    act_on_all_tokens,
    merge_by_placement,
    most_personal_mode,
    other_bases_hint,
    user_command,
)
from mta_cli.pipeline.users.exported_folders import (
    FileContent,
    read_list,
    record_export,
    resolve_export_folder,
    write_folder,
)

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.text.prompts import PromptBuilder
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

LARGE_BYTES, SMALL_RANK = 10_000_000, 8  # for exports from this size on, the smaller rank is suggested


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export. `rank` None is exact; `base_name` is the base's name on the machine that will run it.

    `check` answers some of the user's questions before and after the export and counts changed answers, with `machine`
    and `prompt`.
    """

    form: ExportFormat = "peft"
    rank: int | None = None
    number_format: str = "f16"
    base_name: str | None = None
    approximate: bool = False
    replace: bool = False
    check: bool = False
    machine: MachineOptions = field(default_factory=MachineOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)


def export_user(
    reg: Registry, base_entry: ModelEntry, user: User, task: str, to: Path, options: ExportOptions | None = None
) -> Iterator[Event]:
    """Write the user's most personal model of `task` to the folder `to`, atomically.

    A folder with content is refused unless `options.replace`; then the files of an earlier export in it are replaced.
    Raises BadInput if another file would be overwritten, if parts act on late tokens (unless `options.approximate` lets
    them act on all), and if the base does not support this format.
    """
    options = options or ExportOptions()
    target = resolve_export_folder(reg, to, "an export", replace=options.replace, list_file=LIST_FILE)
    mode = _require_personal_mode(reg, base_entry, user, task)
    exact, source, notes = _weights_of_all_tokens(reg, base_entry, user, task, mode, options.approximate)
    if exact is None:
        raise NotFound(f"{user.name}'s model for {task} is the base itself: there is nothing to export.")
    weights, lost = _compress_to_rank(exact, options.rank)
    weights = pad_to_uniform_rank(weights)
    checked = _check(reg, base_entry, user, task, mode, weights, options) if options.check else {}
    if checked:
        said = "{changed} of {asked} answers differ from those of the user's model, both greedy."
        lost.append(said.format(**checked))
    if options.form == "peft":
        lost += peft_notes(weights, read_config(base_entry.path))
    for note in (notes := [*notes, *lost]):
        yield Note(note)
    digest = content_digest(weights)
    about = _metadata(base_entry, task, source, digest)
    model = ExportedModel(weights, base_entry, options.base_name, options.number_format, about)
    files = model.files(options.form) | _texts(base_entry, find_task(reg, task), weights.rank, options, notes)
    known = _own_files(target, files)
    with record_export(reg, user, target, options.form):
        size = write_folder(target, files, "The export", list_file=LIST_FILE, listed=known)
        for name in known.keys() - files.keys():  # files of an earlier export in another format
            (target / name).unlink(missing_ok=True)
    yield ArtifactSaved(f"{options.form} folder", str(target), f"rank {weights.rank}, {size / 1e6:.1f} MB")
    if options.form in ("peft", "gguf-lora") and size > LARGE_BYTES and weights.rank > SMALL_RANK:
        yield Note(f"--rank {SMALL_RANK} would make it about {size * SMALL_RANK / weights.rank / 1e6:.0f} MB.")
    yield JobResult(
        {
            "user": user.name,
            "to": str(target),
            "task": task,
            "base": base_entry.fingerprint,
            "format": options.form,
            "source": source.as_json(),
            "rank": weights.rank,
            "modules": len(weights.factors),
            "bytes": size,
            "digest": digest,
            **checked,
        }
    )


def _require_personal_mode(reg: Registry, entry: ModelEntry, user: User, task: str) -> str:
    """The user's most personal mode. Raises NotFound if that is the base."""
    mode = most_personal_mode(reg, user, task, entry.fingerprint)
    if mode == "base":
        raise NotFound(
            f"{user.name} has no fusion for {task} on {entry.name}, so there is nothing to export.",
            hint=other_bases_hint(reg, user, task, entry.fingerprint)
            + user_command(reg, "fuse", user, task, entry.fingerprint, entry.name),
        )
    return mode


def _weights_of_all_tokens(
    reg: Registry, entry: ModelEntry, user: User, task: str, mode: str, approximate: bool
) -> tuple[LoraWeights | None, AnswerSource, list[str]]:
    """The user's weights as one LoRA on all tokens, and notes on the approximation. Raises BadInput for late parts."""
    weights, late, source = merge_by_placement(reg, entry.fingerprint, user, task, mode)
    if late is None:
        return weights, source, []
    if not approximate:
        raise BadInput(
            f"The {mode} model of {user.name} acts on late tokens only, which no other program can do.",
            hint="Build bank and stacks with --placement upper, or let it act on all tokens with --approximate.",
        )
    note = "Parts that were trained for late tokens alone act on all tokens here, so answers may differ."
    return act_on_all_tokens(weights, late), source, [note]


def _check(
    reg: Registry,
    entry: ModelEntry,
    user: User,
    task: str,
    mode: str,
    exported: LoraWeights,
    options: ExportOptions,
) -> dict[str, int]:
    """The number of answers that the exported weights change, and the number of questions. Raises NotFound without
    questions.
    """
    from mta_cli.pipeline.personalize.export_check import count_changed_answers

    everywhere, late, _ = merge_by_placement(reg, entry.fingerprint, user, task, mode)
    before = [part for part in (everywhere, late) if part is not None]
    changed, asked = count_changed_answers(
        reg, entry, user, find_task(reg, task), before, exported, options.machine, options.prompt.history_items
    )
    return {"changed": changed, "asked": asked}


def _texts(
    entry: ModelEntry, task: Task, rank: int, options: ExportOptions, notes: Sequence[str]
) -> dict[str, FileContent]:
    card = ExportCard(
        options.form,
        public_base_name(entry),
        loadable_base_name(entry, options.base_name),
        entry.fingerprint,
        rank,
        task,
        tuple(notes),
        base_revision(entry, options.base_name),
    )
    prompter = _prompter(entry, task)
    texts: dict[str, FileContent] = {CARD_FILE: card.readme(prompter)}
    if options.form in ("gguf", "gguf-lora"):
        texts[MODELFILE] = card.modelfile(prompter)
    return texts


def _prompter(entry: ModelEntry, task: Task) -> PromptBuilder:
    """The task's prompt builder for the base, without the base's weights."""
    from mta_cli.engine.model.load import load_tokenizer
    from mta_cli.engine.text.prompts import PromptBuilder

    tokenizer = load_tokenizer(entry.path)
    return PromptBuilder(tokenizer, task, [tokenizer.eos_token_id])


def _own_files(target: Path, files: Mapping[str, object]) -> dict[str, list[str]]:
    """The files in `target` that an earlier export wrote and that are unchanged, with their SHA-256.

    The folder may be untrusted, so paths in its list that lead outside are ignored. Raises BadInput for another file
    that this export would replace.
    """
    listed: dict[str, list[str]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        found, inside = read_list(target / LIST_FILE), target.resolve()
        listed = {n: list(known) for n, known in found.items() if (target / n).parent.resolve().is_relative_to(inside)}
    if not listed and (target / LIST_FILE).exists():
        raise BadInput(
            f"{target / LIST_FILE} is not as an export of mta wrote it, and would be replaced.",
            hint="Name another folder with --to, or move the file.",
        )
    own = dict[str, list[str]]()
    for name in {**listed, **files}:
        path = target / name
        try:
            digest = sha256_file(path) if path.exists() else None
        except BadInput:  # a folder or an unreadable file, so not ours
            digest = ""
        if digest and digest in listed.get(name, ()):
            own[name] = [digest]
        elif digest is not None and name in files:
            raise BadInput(
                f"{path} is not as an export of mta wrote it, and would be replaced.",
                hint="Name another folder with --to, or move the file.",
            )
    return own


def _compress_to_rank(weights: LoraWeights, rank: int | None) -> tuple[LoraWeights, list[str]]:
    """The nearest weights of at most rank `rank`, and a sentence on the loss."""
    from mta_cli.engine.lora.merge import compress_to_rank

    if rank is None or rank >= weights.rank:
        return weights, []
    small = compress_to_rank(weights, rank)
    lost = 1 - (small.norm() / weights.norm()) ** 2 if weights.norm() else 0.0
    return small, [f"Rank {weights.rank} was reduced to {rank}: {max(lost, 0.0):.1%} of the change's energy is lost."]


def pad_to_uniform_rank(weights: LoraWeights) -> LoraWeights:
    """The same ΔW with the same rank in every module and scale 1; missing ranks are zeros.

    Some readers ignore per-module ranks, but all of them read a common rank.
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
    """SHA-256 over module names and factors, independent of the file format."""
    digest = hashlib.sha256()
    for path, (a, b) in sorted(weights.factors.items()):
        digest.update(f"{path}\0{tuple(a.shape)}\0{tuple(b.shape)}\0".encode())
        for tensor in (a, b):
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _metadata(entry: ModelEntry, task: str, source: AnswerSource, digest: str) -> dict[str, Any]:
    """The metadata of the file. It names neither the user nor the anchors, because the folder may be shared."""
    return {
        "digest": digest,
        "base": entry.fingerprint,
        "base_name": public_base_name(entry),
        "task": task,
        "mode": source.mode,
        "bank": source.bank,
        "bank_version": source.version,
    }
