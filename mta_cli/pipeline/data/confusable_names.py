"""Names that a user could confuse: equal but for case, Unicode form and space. Knows no store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mta_cli.pipeline.data.formats.parse_results import escape_unprintable
from store.names import normalise_name

MAX_LISTED_GROUPS = 10


def confusable_name_warnings(spellings: Mapping[str, set[str]], stored: Iterable[str]) -> list[str]:
    """One line for each group of names in a file (stored form → as written) that look alike, also with stored ones."""
    groups: dict[str, set[str]] = {}
    for name in (*spellings, *stored):
        groups.setdefault(normalise_name(name), set()).add(name)
    lines = [
        f"{_join_names(names)} differ only in case, Unicode form or white space; they stay different users"
        for names in groups.values()
        if len(names) > 1 and not names.isdisjoint(spellings)
    ]
    lines += [
        f"{_join_names(written)} are the same letters in different Unicode forms; they are one user, "
        f"{escape_unprintable(name)}"
        for name, written in spellings.items()
        if len(written) > 1
    ]
    more = (
        [f"and {len(lines) - MAX_LISTED_GROUPS:,} more groups of names that look alike"]
        if len(lines) > MAX_LISTED_GROUPS
        else []
    )
    return lines[:MAX_LISTED_GROUPS] + more


def _join_names(names: set[str]) -> str:
    """The names unchanged where only case differs, else with escapes, because they may look the same."""
    shown = escape_unprintable if len({name.casefold() for name in names}) == 1 else ascii
    return " and ".join(shown(name) for name in sorted(names))
