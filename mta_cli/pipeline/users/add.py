"""Adds users, with or without a history. Uses neither the terminal nor SQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput, Flag
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, Note, PlanLine
from mta_cli.pipeline.data.confusable_names import confusable_name_warnings
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.data.tasks import find_task
from store.names import check_name

if TYPE_CHECKING:
    from mta_cli.pipeline.users.import_file import AskConsent
    from store.registry import Registry

RESULT_KEYS = ("task", "items", "items_added", "items_unchanged", "dry_run")
HISTORY_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}


def add_user(
    reg: Registry,
    name: str,
    *,
    history: Path | None = None,
    task: str | None = None,
    can_anchor: bool | None = None,
    ask: AskConsent | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Add a user, optionally with a history; the history of an existing user is extended.

    Without `can_anchor`, `ask` decides whether a new user may be an anchor; without both, the user may.

    Raises `BadInput` for an invalid name, and for an existing user without a history to add.
    """
    name = check_name(name)
    if history is not None:
        yield from _add_with_history(reg, name, history, task, can_anchor, ask, dry_run)
        return
    if task is not None:
        find_task(reg, task)
    names = reg.users.names()
    if name in names:
        raise BadInput(
            f"there is a user {format_value(name)} already",
            hint=("to add to their history, give ", Flag("history", "FILE"), "; otherwise choose another name"),
        )
    yield from (Note(text, warning=True) for text in confusable_name_warnings([name], names))
    if dry_run:
        consent = "no" if can_anchor is False else "yes"
        yield JobPlan(
            "add", (PlanLine("user", name, "flag NAME"), PlanLine("may be an anchor", consent, "flag --can-anchor"))
        )
        yield JobResult({"user": name, "added": True, "dry_run": True})
        return
    may = ask(1) if ask is not None and can_anchor is None else can_anchor is not False
    user = reg.users.add(name, can_anchor=may)
    yield ArtifactSaved("user", user.name)
    yield JobResult({"user": user.name, "added": True, "items_added": 0, "items_unchanged": 0})


def _add_with_history(
    reg: Registry,
    name: str,
    history: Path,
    task: str | None,
    can_anchor: bool | None,
    ask: AskConsent | None,
    dry_run: bool,
) -> Iterator[Event]:
    from mta_cli.pipeline.users.import_file import import_file

    known, kind = name in reg.users.names(), history_format(history)
    job = import_file(reg, kind, history, task=task, can_anchor=can_anchor, ask=ask, user=name, dry_run=dry_run)
    for event in job:
        if isinstance(event, JobResult):
            counts = {key: event.result[key] for key in RESULT_KEYS if key in event.result}
            yield JobResult({"user": name, "added": not known, **counts})
        else:
            yield event


def history_format(path: Path) -> str:
    """The format of a history file, by its extension. Raises `BadInput` for an unknown extension."""
    found = HISTORY_FORMATS.get(path.suffix.casefold())
    if found is None:
        raise BadInput(
            f"{path.name} ends in none of {', '.join(HISTORY_FORMATS)}",
            hint="give a JSONL or CSV file with the fields input and output, whose name ends in .jsonl or .csv",
        )
    return found
