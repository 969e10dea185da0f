"""Exports a user's model as a folder for other programs: PEFT, vLLM, llama.cpp or Ollama.

Task adapter, fusion and stack become one LoRA, alone or merged into the base. Some of the user's items are added as
examples for prompts. The folder contains no user's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mta_cli.engine.model.checkpoint_files import read_config, sha256_file
from mta_cli.engine.text.prompts import HistoryExample
from mta_cli.errors import BadInput, Flag, NotFound
from mta_cli.events import ArtifactSaved, Event, JobResult, Note
from mta_cli.options import MachineOptions, PromptOptions
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.personalize.export_card import EXAMPLES_FILE, MODELFILE, ExportCard
from mta_cli.pipeline.personalize.export_check import ExportCheck
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
    OWN_MODES,
    AnswerSource,
    approximate_on_all_tokens,
    loras_by_placement,
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
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

AUTO_RANKS = (4, 8, 16, 32, 64)
MAX_AUTO_LOSS = 0.01  # nats per token: the most that a smaller rank may add to the loss of the user's own answers
LORA_FORMS = ("peft", "gguf-lora")


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported. `base_name` is the base's name on the machine that will run the model.

    `rank` None keeps the model exact. `rank` "auto" chooses the smallest rank that adds at most `MAX_AUTO_LOSS` to the
    loss of the user's own answers; a whole model stays exact. `examples` is the number of the user's items in the
    export; None means as many as prompts show. With `check`, the user's model and the exported one answer some of the
    user's questions, and the answers that differ are counted. `machine` and `prompt` are for these measurements.
    """

    form: ExportFormat = "peft"
    rank: int | Literal["auto"] | None = None
    examples: int | None = None
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
    Raises NotFound if the user has no model of their own. Raises BadInput if another file would be overwritten, if the
    base does not support this format, and if parts act on late tokens, unless `options.approximate` lets them act on
    all tokens.
    """
    options = options or ExportOptions()
    target = resolve_export_folder(reg, to, "an export", replace=options.replace, list_file=LIST_FILE)
    mode = _require_personal_mode(reg, base_entry, user, task)
    everywhere, late, source = loras_by_placement(reg, base_entry.fingerprint, user, task, mode)
    ours = [part for part in (everywhere, late) if part is not None]
    full, notes = everywhere, list[str]()
    if late is not None:
        _require_approximation(user, mode, options)
        full = approximate_on_all_tokens(everywhere, late)
        notes = ["Parts that were trained for late tokens alone act on all tokens here, so answers may differ."]
    if full is None:
        raise NotFound(f"{user.name}'s model for {task} is the unchanged base, so there is nothing to export.")
    known_task, history_items = find_task(reg, task), options.prompt.history_items
    check = ExportCheck(reg, base_entry, user, known_task, options.machine, history_items)
    weights, lost = _compress_to_rank(full, options, check)
    weights = pad_to_uniform_rank(weights)
    measured: dict[str, Any] = {}
    if (options.approximate or weights.rank < full.rank) and check.rows:
        measured = {"heldout_model": check.loss(ours), "heldout_export": check.loss([weights])}
        measured["heldout_answers"] = len(check.rows)
        lost.append(
            "Loss of the user's own answers: {heldout_model:.3f} nats a token with the user's model, "
            "{heldout_export:.3f} with this one ({heldout_answers} answers).".format(**measured)
        )
    if options.check:
        changed, asked = check.count_changed_answers(ours, weights)
        measured |= {"changed": changed, "asked": asked}
        lost.append(f"{changed} of {asked} answers differ from the user's model, both with greedy decoding.")
    if options.form == "peft":
        lost += peft_notes(weights, read_config(base_entry.path))
    for note in (notes := [*notes, *lost]):
        yield Note(note)
    digest = content_digest(weights)
    about = _metadata(base_entry, task, source, digest)
    model = ExportedModel(weights, base_entry, options.base_name, options.number_format, about)
    count = history_items if options.examples is None else options.examples
    newest = reversed(reg.items.recent_items(user.id, task, count))
    examples = [HistoryExample(item.input, item.output) for item in newest]
    yield Note(_content_notes(known_task, len(examples)))
    files = model.files(options.form) | _texts(base_entry, known_task, weights.rank, options, notes, examples)
    known = _own_files(target, files)
    with record_export(reg, user, target, options.form):
        size = write_folder(target, files, "The export", list_file=LIST_FILE, listed=known)
        for name in known.keys() - files.keys():  # files of an earlier export in another format
            (target / name).unlink(missing_ok=True)
    yield ArtifactSaved(f"{options.form} folder", str(target), f"rank {weights.rank}, {size / 1e6:.1f} MB")
    yield JobResult(
        {
            "user": user.name,
            "to": str(target),
            "task": task,
            "base": base_entry.fingerprint,
            "format": options.form,
            "source": source.as_json(),
            "rank": weights.rank,
            "examples": len(examples),
            "modules": len(weights.factors),
            "bytes": size,
            "digest": digest,
            **measured,
        }
    )


def _require_personal_mode(reg: Registry, entry: ModelEntry, user: User, task: str) -> str:
    """The user's most personal mode. Raises NotFound if they have no model of their own."""
    mode = most_personal_mode(reg, user, task, entry.fingerprint)
    if mode not in OWN_MODES:
        raise NotFound(
            f"{user.name} has no fusion for {task} on {entry.name}, so there is nothing to export.",
            hint=(
                *other_bases_hint(reg, user, task, entry.fingerprint),
                user_command(reg, "fuse", user, task, entry.fingerprint, entry.name),
            ),
        )
    return mode


def _require_approximation(user: User, mode: str, options: ExportOptions) -> None:
    """Raises BadInput for a model with late parts unless an approximation is asked for."""
    if not options.approximate:
        raise BadInput(
            f"The {mode} model of {user.name} acts on late tokens only, which other programs cannot do.",
            hint=(
                "Build the bank and the stacks with ",
                Flag("placement", "upper"),
                ", or export an approximation that acts on all tokens with ",
                Flag("approximate"),
                ".",
            ),
        )


def _content_notes(task: Task, examples: int) -> str:
    """A note on the user's items in the folder, and on parts of the model that cannot be exported."""
    stays = "the label memory" if task.labels else "the other items"
    if not examples:
        return f"The export contains no item of the user. It does not contain {stays} either."
    own = f"The export contains {pluralise(examples, 'item')} of the user word for word"
    return f"{own} (--examples 0 leaves them out). It does not contain {stays}."


def _texts(
    entry: ModelEntry,
    task: Task,
    rank: int,
    options: ExportOptions,
    notes: Sequence[str],
    examples: Sequence[HistoryExample],
) -> dict[str, FileContent]:
    from mta_cli.engine.model.load import load_tokenizer
    from mta_cli.engine.text.prompts import PromptBuilder

    card = ExportCard(
        options.form,
        public_base_name(entry),
        loadable_base_name(entry, options.base_name),
        entry.fingerprint,
        rank,
        task,
        tuple(notes),
        base_revision(entry, options.base_name),
        tuple(examples),
    )
    tokenizer = load_tokenizer(entry.path)
    prompter = PromptBuilder(tokenizer, task, [tokenizer.eos_token_id])
    texts: dict[str, FileContent] = {CARD_FILE: card.readme(prompter)}
    if examples:
        texts[EXAMPLES_FILE] = card.examples_json(prompter)
    if options.form in ("gguf", "gguf-lora"):
        texts[MODELFILE] = card.modelfile(prompter)
    return texts


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
            f"{target / LIST_FILE} is not as an export of mta wrote it; this export would overwrite it.",
            hint=("Name another folder with ", Flag("to"), ", or move the file."),
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
                f"{path} is not as an export of mta wrote it; this export would overwrite it.",
                hint=("Name another folder with ", Flag("to"), ", or move the file."),
            )
    return own


def _compress_to_rank(full: LoraWeights, options: ExportOptions, check: ExportCheck) -> tuple[LoraWeights, list[str]]:
    """The weights at the requested rank, and a sentence on what a smaller rank loses; no sentence if none is lost."""
    from mta_cli.engine.lora.merge import compress_to_rank

    small, rank = full, options.rank
    if rank == "auto":
        small = _find_lowest_rank(full, check) if options.form in LORA_FORMS else full
    elif rank is not None and rank < full.rank:
        small = compress_to_rank(full, rank)
    if small.rank == full.rank:
        return full, []
    lost = 1 - (small.norm() / full.norm()) ** 2 if full.norm() else 0.0
    return small, [
        f"Rank {full.rank} was reduced to {small.rank}: {max(lost, 0.0):.1%} of the squared norm of ΔW is lost."
    ]


def _find_lowest_rank(full: LoraWeights, check: ExportCheck) -> LoraWeights:
    """The weights at the lowest rank of `AUTO_RANKS` whose loss exceeds that of `full` by at most `MAX_AUTO_LOSS`.

    Returns `full` if the user has no answers to measure on.
    """
    from mta_cli.engine.lora.merge import compress_to_rank, keep_first_directions

    ranks = [rank for rank in AUTO_RANKS if rank < full.rank]
    if not ranks or not check.rows:
        return full
    allowed = check.loss([full]) + MAX_AUTO_LOSS
    largest = compress_to_rank(full, ranks[-1])
    candidates = (keep_first_directions(largest, rank) for rank in ranks)
    return next((one for one in candidates if check.loss([one]) <= allowed), full)


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
    """The metadata of the weight file. It contains no names, because the folder may be shared."""
    return {
        "digest": digest,
        "base": entry.fingerprint,
        "base_name": public_base_name(entry),
        "task": task,
        "mode": source.mode,
        "bank": source.bank,
        "bank_version": source.version,
    }
