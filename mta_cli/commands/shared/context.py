"""A command's context: its output, settings and store; and questions to the user."""

from __future__ import annotations

import io
import shlex
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from mta_cli.configuration.settings import Settings, StoreOptions, store_path
from mta_cli.errors import Command, Flag, MtaError, UsageError, Words, words_to_text
from mta_cli.options import MachineOptions, ModelOptions, OptionSet
from mta_cli.terminal.output import Output

if TYPE_CHECKING:
    from mta_cli.commands.shared.option_flags import Flags
    from mta_cli.pipeline.users.import_file import AskConsent
    from store.records import User
    from store.registry import Registry

BASE_SETTING = "models.base"
WARN_SLOWDOWN_FACTOR = 3.0  # warn if a 16-bit format is this many times slower than float32


OTHER_COMMANDS = ("model", "quick", "demo", "snapshot")
"""Commands whose hints get no --store flag: they use no store, their own, or (`snapshot`) another machine's."""


@dataclass
class GlobalFlags:
    """The flags that every command takes, before or after its name; `words` are the command line without `mta`."""

    store: Path | None = None
    quiet: bool = False
    verbosity: int = 0
    words: tuple[str, ...] = ()

    def text_with_store(self, words: Words) -> str:
        """The text of `words`; commands that use the store get the given --store, so that they can be run as shown."""
        return words_to_text(words, self._word_part)

    def _word_part(self, part: Command | Flag) -> str:
        if self.store is None or isinstance(part, Flag) or part.path.split()[0] in OTHER_COMMANDS:
            return str(part)
        return part.line(f"mta --store {shlex.quote(str(self.store))}")


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

    def options_on_base(self, reg: Registry, task: str | None = None, user: User | None = None) -> OptionSet:
        """The options. If no base was chosen, they get the base of the user's models or of the task's banks.

        A flag, a settings file or the environment can choose a base. Raises UsageError if several bases are possible.
        """
        from mta_cli.pipeline.bases_in_use import choose_base

        models = self.options[ModelOptions]
        if self.settings.origins[BASE_SETTING] != "default":
            return self.options
        base = choose_base(reg, models.base, task, user)
        if base != models.base:
            what = f"{user.name}'s models are" if user is not None else "the banks are"
            self.output.note(f"Using base {base}, because {what} on it and not on {models.base}.")
        return self.options.with_instance(replace(models, base=base))

    def build_options(self, *classes: type[Any]) -> OptionSet:
        """Options of only these classes, built like `options`."""
        assert self.flags is not None
        built = self.settings.build_option_set(classes, self.flags.values)
        if MachineOptions in classes:
            self._require_machine(built[MachineOptions])
        return built

    def _require_machine(self, machine: MachineOptions) -> None:
        """Raises UsageError if this machine lacks the chosen device; warns if the number format is slow on it."""
        _ = machine.memory_limit  # raises if it is not a size
        if machine.device not in ("auto", "cpu") or machine.quantize != "off":
            from mta_cli.pipeline.training.estimate import require_device

            require_device(machine)
        if machine.dtype not in ("auto", "float32"):
            from mta_cli.pipeline.training.estimate import dtype_slowdown

            if (times := dtype_slowdown(machine)) > WARN_SLOWDOWN_FACTOR:
                self.output.warn(
                    f"this CPU computes {times:.0f} times slower in {machine.dtype} than in float32; --dtype auto "
                    "chooses the fastest format"
                )

    def open_registry(self, *, create: bool = False) -> Registry:
        """The opened store; close it, or use it in a `with` statement."""
        from store.registry import Registry

        timeout = self.settings.build_options(StoreOptions).timeout
        return Registry.open(self.store_dir, create=create, timeout=timeout)

    def suggest(self, *steps: tuple[Words, str]) -> None:
        """Suggest next commands, each with its meaning."""
        self.output.suggest(*((self.global_flags.text_with_store(command), meaning) for command, meaning in steps))


def app_context(ctx: typer.Context, flags: Flags | None = None, *, json: bool = False) -> AppContext:
    """The command's context; `flags` are the flags of its option classes, `json` is its --json flag."""
    given = ctx.obj if isinstance(ctx.obj, GlobalFlags) else GlobalFlags()
    return AppContext(given, flags, json=json)


def confirm(output: Output, question: str, *, yes: bool) -> None:
    """Return if the user agrees or gave `--yes`. Raises MtaError if they refuse, UsageError if nothing is answered."""
    if yes:
        return
    answer = output.read_answer(f"{question} [y/N]")
    if answer is None:
        raise UsageError(f"The question was not answered: {question}", hint="add --yes to agree")
    if answer.lower() not in ("y", "yes"):
        raise MtaError("nothing was changed")


def make_consent_prompt(
    context: AppContext, can_anchor: bool | None, *, yes: bool, piped: bool = False, third_parties: bool = False
) -> AskConsent | None:
    """A function that asks whether new users may be anchors; None if flags answer this or there is no terminal.

    `piped`: standard input is the file. `third_parties`: the new users are not the person who answers, so Enter
    means no.
    """
    if can_anchor is not None or yes or piped or not stdin_is_terminal():
        return None

    def ask(users: int) -> bool:
        many = f"the {users:,} new users be anchors, who help"
        who = many if users > 1 else "the new user be an anchor, who helps"
        answer = context.output.read_answer(f"May {who} to serve others? {'[y/N]' if third_parties else '[Y/n]'}")
        if answer is None or answer.lower() not in ("", "y", "yes", "n", "no"):
            raise MtaError("nothing was changed", hint="answer yes or no, or add --can-anchor or --no-can-anchor")
        return not third_parties if not answer else answer.lower().startswith("y")

    return ask


def stdin_is_terminal() -> bool:
    """Whether standard input is a terminal, so that questions can be asked."""
    return sys.stdin.isatty()


def stdin_binary() -> BinaryIO:
    """Standard input as a stream of bytes, also where it has only text, as in a notebook."""
    beneath: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    return beneath if beneath is not None else io.BytesIO(sys.stdin.read().encode())
