"""Suggests next commands after a job, in lines that begin with `Next:`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, Flag, Words

if TYPE_CHECKING:
    from mta_cli.commands.shared.context import AppContext
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry


def suggest_after_import(context: AppContext, reg: Registry, tasks: Sequence[str]) -> None:
    """Suggest a bank of the first task, or, if that task has a bank, users' models.

    If no user may be an anchor, consent is suggested first.
    """
    if not tasks:
        return
    task = tasks[0]
    if (bank := reg.banks.latest_ready_bank(task)) is not None:
        adapt = Command("user adapt", t=task, base=_named_base(reg, bank.base))
        context.suggest((adapt, "train the users' own models"))
        return
    agreed = any(user.can_anchor for user, _ in reg.users.users_with_items(task))
    consent = (Command("user consent", all=True, can_anchor=True, t=task), "where they agree to be anchors")
    context.suggest(
        *([] if agreed else [consent]),
        (Command("bank build", t=task, dry_run=True), "show what building its bank takes"),
        (Command("bank build", t=task), "build it"),
    )


def suggest_after_build(context: AppContext, reg: Registry, bank: Mapping[str, Any]) -> None:
    """Suggest users' models on the bank, and showing the bank."""
    newest = reg.banks.get(bank["bank"]).version == bank["version"]
    base = _named_base(reg, bank["base"], bank["base_name"])
    context.suggest(
        (Command("user adapt", t=bank["task"], base=base), "train the users' own models"),
        (Command("bank show", bank["bank"], bank_version=None if newest else bank["version"]), "all about the bank"),
    )


def suggest_after_fusion(context: AppContext, reg: Registry, user: str, task: str, base: ModelEntry) -> None:
    """Suggest a stack for the user, and comparing the user's models."""
    name = _named_base(reg, base.fingerprint, base.name)
    context.suggest(
        (Command("user adapt", user, t=task, base=name), "train their own stack on top"),
        (_compare_command(user, task, name), "base, common and fused side by side"),
    )


def suggest_after_adaptation(
    context: AppContext, reg: Registry, users: Sequence[str], task: str, base: ModelEntry
) -> None:
    """Suggest for the first user a comparison of models, a chat and an export."""
    if not users:
        return
    user, name = users[0], _named_base(reg, base.fingerprint, base.name)
    context.suggest(
        (_compare_command(user, task, name), "base, common, fused and adapted side by side"),
        (Command("chat", user, base=name), "talk with it"),
        (Command("user export", user, t=task, base=name, to="DIR"), "take it to other programs"),
    )


def suggest_after_export(context: AppContext, result: Mapping[str, Any]) -> None:
    """Suggest reading the export's page on how to load it."""
    context.suggest((f"cat {shlex.quote(result['to'])}/README.md", "how other programs load it"))


def suggest_after_evaluation(context: AppContext, number: int) -> None:
    """Suggest a report of the evaluation."""
    context.suggest(
        (Command("eval report", str(number), to="DIR"), "pages and charts of these results"),
        (Command("eval show", str(number)), "this table again"),
    )


def _compare_command(user: str, task: str, base: str | None) -> Words:
    on = (" ", Flag("t", task), *((" ", Flag("base", base)) if base is not None else ()))
    return (Command("compare", user), ' "TEXT"', *on)


def _named_base(reg: Registry, fingerprint: str, name: str | None = None) -> str | None:
    from mta_cli.pipeline.bases_in_use import base_name_if_several  # imported late, because --help does not need it

    return base_name_if_several(reg, fingerprint, name)
