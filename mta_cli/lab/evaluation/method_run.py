"""Answers in groups of users: a method makes a group's models, their queries are answered, and all answers are stored.

Groups are the same in every run, so a continued run makes the same models as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, JobProgress, Note, PlanLine
from mta_cli.lab.evaluation.context import EvalContext
from mta_cli.lab.evaluation.design import Design
from mta_cli.pipeline.evaluation.answer_queries import (
    ModelQuery,
    ScoredAnswer,
    answer_queries,
)
from mta_cli.pipeline.evaluation.scored_answers import pack_scores
from mta_cli.pipeline.evaluation.whose import batches_by_size, pack_gold_logliks_under_models, pack_naive_bayes_logliks
from mta_cli.pipeline.executors.local import Executor, LocalExecutor
from mta_cli.pipeline.requests import EvalRequest
from store.records import Query
from store.tables.predictions import EvalCell, Prediction

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import DirectAnswerer, Method, MethodContext, UserModel
    from mta_cli.engine.methods.personalize import ModelPlan
    from mta_cli.engine.training.session import TrainingResult
    from mta_cli.engine.training.work import GroupWork
    from store.registry import Registry

Group = tuple[int, ...]  # users whose models are made together
AnsweredCell = tuple[EvalCell, list[Prediction]]


@dataclass(frozen=True)
class AnsweredGroup:
    """The answers of a group, how many of its trainings failed, and the seconds that it took."""

    cells: list[AnsweredCell]
    failed: int
    seconds: float


@dataclass(frozen=True)
class _PlannedGroup:
    """A group whose stacks are not trained yet; `seconds` is how long planning took since `started`."""

    group: Group
    plan: ModelPlan
    started: float
    seconds: float


@dataclass(frozen=True)
class MethodRun:
    """One method with one choice of settings in one fold."""

    fold: int
    method: Method
    settings: dict[str, Any]


def timed_group(plan: Design) -> Group:
    """The users whose models and answers are timed without cached states.

    Their time is the reported cost. All other users share states that earlier methods computed.
    """
    return tuple(plan.groups[0][0])


def cost_of_answers(
    reg: Registry, request: EvalRequest, plan: Design, runs: Sequence[MethodRun]
) -> tuple[PlanLine, ...]:
    """The time of the missing answers, from evaluations with the same task, base and methods.

    If authorship is measured, a second line gives the number of scorings under other users' models.
    """
    from mta_cli.pipeline.training.estimate import format_duration

    speeds: dict[str, dict[str, float]] = {}
    for one in reversed(reg.evaluations.all()):
        if (one.task, one.config.get("fingerprint")) == (request.task.name, request.base.fingerprint):
            speeds |= one.result.get("costs", {})
    known, seconds, open_to, scorings, unknown = reg.evaluations.find_by_key(plan.key), 0.0, 0, 0, set()
    for run in runs:
        name, done = run.method.name, reg.evaluations.predictions.finished_cells
        there = done(known.id, run.fold, name, run.settings) if known else ()
        users = [user for user in plan.answering_users(run.fold) if user not in there]
        open_to += len(users)
        queries = sum(len(plan.queries[user]) for user in users)
        # naive Bayes takes almost no time
        others = _authorship_others(request, plan, run) if run.method.build is None else []
        asked = sum(len(plan.queries[user]) * (1 + len(own)) for user, own in others if user in users)
        scorings += asked
        if users and name not in speeds:
            unknown.add(name)
        elif users:
            seconds += len(users) * speeds[name]["seconds"]
            # to answer with a label takes as long as a scoring; to generate a text takes longer
            seconds += (queries + (asked if request.task.labels else 0)) * speeds[name]["seconds_per_query"]
    if not open_to:
        return (PlanLine("answers", "all there"),)
    but = f", without {', '.join(sorted(unknown))}" if unknown else ""
    line = PlanLine("answers", f"about {format_duration(seconds)} on top{but}", "earlier evaluations")
    if unknown and not seconds:
        line = PlanLine("answers", "time unknown: these methods have no answers on this base yet")
    whose = PlanLine("whose is it", f"{scorings:,} scorings of golds under other users' models", "--others 0: none")
    return (line, whose) if scorings else (line,)


def unanswered_groups(eval_context: EvalContext, evaluation: int, run: MethodRun) -> list[Group]:
    """The groups of a method run that are not answered yet."""
    groups = [tuple(group) for group in eval_context.design.groups[run.fold]]
    done = eval_context.reg.evaluations.predictions.finished_cells(evaluation, run.fold, run.method.name, run.settings)
    return [group for group in groups if not done.keys() >= set(group)]


def run_method(
    eval_context: EvalContext, evaluation: int, run: MethodRun, done: int, executor: Executor | None = None
) -> Iterator[Event]:
    """Answer the missing queries of a method run, and store the answers of each group of users.

    `done` users are already counted in the progress. Stacks are trained by `executor`; without one, and for the timed
    group, they are trained on the context's base. Everything else is computed on the context's base.
    """
    groups = unanswered_groups(eval_context, evaluation, run)
    if not groups:
        return
    eval_context.merge_task_adapter(run.fold, run.method)
    context = eval_context.method_context(run.fold, run.method)
    timed = timed_group(eval_context.design) if run.fold == 0 else ()
    trains = run.method.stack != "none" and run.method.build is None
    here = [group for group in groups if group == timed or not trains]
    elsewhere = [group for group in groups if group not in here]
    executor = executor if executor is not None else LocalExecutor(eval_context.base)
    for answered in chain(
        (_answer_here(eval_context, run, context, group, is_timed=group == timed) for group in here),
        _answer_trained(eval_context, run, context, elsewhere, executor),
    ):
        if answered.failed:
            yield Note(
                f"Fold {run.fold + 1}, {run.method.name}: training failed for {answered.failed} users; "
                "they are measured without a stack.",
                warning=True,
            )
        eval_context.reg.evaluations.predictions.save_cells(evaluation, answered.cells)
        done += len(answered.cells)
        yield JobProgress(f"fold {run.fold + 1}, {run.method.name}", done, seconds=answered.seconds)


def _answer_here(
    eval_context: EvalContext, run: MethodRun, context: MethodContext, group: Group, *, is_timed: bool
) -> AnsweredGroup:
    """Make the models of a group and answer, on the context's base. A timed group starts without cached states."""
    from mta_cli.engine.methods.personalize import build_models
    from mta_cli.engine.model.load import fresh_activation_cache

    started = time.perf_counter()
    own = eval_context.without_cached_states(context) if is_timed else context
    begun = time.perf_counter()
    with fresh_activation_cache(eval_context.base) if is_timed else nullcontext():
        made = build_models(run.method, own, eval_context.method_users(group), run.settings)
        cells = _answer_models(eval_context, run, group, made, time.perf_counter() - begun)
    return AnsweredGroup(cells, sum(one.failed for one in made), time.perf_counter() - started)


def _answer_trained(
    eval_context: EvalContext, run: MethodRun, context: MethodContext, groups: Sequence[Group], executor: Executor
) -> Iterator[AnsweredGroup]:
    """Have the stacks of groups trained by `executor`. Each group answers on the context's base when it is trained."""
    from mta_cli.engine.methods.personalize import plan_models
    from mta_cli.engine.training.session import TrainingResult

    planned: list[_PlannedGroup] = []  # groups with something to train, in the order of their works
    untrained: list[_PlannedGroup] = []

    def works() -> Iterator[GroupWork]:
        for group in groups:
            started = time.perf_counter()
            plan = plan_models(run.method, context, eval_context.method_users(group), run.settings)
            one = _PlannedGroup(group, plan, started, time.perf_counter() - started)
            (untrained if plan.work is None else planned).append(one)
            if plan.work is not None:
                yield plan.work

    def answer(one: _PlannedGroup, result: TrainingResult | None) -> AnsweredGroup:
        made = one.plan.finish(result)
        trained = sum(step.seconds for steps in result.steps for step in steps) if result is not None else 0.0
        cells = _answer_models(eval_context, run, one.group, made, one.seconds + trained)
        return AnsweredGroup(cells, sum(model.failed for model in made), time.perf_counter() - one.started)

    for number, report in executor.run(works(), eval_context.below):
        if isinstance(report, TrainingResult):
            yield answer(planned[number], report)
    for one in untrained:
        yield answer(one, None)


def _answer_models(
    eval_context: EvalContext, run: MethodRun, group: Group, made: Sequence[UserModel], seconds: float
) -> list[AnsweredCell]:
    """The users' cells and answers. `seconds` is how long it took to make all models."""
    rows: dict[int, list[Prediction]] = {user: [] for user in group}
    models = {user: one for user, one in zip(group, made, strict=True) if one.answerer is None}
    for portion in batches_by_size((user, one.loras) for user, one in models.items()):
        asked = [
            ModelQuery(query, i) for i, (user, _) in enumerate(portion) for query in eval_context.design.queries[user]
        ]
        examples = eval_context.examples(run.method.shows_history)
        priors = [models[user].prior for user, _ in portion]
        found = answer_queries(eval_context.base, examples, asked, [loras for _, loras in portion], priors)
        for question, given in zip(asked, found, strict=True):
            user, _ = portion[question.model_index]
            prompt = eval_context.base.tokenizer.decode(list(given.prompt))
            rows[user].append(_prediction(question.query, run.method.name, prompt, given))
    for user, one in zip(group, made, strict=True):
        if one.answerer is not None:
            rows[user] = [
                _predict_directly(query, run.method.name, one.answerer) for query in eval_context.design.queries[user]
            ]
    _add_whose(eval_context, run, group, made, rows)
    return [
        (EvalCell(run.fold, run.method.name, run.settings, user, one.bytes, seconds / len(group)), rows[user])
        for user, one in zip(group, made, strict=True)
    ]


def _authorship_others(request: EvalRequest, plan: Design, run: MethodRun) -> list[tuple[int, tuple[int, ...]]]:
    """The users of a fold, each with the others of the group under whose models their answers are scored.

    Authorship is measured for methods with users' own LoRAs and, for texts, for `no-model` by naive Bayes. Empty for
    all other methods.
    """
    from mta_cli.engine.evaluation.ladder import NO_MODEL

    count, method = request.options.others, run.method
    is_personal = method.build is None and (method.anchors, method.stack) != ("none", "none") and not method.control_of
    asked = is_personal or (method.step == NO_MODEL and not request.task.labels)
    if not (asked and count):
        return []
    found = [(user, others[:count]) for group in plan.groups[run.fold] for user, others in group.items()]
    return [(user, others) for user, others in found if others]


def _add_whose(
    eval_context: EvalContext,
    run: MethodRun,
    group: Group,
    made: Sequence[UserModel],
    rows: dict[int, list[Prediction]],
) -> None:
    """Add to `rows`, by user, the likelihood of each gold under the user's own model and under the others' models."""
    from mta_cli.engine.evaluation.ladder import NO_MODEL

    design, models = eval_context.design, dict(zip(group, made, strict=True))
    others = {user: own for user, own in _authorship_others(eval_context.request, design, run) if user in group}
    queries = [query for user in others for query in design.queries[user]]
    if run.method.step == NO_MODEL:
        written = {user: [item.output for item in design.shots[user]] for user in group}
        found = pack_naive_bayes_logliks(queries, others, written)
    else:
        found = pack_gold_logliks_under_models(
            eval_context.base,
            eval_context.examples(run.method.shows_history),
            queries,
            others,
            lambda user: models[user].loras,
            lambda user: models[user].prior,
        )
    for user in others:
        rows[user] = [replace(row, whose=found[row.query_id]) for row in rows[user]]


def _prediction(query: Query, method: str, prompt: str, given: ScoredAnswer) -> Prediction:
    return Prediction(
        query.user_id,
        query.id,
        method,
        prompt,
        given.answer,
        query.gold,
        given.gold_loglik,
        len(given.prompt),
        given.seconds,
        given.gold_tokens,
        pack_scores(given.scores),
    )


def _predict_directly(query: Query, method: str, direct: DirectAnswerer) -> Prediction:
    started = time.perf_counter()
    text, scores = direct(query.input, query.time)
    seconds = time.perf_counter() - started
    return Prediction(
        query.user_id, query.id, method, "", text, query.gold, None, 0, seconds, None, pack_scores(scores)
    )
