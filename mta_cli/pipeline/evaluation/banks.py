"""The bank of each fold, built from those who are not tested in it. A fold's bank serves every evaluation it fits."""

from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Event, Note
from mta_cli.pipeline.evaluation.design import Design, EvalRequest, bank_options
from mta_cli.pipeline.passing import passed_on
from store.models import Bank

if TYPE_CHECKING:
    from store.registry import Registry

PURPOSE = "eval"


def fold_banks(
    reg: "Registry", request: EvalRequest, plan: Design, evaluation: int
) -> Generator[Event, None, list[Bank]]:
    """Build or finish every fold's bank, and `return` them. Raises as `build_bank`."""
    from mta_cli.pipeline.build_bank import BankRequest, build_bank

    found, known = [], reg.evaluations.banks(evaluation)
    for number, fold in enumerate(plan.folds):
        bank = reg.banks.by_id(known[number]) if number in known else None
        if bank is None or bank.status != "ready":
            yield Note(f"Fold {number + 1} of {len(plan.folds)}: the bank of {len(fold.bank)} people")
            own = BankRequest(
                request.task, request.base, request.embedder, bank_options(request), request.prompt, request.machine,
                name=f"eval {request.task.name}", people=frozenset(fold.bank), purpose=PURPOSE,
                begun=partial(reg.evaluations.use_bank, evaluation, number),
            )  # fmt: skip
            try:
                built: dict[str, Any] = yield from passed_on(build_bank(reg, own))
            except BadInput as error:
                raise BadInput(f"Fold {number + 1}: {error.message}", hint=error.hint) from error
            bank = reg.banks.get(built["bank"], built["version"])
        found.append(bank)
    return found
