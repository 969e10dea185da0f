"""The jobs behind `mta eval run` and `mta eval tune`. Answers are stored; a stopped job continues where it stopped.

`tune` tries a method's settings on all users, and chooses each fold's settings on users who are not tested in it. `run`
then uses the chosen settings.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, Flag, UsageError
from mta_cli.events import Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.lab.evaluation.banks import FoldBanks, bank_presets, build_fold_banks, cost_of_banks
from mta_cli.lab.evaluation.context import EvalContext, embed_shot_profiles, refresh_anchor_profiles
from mta_cli.lab.evaluation.design import Design, evaluation_config, make_design, plan_lines
from mta_cli.lab.evaluation.method_run import MethodRun, cost_of_answers, run_method
from mta_cli.lab.evaluation.method_settings import resolve_settings, trials
from mta_cli.lab.evaluation.result_document import result_document, score_method
from mta_cli.options import ALL_MEMORIES, LADDER_METHODS
from mta_cli.pipeline.evaluation.answer_queries import unscorable_queries_note
from mta_cli.pipeline.evaluation.scored_answers import FoldSettings
from mta_cli.pipeline.executors import open_executors
from mta_cli.pipeline.requests import EvalRequest, eval_request_json
from mta_cli.pipeline.runs import evaluation_lock, record_request
from store.tables.evaluations import Evaluation, TunedSettings

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import Method
    from store.registry import Registry

TUNING_METRIC = "gold_loglik"  # the criterion for settings; more sensitive than accuracy


def run_evaluation(
    reg: Registry, request: EvalRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Answer every query with every method. `JobResult.result` is the document of `mta eval run`."""
    asked, (methods, request) = request, _resolve_methods(request)
    design = make_design(reg, request)
    known = reg.evaluations.find_by_key(design.key)
    request = _with_earlier_given(request, methods, known)
    runs = _method_runs(methods, _tuned_settings(reg, request, known, methods, design))
    yield JobPlan("eval run", (*plan, *_plan(reg, request, design, methods, runs)))
    yield from unscorable_queries_note(design.unscored)
    if request.options.memory is not None and not request.task.labels:
        yield Note(f"Task {request.task.name} has texts, which have no label memory: --memory changes nothing.")
    if dry_run:
        yield JobResult({"dry_run": True, "task": request.task.name, "users": len(design.test_users)})
        return
    with _start_evaluation(reg, asked, design, "eval run") as evaluation:
        chosen = _tuned_settings(reg, request, evaluation, methods, design)
        yield from _answer_missing(reg, request, design, evaluation, _method_runs(methods, chosen))
        earlier = _earlier_settings(evaluation, design, chosen)
        if incomplete := [
            name for name, own in earlier.items() if not _is_complete(reg, evaluation, design, name, own)
        ]:
            earlier = {name: own for name, own in earlier.items() if name not in incomplete}
            names = ", ".join(incomplete)
            yield Note(
                f"Answers for some users are missing: {names}. Name them in --methods to run them again.", warning=True
            )
        given = {**evaluation.result.get("given", {}), **{name: {} for name in chosen}, **request.method_settings}
        result = result_document(reg, request, design, evaluation.id, chosen | earlier, given)
        if outdated := sorted(filter(_is_outdated, earlier.items())):
            names = ", ".join(name for name, _ in outdated)
            yield Note(
                f"Measured by an earlier version of mta: {names}. Name them in --methods to run them again.",
                warning=True,
            )
        for control, own in _unlike_originals(chosen | earlier):
            yield Note(
                f"{control} has other settings than {own}. Name both in --methods to run them with the same settings.",
                warning=True,
            )
        if result["reference"] != request.options.reference:
            wanted = request.options.reference
            yield Note(f"{wanted} is not among the methods: all are compared with {result['reference']}.", warning=True)
        reg.evaluations.finish_evaluation(evaluation.id, result)
    yield JobResult(result)


def tune_evaluation(
    reg: Registry, request: EvalRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Try the settings in each method's grid, and store the best ones for each fold.

    `JobResult.result`: {evaluation, task, tuned: [{method, fold, settings, gold_loglik, trials}]}.
    """
    asked, (named, request) = request, _resolve_methods(replace(request, options=replace(request.options, others=0)))
    methods = [method for method in named if method.grid]
    if not methods:
        controls = any(method.control_of for method in named)
        raise UsageError(
            f"tuning has no settings to try for {', '.join(method.name for method in named)}",
            hint="a control uses the settings of its original method: tune that method instead"
            if controls
            else (Command("eval methods"), " lists all methods with their settings"),
        )
    design = make_design(reg, request)
    runs = [MethodRun(n, m, own) for m in methods for own in trials(m, request) for n in range(len(design.folds))]
    yield JobPlan("eval tune", (*plan, *_plan(reg, request, design, methods, runs)))
    yield from unscorable_queries_note(design.unscored)
    if dry_run:
        yield JobResult(
            {"dry_run": True, "task": request.task.name, "trials": sum(len(trials(m, request)) for m in methods)}
        )
        return
    with _start_evaluation(reg, asked, design, "eval tune") as evaluation:
        yield from _answer_missing(reg, request, design, evaluation, runs)
        tuned = [entry for method in methods for entry in _choose(reg, request, design, evaluation, method)]
    yield JobResult({"evaluation": evaluation.id, "task": request.task.name, "tuned": tuned})


def _resolve_methods(request: EvalRequest) -> tuple[list[Method], EvalRequest]:
    """The named methods, and the request whose reference and settings have the method names that `--memory` gives."""
    from mta_cli.lab.methods.catalog import find_method, find_methods, ladder_methods, original

    options = request.options
    memory = options.memory if request.task.labels else None  # tasks of texts have no label memory
    ladder = ladder_methods(bool(request.task.labels), memory)
    named = [name.strip() for name in options.methods.split(",") if name.strip()]
    methods = find_methods([one for name in named for one in (ladder if name == LADDER_METHODS else [name])], memory)
    names = {method.name for method in methods}
    given: dict[str, dict[str, Any]] = {}
    # names with a memory (`mta+neighbours`) come last, so that their settings override those of the plain name
    for name in sorted(request.method_settings, key=lambda name: "+" in name):
        for method, known in _split_settings(find_methods([name], memory), request.method_settings[name]):
            given[method.name] = {**given.get(method.name, {}), **known}
    originals = {method.name: original(method).name for method in methods if method.control_of}
    for control, name in originals.items():
        if own := {**given.get(name, {}), **given.get(control, {})}:
            given[control] = own
    if unused := sorted(set(given) - names - set(originals.values())):
        raise UsageError(
            f"settings are given for {', '.join(unused)}, which is not among the methods",
            hint="add it to the methods, or leave its settings out",
        )
    reference = find_method(options.reference, None if memory == ALL_MEMORIES else memory).name
    if reference in names:
        options = replace(options, reference=reference)
    if request.measured is not None and (apart := [method.name for method in methods if method.bank_preset]):
        raise UsageError(
            (f"{', '.join(apart)} needs a bank of its own and cannot be measured with ", Flag("bank")),
            hint="leave it out of the methods",
        )
    of_methods = {name: own for name, own in given.items() if name in names}
    request = replace(request, options=options, method_settings=of_methods)
    for method in methods:
        resolve_settings(method, request, {})
    return methods, request


def _with_earlier_given(request: EvalRequest, methods: Sequence[Method], known: Evaluation | None) -> EvalRequest:
    """The request. A control whose method is not in this run also gets the settings given for it in an earlier run."""
    from mta_cli.lab.methods.catalog import original

    earlier = known.result.get("given", {}) if known else {}
    given, names = dict(request.method_settings), {method.name for method in methods}
    for control in methods:
        if control.control_of and (name := original(control).name) not in names and name in earlier:
            given[control.name] = {**earlier[name], **given.get(control.name, {})}
    return replace(request, method_settings=given)


def _unlike_originals(settings: Mapping[str, FoldSettings]) -> Iterator[tuple[str, str]]:
    """Each control whose settings differ from its method's, versions ignored, with the method's name."""
    from mta_cli.lab.methods.catalog import find_method, original

    plain = {name: [{**own, "version": 1} for own in by_fold] for name, by_fold in settings.items()}
    for name in plain:
        method = find_method(name)
        if method.control_of and plain.get(own := original(method).name, plain[name]) != plain[name]:
            yield name, own


def _split_settings(variants: Sequence[Method], settings: Mapping[str, Any]) -> list[tuple[Method, dict[str, Any]]]:
    """Each variant of a method with its settings, and with unknown settings, which `resolve_settings` refuses later."""
    own = [set(method.default_settings) for method in variants]
    known = set().union(*own)
    return [
        (method, {key: value for key, value in settings.items() if key in names or key not in known})
        for method, names in zip(variants, own, strict=True)
    ]


def _plan(
    reg: Registry, request: EvalRequest, design: Design, methods: Sequence[Method], runs: Sequence[MethodRun]
) -> tuple[PlanLine, ...]:
    lines = plan_lines(request, design, [method.name for method in methods])
    return (
        *lines,
        *cost_of_banks(reg, request, design, bank_presets(methods)),
        *cost_of_answers(reg, request, design, runs),
    )


def _method_runs(methods: Sequence[Method], chosen: Mapping[str, FoldSettings]) -> list[MethodRun]:
    return [MethodRun(n, method, dict(own)) for method in methods for n, own in enumerate(chosen[method.name])]


@contextmanager
def _start_evaluation(reg: Registry, request: EvalRequest, design: Design, kind: str) -> Iterator[Evaluation]:
    """The evaluation of the design. Inside the block, no other job adds answers, and its users cannot be removed."""
    from mta_cli.pipeline.models.installed import record_models

    task = request.task.name
    with (
        reg.job_lock(evaluation_lock(task, design.key)),
        reg.job_lock(f"bank {request.measured.bank.name}") if request.measured else nullcontext(),
        reg.hold_users(f"evaluation of {task}{request.executor.title_suffix}", design.all_users),
    ):
        reg.items.require_stored(item for own in design.shots.values() for item in own)
        record_models(reg, request.base, request.embedder)
        begun = reg.evaluations.get_or_create_evaluation(
            design.key, task, evaluation_config(request), design.role_assignments
        )
        with record_request(reg, kind, eval_request_json(request), evaluation_id=begun.id):
            yield begun


def _tuned_settings(
    reg: Registry, request: EvalRequest, begun: Evaluation | None, methods: Sequence[Method], design: Design
) -> dict[str, FoldSettings]:
    from mta_cli.lab.methods.catalog import original

    folds = range(len(design.folds))
    tunings = reg.evaluations.tunings(begun.id) if begun else []
    tuned = {(one.method, one.fold): one.settings for one in tunings}
    tuned_as = {method.name: original(method).name if method.control_of else method.name for method in methods}
    return {
        method.name: [resolve_settings(method, request, tuned.get((tuned_as[method.name], fold), {})) for fold in folds]
        for method in methods
    }


def _is_outdated(earlier: tuple[str, FoldSettings]) -> bool:
    """Whether a method has another version now. A method that no longer exists is not outdated, because it cannot be
    run again.
    """
    from mta_cli.lab.methods.catalog import find_method

    name, settings = earlier
    with suppress(UsageError):
        return any(int(own.get("version", 1)) != find_method(name).version for own in settings)
    return False


def _earlier_settings(
    evaluation: Evaluation, design: Design, chosen: Mapping[str, FoldSettings]
) -> dict[str, FoldSettings]:
    """The settings of methods that earlier runs finished and this run does not include."""
    found: dict[str, FoldSettings] = {}
    for method, settings in evaluation.result.get("settings", {}).items():
        if method not in chosen:
            folds = range(len(design.folds))
            found[method] = settings if isinstance(settings, list) else [settings for _ in folds]
    return found


def _is_complete(reg: Registry, evaluation: Evaluation, design: Design, method: str, settings: FoldSettings) -> bool:
    """Whether every test user has answers of a method; answers may have been removed together with an item."""
    done = reg.evaluations.predictions.finished_cells
    return all(
        done(evaluation.id, n, method, own).keys() >= set(fold.test)
        for n, (fold, own) in enumerate(zip(design.folds, settings, strict=True))
    )


def _answer_missing(
    reg: Registry, request: EvalRequest, design: Design, evaluation: Evaluation, runs: Sequence[MethodRun]
) -> Iterator[Event]:
    """Build missing banks and answer missing queries."""
    done = reg.evaluations.predictions.finished_cells
    counts = [
        len(done(evaluation.id, c.fold, c.method.name, c.settings).keys() & set(design.answering_users(c.fold)))
        for c in runs
    ]
    total = sum(len(design.answering_users(run.fold)) for run in runs)
    if sum(counts) == total:
        yield Note(f"Evaluation {evaluation.id} already has all these answers; there is nothing to compute.")
        return
    presets = bank_presets([run.method for run in runs])
    with open_executors(request.executor) as executors:
        banks: FoldBanks = yield from build_fold_banks(reg, request, design, evaluation.id, presets, executors)
        yield from refresh_anchor_profiles(reg, request, banks)
        profiles = yield from embed_shot_profiles(request, design)
        context = EvalContext(reg, request, design, banks, profiles)
        executor = executors.for_base(context.base, request.base.path)
        yield JobStarted("eval run", total=total, unit="users")
        finished = sum(counts)
        # Methods above the same weights are grouped, so that their shared states are computed once.
        for run in sorted(runs, key=lambda c: (c.fold, c.method.below)):
            answered = len(design.answering_users(run.fold))
            yield from run_method(context, evaluation.id, run, finished, executor)
            finished += answered - counts[runs.index(run)]


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
