"""Arguments and options that several commands have, with the shell's completion of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mta_cli.commands.shared.context import AppContext, GlobalFlags
from mta_cli.errors import MtaError
from mta_cli.text.printable import clean_text

CompletionCallback = Callable[[typer.Context], list[str]]
"""Returns all completions; the parameter keeps those that begin with the typed text."""


def _make_completer(find: Callable[[AppContext], Iterable[str]]) -> CompletionCallback:
    """A completion callback for the names that `find` returns; errors give no completions."""

    def complete(ctx: typer.Context) -> list[str]:
        try:
            given = ctx.find_root().params.get("store")
            names = find(AppContext(GlobalFlags(store=given if given is None else Path(given))))
            return [name for name in names if clean_text(name) == name]
        except Exception:
            return []

    return complete


def _user_names(context: AppContext) -> list[str]:
    """The names of the store's users, as completions. Raises NotFound without a store."""
    with context.open_registry() as registry:
        return registry.users.names()


def _bank_names(context: AppContext) -> list[str]:
    with context.open_registry() as registry:
        return sorted({bank.name for bank in registry.banks.all()})


def _task_names_or_builtin(context: AppContext) -> list[str]:
    from mta_cli.pipeline.data.tasks import task_names

    try:
        with context.open_registry() as registry:
            return task_names(registry)
    except MtaError:  # the built-in tasks need no store
        return task_names(None)


def _model_names(context: AppContext, kinds: Sequence[str] = ("base", "embedder")) -> list[str]:
    from mta_cli.pipeline.models.installed import list_models

    chosen = (getattr(context.model_options, kind) for kind in kinds)
    return sorted({*chosen, *(entry.name for entry in list_models() if entry.kind in kinds)})


def _method_names(_: AppContext) -> list[str]:
    from mta_cli.lab.evaluation.method_settings import method_rows

    return [row["method"] for row in method_rows()]


complete_users: CompletionCallback = _make_completer(_user_names)
complete_banks: CompletionCallback = _make_completer(_bank_names)
complete_tasks: CompletionCallback = _make_completer(_task_names_or_builtin)
complete_models: CompletionCallback = _make_completer(_model_names)
complete_bases: CompletionCallback = _make_completer(partial(_model_names, kinds=["base"]))
complete_embedders: CompletionCallback = _make_completer(partial(_model_names, kinds=["embedder"]))
complete_methods: CompletionCallback = _make_completer(_method_names)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved plan and change nothing.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for jobs that use the user's items.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before something is removed or replaced.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="DIR", help="The store's directory; by default MTA_STORE, else the user's data directory."
    ),
]
TaskOption = Annotated[
    str | None, typer.Option("--task", "-t", metavar="TASK", help="The task.", autocompletion=complete_tasks)
]
RequiredTaskOption = Annotated[
    str, typer.Option("--task", "-t", metavar="TASK", help="The task.", autocompletion=complete_tasks)
]
UserOption = Annotated[
    str | None, typer.Option("--user", "-u", metavar="USER", help="The user.", autocompletion=complete_users)
]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's name.", autocompletion=complete_users)]
ImportTaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        metavar="TASK",
        help="The task of records that do not name one; by default free, or commit for a repository.",
        autocompletion=complete_tasks,
    ),
]
ConsentOption = Annotated[
    bool | None,
    typer.Option(
        "--can-anchor/--no-can-anchor",
        help="Whether these users may be anchors, whose models help to serve others. Without this flag, "
        "you are asked about new users; if there is no terminal, they may be anchors, except a repository's authors. "
        "New users of mail and chats may not be anchors, and you are not asked about them.",
        show_default=False,
    ),
]
AssumeConsentOption = Annotated[
    bool,
    typer.Option(
        "--yes",
        "-y",
        help="Do not ask whether new users may be anchors: they may, but not those of mail, chats and repositories.",
    ),
]
