"""The jobs behind `mta eval run` and `mta eval tune`. Answers are stored; a stopped job continues where it stopped.

`tune` tries a method's settings on all users, and chooses each fold's settings on users who are not tested in it. `run`
then uses the chosen settings.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mta_cli.errors import UsageError
from mta_cli.events import Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.options import PLACEMENTS
from mta_cli.pipeline.evaluation.banks import FoldBanks, bank_presets, build_fold_banks, cost_of_banks
from mta_cli.pipeline.evaluation.context import EvalContext, embed_shot_profiles
from mta_cli.pipeline.evaluation.design import Design, evaluation_config, job_name, make_design, plan_lines
from mta_cli.pipeline.evaluation.run_cells import MethodRun, cost_of_answers, run_cells
from mta_cli.pipeline.evaluation.scoring import FoldSettings, result_document, score_method
from mta_cli.pipeline.requests import EvalRequest, eval_request_json
from mta_cli.pipeline.runs import record_request
from store.tables.evaluations import Evaluation, TunedSettings

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import Method
    from store.registry import Registry

TUNING_METRIC = "gold_loglik"  # the criterion for settings; more sensitive than accuracy
POSITIVE_SETTINGS = frozenset(
    (
        "rank",
        "alpha",
        "steps",
        "batch_size",
        "learning_rate",
        "top_k",
        "evaluations",
        "temperature",
        "prior_strength",
        "neighbour_weight",
        "epochs",
        "candidates",
    )
)


def run_evaluation(
    reg: Registry, request: EvalRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Answer every query with every method. `JobResult.result` is the document of `mta eval run`."""
    methods = _methods(request)
    design = make_design(reg, request)
    known = reg.evaluations.find_by_key(design.key)
    columns = _method_runs(methods, _tuned_settings(reg, request, known, methods, design))
    yield JobPlan("eval run", (*plan, *_plan(reg, request, design, methods, columns)))
    if dry_run:
        yield JobResult({"dry_run": True, "task": request.task.name, "users": len(design.test_users)})
        return
    with (
        reg.job_lock(job_name(request.task.name, design.key)),
        reg.hold_users(f"evaluation of {request.task.name}", design.all_users),
        _start_evaluation(reg, request, design, "eval run") as evaluation,
    ):
        chosen = _tuned_settings(reg, request, evaluation, methods, design)
        yield from _answer_missing(reg, request, design, evaluation, _method_runs(methods, chosen))
        result = result_document(
            reg, request, design, evaluation.id, chosen | _earlier_settings(reg, evaluation, design, chosen)
        )
        if result["reference"] != request.options.reference:
            asked = request.options.reference
            yield Note(f"{asked} is not among the methods: all are compared with {result['reference']}.", warning=True)
        reg.evaluations.finish_evaluation(evaluation.id, result)
    yield JobResult(result)


def tune_evaluation(
    reg: Registry, request: EvalRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Try the settings in each method's grid.

    `JobResult.result`: {evaluation, task, tuned: [{method, fold, settings, gold_loglik, trials}]}.
    """
    methods = [method for method in _methods(request) if method.grid]
    if not methods:
        raise UsageError("none of these methods has settings to choose from", hint="mta eval methods")
    design = make_design(reg, request)
    columns = [MethodRun(n, m, own) for m in methods for own in trials(m, request) for n in range(len(design.folds))]
    yield JobPlan("eval tune", (*plan, *_plan(reg, request, design, methods, columns)))
    if dry_run:
        yield JobResult(
            {"dry_run": True, "task": request.task.name, "trials": sum(len(trials(m, request)) for m in methods)}
        )
        return
    with (
        reg.job_lock(job_name(request.task.name, design.key)),
        reg.hold_users(f"evaluation of {request.task.name}", design.all_users),
        _start_evaluation(reg, request, design, "eval tune") as evaluation,
    ):
        yield from _answer_missing(reg, request, design, evaluation, columns)
        tuned = [entry for method in methods for entry in _choose(reg, request, design, evaluation, method)]
    yield JobResult({"evaluation": evaluation.id, "task": request.task.name, "tuned": tuned})


def trials(method: Method, request: EvalRequest) -> list[dict[str, Any]]:
    """All settings of the method's grid, the defaults first."""
    found = [resolve_settings(method, request, {})]
    found += [resolve_settings(method, request, dict(own)) for own in method.grid]
    return [own for i, own in enumerate(found) if own not in found[:i]]


def resolve_settings(method: Method, request: EvalRequest, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings: its defaults, then the `chosen` ones, then those given by the user.

    Raises UsageError for an unknown setting and for a value out of bounds.
    """
    given, defaults = request.method_settings.get(method.name, {}), method.settings_for(bool(request.task.labels))
    if unknown := sorted(set(given) - set(defaults)):
        raise UsageError(
            f"{method.name} has no setting {', '.join(unknown)}", hint=f"it has {', '.join(defaults) or 'none'}"
        )
    settings = {**defaults, **chosen}
    if settings.get("placement", "all") != "all":
        settings["placement"] = request.options.placement  # where the fold's anchors act
    version = {"version": method.version} if method.version > 1 else {}
    converted = {key: _convert_setting(f"{method.name}.{key}", defaults[key], value) for key, value in given.items()}
    return {**settings, **converted, **version}


def _convert_setting(name: str, default: Any, value: Any) -> Any:
    """`value` as the type of `default`. Raises UsageError for another type or a value out of bounds."""
    kind, key = type(default), name.rpartition(".")[2]
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise UsageError(f"{name} = {value!r:.80}: this is true or false")
        return str(value).lower() == "true"
    try:
        found: Any = kind(value)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, "a text")
        raise UsageError(f"{name} = {value!r:.80}: this is {what}") from None
    if (wanted := _out_of_bounds(key, found)) is not None:
        raise UsageError(f"{name} = {value!r:.80}: {wanted}")
    return found


def _out_of_bounds(key: str, value: Any) -> str | None:
    """The bounds of a setting as text; None where `value` is within them."""
    if isinstance(value, str):
        return f"choose one of {', '.join(PLACEMENTS)}" if key == "placement" and value not in PLACEMENTS else None
    if math.isfinite(value) and (value > 0 or (value == 0 and key not in POSITIVE_SETTINGS)):
        return None
    return f"this is a number {'above 0' if key in POSITIVE_SETTINGS else 'of at least 0'}"


def _methods(request: EvalRequest) -> list[Method]:
    from mta_cli.engine.methods.catalog import find_methods

    wanted = [name.strip() for name in request.options.methods.split(",") if name.strip()]
    if unused := sorted(set(request.method_settings) - set(wanted)):
        raise UsageError(f"settings are given for {', '.join(unused)}, which is not among the methods")
    found = find_methods(wanted, request.options.memory)
    find_methods([request.options.reference])
    for method in found:
        resolve_settings(method, request, {})
    return found


def _plan(
    reg: Registry, request: EvalRequest, design: Design, methods: Sequence[Method], columns: Sequence[MethodRun]
) -> tuple[PlanLine, ...]:
    lines = plan_lines(request, design, [method.name for method in methods])
    return (
        *lines,
        *cost_of_banks(reg, request, design, bank_presets(methods)),
        cost_of_answers(reg, request, design, columns),
    )


def _method_runs(methods: Sequence[Method], chosen: Mapping[str, FoldSettings]) -> list[MethodRun]:
    return [MethodRun(n, method, dict(own)) for method in methods for n, own in enumerate(chosen[method.name])]


@contextmanager
def _start_evaluation(reg: Registry, request: EvalRequest, design: Design, kind: str) -> Iterator[Evaluation]:
    from mta_cli.pipeline.models.installed import record_models

    record_models(reg, request.base, request.embedder)
    begun = reg.evaluations.get_or_create_evaluation(
        design.key, request.task.name, evaluation_config(request), design.role_assignments
    )
    with record_request(reg, kind, eval_request_json(request), evaluation_id=begun.id):
        yield begun


def _tuned_settings(
    reg: Registry, request: EvalRequest, begun: Evaluation | None, methods: Sequence[Method], design: Design
) -> dict[str, FoldSettings]:
    folds = len(design.folds)
    tunings = reg.evaluations.tunings(begun.id) if begun else []
    tuned = {(one.method, one.fold): one.settings for one in tunings}
    return {
        method.name: [resolve_settings(method, request, tuned.get((method.name, fold), {})) for fold in range(folds)]
        for method in methods
    }


def _earlier_settings(
    reg: Registry, evaluation: Evaluation, design: Design, chosen: Mapping[str, FoldSettings]
) -> dict[str, FoldSettings]:
    """The settings of methods that earlier runs finished and this run does not include."""
    found: dict[str, FoldSettings] = {}
    for method, settings in evaluation.result.get("settings", {}).items():
        if method not in chosen:
            folds = range(len(design.folds))
            found[method] = settings if isinstance(settings, list) else [settings for _ in folds]
    return found


def _answer_missing(
    reg: Registry, request: EvalRequest, design: Design, evaluation: Evaluation, columns: Sequence[MethodRun]
) -> Iterator[Event]:
    """Build missing banks and answer missing queries."""
    done = reg.evaluations.predictions.finished_cells
    counts = [
        len(done(evaluation.id, c.fold, c.method.name, c.settings).keys() & set(design.answering_users(c.fold)))
        for c in columns
    ]
    total = sum(len(design.answering_users(column.fold)) for column in columns)
    if sum(counts) == total:
        yield Note(f"Evaluation {evaluation.id} holds all these answers; nothing to compute.")
        return
    presets = bank_presets([column.method for column in columns])
    banks: FoldBanks = yield from build_fold_banks(reg, request, design, evaluation.id, presets)
    profiles = yield from embed_shot_profiles(request, design)
    context = EvalContext(reg, request, design, banks, profiles)
    yield JobStarted("eval run", total=total, unit="users")
    finished = sum(counts)
    # Methods above the same weights are grouped, so that their shared states are computed once.
    for column in sorted(columns, key=lambda c: (c.fold, c.method.below)):
        answered = len(design.answering_users(column.fold))
        yield from run_cells(context, evaluation.id, column, finished)
        finished += answered - counts[columns.index(column)]


def _choose(
    reg: Registry, request: EvalRequest, design: Design, evaluation: Evaluation, method: Method
) -> Generator[dict[str, Any], None, None]:
    """For each fold, the settings that were best on users who are not tested in it."""
    folds = range(len(design.folds))
    tried = trials(method, request)
    for fold in folds:
        scored = [_score(reg, request, design, evaluation, method.name, own, fold) for own in tried]
        best = max(range(len(tried)), key=scored.__getitem__)
        rows = [{"settings": own, TUNING_METRIC: value} for own, value in zip(tried, scored, strict=True)]
        reg.evaluations.save_tuning(evaluation.id, TunedSettings(fold, method.name, tried[best], rows))
        yield {
            "method": method.name,
            "fold": fold,
            "settings": tried[best],
            TUNING_METRIC: scored[best],
            "trials": rows,
        }


def _score(
    reg: Registry,
    request: EvalRequest,
    design: Design,
    evaluation: Evaluation,
    method: str,
    own: dict[str, Any],
    fold: int,
) -> float:
    """The mean log-likelihood of the golds of the users on whom a fold's settings are chosen."""
    others = design.tuning_design(fold)
    judged = score_method(
        reg, request.task, others, evaluation.id, method, [own] * len(design.folds), request.options.calibrate
    )
    return judged.user_sums.metric_values()[TUNING_METRIC]
