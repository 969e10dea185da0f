"""The bank of each fold, built from those who are not tested in it. A fold's bank serves every evaluation it fits."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput
from mta_cli.events import Event, Note, PlanLine
from mta_cli.pipeline.evaluation.design import Design, EvalRequest, bank_options
from mta_cli.pipeline.memory.knn import BESIDE, is_fitted
from mta_cli.pipeline.passing import passed_on
from store.records import Bank

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.folds import Fold
    from mta_cli.pipeline.bank.build import BankRequest
    from store.registry import Registry

PURPOSE = "eval"


def fold_banks(
    reg: Registry, request: EvalRequest, plan: Design, evaluation: int
) -> Generator[Event, None, list[Bank]]:
    """Build or finish every fold's bank, and `return` them. Raises as `build_bank`."""
    from mta_cli.pipeline.bank.build import build_bank

    found, known = [], reg.evaluations.banks(evaluation)
    for number, fold in enumerate(plan.folds):
        bank = reg.banks.by_id(known[number]) if number in known else None
        whole = bank is not None and bank.status == "ready" and (_guesses(bank) or not request.task.labels)
        if bank is None or not whole:
            yield Note(f"Fold {number + 1} of {len(plan.folds)}: the bank of {len(fold.bank)} people")
            own = replace(_request(request, fold), begun=partial(reg.evaluations.use_bank, evaluation, number))
            try:
                built: dict[str, Any] = yield from passed_on(build_bank(reg, own))
            except BadInput as error:
                raise BadInput(f"Fold {number + 1}: {error.message}", hint=error.hint) from error
            bank = reg.banks.get(built["bank"], built["version"])
        found.append(bank)
    return found


def cost_of_banks(reg: Registry, request: EvalRequest, plan: Design) -> tuple[PlanLine, ...]:
    """Tokens, memory and time of the banks that are not there yet. BadInput where a fold has too few candidates."""
    from mta_cli.pipeline.bank.build import candidates, contributors, expected
    from mta_cli.pipeline.bank.task_adapter import made_before
    from mta_cli.pipeline.training.estimate import cost_lines

    known = reg.evaluations.find(plan.key)
    there = reg.evaluations.banks(known.id) if known is not None else {}
    ready = {number for number, bank in there.items() if reg.banks.by_id(bank).status == "ready"}
    works = []
    for number, fold in enumerate(plan.folds):
        if number not in ready:
            own = _request(request, fold)
            pool = contributors(reg, request.task.name, own.options, own.people)
            try:
                chosen = candidates(pool, request.task.name, own.options)
                works.append(expected(own, pool, chosen, made_before(reg, own, pool) is not None))
            except BadInput as error:
                raise BadInput(f"Fold {number + 1}: {error.message}", hint=error.hint) from error
    if not works:
        return (PlanLine("banks", "all there"),)
    tokens = [each for work in works for each in work.tokens]
    return (
        PlanLine("banks", f"{len(works)} to build; what they cost follows"),
        *cost_lines(reg, request.base, request.machine, tokens, works[0].step),
    )


def _guesses(bank: Bank) -> bool:
    """Whether its neighbours are fitted and weighed, as a bank of an earlier version's may not be."""
    return BESIDE in bank.config and is_fitted(bank)


def _request(request: EvalRequest, fold: Fold) -> BankRequest:
    from mta_cli.pipeline.bank.build import BankRequest

    return BankRequest(
        request.task,
        request.base,
        request.embedder,
        bank_options(request),
        request.prompt,
        request.machine,
        name=f"eval {request.task.name}",
        people=frozenset(fold.bank),
        purpose=PURPOSE,
    )
