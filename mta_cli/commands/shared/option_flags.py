"""Option classes as flags: `@options(BankOptions, …)` puts one flag for each field into a command's signature.

A flag has its field's help, choices and default. None means that the flag was not given, so settings apply.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import complete_bases, complete_embedders, complete_methods
from mta_cli.configuration.settings import Setting, all_settings, settings_of
from mta_cli.options import PRESETS

Command = Callable[..., None]
PANELS = {
    "import": "What is read",
    "bank": "Anchors",
    "bank.task_": "Task adapter",
    "gates": "Limits for anchors",
    "fuse": "Weights of anchors",
    "adapt": "Stack",
    "answer": "Answer",
    "memory": "Label memory",
    "prompt": "Prompt",
    "eval": "Comparison",
    "serve": "Server",
    "models": "Models",
    "machine": "Machine",
    "executor": "Workers",
}
"""Titles of help panels, by section or by prefix of the options' keys."""
COMPLETERS = {"models.base": complete_bases, "models.embedder": complete_embedders, "eval.methods": complete_methods}


@dataclass(frozen=True)
class OptionTable:
    """An option class, and the names of those of its fields that become flags."""

    cls: type[Any]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Flags:
    """A command's flags: the option classes, and the values by field name, None for a flag that was not given."""

    classes: tuple[type[Any], ...]
    values: Mapping[str, Any]
    preset: str | None = None

    def given_flags(self) -> list[str]:
        """The names of the flags that were given, such as `--top-k`."""
        names = [*(name for name, value in self.values.items() if value is not None), *(["preset"] * bool(self.preset))]
        return [f"--{name.replace('_', '-')}" for name in names]


def only(cls: type[Any], *names: str) -> OptionTable:
    """An option class of which only these fields become flags; settings apply to the others."""
    return OptionTable(cls, names)


def options(*tables: type[Any] | OptionTable, preset: bool = False) -> Callable[[Command], Command]:
    """A decorator that puts flags for the fields of `tables` into a command, in place of its parameter `flags`.

    The command gets their values in `flags`. `preset` adds the flag `--preset`.
    """
    return lambda command: CommandWithFlags(command, tables, preset=preset)


class CommandWithFlags:
    """A command with the flags of option classes. The flags are made when the signature is read, because most commands
    are never run.
    """

    def __init__(self, command: Command, tables: Sequence[type[Any] | OptionTable], *, preset: bool) -> None:
        functools.update_wrapper(self, command)
        self._command, self._tables, self._preset = command, tables, preset

    def __call__(self, **arguments: Any) -> None:
        """Run the command on the values of its flags."""
        values = {name: arguments.pop(name) for _, name in self._flags()}
        classes = tuple(table.cls for table in self._option_tables())
        self._command(flags=Flags(classes, values, arguments.pop("preset", None)), **arguments)

    @property
    def __signature__(self) -> inspect.Signature:
        """The command's signature with its flags; read by Typer."""
        signature = inspect.signature(self._command, eval_str=True)
        own = list(signature.parameters.values())
        place = list(signature.parameters).index("flags")
        flags = [_parameter(cls, name) for cls, name in self._flags()]
        presets = [_preset_parameter()] if self._preset else []
        return signature.replace(parameters=[*own[:place], *presets, *flags, *own[place + 1 :]])

    def _option_tables(self) -> list[OptionTable]:
        return [t if isinstance(t, OptionTable) else only(t, *_flag_names(t)) for t in self._tables]

    def _flags(self) -> list[tuple[type[Any], str]]:
        return [(table.cls, name) for table in self._option_tables() for name in table.names]


def _flag_names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(spec.name for spec in fields(cls) if not spec.metadata["settings_only"])


def _parameter(cls: type[Any], name: str) -> inspect.Parameter:
    setting = settings_of(cls)[name]
    kind: Any = list[str] if setting.kind == tuple[str, ...] else setting.kind
    annotation = Annotated[kind | None, _typer_option(setting)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typer_option(setting: Setting) -> Any:
    flag, choices, default = setting.flag, setting.choices, setting.default
    # a switch that no settings file can turn on needs no --no- flag to turn it off
    plain_switch = setting.kind is bool and setting.key not in all_settings()
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    panels = [title for start, title in PANELS.items() if setting.key.startswith(start)]
    return typer.Option(
        f"{flag}/--no-{flag[2:]}" if setting.kind is bool and not plain_switch else flag,
        help=setting.help,
        show_default=False if default in (None, ()) or plain_switch else shown,
        metavar=setting.metavar or "|".join(choices) or None,
        autocompletion=COMPLETERS.get(setting.key) or ((lambda: list(choices)) if choices else None),
        rich_help_panel=panels[-1] if panels else None,
    )


def _preset_parameter() -> inspect.Parameter:
    option = typer.Option(
        "--preset",
        help="Set several options at once; a flag that is also given overrides its value.",
        metavar="|".join(PRESETS),
        autocompletion=lambda: list(PRESETS),
    )
    return inspect.Parameter(
        "preset", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
