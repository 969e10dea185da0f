"""Writes the parts of a help page: usage, arguments, options by panel, examples. Plain text; knows no command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

VALUE_NAMES: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def usage_pieces(parameters: Sequence[Any]) -> list[str]:
    """The part of a usage line after the command's name: `[OPTIONS] USER [TASK]`."""
    arguments = [each for each in parameters if each.param_type_name == "argument" and not each.hidden]
    options = ["[OPTIONS]"] if len(arguments) < len(parameters) else []
    return [*options, *(_argument_usage(each) for each in arguments)]


def _argument_usage(argument: Any) -> str:
    """An argument's name, in brackets if it is optional. A name that has brackets of its own stays as it is."""
    name = value_name(argument)
    if name.startswith("["):
        return name
    name += "..." if argument.nargs == -1 and not name.endswith("...") else ""
    return name if argument.required else f"[{name}]"


def option_name(option: Any) -> str:
    """An option as a help page shows it: `-t, --task TASK`, `--[no-]calibrate`."""
    names = sorted(option.opts, key=len)
    if option.secondary_opts:
        names = [f"--[no-]{name[2:]}" for name in names]
    value = "" if option.is_flag or option.count else f" {value_name(option)}"
    return ", ".join(names) + value


def value_name(parameter: Any) -> str:
    """A placeholder for a parameter's value: its metavar, an argument's name, its type, or its choices."""
    if parameter.metavar or parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    kind = parameter.type_descriptor.annotation
    return VALUE_NAMES.get(kind) or "|".join(get_args(kind))


def default_text(parameter: Any) -> str:
    """The parameter's default as text; empty if none is shown."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    unset = parameter.default in (None, False, 0, (), []) or callable(parameter.default)
    return "" if unset or not parameter.show_default else str(parameter.default)


def write_parameters(formatter: Any, parameters: Sequence[Any]) -> None:
    """Write the sections of arguments and options. An option with a panel goes to that panel's section."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for each in parameters:
        if each.hidden:
            continue
        if each.param_type_name == "argument":
            sections["Arguments"].append((value_name(each), _help_text(each)))
        else:
            sections.setdefault(each.rich_help_panel or "Options", []).append((option_name(each), _help_text(each)))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def write_examples(formatter: Any, path: str) -> None:
    """Write the examples of the command `path`, such as `mta user adapt`; nothing if it has none."""
    from mta_cli.commands.shared.examples import EXAMPLES

    if found := EXAMPLES.get(path.partition(" ")[2]):
        with formatter.section("Examples"):
            for line in found:
                formatter.write(f"  {line}\n")


def _help_text(parameter: Any) -> str:
    default = default_text(parameter)
    notes = [f"[default: {default}]"] if default else []
    notes += ["[required]"] if parameter.required and parameter.param_type_name == "option" else []
    return "  ".join([parameter.help or "", *notes])
