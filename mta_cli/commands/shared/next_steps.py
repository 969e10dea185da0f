"""Suggestions after a job: the lines that begin with `Next:`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mta_cli.commands.shared.context import AppContext
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry


def suggest_after_import(context: AppContext, reg: Registry, tasks: Sequence[str]) -> None:
    """Suggests a bank of the first task (before it consent, if no user may be an anchor), or users' models if it has a
    bank.
    """
    if not tasks:
        return
    task = shlex.quote(tasks[0])
    if (bank := reg.banks.latest_ready_bank(tasks[0])) is not None:
        context.suggest((f"mta user adapt -t {task}{_base_flag(reg, bank.base)}", "train the users' own models"))
        return
    agreed = any(user.can_anchor for user, _ in reg.users.users_with_items(tasks[0]))
    consent = (f"mta user consent --all --can-anchor -t {task}", "where they agree to be anchors")
    context.suggest(
        *([] if agreed else [consent]),
        (f"mta bank build -t {task} --dry-run", "show what building its bank takes"),
        (f"mta bank build -t {task}", "build it"),
    )


def suggest_after_build(context: AppContext, reg: Registry, bank: Mapping[str, Any]) -> None:
    """Suggests models of its users, and showing the bank."""
    newest = reg.banks.get(bank["bank"]).version == bank["version"]
    version = "" if newest else f" --bank-version {bank['version']}"
    context.suggest(
        (
            f"mta user adapt -t {shlex.quote(bank['task'])}{_base_flag(reg, bank['base'], bank['base_name'])}",
            "train the users' own models",
        ),
        (f"mta bank show {shlex.quote(bank['bank'])}{version}", "all about the bank"),
    )


def suggest_after_fusion(context: AppContext, reg: Registry, user: str, task: str, base: ModelEntry) -> None:
    """Suggests a stack, and an answer."""
    name, on = shlex.quote(user), f"-t {shlex.quote(task)}{_base_flag(reg, base.fingerprint, base.name)}"
    context.suggest(
        (f"mta user adapt {name} {on}", "train their own stack on top"),
        (f'mta compare {name} "TEXT" {on}', "base, common and fused side by side"),
    )


def suggest_after_adaptation(
    context: AppContext, reg: Registry, users: Sequence[str], task: str, base: ModelEntry
) -> None:
    """Suggests an answer, a chat and an export of the first user."""
    if not users:
        return
    name, flag = shlex.quote(users[0]), _base_flag(reg, base.fingerprint, base.name)
    on = f"-t {shlex.quote(task)}{flag}"
    context.suggest(
        (f'mta compare {name} "TEXT" {on}', "base, common, fused and adapted side by side"),
        (f"mta chat {name}{flag}", "talk with it"),
        (f"mta user export {name} {on} --to DIR", "take it to other programs"),
    )


def suggest_after_export(context: AppContext, result: Mapping[str, Any]) -> None:
    """Names the page that explains loading."""
    context.suggest((f"cat {shlex.quote(result['to'])}/README.md", "how other programs load it"))


def suggest_after_evaluation(context: AppContext, number: int) -> None:
    """Suggests a report."""
    context.suggest(
        (f"mta eval report {number} --to DIR", "pages and charts of these results"),
        (f"mta eval show {number}", "this table again"),
    )


def _base_flag(reg: Registry, fingerprint: str, name: str | None = None) -> str:
    from mta_cli.pipeline.bases_in_use import base_flag  # not for --help

    return base_flag(reg, fingerprint, name)
