"""Typer's classes with less work: only what a command line names is imported and converted.

Typer builds every command before it runs one, and converts every value through pydantic, even the unused defaults.
Each of these takes as long as a whole quick command. Knows no command.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_command_name, get_group

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


class LazyTyperCommand(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> Any:
        """Its parameters, with conversions only where needed."""
        return _skip_conversions(super().get_params(ctx))


class LazyTyperGroup(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> Any:
        """Its parameters, with conversions only where needed."""
        return _skip_conversions(super().get_params(ctx))


class CommandApp(typer.Typer):
    """A registry of commands. Help is plain text; a group without a command shows it."""

    def __init__(self, help_text: str = "", **settings: Any) -> None:
        shared: dict[str, Any] = {"cls": LazyTyperGroup, "no_args_is_help": True, "rich_markup_mode": None}
        super().__init__(help=help_text, pretty_exceptions_enable=False, **{**shared, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunction], CommandFunction]:
        """The decorator that registers a function as a command."""
        return super().command(name, cls=LazyTyperCommand, **settings)


class LazyCommands(UserDict[str, Any]):
    """Commands by name, each built when it is first used."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__()
        self.data.update(makers)

    def __getitem__(self, name: str) -> Any:
        found = self.data[name]
        if not isinstance(found, TyperCommand | TyperGroup):
            found = self.data[name] = found()
        return found


def lazy_commands(places: Mapping[str, str]) -> LazyCommands:
    """The commands at `places`, `module:attribute` of `mta_cli.commands`: a group (`CommandApp`) or a function."""
    return LazyCommands({name: partial(_import_command, name, place) for name, place in places.items()})


def _import_command(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"mta_cli.commands.{module}"), attribute)
    if isinstance(found, CommandApp):
        return _build_whole_group(name, found) if found.registered_groups else _build_group(name, found)
    return _build_command(name, found)


def _build_whole_group(name: str, registered: CommandApp) -> TyperGroup:
    """A group that is a command too, with groups below it: all of it at once."""
    group = get_group(registered)
    group.name = name
    return group


def _build_group(name: str, registered: CommandApp) -> TyperGroup:
    makers: dict[str, Callable[[], Any]] = {}
    for command in registered.registered_commands:
        function: Any = command.callback
        inner = command.name or get_command_name(function.__name__)
        makers[inner] = partial(_build_command, inner, function)
    group = get_group(CommandApp(registered.info.help or ""))
    group.name, group.commands = name, LazyCommands(makers)
    return group


def _build_command(name: str, function: Callable[..., Any]) -> Any:
    alone = CommandApp(add_completion=False)
    alone.command(name)(function)
    return get_command(alone)


def _skip_conversions(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if "process_value" not in vars(each):
            each.process_value = partial(_process_value, each, each.process_value)
    return parameters


def _process_value(parameter: Any, convert: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    """Click's `process_value`, which skips plain text, defaults, and options that were not given."""
    absent = value is None and parameter.nargs == 1 and (ctx.resilient_parsing or not parameter.required)
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if not absent and type(value) is not kind:
        return convert(ctx, value)
    return value if parameter.callback is None else parameter.callback(ctx, parameter, value)
