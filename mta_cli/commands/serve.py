"""`mta serve` and `mta serve key`: signatures, help and rendering; the server is in `mta_cli.serving`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import JsonOption, TaskOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.commands.shared.lazy_typer import CommandGroup, LazyGroup
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import Command, Interrupted, NotFound, UsageError, extra_hint
from mta_cli.options import AnswerOptions, MachineOptions, MemoryOptions, ModelOptions, PromptOptions, ServeOptions

PACKAGES = ("starlette", "uvicorn", "msgspec", "sse_starlette", "prometheus_client")
key_app = CommandGroup("Keys of the server.")


class ServeGroup(LazyGroup):
    """`mta serve`, a command with subcommands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(builders={"key": lambda: key_app.build("key")}, **settings)


app = typer.Typer(
    name="serve", cls=ServeGroup, invoke_without_command=True, rich_markup_mode=None, add_completion=False
)

KeysOption = Annotated[
    Path | None, typer.Option("--keys", metavar="FILE", help="The file with the keys.  [default: in the store]")
]
LabelArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name for the key, shown in lists and logs.")]
UsersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--users",
        metavar="USER,…",
        help="The users whose models the key opens. Give a name that contains a comma in its own --users.",
    ),
]
AllUsersOption = Annotated[
    bool, typer.Option("--all-users", help="The key opens the models of all users, also of users added later.")
]


@app.callback()
@options(
    ServeOptions,
    only(AnswerOptions, "max_tokens", "temperature", "top_p"),
    MemoryOptions,
    PromptOptions,
    only(ModelOptions, "base", "embedder"),
    MachineOptions,
)
def serve(
    ctx: typer.Context,
    *,
    task: TaskOption = None,
    keys: KeysOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Let clients append to histories and start adaptations.")
    ] = False,
    flags: Flags,
) -> None:
    """Serve all users' models by OpenAI's API.

    One address, which ends in /v1, serves every user. A request names a model: USER for a chat with the user's model,
    USER/TASK for a task's prompt, or base for the base. SIGTERM or Ctrl-C ends the server once running answers are
    complete; SIGHUP reads the keys again.
    """
    if ctx.invoked_subcommand is not None:
        return
    _require_packages()
    from mta_cli.serving.run import serve_store

    context = app_context(ctx, flags)
    if keys is not None and not keys.exists():
        raise NotFound(
            f"There is no file with keys at {keys}.",
            hint=("make a key: ", Command("serve key add", "NAME", users="USERS", keys=str(keys))),
        )
    with context.open_registry() as reg:
        given = context.options_on_base(reg, task)
    stopped_by = serve_store(
        context.open_registry,
        given,
        task=task,
        keys=_key_path(context, keys),
        write=write,
        on_ready=lambda line: context.output.write_stdout(line),
        note=context.output.note,
    )
    if stopped_by == "SIGINT":
        raise typer.Exit(Interrupted.exit_code)  # without an error: Ctrl-C is how a server is meant to end


@key_app.command("add")
def add_key(
    ctx: typer.Context,
    label: LabelArgument,
    users: UsersOption = None,
    all_users: AllUsersOption = False,
    keys: KeysOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key and print it. The key itself is not stored and cannot be shown again."""
    from mta_cli.pipeline.users.serve_keys import EVERYBODY, FILE_LOCK, KeyFile

    context = app_context(ctx, json=json)
    if all_users and users:
        raise UsageError("--users and --all-users cannot be given together.", hint="leave one of them out")
    with context.open_registry() as reg:
        whole = reg.users.existing_names(users or ())
        parts = [part.strip() for text in users or () for part in ([text] if text in whole else text.split(","))]
        names = [name for name in parts if name]
        if not names and not all_users:
            raise UsageError("A key needs users whose models it opens.", hint="--users alice,bob, or --all-users")
        if EVERYBODY in names and EVERYBODY not in whole:
            raise UsageError(f"There is no user {EVERYBODY}.", hint="--all-users makes a key for all users")
        for name in names:
            reg.users.get(name)
        with reg.job_lock(FILE_LOCK, timeout=10):
            path = _key_path(context, keys)
            found = KeyFile.read(path)
            secret = found.add(label, None if all_users else names)
            found.write(path)
    result = {"name": label, "key": secret, "users": [EVERYBODY] if all_users else names}
    context.output.print_result(result if json else secret)
    context.output.note("A running server accepts the key after it gets the signal SIGHUP.")


@key_app.command("list")
def list_keys(ctx: typer.Context, keys: KeysOption = None, json: JsonOption = False) -> None:
    """List the keys, and whose models each opens."""
    from mta_cli.pipeline.users.serve_keys import EVERYBODY, KeyFile

    context = app_context(ctx, json=json)
    found = KeyFile.read(_key_path(context, keys))
    with context.open_registry() as reg:
        names = reg.users.names()
    rows = [
        {
            "name": key.label,
            "id": key.id,
            "users": [EVERYBODY] if EVERYBODY in key.users else [name for name in names if found.allows(key, name)],
        }
        for key in found.keys
    ]
    context.output.print_rows(
        ("key", "id", "users"), rows, lambda row: (row["name"], row["id"], ", ".join(row["users"]))
    )


@key_app.command("rm")
def remove_key(ctx: typer.Context, label: LabelArgument, keys: KeysOption = None) -> None:
    """Remove a key, so that it opens no models."""
    from mta_cli.pipeline.users.serve_keys import FILE_LOCK, KeyFile

    context = app_context(ctx)
    path = _key_path(context, keys)
    with context.open_registry() as reg, reg.job_lock(FILE_LOCK, timeout=10):
        found = KeyFile.read(path)
        found.remove(label)
        found.write(path)
    context.output.note(f"Removed key {label}. A running server accepts it until it gets the signal SIGHUP.")


def _key_path(context: AppContext, given: Path | None) -> Path:
    from mta_cli.pipeline.users.serve_keys import FILE_NAME

    return given if given is not None else context.store_dir / FILE_NAME


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"mta serve needs packages that are not installed: {', '.join(missing)}.",
            hint=extra_hint("serve"),
        )
