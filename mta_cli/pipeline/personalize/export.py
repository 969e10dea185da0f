"""A user's model as a folder for other programs: task adapter, fusion and stack with their ranks concatenated.

The folder is one LoRA or a whole model, for PEFT, vLLM, llama.cpp or Ollama. No name of a user is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.model.checkpoint_files import read_config, sha256_file
from mta_cli.errors import BadInput, Flag, NotFound
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

LARGE_BYTES, SMALL_RANK = 10_000_000, 8  # from this size on, an export is offered at this rank


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported. `rank` None is exact; `base_name` is what the base is called where it will run.

    `check` answers some of the user's questions before and after, and counts the answers that changed; `machine` and
    `prompt` are for that.
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
    """Write the user's most personal model of `task` to the folder `to`, which appears whole or not at all.

    A folder with content is refused unless `options.replace`; then the files of an earlier export in it are replaced.
    Raises BadInput where another file would be, where parts act on late tokens (unless `options.approximate` lets them
    act on all), and where the base cannot have this form.
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
        for name in known.keys() - files.keys():  # of an export in another form: a model that is no longer described
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
    """The user's most personal mode. Raises NotFound where that is the base."""
    mode = most_personal_mode(reg, user, task, entry.fingerprint)
    if mode == "base":
        raise NotFound(
            f"{user.name} has no fusion for {task} on {entry.name}, so there is nothing to export.",
            hint=(
                *other_bases_hint(reg, user, task, entry.fingerprint),
                user_command(reg, "fuse", user, task, entry.fingerprint, entry.name),
            ),
        )
    return mode


def _weights_of_all_tokens(
    reg: Registry, entry: ModelEntry, user: User, task: str, mode: str, approximate: bool
) -> tuple[LoraWeights | None, AnswerSource, list[str]]:
    """The user's weights as one LoRA on all tokens, and what that changed. Raises BadInput for late parts."""
    weights, late, source = merge_by_placement(reg, entry.fingerprint, user, task, mode)
    if late is None:
        return weights, source, []
    if not approximate:
        raise BadInput(
            f"The {mode} model of {user.name} acts on late tokens only, which no other program can do.",
            hint=(
                "Build bank and stacks with ",
                Flag("placement", "upper"),
                ", or let it act on all tokens with ",
                Flag("approximate"),
                ".",
            ),
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
    """How many answers to how many of the user's questions the exported weights change. Raises NotFound without any."""
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
    """The task's prompts for the base, without its weights."""
    from mta_cli.engine.model.load import load_tokenizer
    from mta_cli.engine.text.prompts import PromptBuilder

    tokenizer = load_tokenizer(entry.path)
    return PromptBuilder(tokenizer, task, [tokenizer.eos_token_id])


def _own_files(target: Path, files: Mapping[str, object]) -> dict[str, list[str]]:
    """The files in `target` that an earlier export wrote and that are as it wrote them, with their SHA-256.

    The folder may come from others, so what its list names outside of it is left out. Raises BadInput for a file that
    this export would replace and that is none of them.
    """
    listed: dict[str, list[str]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        found, inside = read_list(target / LIST_FILE), target.resolve()
        listed = {n: list(known) for n, known in found.items() if (target / n).parent.resolve().is_relative_to(inside)}
    if not listed and (target / LIST_FILE).exists():
        raise BadInput(
            f"{target / LIST_FILE} is not as an export of mta wrote it, and would be replaced.",
            hint=("Name another folder with ", Flag("to"), ", or move the file."),
        )
    own = dict[str, list[str]]()
    for name in {**listed, **files}:
        path = target / name
        try:
            digest = sha256_file(path) if path.exists() else None
        except BadInput:  # a folder, or not readable: at any rate not ours
            digest = ""
        if digest and digest in listed.get(name, ()):
            own[name] = [digest]
        elif digest is not None and name in files:
            raise BadInput(
                f"{path} is not as an export of mta wrote it, and would be replaced.",
                hint=("Name another folder with ", Flag("to"), ", or move the file."),
            )
    return own


def _compress_to_rank(weights: LoraWeights, rank: int | None) -> tuple[LoraWeights, list[str]]:
    """The nearest weights of rank `rank`, where the rank is higher, and a sentence on how much is lost."""
    from mta_cli.engine.lora.merge import compress_to_rank

    if rank is None or rank >= weights.rank:
        return weights, []
    small = compress_to_rank(weights, rank)
    lost = 1 - (small.norm() / weights.norm()) ** 2 if weights.norm() else 0.0
    return small, [f"Rank {weights.rank} was reduced to {rank}: {max(lost, 0.0):.1%} of the change's energy is lost."]


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
