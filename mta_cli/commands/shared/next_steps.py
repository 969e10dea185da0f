"""What to run after a job: the lines that begin with `Next:`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mta_cli.commands.shared.context import AppContext
    from store.registry import Registry


def suggest_after_import(context: AppContext, reg: Registry, tasks: Sequence[str]) -> None:
    """A bank of the first task, or its users' models where it has one."""
    if not tasks:
        return
    task = shlex.quote(tasks[0])
    if any(bank.task == tasks[0] and bank.status == "ready" for bank in reg.banks.all()):
        context.suggest((f"mta user adapt -t {task}", "train the users' own models"))
        return
    context.suggest(
        (f"mta bank build -t {task} --dry-run", "show what building its bank takes"),
        (f"mta bank build -t {task}", "build it"),
    )


def suggest_after_build(context: AppContext, bank: Mapping[str, Any]) -> None:
    """Models of its users, and a look at the bank."""
    context.suggest(
        (f"mta user adapt -t {shlex.quote(bank['task'])}", "train the users' own models"),
        (f"mta bank show {shlex.quote(bank['bank'])}", "all about the bank"),
    )


def suggest_after_fusion(context: AppContext, user: str, task: str) -> None:
    """A stack, and an answer."""
    name, task = shlex.quote(user), shlex.quote(task)
    context.suggest(
        (f"mta user adapt {name} -t {task}", "train their own stack on top"),
        (f'mta compare {name} "TEXT" -t {task}', "ask with and without it"),
    )


def suggest_after_adaptation(context: AppContext, users: Sequence[str], task: str) -> None:
    """An answer, a chat and an export of the first user."""
    if not users:
        return
    name, task = shlex.quote(users[0]), shlex.quote(task)
    context.suggest(
        (f'mta compare {name} "TEXT" -t {task}', "ask base, fused and adapted"),
        (f"mta chat {name}", "talk with it"),
        (f"mta user export {name} -t {task} --to DIR", "take it to other programs"),
    )


def suggest_after_export(context: AppContext, result: Mapping[str, Any]) -> None:
    """The page that says how to load it."""
    context.suggest((f"cat {shlex.quote(result['to'])}/README.md", "how other programs load it"))


def suggest_after_evaluation(context: AppContext, number: int) -> None:
    """A report."""
    context.suggest(
        (f"mta eval report {number} --to DIR", "pages and charts of these results"),
        (f"mta eval show {number}", "this table again"),
    )
