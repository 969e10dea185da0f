"""Option classes as flags: `@options(BankOptions, …)` puts one flag for each field into a command's signature.

A flag's help, choices and default are those of the field. None means that it was not given, so settings decide.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import complete_models
from mta_cli.options import PRESETS, ModelOptions
from mta_cli.settings import Setting, all_settings

Command = Callable[..., None]


@dataclass(frozen=True)
class OptionTable:
    """An option class and the names of its fields that have flags."""

    cls: type[Any]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Flags:
    """The flags that were given for a command's option classes: values by field name, None where not given."""

    classes: tuple[type[Any], ...]
    values: Mapping[str, Any]
    preset: str | None = None

    def given_flags(self) -> list[str]:
        """The flags that were given, as `--top-k`."""
        names = [*(name for name, value in self.values.items() if value is not None), *(["preset"] * bool(self.preset))]
        return [f"--{name.replace('_', '-')}" for name in names]


def only(cls: type[Any], *names: str) -> OptionTable:
    """The option class with flags for these fields alone; settings decide the others."""
    return OptionTable(cls, names)


def options(*tables: type[Any] | OptionTable, preset: bool = False) -> Callable[[Command], Command]:
    """Puts the flags of `tables` into a command's signature in place of its parameter `flags`, which receives them.

    `preset` adds `--preset`.
    """
    chosen = [table if isinstance(table, OptionTable) else only(table, *_flag_names(table)) for table in tables]
    flags = {name: _parameter(table.cls, name) for table in chosen for name in table.names}
    presets = [_preset_parameter()] if preset else []

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run_command(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in flags}
            given = Flags(tuple(table.cls for table in chosen), values, arguments.pop("preset", None))
            command(flags=given, **arguments)

        own = list(signature.parameters.values())
        place = list(signature.parameters).index("flags")
        parameters = [*own[:place], *presets, *flags.values(), *own[place + 1 :]]
        run_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run_command

    return decorate


def _flag_names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(spec.name for spec in fields(cls) if not spec.metadata["settings_only"])


def _parameter(cls: type[Any], name: str) -> inspect.Parameter:
    setting = all_settings()[f"{cls.__dict__['section']}.{name}"]
    kind: Any = setting.kind
    annotation = Annotated[kind | None, _typer_option(setting, is_model=cls is ModelOptions)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typer_option(setting: Setting, *, is_model: bool) -> Any:
    flag, choices, default = setting.flag, setting.choices, setting.default
    return typer.Option(
        f"{flag}/--no-{flag[2:]}" if setting.kind is bool else flag,
        help=setting.help,
        show_default=False if default is None else str(default).lower() if isinstance(default, bool) else str(default),
        metavar="MODEL" if is_model else "|".join(choices) or None,
        autocompletion=complete_models if is_model else _complete_choices(choices) if choices else None,
    )


def _preset_parameter() -> inspect.Parameter:
    option = typer.Option(
        "--preset",
        help="A set of values for the options below; a flag that is given as well wins.",
        metavar="|".join(PRESETS),
        autocompletion=_complete_choices(tuple(PRESETS)),
    )
    return inspect.Parameter(
        "preset", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _complete_choices(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]
