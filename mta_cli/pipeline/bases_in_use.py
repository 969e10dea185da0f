"""The bases that a store's banks are built on: which one a command means, and how it is named.

A base is a fingerprint in the store, and a name for users. Loads no base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mta_cli.errors import Flag, MtaError, NotFound, UsageError, Words

if TYPE_CHECKING:
    from store.records import User
    from store.registry import Registry

SHOWN_DIGITS = 19  # of a fingerprint whose model's name the store does not know


def base_name(reg: Registry, fingerprint: str) -> str:
    """The name under which the store has met a base; the beginning of its fingerprint where it has not."""
    try:
        return reg.models.get(fingerprint).name
    except NotFound:
        return fingerprint[:SHOWN_DIGITS]


def base_names(reg: Registry, task: str | None = None, user: User | None = None) -> list[str]:
    """The names of the bases of ready banks, the newest bank's first; with a user, of banks with a model of theirs."""
    found = reg.banks.bases(task) if user is None else reg.banks.bases_of_user(user.id, task)
    return [base_name(reg, fingerprint) for fingerprint in found]


def has_several_bases(reg: Registry) -> bool:
    """Whether the store has banks on more than one base, so that lists and commands must say which is meant."""
    return len(reg.banks.bases(ready=False)) > 1


def on_base(reg: Registry, fingerprint: str) -> str:
    """` on NAME` where the store has banks on several bases; else empty."""
    return f" on {base_name(reg, fingerprint)}" if has_several_bases(reg) else ""


def named_base(reg: Registry, fingerprint: str, name: str | None = None) -> str | None:
    """The base's name, for a command that means it; None where the store has no bank on another."""
    if set(reg.banks.bases(ready=False)) <= {fingerprint}:
        return None
    return name or base_name(reg, fingerprint)


def base_flags(names: list[str]) -> tuple[Words, ...]:
    """The flags that name one of these bases: `--base a, or --base b`."""
    return tuple(part for name in names for part in (", or ", Flag("base", name)))[1:]


def choose_base(reg: Registry, default: str, task: str | None = None, user: User | None = None) -> str:
    """The name of the base to use where none was asked for: `default` if the user has a model on it, or the task a bank
    where no user is meant; else the only base of which that is true; `default` if there is none.

    Raises UsageError where several others could be meant.
    """
    from mta_cli.pipeline.models.installed import resolve_model

    known = reg.banks.bases(task) if user is None else reg.banks.bases_of_user(user.id, task)
    if not known:
        return choose_base(reg, default, task) if user is not None else default
    try:
        if resolve_model(default, "base").fingerprint in known:
            return default
    except MtaError:  # it is not on this machine, which counts only if it is needed
        pass
    names = [base_name(reg, fingerprint) for fingerprint in known]
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    raise UsageError(
        f"No base was chosen; the store's banks are on {listed}."
        if user is None
        else f"No base was chosen; {user.name}'s models are on {listed}.",
        hint=(*base_flags(names), "; models.base in mta.toml keeps the choice"),
    )
