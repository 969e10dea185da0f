"""`mta task`: how items become prompts and how answers are scored. Signature, help, rendering; no logic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import JsonOption, YesOption, complete_tasks
from mta_cli.commands.shared.context import AppContext, app_context, confirm
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.errors import NotFound
from mta_cli.terminal.output import text
from mta_cli.terminal.tables import key_value_grid

if TYPE_CHECKING:
    from store.registry import Registry

app = CommandGroup("Tasks: prompts, labels and scores.")

_TASK_COLUMNS = ("name", "kind", "metric", "users", "description")

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.", autocompletion=complete_tasks)]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A task file in TOML; docs/tasks.md describes it.")]


@contextmanager
def _registry_if_exists(context: AppContext) -> Iterator[Registry | None]:
    """The store, or None if there is none: built-in tasks need no store."""
    try:
        opened = context.open_registry()
    except NotFound:
        yield None
        return
    with opened:
        yield opened


@app.command("list")
def list_all(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the tasks, built-in and added."""
    from mta_cli.pipeline.data.tasks import list_tasks

    context = app_context(ctx, json=json)
    with _registry_if_exists(context) as registry:
        context.output.print_rows(
            _TASK_COLUMNS, list_tasks(registry), lambda task: [task[name] for name in _TASK_COLUMNS]
        )


@app.command("show")
def show(
    ctx: typer.Context,
    name: TaskArgument,
    toml: Annotated[bool, typer.Option("--toml", help="Print a task file that you can change and add.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a task: prompt, labels, fields, limits."""
    from mta_cli.pipeline.data.tasks import task_json, task_toml

    context = app_context(ctx, json=json)
    with _registry_if_exists(context) as registry:
        if toml and not json:
            context.output.write_stdout(task_toml(registry, name))
        else:
            context.output.print_result(task_json(registry, name), _render_facts)


@app.command("add")
def add(ctx: typer.Context, file: FileArgument, json: JsonOption = False) -> None:
    """Add a task from a task file. The file is checked first; adding it again changes nothing."""
    from mta_cli.pipeline.data.tasks import add_task, task_json

    context = app_context(ctx, json=json)
    with context.open_registry() as registry:
        task, new = add_task(registry, file)
        context.output.print_result({**task_json(registry, task.name), "added": new}, _render_addition)


@app.command("rm")
def remove(ctx: typer.Context, name: TaskArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove an added task. Its histories and banks stay, but cannot be used until it is added again."""
    from mta_cli.pipeline.data.tasks import count_task_users, remove_task

    context = app_context(ctx, json=json)
    with context.open_registry() as registry:
        users = count_task_users(registry, name)
        banks = dict.fromkeys(bank.name for bank in registry.banks.all() if bank.task == name)
        question = f"Remove task {name}? {_kept_histories_line(users)}"
        if banks:
            question += f" Models on {', '.join(banks)} cannot answer until the task is added again."
        confirm(context.output, question, yes=yes)
        context.output.print_result(remove_task(registry, name), _render_removal)


def _kept_histories_line(users: int) -> str:
    if not users:
        return "No user has a history in this task."
    return f"{users} {'user has' if users == 1 else 'users have'} a history in this task, which is kept."


def _render_facts(facts: dict[str, Any]) -> Any:
    return key_value_grid(
        (key, value.replace("\n", " ⏎ ") if isinstance(value, str) else value) for key, value in facts.items()
    )


def _render_addition(result: dict[str, Any]) -> Any:
    state = "is added" if result["added"] else "was there already"
    return text(f"Task {result['name']} {state}: {result['kind']}, measured by {result['metric']}.")


def _render_removal(result: dict[str, Any]) -> Any:
    return text(f"Removed task {result['task']}. {_kept_histories_line(result['users'])}")
