"""The bank of each fold, built without the fold's test users. All evaluations with the same bank settings share it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Flag
from mta_cli.events import Event, Note, PlanLine, forward_events
from mta_cli.lab.evaluation.design import Design
from mta_cli.options import PERMUTED_ANSWERS, PRESETS, BankOptions
from mta_cli.pipeline.requests import BankRequest, EvalRequest, bank_options
from mta_cli.pipeline.runs import bank_label
from store.records import Bank

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import Method
    from mta_cli.lab.evaluation.folds import UserFold
    from mta_cli.pipeline.executors import Executors
    from store.registry import Registry

PURPOSE = "eval"
FoldBanks = dict[tuple[int, str], Bank]  # by fold and preset


def bank_presets(methods: Sequence[Method]) -> tuple[str, ...]:
    """The presets of all banks that these methods need. The evaluation's own bank is "" and comes first."""
    return ("", *sorted({method.bank_preset for method in methods} - {""}))


def build_fold_banks(
    reg: Registry,
    request: EvalRequest,
    plan: Design,
    evaluation: int,
    presets: Sequence[str] = ("",),
    executors: Executors | None = None,
) -> Generator[Event, None, FoldBanks]:
    """Build or finish the missing banks of every fold and preset; the generator's return value is all banks.

    If an existing bank is measured, nothing is built. Raises the errors of `build_bank`.
    """
    from mta_cli.pipeline.bank.build import build_bank

    if request.measured is not None:
        reg.evaluations.set_fold_bank(evaluation, 0, request.measured.bank.id)
        return {(0, ""): request.measured.bank}
    found, known = FoldBanks(), reg.evaluations.fold_banks(evaluation)
    for number, fold, preset in _each_bank(plan, presets):
        key = (number, preset)
        bank = reg.banks.by_id(known[key]) if key in known else None
        if bank is None or bank.status != "ready":
            which = f" ({preset})" if preset else ""
            started = partial(reg.evaluations.set_fold_bank, evaluation, number, preset=preset)
            own = replace(_request(request, plan, fold, preset), on_bank_started=started)
            items = f", items until {own.until}" if own.until else ""
            yield Note(f"Fold {number + 1} of {len(plan.folds)}: the bank of {len(fold.bank)} users{which}{items}")
            try:
                built: dict[str, Any] = yield from forward_events(build_bank(reg, own, executors=executors))
            except BadInput as error:
                raise BadInput((f"Fold {number + 1}{items}: ", error.message), hint=error.hint) from error
            bank = reg.banks.get(built["bank"], built["version"])
        found[key] = bank
    return found


def cost_of_banks(
    reg: Registry, request: EvalRequest, plan: Design, presets: Sequence[str] = ("",)
) -> tuple[PlanLine, ...]:
    """Tokens, memory and time of the missing banks. Raises BadInput where a fold has too few candidates."""
    from mta_cli.pipeline.bank.contributors import gather_bank_inputs
    from mta_cli.pipeline.bank.plan import estimate_build_load, sample_rows
    from mta_cli.pipeline.bank.task_adapter import find_reusable_task_adapter
    from mta_cli.pipeline.training.estimate import TokenLoad, cost_lines

    if request.measured is not None:
        return (PlanLine("bank", bank_label(request.measured.bank), "flag --bank"),)
    known = reg.evaluations.find_by_key(plan.key)
    there = reg.evaluations.fold_banks(known.id) if known is not None else {}
    ready = {key for key, bank in there.items() if reg.banks.by_id(bank).status == "ready"}
    rows, loads, banks = None, list[TokenLoad](), 0
    for number, fold, preset in _each_bank(plan, presets):
        if (number, preset) not in ready:
            own = _request(request, plan, fold, preset)
            try:
                inputs = gather_bank_inputs(reg, own)
                rows = rows or sample_rows(reg, own, inputs.pool)
                shared = find_reusable_task_adapter(reg, own, inputs.pool) is not None
                loads += estimate_build_load(inputs, shared, rows)
                banks += 1
            except BadInput as error:
                items = f", items until {own.until}" if own.until else ""
                raise BadInput((f"Fold {number + 1}{items}: ", error.message), hint=error.hint) from error
    if rows is None:
        return (PlanLine("banks", "all there"),)
    return (
        PlanLine("banks", f"{banks} to build; what they cost follows"),
        *cost_lines(reg, request.base, request.machine, loads, rows.anchors, request.bank.batch_size),
    )


def _each_bank(plan: Design, presets: Sequence[str]) -> Iterator[tuple[int, UserFold, str]]:
    for number, fold in enumerate(plan.folds):
        for preset in presets:
            yield number, fold, preset


def _request(request: EvalRequest, plan: Design, fold: UserFold, preset: str = "") -> BankRequest:
    """The request of a fold's bank. Raises BadInput if only earlier items are allowed and no query has a time."""
    times = [query.time for user in fold.test for query in plan.queries[user] if query.time is not None]
    if request.options.only_earlier and not times:
        raise BadInput(
            f"Fold {plan.folds.index(fold) + 1}: no query of its tested users has a time, so it is unknown which items "
            "are later.",
            hint=("leave out ", Flag("only_earlier"), ", or import the queries with ", Flag("time")),
        )
    return BankRequest(
        request.task,
        request.base,
        request.embedder,
        preset_bank_options(bank_options(request), preset),
        request.prompt,
        request.machine,
        name=f"eval {request.task.name}",
        user_ids=frozenset(fold.bank),
        purpose=PURPOSE,
        gates=request.gates,
        permute_answers=preset == PERMUTED_ANSWERS,
        until=min(times) if request.options.only_earlier else None,
    )


def preset_bank_options(options: BankOptions, preset: str) -> BankOptions:
    """`options` with the values of `preset`; unchanged for "" and for permuted answers, which change no option."""
    named = {} if preset in ("", PERMUTED_ANSWERS) else PRESETS[preset]
    values = {key.partition(".")[2]: v for key, v in named.items() if key.startswith("bank.")}
    return replace(options, **values)
