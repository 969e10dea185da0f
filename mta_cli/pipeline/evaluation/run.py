"""The jobs behind `mta eval run` and `mta eval tune`. Whatever is answered stays: run again, they go on.

`tune` tries a method's settings on everybody and chooses for each fold by those who are not tested in it; `run` then
takes what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.errors import UsageFault
from mta_cli.events import Done, Event, Note, PlanLine, Planned, Started
from mta_cli.options import PLACEMENTS
from mta_cli.pipeline.asked import evaluation as asked
from mta_cli.pipeline.asked import written_down
from mta_cli.pipeline.evaluation.banks import cost_of_banks, fold_banks
from mta_cli.pipeline.evaluation.context import Field, shot_profiles
from mta_cli.pipeline.evaluation.design import Design, EvalRequest, config, design, job_name, plan_lines
from mta_cli.pipeline.evaluation.run_cells import Column, cost_of_answers, fill
from mta_cli.pipeline.evaluation.scoring import Choice, judge, outcome
from store.records import Bank
from store.tables.evaluations import Evaluation, Tuning

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import Method
    from store.registry import Registry

SELECT = "gold_loglik"  # what settings are chosen by: it tells more than whether the likeliest label was right
ABOVE_ZERO = frozenset(
    (
        "rank",
        "alpha",
        "steps",
        "batch_size",
        "learning_rate",
        "learn_rate",
        "top_k",
        "evaluations",
        "temperature",
        "prior_strength",
    )
)


def run_evaluation(
    reg: Registry, request: EvalRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Answer every query with every method. `Done.result` is the document of `mta eval run`."""
    methods = _methods(request)
    people = design(reg, request)
    known = reg.evaluations.find(people.key)
    columns = _columns(methods, _chosen(reg, request, known, methods, people))
    yield Planned("eval run", (*plan, *_plan(reg, request, people, methods, columns)))
    if dry_run:
        yield Done({"dry_run": True, "task": request.task.name, "users": len(people.tested)})
        return
    with reg.job_lock(job_name(request.task.name, people.key)), _begun(reg, request, people, "eval run") as evaluation:
        chosen = _chosen(reg, request, evaluation, methods, people)
        yield from _fill(reg, request, people, evaluation, _columns(methods, chosen))
        result = outcome(reg, request, people, evaluation.id, chosen | _earlier(reg, evaluation, people, chosen))
        if result["reference"] != request.options.reference:
            asked = request.options.reference
            yield Note(f"{asked} is not among the methods: all are compared with {result['reference']}.", warning=True)
        reg.evaluations.finish(evaluation.id, result)
    yield Done(result)


def tune_evaluation(
    reg: Registry, request: EvalRequest, *, plan: Sequence[PlanLine] = (), dry_run: bool = False
) -> Iterator[Event]:
    """Try the settings in each method's grid.

    `Done.result`: {evaluation, task, tuned: [{method, fold, settings, gold_loglik, trials}]}.
    """
    methods = [method for method in _methods(request) if method.grid]
    if not methods:
        raise UsageFault("none of these methods has settings to choose from", hint="mta eval methods")
    people = design(reg, request)
    columns = [Column(n, m, own) for m in methods for own in trials(m, request) for n in range(len(people.folds))]
    yield Planned("eval tune", (*plan, *_plan(reg, request, people, methods, columns)))
    if dry_run:
        yield Done(
            {"dry_run": True, "task": request.task.name, "trials": sum(len(trials(m, request)) for m in methods)}
        )
        return
    with reg.job_lock(job_name(request.task.name, people.key)), _begun(reg, request, people, "eval tune") as evaluation:
        yield from _fill(reg, request, people, evaluation, columns)
        tuned = [entry for method in methods for entry in _choose(reg, request, people, evaluation, method)]
    yield Done({"evaluation": evaluation.id, "task": request.task.name, "tuned": tuned})


def trials(method: Method, request: EvalRequest) -> list[dict[str, Any]]:
    """Every choice of settings that is tried, the defaults first."""
    found = [settings_of(method, request, {})]
    found += [settings_of(method, request, dict(own)) for own in method.grid]
    return [own for i, own in enumerate(found) if own not in found[:i]]


def settings_of(method: Method, request: EvalRequest, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings: its defaults, then what was `chosen`, then what was given.

    UsageFault for an unknown one, and for a value that it cannot have.
    """
    given = request.given.get(method.name, {})
    if unknown := sorted(set(given) - set(method.settings)):
        raise UsageFault(
            f"{method.name} has no setting {', '.join(unknown)}", hint=f"it has {', '.join(method.settings) or 'none'}"
        )
    settings = {**method.settings, **chosen}
    if settings.get("placement") == "late":
        settings["placement"] = request.options.placement
    version = {"version": method.version} if method.version > 1 else {}
    return {**settings, **{key: _typed(method, key, value) for key, value in given.items()}, **version}


def _typed(method: Method, key: str, value: Any) -> Any:
    kind = type(method.settings[key])
    try:
        found: Any = kind(value)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, "a text")
        raise UsageFault(f"{method.name}.{key} = {value!r:.80}: this is {what}") from None
    if (wanted := _out_of_bounds(key, found)) is not None:
        raise UsageFault(f"{method.name}.{key} = {value!r:.80}: {wanted}")
    return found


def _out_of_bounds(key: str, value: Any) -> str | None:
    """What a setting must be instead; None where it may be `value`."""
    if isinstance(value, str):
        return f"choose one of {', '.join(PLACEMENTS)}" if key == "placement" and value not in PLACEMENTS else None
    if math.isfinite(value) and (value > 0 or (value == 0 and key not in ABOVE_ZERO)):
        return None
    return f"this is a number {'above 0' if key in ABOVE_ZERO else 'of at least 0'}"


def _methods(request: EvalRequest) -> list[Method]:
    from mta_cli.engine.methods.catalog import named

    wanted = [name.strip() for name in request.options.methods.split(",") if name.strip()]
    if unused := sorted(set(request.given) - set(wanted)):
        raise UsageFault(f"settings are given for {', '.join(unused)}, which is not among the methods")
    found = named(wanted)
    named([request.options.reference])
    for method in found:
        settings_of(method, request, {})
    return found


def _plan(
    reg: Registry, request: EvalRequest, people: Design, methods: Sequence[Method], columns: Sequence[Column]
) -> tuple[PlanLine, ...]:
    lines = plan_lines(request, people, [method.name for method in methods])
    return (*lines, *cost_of_banks(reg, request, people), cost_of_answers(reg, request, people, columns))


def _columns(methods: Sequence[Method], chosen: Mapping[str, Choice]) -> list[Column]:
    return [Column(n, method, dict(own)) for method in methods for n, own in enumerate(chosen[method.name])]


@contextmanager
def _begun(reg: Registry, request: EvalRequest, people: Design, kind: str) -> Iterator[Evaluation]:
    from mta_cli.pipeline.models.lookup import remember

    remember(reg, request.base, request.embedder)
    begun = reg.evaluations.begin(people.key, request.task.name, config(request), people.places)
    with written_down(reg, kind, begun.label, partial(asked, request)):
        yield begun


def _chosen(
    reg: Registry, request: EvalRequest, begun: Evaluation | None, methods: Sequence[Method], people: Design
) -> dict[str, Choice]:
    folds = len(people.folds)
    tunings = reg.evaluations.tunings(begun.id) if begun else []
    tuned = {(one.method, one.fold): one.settings for one in tunings}
    return {
        method.name: [settings_of(method, request, tuned.get((method.name, fold), {})) for fold in range(folds)]
        for method in methods
    }


def _earlier(reg: Registry, evaluation: Evaluation, people: Design, chosen: Mapping[str, Choice]) -> dict[str, Choice]:
    """Methods that earlier runs have finished and this one was not asked for, with the settings that they had."""
    found: dict[str, Choice] = {}
    for method, settings in evaluation.result.get("settings", {}).items():
        if method not in chosen:
            folds = range(len(people.folds))
            found[method] = settings if isinstance(settings, list) else [settings for _ in folds]
    return found


def _fill(
    reg: Registry, request: EvalRequest, people: Design, evaluation: Evaluation, columns: Sequence[Column]
) -> Iterator[Event]:
    """Build what is not built, answer what is not answered."""
    done = reg.evaluations.cells.done
    counts = [
        len(done(evaluation.id, c.fold, c.method.name, c.settings).keys() & set(people.answering(c.fold)))
        for c in columns
    ]
    total = sum(len(people.answering(column.fold)) for column in columns)
    if sum(counts) == total:
        yield Note(f"Evaluation {evaluation.id} holds all these answers; nothing to compute.")
        return
    banks: list[Bank] = yield from fold_banks(reg, request, people, evaluation.id)
    profiles = yield from shot_profiles(request, people)
    field = Field(reg, request, people, banks, profiles)
    yield Started("eval run", total=total, unit="people")
    finished = sum(counts)
    # What stands on the same weights comes together, so that states which all of them share are computed once.
    for column in sorted(columns, key=lambda c: (c.fold, c.method.below)):
        answered = len(people.answering(column.fold))
        yield from fill(field, evaluation.id, column, finished)
        finished += answered - counts[columns.index(column)]


def _choose(
    reg: Registry, request: EvalRequest, people: Design, evaluation: Evaluation, method: Method
) -> Generator[dict[str, Any], None, None]:
    """For each fold the settings that were best on people not tested in it."""
    folds = range(len(people.folds))
    tried = trials(method, request)
    for fold in folds:
        scored = [_score(reg, request, people, evaluation, method.name, own, fold) for own in tried]
        best = max(range(len(tried)), key=scored.__getitem__)
        rows = [{"settings": own, SELECT: value} for own, value in zip(tried, scored, strict=True)]
        reg.evaluations.choose(evaluation.id, Tuning(fold, method.name, tried[best], rows))
        yield {"method": method.name, "fold": fold, "settings": tried[best], SELECT: scored[best], "trials": rows}


def _score(
    reg: Registry,
    request: EvalRequest,
    people: Design,
    evaluation: Evaluation,
    method: str,
    own: dict[str, Any],
    fold: int,
) -> float:
    """The mean log-likelihood of the golds of those on whom a fold's settings are chosen."""
    others = people.choosing(fold)
    judged = judge(
        reg, request.task, others, evaluation.id, method, [own] * len(people.folds), request.options.calibrate
    )
    return judged.tally.values()[SELECT]
