"""`mta task`: how items become prompts and how answers are scored. Signature, help, rendering; no logic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.common import AppContext, JsonOption, YesOption, complete_tasks, confirm, session
from mta_cli.commands.parsing import Commands
from mta_cli.errors import NotFound
from mta_cli.output import pairs, table, text

if TYPE_CHECKING:
    from store.registry import Registry

app = Commands("Tasks: how a history item becomes a prompt, and how an answer is scored.")

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.", autocompletion=complete_tasks)]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A task file in TOML; docs/tasks.md describes it.")]


@contextmanager
def _known(app: AppContext) -> Iterator[Registry | None]:
    """The store, or None before there is one: the built-in tasks are known without."""
    try:
        opened = app.registry()
    except NotFound:
        yield None
        return
    with opened:
        yield opened


@app.command("list")
def list_all(ctx: typer.Context, json: JsonOption = False) -> None:
    """The built-in tasks and those that were added."""
    from mta_cli.pipeline.data.tasks import list_tasks

    context = session(ctx, json=json)
    with _known(context) as registry:
        context.output.result(list_tasks(registry), _table)


@app.command("show")
def show(
    ctx: typer.Context,
    name: TaskArgument,
    toml: Annotated[bool, typer.Option("--toml", help="Print it as a task file, to begin one's own from.")] = False,
    json: JsonOption = False,
) -> None:
    """Everything about one task: prompts, labels, fields, budgets."""
    from mta_cli.pipeline.data.tasks import describe, find_task, task_to_toml

    context = session(ctx, json=json)
    with _known(context) as registry:
        if toml and not json:
            context.output.write(task_to_toml(find_task(registry, name)))
        else:
            context.output.result(describe(registry, name), _facts)


@app.command("add")
def add(ctx: typer.Context, file: FileArgument, json: JsonOption = False) -> None:
    """Check a task file and add its task. The same file again changes nothing."""
    from mta_cli.pipeline.data.tasks import add_task, describe

    context = session(ctx, json=json)
    with context.registry() as registry:
        task, new = add_task(registry, file)
        context.output.result({**describe(registry, task.name), "added": new}, _added)


@app.command("rm")
def remove(ctx: typer.Context, name: TaskArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove a task that was added. Histories of it stay until their users are removed."""
    from mta_cli.pipeline.data.tasks import remove_task, task_to_remove

    context = session(ctx, json=json)
    with context.registry() as registry:
        confirm(context.output, f"Remove task {name}? {_kept(task_to_remove(registry, name))}", yes=yes)
        context.output.result(remove_task(registry, name), _removed)


def _kept(users: int) -> str:
    if not users:
        return "Nobody has a history of it."
    return f"{users} {'user has' if users == 1 else 'users have'} a history of it, which is kept."


def _table(rows: list[dict[str, Any]]) -> Any:
    cells = [(row["name"], row["kind"], row["metric"], row["users"], row["description"]) for row in rows]
    return table(("name", "kind", "metric", "users", "description"), cells)


def _facts(facts: dict[str, Any]) -> Any:
    return pairs((key, _visible(value)) for key, value in facts.items())


def _visible(value: Any) -> Any:
    """Line breaks in a prompt are part of it, and are shown."""
    return value.replace("\n", " ⏎ ") if isinstance(value, str) else value


def _added(result: dict[str, Any]) -> Any:
    state = "is added" if result["added"] else "was there already"
    return text(f"Task {result['name']} {state}: {result['kind']}, measured by {result['metric']}.")


def _removed(result: dict[str, Any]) -> Any:
    return text(f"Removed task {result['task']}. {_kept(result['users'])}")
