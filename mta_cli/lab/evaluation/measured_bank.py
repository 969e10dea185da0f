"""Measures an existing bank on users whose data it does not contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, Flag, NotFound, UsageError, system_reason
from mta_cli.options import BankOptions, EvalOptions, MachineOptions, PromptOptions, options_from_json
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.evaluation.answer_queries import scorable_queries
from mta_cli.pipeline.requests import EvalRequest, MeasuredBank, model_by_fingerprint
from mta_cli.plain_file import refuse_special_file
from mta_cli.text.formatting import join_some
from store.files import missing_file_hint
from store.names import quote_text
from store.records import Bank

if TYPE_CHECKING:
    from store.registry import Registry

MAX_NAMES_SHOWN = 5
MAX_FILE_BYTES = 64 * 2**20  # bytes of a file of names


def measured_bank_request(
    reg: Registry,
    bank: Bank,
    task: str,
    names: list[str] | None,
    options: EvalOptions,
    machine: MachineOptions,
    method_settings: Mapping[str, Mapping[str, Any]],
) -> EvalRequest:
    """The request to measure `bank` on the users with these `names`; if None, on all users who can be tested.

    A user can be tested if they have items and held-out queries of the task and the bank does not contain their data.
    The bank determines models, placement and history items. Raises UsageError for a bank of another task, NotFound for
    an unknown user, and BadInput for users who cannot be tested.
    """
    if bank.task != task:
        raise UsageError(f"bank {bank.name} is of task {bank.task}, not {task}", hint=("use ", Flag("task", bank.task)))
    built = options_from_json(BankOptions, bank.config)
    return EvalRequest(
        find_task(reg, task),
        model_by_fingerprint(reg, bank.base, "base"),
        model_by_fingerprint(reg, bank.embedder, "embedder"),
        replace(options, folds=1, placement=built.placement, only_earlier=False),
        built,
        options_from_json(PromptOptions, bank.config),
        machine,
        method_settings,
        MeasuredBank(bank, _tested_user_ids(reg, bank, names)),
    )


def _tested_user_ids(reg: Registry, bank: Bank, names: list[str] | None) -> tuple[int, ...]:
    sources = reg.banks.source_users(bank.id)
    holding = [user.id for user, _ in reg.users.users_with_items(bank.task)]
    queries, _ = scorable_queries(reg, find_task(reg, bank.task), holding)
    testable = {user for user, own in queries.items() if own}
    if names is None:
        if not (found := testable - sources):
            raise BadInput(
                f"Bank {bank.name} cannot be tested: it contains data of every user with held-out queries of task "
                f"{bank.task}.",
                hint=("import other users to test it on (", Command("data import"), ")"),
            )
        return tuple(sorted(found))
    users = [reg.users.get(name) for name in dict.fromkeys(names)]
    if inside := [quote_text(user.name) for user in users if user.id in sources]:
        raise BadInput(
            f"Bank {bank.name} v{bank.version} contains data of {join_some(inside, MAX_NAMES_SHOWN)}, so it cannot be "
            "tested on them.",
            hint="leave them out of the file",
        )
    if without := [quote_text(user.name) for user in users if user.id not in testable]:
        raise BadInput(
            f"These users have no history items with held-out queries of task {bank.task}: "
            f"{join_some(without, MAX_NAMES_SHOWN)}.",
            hint=("leave them out of the file, or import their queries (", Command("data import"), ")"),
        )
    return tuple(sorted(user.id for user in users))


def read_user_names(path: Path) -> list[str]:
    """The names in a file with one name on each line.

    Raises NotFound if there is no file, and BadInput if it cannot be read, is too large, is not UTF-8 or has no names.
    """
    try:
        refuse_special_file(path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f"{path} is too large for a list of names: at most {MAX_FILE_BYTES:,} bytes.")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        hint = missing_file_hint(path, "name a file with one user's name on each line")
        raise NotFound(f"There is no file {path}.", hint=hint) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {system_reason(error)}.") from error
    names = [name for line in text.splitlines() if (name := line.strip())]
    if not names:
        raise BadInput(f"{path} names no user.", hint="write one user's name on each line")
    return names
