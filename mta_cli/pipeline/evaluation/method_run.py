"""Answers in groups of users: a method makes a group's models, their queries are answered, and all answers are stored.

Groups are the same in every run, so a continued run makes the same models as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, JobProgress, Note, PlanLine
from mta_cli.pipeline.evaluation.added_memory import (
    AnswersWithoutMemory,
    add_memory,
    memoryless_answers_key,
    pack_scores,
)
from mta_cli.pipeline.evaluation.answer_queries import ModelQuery, ScoredAnswer, answer_queries
from mta_cli.pipeline.evaluation.context import EvalContext
from mta_cli.pipeline.evaluation.design import Design
from mta_cli.pipeline.requests import EvalRequest
from store.records import Query
from store.tables.predictions import EvalCell, Prediction

if TYPE_CHECKING:
    from mta_cli.engine.methods.method import DirectAnswerer, Method, MethodContext, UserModel
    from store.registry import Registry

MAX_USERS_PER_GROUP = 16  # users whose models are made and answer together
MAX_LORA_PARAMS_PER_BATCH = 1 << 26  # LoRA parameters of the users in one batch; a single user may have more


AnsweredCell = tuple[EvalCell, list[Prediction]]


@dataclass(frozen=True)
class MethodRun:
    """One method with one choice of settings in one fold."""

    fold: int
    method: Method
    settings: dict[str, Any]

    @property
    def memoryless_key(self) -> tuple[int, str, dict[str, Any]] | None:
        """Fold, name and settings of the answers to which this run's memory is only added; None for other runs."""
        if not self.method.memory_is_only_added:
            return None
        return self.fold, *memoryless_answers_key(self.method, self.settings)


def groups_of(plan: Design, fold: int) -> list[tuple[int, ...]]:
    """Users whose models are made together; the same groups in every run."""
    users = plan.answering_users(fold)
    return [users[start : start + MAX_USERS_PER_GROUP] for start in range(0, len(users), MAX_USERS_PER_GROUP)]


def timed_group(plan: Design) -> tuple[int, ...]:
    """The users whose models and answers are timed without cached states.

    Their time is the reported cost. All other users share states that earlier methods computed.
    """
    return groups_of(plan, 0)[0]


def cost_of_answers(reg: Registry, request: EvalRequest, plan: Design, runs: Sequence[MethodRun]) -> PlanLine:
    """The time of the missing answers, from evaluations with the same task, base and methods."""
    from mta_cli.pipeline.training.estimate import format_duration

    speeds: dict[str, dict[str, float]] = {}
    for one in reversed(reg.evaluations.all()):
        if (one.task, one.config.get("fingerprint")) == (request.task.name, request.base.fingerprint):
            speeds |= one.result.get("costs", {})
    known, seconds, open_to, unknown = reg.evaluations.find_by_key(plan.key), 0.0, 0, set()
    answered_first = [(run.fold, run.method.name, run.settings) for run in runs]

    def answered(key: tuple[int, str, dict[str, Any]]) -> Collection[int]:
        return reg.evaluations.predictions.finished_cells(known.id, *key) if known else ()

    for run in runs:
        name = run.method.name
        there = answered((run.fold, name, run.settings))
        users = [user for user in plan.answering_users(run.fold) if user not in there]
        open_to += len(users)
        if run.memoryless_key in answered_first:
            continue
        if run.memoryless_key is not None:
            users = [user for user in users if user not in answered(run.memoryless_key)]
        if users and name not in speeds:
            unknown.add(name)
        elif users:
            queries = sum(len(plan.queries[user]) for user in users)
            seconds += len(users) * speeds[name]["seconds"] + queries * speeds[name]["seconds_per_query"]
    if not open_to:
        return PlanLine("answers", "all there")
    if unknown and not seconds:
        return PlanLine("answers", "time unknown: these methods have no answers on this base yet")
    but = f", without {', '.join(sorted(unknown))}" if unknown else ""
    return PlanLine("answers", f"about {format_duration(seconds)} on top{but}", "earlier evaluations")


def unanswered_groups(eval_context: EvalContext, evaluation: int, run: MethodRun) -> list[tuple[int, ...]]:
    """The groups of a method run that are not answered yet."""
    groups = groups_of(eval_context.design, run.fold)
    done = eval_context.reg.evaluations.predictions.finished_cells(evaluation, run.fold, run.method.name, run.settings)
    return [group for group in groups if not done.keys() >= set(group)]


def run_method(eval_context: EvalContext, evaluation: int, run: MethodRun, done: int) -> Iterator[Event]:
    """Answer the missing queries of a method run. `done` users are already counted in the progress."""
    groups = unanswered_groups(eval_context, evaluation, run)
    if not groups:
        return
    eval_context.fold_in_task_adapter(run.fold, run.method)
    context = eval_context.method_context(run.fold, run.method)
    known = AnswersWithoutMemory.load(eval_context.reg, evaluation, run.fold, run.method, run.settings)
    timed = timed_group(eval_context.design) if run.fold == 0 else ()
    for group in groups:
        started = time.perf_counter()
        own = eval_context.without_cached_states(context) if group == timed else context
        if known.cover(group):
            cells = _add_memory(eval_context, run, own, group, known)
        else:
            cells = yield from _build_and_answer(eval_context, run, own, group, is_timed=group == timed)
        eval_context.reg.evaluations.predictions.save_cells(evaluation, cells)
        done += len(group)
        yield JobProgress(f"fold {run.fold + 1}, {run.method.name}", done, seconds=time.perf_counter() - started)


def _build_and_answer(
    eval_context: EvalContext, run: MethodRun, context: MethodContext, group: Sequence[int], *, is_timed: bool
) -> Generator[Event, None, list[AnsweredCell]]:
    from mta_cli.engine.methods.personalize import build_models
    from mta_cli.engine.model.load import fresh_activation_cache

    started = time.perf_counter()
    with fresh_activation_cache(eval_context.base) if is_timed else nullcontext():
        made = build_models(run.method, context, eval_context.method_users(group), run.settings)
        seconds = (time.perf_counter() - started) / len(group)
        rows = _answer_group(eval_context, run, group, made)
    yield from _failures(run, made)
    return [
        (EvalCell(run.fold, run.method.name, run.settings, user, one.bytes, seconds), rows[user])
        for user, one in zip(group, made, strict=True)
    ]


def _add_memory(
    eval_context: EvalContext,
    run: MethodRun,
    context: MethodContext,
    group: Sequence[int],
    known: AnswersWithoutMemory,
) -> list[AnsweredCell]:
    task, queries = eval_context.request.task, eval_context.design.queries
    return [
        add_memory(task, run.method, run.settings, context, user, queries[user.number], known)
        for user in eval_context.method_users(group)
    ]


def _failures(run: MethodRun, made: Sequence[UserModel]) -> Iterator[Event]:
    if failed := sum(one.failed for one in made):
        yield Note(
            f"Fold {run.fold + 1}, {run.method.name}: training failed for {failed} users; "
            "they are measured without a stack.",
            warning=True,
        )


def _answer_group(
    eval_context: EvalContext, run: MethodRun, group: Sequence[int], made: Sequence[UserModel]
) -> dict[int, list[Prediction]]:
    rows: dict[int, list[Prediction]] = {user: [] for user in group}
    model = [(user, one) for user, one in zip(group, made, strict=True) if one.answerer is None]
    for portion in _model_batches(model):
        asked = [
            ModelQuery(query, i) for i, (user, _) in enumerate(portion) for query in eval_context.design.queries[user]
        ]
        examples = eval_context.examples(run.method.shows_history)
        priors = [one.prior for _, one in portion]
        found = answer_queries(eval_context.base, examples, asked, [one.loras for _, one in portion], priors)
        for question, given in zip(asked, found, strict=True):
            user, _ = portion[question.model_index]
            prompt = eval_context.base.tokenizer.decode(list(given.prompt))
            rows[user].append(_prediction(question.query, run.method.name, prompt, given))
    for user, one in zip(group, made, strict=True):
        if one.answerer is not None:
            rows[user] = [
                _predict_directly(query, run.method.name, one.answerer) for query in eval_context.design.queries[user]
            ]
    return rows


def _model_batches(made: Sequence[tuple[int, UserModel]]) -> Iterator[list[tuple[int, UserModel]]]:
    """Users who are answered together, limited by the size of their LoRAs."""
    portion: list[tuple[int, UserModel]] = []
    numbers = 0
    for user, one in made:
        own = sum(part.num_parameters for part in one.loras)
        if portion and numbers + own > MAX_LORA_PARAMS_PER_BATCH:
            yield portion
            portion, numbers = [], 0
        portion.append((user, one))
        numbers += own
    if portion:
        yield portion


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
