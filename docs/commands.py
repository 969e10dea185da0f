"""Makes commands.md and the man page mta.1 from the commands. An option of several commands is described once.

Knows no job.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from typer.main import get_command

from mta_cli import __version__
from mta_cli.app import app
from mta_cli.commands.shared.examples import EXAMPLES
from mta_cli.commands.shared.help_page import default_text, usage_pieces, value_name

GENERAL = "General"
MIN_COMMANDS = {GENERAL: 3}  # that have an option, so that it is shared; two where the help has a panel for it
EXIT_CODES = (
    ("0", "done"),
    ("1", "unexpected, or another process holds the store or uses the user's items"),
    ("2", "usage: the command line or a setting is wrong"),
    ("3", "not found"),
    ("4", "bad input"),
    ("5", "integrity: a file or the store is not as its record says"),
    ("130", "interrupted"),
)
VARIABLES = (
    ("MTA_STORE", "The store's directory."),
    ("MTA_MODELS", "The directory of models."),
    ("MTA_CONFIG", "Your own file of settings."),
    ("MTA_SECTION_NAME", "A setting, as MTA_BANK_RANK; mta config list shows all."),
)


@dataclass(frozen=True)
class Row:
    """An argument or option: names and value, as `--top-k N`; the names alone; the meaning with the default.

    `group` is the panel of the help, or GENERAL.
    """

    name: str
    flags: str
    meaning: str
    group: str
    can_be_shared: bool


@dataclass(frozen=True)
class Section:
    """A command: its usage and examples, its own arguments and options, and the groups of those it shares.

    `shared` names the options that it takes of a group; none where it takes them all.
    """

    path: str
    text: str
    lines: tuple[str, ...]
    own: tuple[Row, ...]
    shared: dict[str, list[str]]


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group that is not hidden, with its full name, in the order of the help."""
    return _walk("mta", get_command(app))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from _walk(f"{path} {name}", command.get_command(None, name))


def reference() -> tuple[list[Section], dict[str, list[Row]]]:
    """Every command, and the shared options by group."""
    rows = {path: [_row(each) for each in command.params if _is_shown(each)] for path, command in commands()}
    counts = Counter(row for each in rows.values() for row in each)
    groups = defaultdict[str, list[Row]](list)
    for row, count in counts.items():
        if row.can_be_shared and count >= MIN_COMMANDS.get(row.group, 2):
            groups[row.group].append(row)
    return [_section(path, command, rows[path], groups) for path, command in commands()], groups


def _section(path: str, command: Any, rows: Sequence[Row], groups: dict[str, list[Row]]) -> Section:
    usage = () if hasattr(command, "list_commands") else (" ".join([path, *usage_pieces(command.params)]),)
    shared = {}
    for group, members in groups.items():
        if taken := [row.flags for row in members if row in rows]:
            shared[group] = taken if len(taken) < len(members) else []
    own = tuple(row for row in rows if row not in groups.get(row.group, ()))
    lines = (*usage, *EXAMPLES.get(path.removeprefix("mta "), ()))
    return Section(path, " ".join((command.help or "").split()), lines, own, shared)


def _is_shown(parameter: Any) -> bool:
    return not parameter.hidden and "--help" not in parameter.opts


def _row(parameter: Any) -> Row:
    """A row of a table. Whether an argument is required is in the usage line."""
    meaning, default = " ".join((parameter.help or "").split()), default_text(parameter)
    meaning += f" Default: `{default}`." if default else ""
    if parameter.param_type_name == "argument":
        return Row(value_name(parameter), "", meaning, GENERAL, can_be_shared=False)
    meaning += " Required." if parameter.required else ""
    flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag or parameter.count else f" {value_name(parameter)}"
    group = parameter.rich_help_panel or GENERAL
    return Row(flags + value, flags, meaning, group, can_be_shared=not parameter.required)


def page() -> str:
    """commands.md."""
    sections, groups = reference()
    parts = [
        "# Commands",
        "<!-- Made by `make docs` from the program; do not edit. -->",
        "`mta help COMMAND` prints the same, and `man mta` all of it. `--store`, `-v` and `-q` are taken anywhere on "
        "the line: `mta user list --store DIR`. [Settings](settings.md) change defaults.",
        _contents([section.path for section in sections]),
    ]
    for section in sections:
        parts.append(f"{'#' * min(2 + section.path.count(' '), 4)} `{section.path}`")
        parts += [section.text] if section.text else []
        parts += ["```\n{}\n```".format("\n".join(section.lines))] if section.lines else []
        parts += [_list(section.own)] if section.own else []
        parts += [_shared_line(section.shared)] if section.shared else []
    parts += [
        "## Shared options",
        "A command takes all options of a group that it names, or those in brackets.",
    ]
    for group, rows in groups.items():
        parts += [f"### {group}", _list(rows)]
    return "\n\n".join(parts) + "\n"


def _contents(paths: Sequence[str]) -> str:
    """Links to the commands: a line for each group, and one for the commands without a group."""
    lines, single = [], []
    for top in (path for path in paths if path.count(" ") == 1):
        inner = [path for path in paths if path.startswith(f"{top} ")]
        links = [f"[{path.removeprefix(top)[1:]}](#{_anchor(path)})" for path in inner]
        head = f"[{top.removeprefix('mta ')}](#{_anchor(top)})"
        if links:
            lines.append(f"{head}: {', '.join(links)}")
        else:
            single.append(head)
    return "\n".join(f"- {line}" for line in [*lines, ", ".join(single), "[shared options](#shared-options)"])


def _shared_line(shared: dict[str, list[str]]) -> str:
    linked = {f"[{group}](#{_anchor(group)})": [f"`{name}`" for name in names] for group, names in shared.items()}
    return _named_groups(linked)


def _named_groups(shared: dict[str, list[str]]) -> str:
    """Groups, each with the options that are taken of it; without where all are."""
    named = [f"{group} ({', '.join(names)})" if names else group for group, names in shared.items()]
    return f"Shared: {', '.join(named)}."


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _list(rows: Sequence[Row]) -> str:
    return "\n".join(f"- `{row.name}`: {row.meaning}" for row in rows)


def manual() -> str:
    """mta.1, in roff's macros of man pages."""
    sections, groups = reference()
    root, *others = sections
    lines = [
        r".\" Made by `make docs` from the program; do not edit.",
        f'.TH MTA 1 "" "mta {_roff(__version__)}" "User commands"',
        ".nh",
        ".SH NAME",
        rf"mta \- {_roff(root.text[0].lower() + root.text[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        r".B mta\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]",
        ".SH OPTIONS",
        *_entries(root.own),
        ".SH COMMANDS",
    ]
    for section in others:
        lines += [f'.SS "{_roff(section.path)}"', _roff(section.text)]
        lines += [".PP", ".nf", *(_roff(line) for line in section.lines), ".fi"] if section.lines else []
        lines += _entries(section.own)
        lines += [".PP", _roff(_named_groups(section.shared))] if section.shared else []
    lines.append(".SH SHARED OPTIONS")
    for group, rows in groups.items():
        lines += [f'.SS "{_roff(group)}"', *_entries(rows)]
    lines += [".SH ENVIRONMENT", *_tagged(VARIABLES), ".SH EXIT STATUS", *_tagged(EXIT_CODES)]
    return "\n".join(lines) + "\n"


def _entries(rows: Sequence[Row]) -> list[str]:
    return _tagged([(row.name, row.meaning) for row in rows])


def _tagged(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [line for tag, text in pairs for line in (".TP", rf"\fB{_roff(tag)}\fR", _roff(text))]


def _roff(text: str) -> str:
    r"""`text` for roff: its own signs escaped, `-` as shells know it, and lists without blanks breakable."""
    escaped = text.replace("`", "").replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq").replace("'", r"\(aq")
    escaped = re.sub(r"[^\x00-\x7f]", lambda sign: rf"\[u{ord(sign[0]):04X}]", escaped)
    escaped = re.sub(r",(?=\S)", r",\\:", escaped)
    return rf"\&{escaped}" if escaped.startswith(".") else escaped
