"""What every command shares: option types, the session (output, settings, store), confirmation and shell completion.

Holds no logic of any job.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.errors import MtaError, NotFound, UsageFault
from mta_cli.options import Machine, PromptOptions
from mta_cli.output import Output, clean
from mta_cli.settings import ModelOptions, Settings, StoreOptions, store_path

if TYPE_CHECKING:
    from store.registry import Registry

MUCH_SLOWER = 3.0  # times; a format of 16 bits that takes so much longer than float32 is hardly ever meant
Complete = Callable[[typer.Context, str], list[str]]


@dataclass
class Globals:
    """The flags that stand before the command's name."""

    store: Path | None = None
    quiet: bool = False
    verbosity: int = 0


class AppContext:
    """What a command works with: where to write, the settings, and the store (opened only when asked)."""

    def __init__(self, given: Globals, *, json: bool = False) -> None:
        self.given = given
        self.output = Output(json=json, quiet=given.quiet, verbosity=given.verbosity)

    @cached_property
    def store(self) -> Path:
        """The store's directory, which need not exist."""
        return store_path(self.given.store)

    @cached_property
    def settings(self) -> Settings:
        """The settings, read when first needed."""
        return Settings.load(self.store)

    @property
    def models(self) -> ModelOptions:
        """The configured base and embedder."""
        return self.settings.build(ModelOptions)

    def machine(self, **flags: Any) -> Machine:
        """Where and how to compute. UsageFault where there is no such device; warns of an emulated number format."""
        machine = self.settings.build(Machine, **flags)
        if machine.device not in ("auto", "cpu"):
            from mta_cli.pipeline.training.estimate import require_device

            require_device(machine)
        if machine.dtype not in ("auto", "float32"):
            from mta_cli.pipeline.training.estimate import times_slower

            if (times := times_slower(machine)) > MUCH_SLOWER:
                self.output.warn(
                    f"this CPU computes {times:.0f} times slower in {machine.dtype} than in float32; "
                    "--dtype auto takes what is fast"
                )
        return machine

    def registry(self, *, create: bool = False) -> Registry:
        """The store, opened; close it, or use it in a `with` statement."""
        from store.registry import Registry

        timeout = self.settings.build(StoreOptions).timeout
        try:
            return Registry.open(self.store, create=create, timeout=timeout)
        except NotFound as error:
            if self.given.store is not None:
                error.hint = f"mta --store {shlex.quote(str(self.given.store))} init"
            raise


def session(ctx: typer.Context, *, json: bool = False) -> AppContext:
    """The command's context; `json` is its --json flag."""
    given = ctx.obj if isinstance(ctx.obj, Globals) else Globals()
    return AppContext(given, json=json)


def confirm(output: Output, question: str, *, yes: bool) -> None:
    """Return when the person agrees (or `--yes` was given); else raise: nothing has been changed then."""
    if yes:
        return
    answer = output.ask(f"{question} [y/N]")
    if answer is None:
        raise UsageFault("this needs an answer, and there is nobody to give it", hint="add --yes")
    if answer.lower() not in ("y", "yes"):
        raise MtaError("nothing was changed")


def _names_after(find: Callable[[AppContext], Iterable[str]]) -> Complete:
    """A completion callback over `find`; a person pressing TAB never sees an error."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            given = ctx.find_root().params.get("store")
            names = find(AppContext(Globals(store=given if given is None else Path(given))))
            return [name for name in names if name.startswith(incomplete) and clean(name) == name]
        except Exception:
            return []

    return complete


def _users(app: AppContext) -> list[str]:
    with app.registry() as registry:
        return registry.users.names()


def _banks(app: AppContext) -> list[str]:
    with app.registry() as registry:
        return sorted({bank.name for bank in registry.banks.all()})


def _tasks(app: AppContext) -> list[str]:
    from mta_cli.pipeline.data.tasks import task_names

    try:
        with app.registry() as registry:
            return task_names(registry)
    except MtaError:  # the built-in tasks are there without a store
        return task_names(None)


def _models(app: AppContext) -> list[str]:
    from mta_cli.pipeline.models.lookup import list_models

    return sorted({app.models.base, app.models.embedder, *(entry.name for entry in list_models())})


complete_users: Complete = _names_after(_users)
complete_banks: Complete = _names_after(_banks)
complete_tasks: Complete = _names_after(_tasks)
complete_models: Complete = _names_after(_models)


def option(cls: type[Any], name: str, *declarations: str, help_text: str | None = None) -> Any:
    """The `typer.Option` of one field of an options dataclass: help, choices and default come from the field.

    The parameter's own default is None, which means: not given, so settings decide.
    """
    spec = next(spec for spec in fields(cls) if spec.name == name)
    choices = spec.metadata["choices"]
    flag = "--" + name.replace("_", "-")
    names = declarations or ((f"{flag}/--no-{flag[2:]}",) if isinstance(spec.default, bool) else (flag,))
    shown = str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default)

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return typer.Option(
        *names,
        help=help_text or spec.metadata["help"],
        show_default=False if spec.default is None else shown,
        metavar="|".join(choices) if choices else None,
        autocompletion=complete if choices else None,
    )


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved plan and change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before something is removed or replaced.")]
SeedOption = Annotated[int | None, option(Machine, "seed")]
DeviceOption = Annotated[str | None, option(Machine, "device")]
DtypeOption = Annotated[str | None, option(Machine, "dtype")]
HistoryItemsOption = Annotated[int | None, option(PromptOptions, "history_items")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="DIR", help="The store's directory; else MTA_STORE, else the platform's data directory."
    ),
]
TaskOption = Annotated[
    str | None, typer.Option("--task", metavar="TASK", help="The task.", autocompletion=complete_tasks)
]
BankOption = Annotated[
    str | None, typer.Option("--bank", metavar="BANK", help="The bank.", autocompletion=complete_banks)
]
UserOption = Annotated[
    str | None, typer.Option("--user", metavar="USER", help="The user.", autocompletion=complete_users)
]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's name.", autocompletion=complete_users)]


def stdin_is_terminal() -> bool:
    """Whether somebody can type an answer."""
    return sys.stdin is not None and sys.stdin.isatty()
