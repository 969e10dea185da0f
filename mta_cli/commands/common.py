"""Shared by commands: common options, the context (output, settings, store), confirmation, shell completion.

Holds no logic of any job.
"""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from mta_cli.errors import MtaError, NotFound, UsageError
from mta_cli.options import MachineOptions, ModelOptions, OptionSet
from mta_cli.output import Output
from mta_cli.printable import clean_text
from mta_cli.settings import Settings, StoreOptions, store_path

if TYPE_CHECKING:
    from mta_cli.commands.flags import Flags
    from store.registry import Registry

WARN_SLOWDOWN_FACTOR = 3.0  # times; a 16-bit format that is so much slower than float32 is hardly ever intended
CompletionCallback = Callable[[typer.Context, str], list[str]]


@dataclass
class GlobalFlags:
    """The flags before the command's name."""

    store: Path | None = None
    quiet: bool = False
    verbosity: int = 0


class AppContext:
    """A command's output, settings and store, which is opened only on request."""

    def __init__(self, given: GlobalFlags, flags: Flags | None = None, *, json: bool = False) -> None:
        self.global_flags, self.flags = given, flags
        self.output = Output(json=json, quiet=given.quiet, verbosity=given.verbosity)

    @cached_property
    def store_dir(self) -> Path:
        """The store's directory, which may be missing."""
        return store_path(self.global_flags.store)

    @cached_property
    def settings(self) -> Settings:
        """The settings, read when first needed."""
        return Settings.load(self.store_dir, preset=None if self.flags is None else self.flags.preset)

    @property
    def model_options(self) -> ModelOptions:
        """The configured base and embedder."""
        return self.settings.build_options(ModelOptions)

    @cached_property
    def options(self) -> OptionSet:
        """The command's options, from flags and settings. Raises UsageError for a bad value or a missing device."""
        assert self.flags is not None
        return self.build_options(*self.flags.classes)

    def build_options(self, *classes: type[Any]) -> OptionSet:
        """Options of these classes alone, in the same way as `options`."""
        assert self.flags is not None
        built = self.settings.build_option_set(classes, self.flags.values)
        if MachineOptions in classes:
            self._require_machine(built[MachineOptions])
        return built

    def _require_machine(self, machine: MachineOptions) -> None:
        """Raises UsageError for a missing device; warns of a number format that this machine emulates."""
        if machine.device not in ("auto", "cpu"):
            from mta_cli.pipeline.training.estimate import require_device

            require_device(machine)
        if machine.dtype not in ("auto", "float32"):
            from mta_cli.pipeline.training.estimate import dtype_slowdown

            if (times := dtype_slowdown(machine)) > WARN_SLOWDOWN_FACTOR:
                self.output.warn(
                    f"this CPU computes {times:.0f} times slower in {machine.dtype} than in float32; "
                    "--dtype auto takes what is fast"
                )

    def open_registry(self, *, create: bool = False) -> Registry:
        """The store, opened; close it, or use it in a `with` statement."""
        from store.registry import Registry

        timeout = self.settings.build_options(StoreOptions).timeout
        try:
            return Registry.open(self.store_dir, create=create, timeout=timeout)
        except NotFound as error:
            if self.global_flags.store is not None:
                error.hint = f"mta --store {shlex.quote(str(self.global_flags.store))} init"
            raise


def app_context(ctx: typer.Context, flags: Flags | None = None, *, json: bool = False) -> AppContext:
    """The command's context; `flags` are those of its option classes, `json` is its --json flag."""
    given = ctx.obj if isinstance(ctx.obj, GlobalFlags) else GlobalFlags()
    return AppContext(given, flags, json=json)


def confirm(output: Output, question: str, *, yes: bool) -> None:
    """Return when the user agrees (or `--yes` was given); else raise, with nothing changed."""
    if yes:
        return
    answer = output.read_answer(f"{question} [y/N]")
    if answer is None:
        raise UsageError("this needs an answer, and there is no terminal to ask", hint="add --yes")
    if answer.lower() not in ("y", "yes"):
        raise MtaError("nothing was changed")


def _make_completer(find: Callable[[AppContext], Iterable[str]]) -> CompletionCallback:
    """A completion callback over `find`; TAB never shows an error."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            given = ctx.find_root().params.get("store")
            names = find(AppContext(GlobalFlags(store=given if given is None else Path(given))))
            return [name for name in names if name.startswith(incomplete) and clean_text(name) == name]
        except Exception:
            return []

    return complete


def _user_names(app: AppContext) -> list[str]:
    with app.open_registry() as registry:
        return registry.users.names()


def _bank_names(app: AppContext) -> list[str]:
    with app.open_registry() as registry:
        return sorted({bank.name for bank in registry.banks.all()})


def _task_names_or_builtin(app: AppContext) -> list[str]:
    from mta_cli.pipeline.data.tasks import task_names

    try:
        with app.open_registry() as registry:
            return task_names(registry)
    except MtaError:  # the built-in tasks need no store
        return task_names(None)


def _model_names(app: AppContext) -> list[str]:
    from mta_cli.pipeline.models.lookup import list_models

    return sorted({app.model_options.base, app.model_options.embedder, *(entry.name for entry in list_models())})


complete_users: CompletionCallback = _make_completer(_user_names)
complete_banks: CompletionCallback = _make_completer(_bank_names)
complete_tasks: CompletionCallback = _make_completer(_task_names_or_builtin)
complete_models: CompletionCallback = _make_completer(_model_names)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved plan and change nothing.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for jobs that use the user's items.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before something is removed or replaced.")]
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
    """Whether a user can type an answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def stdin_binary() -> BinaryIO:
    """Standard input as bytes: empty for a closed one; encoded for one without a byte buffer, as in a notebook."""
    if sys.stdin is None:
        return io.BytesIO()
    beneath: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    return beneath if beneath is not None else io.BytesIO(sys.stdin.read().encode())
