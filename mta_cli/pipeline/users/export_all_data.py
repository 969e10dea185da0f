"""Exports all stored data about a user as a folder of readable files: `mta user export --all-data`.

The folder has JSON files, whose keys its `README.md` explains, and the adapters that were trained on this user only.
Loads no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.events import ArtifactSaved, Event, JobResult
from mta_cli.pipeline.users.dependents import banks_pooling_user
from mta_cli.pipeline.users.exported_folders import record_export, resolve_export_folder, write_folder
from mta_cli.pipeline.users.stored_data import Entry, anchor_entries, describe_user, share_entries
from mta_cli.text.printable import to_json
from store.records import REFUSED_USERS_KEY

if TYPE_CHECKING:
    from store.records import Bank, User
    from store.registry import Registry

FILE_DESCRIPTIONS = {
    "person.json": "name; can_anchor: consent to be an anchor, who helps to serve others; created; tasks (how "
    "much there is of each); group: by task, the group that a file gave; task_adapters: the banks whose task adapter "
    "was trained on the items of this user and of others (bank, version); refused_by: the banks whose "
    "screening refused the user's anchor, so that it was replaced and the user is not made their anchor again "
    "(bank, version).",
    "items.json": "The history: id, task, time, input and output of each item.",
    "queries.json": "Held-out queries, which measure models and never train them: id, task, time, input, gold.",
    "profiles.json": "A summary of the items, by which similar users are found: task, embedder, items (their number), "
    "vector (the sum of their embeddings, each of length 1).",
    "recipes.json": "The anchors from which the user's model is merged: bank, version, base_name, task, method, "
    "recipe_bytes, created, anchors (user, similarity, weight).",
    "stacks.json": "The weights that were trained on this user's items alone: bank, version, base_name, task, kind, "
    "digest, shots, steps, losses before and after, stack_bytes, created, anchors (below it in training), file (of "
    "a LoRA), numbers (of a core: the coefficients of the bank's main directions; digest is then the adapter with "
    "these directions, which all users share).",
    "anchors.json": "The user as an anchor: bank, version, base_name, task, anchor, items, digest, stale, file (the "
    "meta-LoRA that was trained on their items), resting (the users whose recipes or stacks use it).",
    "neighbours.json": "The user's items by which banks predict the labels of other users' questions: bank, "
    "version, task, id, vector (the embedding of the input).",
    "chats.json": "Conversations: id, title, created, messages (role, content, source, created).",
    "evaluations.json": "roles: evaluation, task, fold, role. made: evaluation, fold, method, settings, bytes, "
    "seconds. answers: evaluation, task, fold, method, settings, prompt, answer, gold, gold_loglik (nats), "
    "gold_tokens, scores (of each label), whose (the gold's log-likelihood under the user's own model, then under "
    "other users'), tokens, seconds.",
    "runs.json": "about: the jobs about this user, with config, result and steps (unit, step, loss, tokens, "
    "seconds). named_in: jobs about several users in whose request this user was named.",
}


def export_all_data(reg: Registry, name: str, to: Path) -> Iterator[Event]:
    """Write all stored data about a user to the folder `to`, atomically.

    Raises NotFound for an unknown user, BadInput for a folder that is not empty or cannot be made, and IntegrityFault
    for a damaged adapter file.
    """
    user = reg.users.get(name)
    target = resolve_export_folder(reg, to, "an export of all data")
    documents = collect_user_data(reg, user)
    adapters = {each["digest"]: each["file"] for part in ("stacks", "anchors") for each in documents[part]}
    files = {f"{part}.json": f"{to_json(value)}\n".encode() for part, value in documents.items()}
    files |= {file: reg.files.read(digest) for digest, file in adapters.items() if file is not None}
    lines = "".join(f"- `{name}`: {what}\n" for name, what in FILE_DESCRIPTIONS.items())
    readme = (
        "# All stored data about a user\n\nEvery file is JSON in UTF-8; times are in UTC. Adapters are in `adapters/`, "
        f"as safetensors under the digests of their contents.\n\n{lines}"
    )
    files["README.md"] = readme.encode()
    with record_export(reg, user, target, "all data"):
        write_folder(target, files, "The data", private=True)
    yield ArtifactSaved("all data", str(target), f"{len(files)} files")
    size = sum(len(content) for content in files.values())
    yield JobResult({"user": user.name, "to": str(target), "files": sorted(files), "bytes": size})


def collect_user_data(reg: Registry, user: User) -> dict[str, Any]:
    """The content of each JSON file, by the file's name without `.json`; see `FILE_DESCRIPTIONS`."""
    known = describe_user(reg, user.name)
    answers = [
        {**each, **{key: _unpack_floats(each[key], "<f4") for key in ("scores", "whose")}}
        for each in reg.user_data.eval_predictions(user.id)
    ]
    return {
        "person": {
            **{key: known[key] for key in ("name", "can_anchor", "created", "tasks", "group")},
            "task_adapters": [_bank_document(bank) for bank in banks_pooling_user(reg, user, measuring=True)],
            "refused_by": [
                _bank_document(bank) for bank in reg.banks.all() if user.id in bank.config.get(REFUSED_USERS_KEY, ())
            ],
        },
        "items": known["items"],
        "queries": known["queries"],
        "profiles": [_profile_document(reg, row) for row in reg.user_data.profiles(user.id)],
        "recipes": known["recipes"],
        "stacks": _stack_documents(reg, user, known["stacks"]),
        "anchors": [
            _anchor_document(reg, each) for each in anchor_entries(reg, user, reg.banks.all(with_evaluations=True))
        ],
        "neighbours": [
            {**row, "vector": _unpack_floats(row["vector"], "<f2")} for row in reg.user_data.neighbours(user.id)
        ],
        "chats": known["chats"],
        "evaluations": {
            "roles": reg.user_data.fold_roles(user.id),
            "made": reg.user_data.eval_cells(user.id),
            "answers": answers,
        },
        "runs": {
            "about": [_run_document(reg, each) for each in known["runs"]],
            "named_in": reg.user_data.runs_asked_for_user(user.id),
        },
    }


def _bank_document(bank: Bank) -> Entry:
    return {"bank": bank.name, "version": bank.version}


def _profile_document(reg: Registry, row: Mapping[str, Any]) -> Entry:
    try:
        embedder = reg.models.get(row["embedder"]).name
    except NotFound:
        embedder = row["embedder"]
    kept = {"task": row["task"], "embedder": embedder, "items": row["items"]}
    return {**kept, "vector": _unpack_floats(row["total"], "<f4")}


def _stack_documents(reg: Registry, user: User, known: list[Entry]) -> list[Entry]:
    """The document of each stack, with the user's own numbers or file, and the anchors below."""
    found = []
    for entry, stack in zip(known, reg.stacks.of_user(user.id), strict=True):
        file, below = _adapter_path(stack.digest), share_entries(reg, stack.bank_id, stack.recipe)
        own = {"file": file if stack.numbers is None else None, "numbers": _unpack_floats(stack.numbers, "<f2")}
        found.append({**entry, **own, "anchors": below})
    return found


def _anchor_document(reg: Registry, entry: Entry) -> Entry:
    bank = reg.banks.get(entry["bank"], entry["version"])
    file = _adapter_path(entry["digest"]) if entry["digest"] is not None else None
    return {**entry, "file": file, "resting": reg.banks.dependent_users(bank.id, [entry["anchor"]])}


def _run_document(reg: Registry, entry: Entry) -> Entry:
    names = ("unit", "step", "loss", "tokens", "seconds")
    return {**entry, "steps": [{name: getattr(step, name) for name in names} for step in reg.runs.steps(entry["id"])]}


def _adapter_path(digest: str) -> str:
    return f"adapters/{digest}.safetensors"


def _unpack_floats(packed: bytes | None, dtype: str) -> list[float] | None:
    """The numbers in `packed`, of a numpy `dtype`."""
    import numpy as np

    return None if packed is None else [float(number) for number in np.frombuffer(packed, dtype)]
