"""All stored data about one user, as plain values. Uses neither the terminal nor SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.bases_in_use import base_name
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.users.provenance import user_contributions, user_dependencies

if TYPE_CHECKING:
    from store.records import AnchorWeight, Bank, Item, Query, Recipe, Run, Stack, User
    from store.registry import Registry

Entry = dict[str, Any]


def describe_user(reg: Registry, name: str, *, with_texts: bool = True) -> Entry:
    """A user's stored data: consent, the group in each task, counts of items and queries, profiles, recipes, stacks,
    anchors, chats and runs.

    `rests_on` lists the other users' data that this user's models use, and `given_to` the banks that use this user's
    data. With `with_texts`, the items and queries themselves are included. Raises NotFound for an unknown user.
    """
    user = reg.users.get(name)
    held = reg.users.tasks_of_user(user.id)
    tasks = [task for task, _, _ in held]
    entry = {
        "name": user.name,
        "can_anchor": user.can_anchor,
        "created": user.created,
        "tasks": [{"task": task, "items": items, "queries": queries} for task, items, queries in held],
        "group": reg.users.groups_of_user(user.id),
        "profiles": _profile_entries(reg, user, tasks),
        "recipes": [_recipe_entry(reg, recipe) for recipe in reg.recipes.of_user(user.id)],
        "stacks": [_stack_entry(reg, stack) for stack in reg.stacks.of_user(user.id)],
        "anchors": anchor_entries(reg, user, reg.banks.all()),
        "rests_on": user_dependencies(reg, user),
        "given_to": user_contributions(reg, user),
        "chats": [_chat_entry(reg, chat) for chat in reg.chats.of_user(user.id)],
        "runs": user_runs(reg, name),
    }
    if with_texts:
        entry["items"] = [item_entry(item) for task in tasks for item in reg.items.recent_items(user.id, task, None)]
        entry["queries"] = [query_entry(query) for task in tasks for query in reg.items.queries(user.id, task)]
    return entry


def user_runs(reg: Registry, name: str) -> list[Entry]:
    """The runs about a user, with their results. Raises `NotFound`."""
    user = reg.users.get(name)
    return [run_entry(run) for run in reg.runs.of_user(user.id)]


def run_entry(run: Run) -> Entry:
    """A run as plain values."""
    names = ("id", "kind", "subject", "status", "started", "ended", "config", "result", "error")
    return {name: getattr(run, name) for name in names}


def item_entry(item: Item) -> Entry:
    """A history item with the keys of the JSONL format."""
    return {"id": item.key, "task": item.task, "time": item.time, "input": item.input, "output": item.output}


def query_entry(query: Query) -> Entry:
    """A held-out query as plain values."""
    return {"id": query.key, "task": query.task, "time": query.time, "input": query.input, "gold": query.gold}


def find_items(
    reg: Registry, name: str, *, task: str | None = None, limit: int = 20, search: str | None = None
) -> list[Item]:
    """A user's most recent items, oldest first, or with `search` the best matches, best first.

    Raises `NotFound` for an unknown user, and for an unknown task of which the user has no items.
    """
    user = reg.users.get(name)
    tasks = [held for held, _, _ in reg.users.tasks_of_user(user.id)]
    if task is not None:
        if task not in tasks:
            find_task(reg, task)
        tasks = [task]
    if search is None:
        found = [item for each in tasks for item in reg.items.recent_items(user.id, each, limit)]
        return sorted(found, key=lambda item: (item.time or "", item.id))[-limit:]
    matches = [reg.items.search_items(user.id, each, search, limit=limit, fill=False) for each in tasks]
    ranks = range(max(map(len, matches), default=0))
    return [item for rank in ranks for found in matches for item in found[rank : rank + 1]][:limit]


def _profile_entries(reg: Registry, user: User, tasks: list[str]) -> list[Entry]:
    """Of each stored profile, the embedding of a task's items: task, embedder and number of items, not the vector."""
    embedders = [base for base in reg.models.all() if base.kind == "embedder"]
    entries = []
    for task in tasks:
        for embedder in embedders:
            profile = reg.profiles.get(user.id, task, embedder.fingerprint)
            if profile is not None:
                entries.append({"task": task, "embedder": embedder.name, "items": profile.items})
    return entries


def _bank_entry(reg: Registry, bank: Bank) -> Entry:
    name = base_name(reg, bank.base)
    return {"bank": bank.name, "version": bank.version, "task": bank.task, "base": bank.base, "base_name": name}


def _recipe_entry(reg: Registry, recipe: Recipe) -> Entry:
    made = {"method": recipe.method, "recipe_bytes": recipe.bytes, "created": recipe.created}
    anchors = {"anchors": share_entries(reg, recipe.bank_id, recipe.shares)}
    return _bank_entry(reg, reg.banks.by_id(recipe.bank_id)) | made | anchors


def share_entries(reg: Registry, bank_id: int, shares: Sequence[AnchorWeight]) -> list[Entry]:
    """The anchors of a recipe, with their users' names."""
    users = {anchor.id: anchor.user for anchor in reg.banks.anchors(bank_id)}
    return [{"user": users.get(one.anchor_id), "similarity": one.similarity, "weight": one.weight} for one in shares]


def _stack_entry(reg: Registry, stack: Stack) -> Entry:
    kept = ("digest", "shots", "steps", "loss_before", "loss_after", "heldout_before", "heldout_after", "created")
    values = {name: value for name, value in asdict(stack).items() if name in kept}
    return (
        _bank_entry(reg, reg.banks.by_id(stack.bank_id))
        | values
        | {
            "kind": "lora" if stack.numbers is None else "core",
            "stack_bytes": stack.bytes,
        }
    )


def anchor_entries(reg: Registry, user: User, banks: Sequence[Bank]) -> list[Entry]:
    """The user's anchors in these banks."""
    return [
        _bank_entry(reg, bank)
        | {"anchor": anchor.id, "items": anchor.items, "digest": anchor.digest, "stale": anchor.stale}
        for bank in banks
        for anchor in reg.banks.anchors(bank.id)
        if anchor.user_id == user.id
    ]


def _chat_entry(reg: Registry, chat: Any) -> Entry:
    messages = reg.chats.messages(chat.id)
    names = ("role", "content", "source", "created")
    said = [{name: getattr(each, name) for name in names} for each in messages]
    return {"id": chat.id, "title": chat.title, "created": chat.created, "messages": said}
