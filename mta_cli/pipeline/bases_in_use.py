"""The bases of a store's banks: which base a command uses, and how messages name it. Loads no base.

The store identifies a base by its fingerprint; users see its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mta_cli.errors import Flag, MtaError, NotFound, UsageError, Words

if TYPE_CHECKING:
    from store.records import User
    from store.registry import Registry

SHOWN_DIGITS = 19  # digits of a fingerprint that are shown if the name is unknown


def base_name(reg: Registry, fingerprint: str) -> str:
    """The recorded name of a base; the beginning of its fingerprint if no name is recorded."""
    try:
        return reg.models.get(fingerprint).name
    except NotFound:
        return fingerprint[:SHOWN_DIGITS]


def base_names(reg: Registry, task: str | None = None, user: User | None = None) -> list[str]:
    """The names of the bases of ready banks, newest bank first; with a user, only bases on which they have a model."""
    found = reg.banks.bases(task) if user is None else reg.banks.bases_of_user(user.id, task)
    return [base_name(reg, fingerprint) for fingerprint in found]


def has_several_bases(reg: Registry) -> bool:
    """Whether the store has banks on more than one base, so that lists and commands must name the base."""
    return len(reg.banks.bases(ready=False)) > 1


def on_base(reg: Registry, fingerprint: str) -> str:
    """` on NAME` if the store has banks on several bases, otherwise empty."""
    return f" on {base_name(reg, fingerprint)}" if has_several_bases(reg) else ""


def base_name_if_several(reg: Registry, fingerprint: str, name: str | None = None) -> str | None:
    """The name for a command's `--base`; None if all banks of the store are on this base, so the flag is not needed."""
    if set(reg.banks.bases(ready=False)) <= {fingerprint}:
        return None
    return name or base_name(reg, fingerprint)


def base_flags(names: list[str]) -> tuple[Words, ...]:
    """The words of a message that offer each base: `--base a, or --base b`."""
    return tuple(part for name in names for part in (", or ", Flag("base", name)))[1:]


def choose_base(reg: Registry, default: str, task: str | None = None, user: User | None = None) -> str:
    """The name of the base for a command without `--base`: `default`, or the only base with a model or bank.

    Candidates are the bases on which `user` has a model; without a user or a model, the bases with a bank of `task`.
    `default` is returned if it is a candidate or if there are none. Raises UsageError for several other candidates.
    """
    from mta_cli.pipeline.models.installed import resolve_model

    known = reg.banks.bases(task) if user is None else reg.banks.bases_of_user(user.id, task)
    if not known:
        return choose_base(reg, default, task) if user is not None else default
    try:
        if resolve_model(default, "base").fingerprint in known:
            return default
    except MtaError:  # `default` is not on this machine, so it is not a candidate
        pass
    names = [base_name(reg, fingerprint) for fingerprint in known]
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    raise UsageError(
        f"No base was chosen, and the store has banks on several: {listed}."
        if user is None
        else f"No base was chosen, and {user.name} has models on several: {listed}.",
        hint=("choose one with ", *base_flags(names), "; to keep the choice, set models.base in mta.toml"),
    )
