"""Asks one question of the modes base, common, fused and adapted side by side, in one batch.

Every column is a row of the batch with its own LoRAs on the base, so all answers are generated together. Other users'
models can be columns too. If the right answer is known, each column is scored against it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label
from mta_cli.errors import MtaError
from mta_cli.events import Event, JobResult, Note, TextChunk, forward_events
from mta_cli.pipeline.chat.answer import (
    ChatModel,
    Generation,
    answer_json,
    personalisation_hints,
    truncation_notes,
)
from mta_cli.pipeline.chat.explain import ladder_steps_up_to
from mta_cli.pipeline.chat.fit_prompt import FittedPrompt, check_message
from mta_cli.pipeline.data.examples import MAX_ITEM_ID
from mta_cli.pipeline.requests import ChatOptions
from mta_cli.pipeline.user_weights import (
    OWN_MODES,
    PERSONALISATION_MODES,
    AnswerSource,
    available_modes,
    default_task,
    load_fusion_and_stack,
    load_task_adapter,
    most_personal_mode,
)

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

SINGLE_ANSWER_METRICS = ("accuracy", "mae", "rouge_1", "rouge_l")  # the metrics that are defined for a single answer


@dataclass(frozen=True)
class Question:
    """The question that all columns answer. `gold` is the right answer, if it is known.

    The prompt of a `held_out` question shows no item that is known to be later than its `time`.
    """

    text: str
    gold: str | None = None
    time: str | None = None
    held_out: bool = False


@dataclass
class ComparedModel:
    """One column: a user's model, the LoRAs that it adds to the base, and its answer so far.

    `key` identifies the column: the mode, or `@NAME` for another user's model.
    """

    key: str
    user: User | None
    loras: tuple[LoraWeights, ...]
    source: AnswerSource
    generation: Generation = field(default_factory=Generation)


def compare_user_models(
    reg: Registry, entry: ModelEntry, names: Sequence[str], text: str, asking: ChatOptions
) -> Iterator[Event]:
    """Ask `text` of every mode of each user in `names`; `JobResult` lists the results, one for each user.

    A user's models get the same prompt. The answer of a missing model is None. The base is loaded once.
    """
    check_message(text)
    users = [reg.users.get(name) for name in names]
    for user in users[1:]:  # checked before the base is loaded; `load_for_user` checks the first user
        default_task(reg, user, asking.task, entry.fingerprint)
    model = ChatModel.load_for_user(reg, entry, users[0], asking, text)
    results = []
    for user in users:
        if user is not users[0]:
            model.set_user(user, None, text)
        results.append((yield from forward_events(compare_question(model, Question(text)))))
    yield JobResult(results)


def compare_question(model: ChatModel, question: Question, others: Sequence[User] = ()) -> Iterator[Event]:
    """Ask a question of all models of the current user, and of the most personal model of each of `others`.

    All get the same prompt, with the current user's history.
    """
    prompt = yield from _fit_question(model, question)
    yield from compare_prompt(model, question.text, prompt, gold=question.gold, others=others, asked_at=question.time)


def compare_queries(model: ChatModel, questions: Sequence[Question], others: Sequence[User] = ()) -> Iterator[Event]:
    """Ask the columns of `compare_question` several questions, one after another. Each model is loaded once.

    Each question ends in a `JobResult` like `compare_question`'s, with `scores`: each column's task metric over the
    questions so far, `{metric, value, answers}`. `scores` leaves out columns whose answers cannot be scored.
    """
    columns = yield from _load_columns(model, others)
    scored: dict[str, list[tuple[str, str]]] = {}  # answers and golds by column
    with model.hold_users(others), model.disable_adapters():
        for question in questions:
            prompt = yield from _fit_question(model, question)
            fresh = [replace(column, generation=Generation()) for column in columns]
            result = yield from _answer_prompt(model, question.text, prompt, fresh, question.gold, question.time)
            for key, details in result["details"].items():
                if details is not None and (details.get("gold") or {}).get("metrics"):
                    scored.setdefault(key, []).append((result["answers"][key], result["gold"]))
            scores = {key: _running_score(model, pairs) for key, pairs in scored.items()}
            yield JobResult(result | {"scores": scores})


def _fit_question(model: ChatModel, question: Question) -> Generator[Event, None, FittedPrompt]:
    before = (question.time, MAX_ITEM_ID) if question.held_out else None
    prompt = model.fit_prompt([{"role": "user", "content": question.text}], before)
    yield from truncation_notes(prompt)
    return prompt


def compare_prompt(
    model: ChatModel,
    text: str,
    prompt: FittedPrompt,
    *,
    gold: str | None = None,
    others: Sequence[User] = (),
    asked_at: str | None = None,
) -> Iterator[Event]:
    """Stream every column's answer to one prompt, as `TextChunk`s with the column's key. The model stays unchanged.

    With a `gold`, each column's details get `gold`: the gold's log-likelihood and the task's metrics of the answer.
    """
    columns = yield from _load_columns(model, others)
    with model.hold_users(others), model.disable_adapters():
        result = yield from _answer_prompt(model, text, prompt, columns, gold, asked_at)
    if result["answers"]["adapted"] is None:
        yield from personalisation_hints(model)
    yield JobResult(result)


def _load_columns(model: ChatModel, others: Sequence[User]) -> Generator[Event, None, list[ComparedModel]]:
    """The models of the current user, and the most personal model of each of `others` who has one."""
    task, fingerprint = model.task.name, model.base.fingerprint
    columns = [ComparedModel("base", model.user, (), AnswerSource("base"))]
    for mode in available_modes(model.reg, model.user, task, fingerprint)[1:]:
        columns.append(_load_compared_model(model, mode, model.user, mode))
    for user in others:
        best = most_personal_mode(model.reg, user, task, fingerprint)
        if best not in OWN_MODES:
            yield Note(f"{user.name} has no model of their own for {task} and is left out.", warning=True)
        elif all(column.key != f"@{user.name}" for column in columns):
            columns.append(_load_compared_model(model, f"@{user.name}", user, best))
    return columns


def _answer_prompt(
    model: ChatModel,
    text: str,
    prompt: FittedPrompt,
    columns: Sequence[ComparedModel],
    gold: str | None,
    asked_at: str | None,
) -> Generator[Event, None, dict[str, Any]]:
    """Stream every column's answer to one prompt, with no adapter merged into the base; returns the result."""
    measured: list[dict[str, Any]] = []
    ids, shown = prompt.ids, len(prompt.shown)
    yield from (
        _choose_labels(model, text, ids, columns, asked_at)
        if model.answers_with_label
        else _generate_all(model, ids, columns)
    )
    if gold is not None:
        yield from _score_against_gold(model, ids, columns, gold, measured)
    result = comparison_result(model.user, text, model.task.name, columns, shown)
    for column, one in zip(columns, measured, strict=False):
        result["details"][column.key]["gold"] = one
    return result if gold is None else {**result, "gold": gold}


def comparison_result(
    user: User | None, text: str, task: str, columns: Sequence[ComparedModel], shown: int
) -> dict[str, Any]:
    """The JSON document of the models' answers to `text`. `shown` is the number of the user's items in the prompt.

    Modes that the user does not have are None.
    """
    answers: dict[str, str | None] = dict.fromkeys(PERSONALISATION_MODES)
    details: dict[str, Any] = dict.fromkeys(PERSONALISATION_MODES)
    for column in columns:
        spoken = column.generation
        step = ladder_steps_up_to(column.source, examples=shown, memory=spoken.has_memory)[-1].name
        rate = spoken.tokens / spoken.seconds if spoken.seconds and spoken.finish_reason != "label" else None
        answers[column.key] = spoken.text
        details[column.key] = answer_json(column.user, task, column.source, spoken) | {
            "step": step,
            "tokens_per_second": None if rate is None else round(rate, 1),
        }
    return {
        "user": None if user is None else user.name,
        "prompt": text,
        "own_examples": shown,
        "answers": answers,
        "details": details,
    }


def _running_score(model: ChatModel, scored: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The task's main metric over `scored` pairs of answer and gold."""
    from mta_cli.engine.evaluation.metrics import MAIN_METRICS
    from mta_cli.engine.evaluation.user_sums import sum_by_user

    answers, golds = zip(*scored, strict=True)
    count, name = len(scored), MAIN_METRICS[model.task.metric]
    sums = sum_by_user(model.task.metric, model.task.labels, [0] * count, answers, golds, [None] * count)
    return {"metric": name, "value": sums.metric_values()[name], "answers": count}


def comparison_column_keys(
    reg: Registry, user: User, asked: str | None, base: str, others: Sequence[User]
) -> list[str]:
    """The keys of the columns that `compare_question` would have for `user` and `others`. Loads no weights.

    `asked` is the chosen task, if any; `base` is the base's fingerprint.
    """
    task = default_task(reg, user, asked, base)
    beside = [f"@{other.name}" for other in others if most_personal_mode(reg, other, task, base) in OWN_MODES]
    return [*available_modes(reg, user, task, base), *beside]


def _load_compared_model(model: ChatModel, key: str, user: User | None, mode: str) -> ComparedModel:
    base, task = model.base.fingerprint, model.task.name
    loras, source = load_fusion_and_stack(model.reg, base, user, task, mode)
    return ComparedModel(key, user, (*load_task_adapter(model.reg, task, base), *loras), source)


def _generate_all(model: ChatModel, ids: list[int], columns: Sequence[ComparedModel]) -> Iterator[Event]:
    """Generate all columns' answers in one batch and stream their text."""
    from mta_cli.engine.generation.answer_text import AnswerText
    from mta_cli.engine.generation.generate import generate
    from mta_cli.engine.generation.request import GenerationRequest

    started = time.perf_counter()
    texts = [AnswerText(model.base.tokenizer, model.options.stops) for _ in columns]
    requests = [GenerationRequest(ids, column.loras) for column in columns]
    stream = generate(model.base, requests, model.sampling_params, goes_on=lambda place: not texts[place].stopped)
    for place, token in stream:
        spoken = columns[place].generation
        if not texts[place].stopped:  # the stream may yield tokens after the stop text
            spoken.tokens += 1
            spoken.seconds = time.perf_counter() - started
            yield from _append_text(columns[place], texts[place].add_token(token))
    for column, text, request in zip(columns, texts, requests, strict=True):
        yield from _append_text(column, text.flush())
        column.generation.finish_reason = "stop" if text.stopped else request.finish


def _choose_labels(
    model: ChatModel, text: str, ids: list[int], columns: Sequence[ComparedModel], asked_at: str | None
) -> Iterator[Event]:
    """Answer with each column's likeliest label."""
    labels, started = model.task.labels, time.perf_counter()
    answers = [tuple(model.prompter.answer_ids(label)) for label in labels]
    found = _column_log_likelihoods(model, ids, columns, answers)
    for column, scores in zip(columns, found, strict=True):
        spoken = column.generation
        best = model.decide_label(spoken, scores, text, column.source.mode, column.user, asked_at)
        spoken.tokens, spoken.seconds, spoken.finish_reason = len(answers[best]), time.perf_counter() - started, "label"
        yield from _append_text(column, labels[best])


def _append_text(column: ComparedModel, piece: str) -> Iterator[Event]:
    if piece:
        column.generation.text += piece
        yield TextChunk(piece, column.key)


def _column_log_likelihoods(
    model: ChatModel, ids: list[int], columns: Sequence[ComparedModel], answers: Sequence[tuple[int, ...]]
) -> list[list[float]]:
    """The log-likelihood of each answer [columns, answers], nats. Raises BadInput if one does not fit the window."""
    from mta_cli.engine.generation.request import require_window
    from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree

    require_window(model.base, ids, max(map(len, answers)))
    tree, asked = PromptTree(tuple(ids), tuple(answers)), [(0, place) for place in range(len(columns))]
    return completion_log_likelihoods(model.base, [tree], [column.loras for column in columns], asked)


def _score_against_gold(
    model: ChatModel, ids: list[int], columns: Sequence[ComparedModel], gold: str, measured: list[dict[str, Any]]
) -> Iterator[Event]:
    """Score every column against the right answer; appends a record for each to `measured`.

    `loglik` is the gold's log-likelihood in nats. If the answers are labels, it is a log-probability among the task's
    labels, label memory included (`over: labels`); otherwise it is the mean over the gold's tokens (`over: token`).
    `label` is the label that the gold names, if any.
    """
    labels = list(columns[0].generation.label_logliks)
    place = find_label(gold, labels)
    if place is not None:
        logliks = [_label_log_probability(column.generation.label_logliks, labels[place]) for column in columns]
    else:
        answer = tuple(model.prompter.answer_ids(gold))
        try:
            found = _column_log_likelihoods(model, ids, columns, [answer])
        except MtaError as error:
            yield Note(f"The likelihood of the gold answer was not measured: {error}", warning=True)
            return
        logliks = [values[0] / len(answer) for values in found]
    over = "token" if place is None else "labels"
    for column, loglik in zip(columns, logliks, strict=True):
        metrics = answer_metrics(model.task.metric, model.task.labels, column.generation.text, gold)
        named = labels[place] if place is not None else None
        measured.append({"loglik": loglik, "over": over, "label": named, "metrics": metrics})


def _label_log_probability(labels: dict[str, float], gold: str) -> float:
    """The log-probability of one label among all labels."""
    top = max(labels.values())
    return labels[gold] - top - math.log(sum(math.exp(value - top) for value in labels.values()))


def answer_metrics(metric: str, labels: Sequence[str], answer: str, gold: str) -> dict[str, float]:
    """The task's metrics of one answer; empty if the metric needs a number and `gold` is not a number."""
    from mta_cli.engine.evaluation.user_sums import sum_by_user

    try:
        values = sum_by_user(metric, labels, [0], [answer], [gold], [None]).metric_values()
    except ValueError:
        return {}
    return {name: value for name, value in values.items() if name in SINGLE_ANSWER_METRICS}
