"""Warnings about similar names, which differ only in case, Unicode form or spaces."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

from mta_cli.pipeline.data.formats.parse_results import escape_unprintable
from store.names import normalise_name

MAX_LISTED_GROUPS = 10


def confusable_name_warnings(names: Collection[str], stored: Iterable[str]) -> list[str]:
    """A warning for each group of similar names that contains one of a file's `names`; `stored` are the store's names.

    After `MAX_LISTED_GROUPS` warnings, one more line counts the other groups.
    """
    first: dict[str, str] = {}
    groups: dict[str, set[str]] = {}
    for name in itertools.chain(names, stored):
        other = first.setdefault(normalise_name(name), name)
        if other != name:
            groups.setdefault(other, {other}).add(name)
    lines = [
        f"{_join_names(alike)} differ only in case, Unicode form or white space; they are imported as different users"
        for alike in groups.values()
        if not alike.isdisjoint(names)
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
