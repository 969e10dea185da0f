"""One question to all that a user's model is made of, in one batch: base, fused and adapted side by side.

Every column is a row with parts of its own above the bare base, so all answers grow together; other people's models
may stand beside them. Where the right answer is known, each column is measured against it. Renders nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import MtaError, NotFound
from mta_cli.events import Done, Event, Note, Token
from mta_cli.pipeline.chat.answer import Asking, Spoken, Voice, answer_json, check_message, hints, left_out
from mta_cli.pipeline.data.examples import LATEST
from mta_cli.pipeline.personalize.weights import MODES, Source, best_mode, parts_above, task_part

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.pipeline.models.lookup import ModelEntry
    from store.records import User
    from store.registry import Registry

ONE_ANSWER = ("accuracy", "mae", "rouge_1", "rouge_l")  # the metrics that say something of a single answer


@dataclass(frozen=True)
class Question:
    """What is asked of all columns. `gold` is the right answer, where it is known.

    `time` is when a held-out query was: no item known to be later stands in its prompt. `held_out` says that it is one.
    """

    text: str
    gold: str | None = None
    time: str | None = None
    held_out: bool = False


@dataclass
class Column:
    """A user's mode, the parts that it lays above the base, and its answer as it grows.

    `key` is what its tokens are marked with: the mode, or `@NAME` for another person's model.
    """

    key: str
    user: User | None
    parts: tuple[LoraWeights, ...]
    source: Source
    spoken: Spoken = field(default_factory=Spoken)


def compare(reg: Registry, entry: ModelEntry, user_name: str, text: str, asking: Asking) -> Iterator[Event]:
    """The same question to base, fused and adapted, with the same prompt. Answers that cannot be are None."""
    check_message(text)
    voice = Voice.open(reg, entry, reg.users.get(user_name), asking)
    yield from put(voice, Question(text))


def put(voice: Voice, question: Question, others: Sequence[User] = ()) -> Iterator[Event]:
    """A question to everything that the voice's user has, and to the best that each of `others` has for its task.

    All read the same prompt, with the voice's user's history.
    """
    check_message(question.text)
    before = (question.time, LATEST) if question.held_out else None
    messages = [{"role": "user", "content": question.text}]
    ids, _, items = voice.fitted(messages, voice.history(question.text, before))
    yield from left_out(0, items)
    yield from compare_with(voice, question.text, ids, gold=question.gold, others=others)


def compare_with(
    voice: Voice, text: str, ids: list[int], *, gold: str | None = None, others: Sequence[User] = ()
) -> Iterator[Event]:
    """Every column's answer to one prompt, streamed by column; the voice is as before afterwards.

    With a `gold`, each column's details hold a `gold` too: its log-likelihood and the task's metric of the answer.
    """
    columns = _columns(voice)
    whole = columns[-1].key == "adapted"
    for user in others:
        yield from _beside(voice, user, columns)
    measured: list[dict[str, Any]] = []
    with voice.bare():
        yield from _weigh(voice, text, ids, columns) if voice.weighs_labels else _speak(voice, ids, columns)
        if gold is not None:
            yield from _measure(voice, ids, columns, gold, measured)
    if not whole:
        yield from hints(voice)
    answers: dict[str, str | None] = dict.fromkeys(MODES)
    details: dict[str, Any] = dict.fromkeys(MODES)
    for place, column in enumerate(columns):
        answers[column.key] = column.spoken.text
        details[column.key] = _details(column, voice.task.name) | ({"gold": measured[place]} if measured else {})
    result = {"user": voice.user.name if voice.user else None, "prompt": text, "answers": answers, "details": details}
    yield Done(result if gold is None else {**result, "gold": gold})


def _details(column: Column, task: str) -> dict[str, Any]:
    spoken = column.spoken
    rate = spoken.tokens / spoken.seconds if spoken.seconds and spoken.ended != "label" else None
    answer = answer_json(column.user, task, column.source, spoken)
    return answer | {"tokens_per_second": None if rate is None else round(rate, 1)}


def _columns(voice: Voice) -> list[Column]:
    """What there is for this user, the base first."""
    base, task = voice.base.fingerprint, voice.task.name
    best = best_mode(voice.reg, voice.user, task, base)
    columns = [Column("base", voice.user, (), Source("base"))]
    for mode in MODES[1 : MODES.index(best) + 1]:
        try:
            columns.append(_column(voice, mode, voice.user, mode))
        except NotFound:  # a stack may stand on the task adapter alone, without a recipe
            continue
    return columns


def _beside(voice: Voice, user: User, columns: list[Column]) -> Iterator[Event]:
    """Adds another person's best model for the voice's task, or says that there is none."""
    task = voice.task.name
    best = best_mode(voice.reg, user, task, voice.base.fingerprint)
    if best == "base":
        yield Note(f"{user.name} has no model of their own for {task} and is left out.", warning=True)
    elif all(column.key != f"@{user.name}" for column in columns):
        columns.append(_column(voice, f"@{user.name}", user, best))


def _column(voice: Voice, key: str, user: User | None, mode: str) -> Column:
    base, task = voice.base.fingerprint, voice.task.name
    parts, source = parts_above(voice.reg, base, user, task, mode)
    return Column(key, user, (*task_part(voice.reg, task, base), *parts), source)


def _speak(voice: Voice, ids: list[int], columns: Sequence[Column]) -> Iterator[Event]:
    """Everybody's own words, a token each in turn."""
    from mta_cli.engine.generation.generate import Decoder
    from mta_cli.engine.generation.generate_batch import Choice, stream_many

    options, started = voice.asking.answer, time.perf_counter()
    choice = Choice(options.max_tokens, options.temperature, options.top_p)
    decoders = [Decoder(voice.base.tokenizer) for _ in columns]
    stream = stream_many(
        voice.base,
        [ids] * len(columns),
        [column.parts for column in columns],
        range(len(columns)),
        choice,
        seed=voice.asking.machine.seed,
        int8=options.int8,
    )
    for place, token in stream:
        columns[place].spoken.tokens += 1
        columns[place].spoken.seconds = time.perf_counter() - started
        yield from _said(columns[place], decoders[place].push(token))
    room = min(options.max_tokens, voice.base.window - len(ids))
    for column, decoder in zip(columns, decoders, strict=True):
        yield from _said(column, decoder.flush())
        column.spoken.ended = "length" if column.spoken.tokens >= room else "end"


def _weigh(voice: Voice, text: str, ids: list[int], columns: Sequence[Column]) -> Iterator[Event]:
    """Everybody's likeliest label."""
    labels, started = voice.task.labels, time.perf_counter()
    answers = [tuple(voice.prompter.answer_ids(label)) for label in labels]
    found = _likelihoods(voice, ids, columns, answers)
    for column, scores in zip(columns, found, strict=True):
        spoken = column.spoken
        best = voice.decide(spoken, scores, text, column.source.mode, column.user)
        spoken.tokens, spoken.seconds, spoken.ended = len(answers[best]), time.perf_counter() - started, "label"
        yield from _said(column, labels[best])


def _said(column: Column, piece: str) -> Iterator[Event]:
    if piece:
        column.spoken.text += piece
        yield Token(piece, column.key)


def _likelihoods(
    voice: Voice, ids: list[int], columns: Sequence[Column], answers: Sequence[tuple[int, ...]]
) -> list[list[float]]:
    """Of each answer under each column, nats. Raises BadInput where one does not fit into the window."""
    from mta_cli.engine.generation.generate import require_window
    from mta_cli.engine.scoring.log_likelihood import likelihoods
    from mta_cli.engine.scoring.prefix_tree import Fork

    require_window(voice.base, ids, max(map(len, answers)))
    fork, asked = Fork(tuple(ids), tuple(answers)), [(0, place) for place in range(len(columns))]
    return likelihoods(voice.base, [fork], [column.parts for column in columns], asked)


def _measure(
    voice: Voice, ids: list[int], columns: Sequence[Column], gold: str, measured: list[dict[str, Any]]
) -> Iterator[Event]:
    """Every column against the right answer; `measured` gets a record for each.

    `loglik` is of the gold: over the task's labels where they were weighed, priors in it (`over: labels`), else over
    all words, per token (`over: token`). Nats.
    """
    labels = columns[0].spoken.labels
    if gold.strip() in labels:
        logliks = [_among(column.spoken.labels, gold.strip()) for column in columns]
    else:
        answer = tuple(voice.prompter.answer_ids(gold))
        try:
            found = _likelihoods(voice, ids, columns, [answer])
        except MtaError as error:
            yield Note(f"The gold answer was not measured: {error.message}", warning=True)
            return
        logliks = [values[0] / len(answer) for values in found]
    over = "labels" if gold.strip() in labels else "token"
    for column, loglik in zip(columns, logliks, strict=True):
        metrics = answer_metrics(voice.task.metric, voice.task.labels, column.spoken.text, gold)
        measured.append({"loglik": loglik, "over": over, "metrics": metrics})


def _among(labels: dict[str, float], gold: str) -> float:
    """The log-probability of one label among all."""
    top = max(labels.values())
    return labels[gold] - top - math.log(sum(math.exp(value - top) for value in labels.values()))


def answer_metrics(metric: str, labels: Sequence[str], answer: str, gold: str) -> dict[str, float]:
    """The task's metrics of one answer; nothing where a score's gold is no number."""
    from mta_cli.engine.evaluation.user_sums import tally

    try:
        values = tally(metric, labels, [0], [answer], [gold], [None]).values()
    except ValueError:
        return {}
    return {name: value for name, value in values.items() if name in ONE_ANSWER}
