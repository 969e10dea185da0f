"""One question to all that a user's model is made of, in one batch: base, fused and adapted side by side.

Every mode is a row with parts of its own above the bare base, so all answers grow together. Renders nothing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.events import Done, Event, Token
from mta_cli.pipeline.converse import Asking, Spoken, Voice, answer_json, check_message, hints, left_out
from mta_cli.pipeline.personal import MODES, Source, best_mode, parts_above, task_part

if TYPE_CHECKING:
    from mta_cli.engine.lora import LoraWeights
    from mta_cli.pipeline.models import ModelEntry
    from store.registry import Registry


@dataclass
class Column:
    """A mode, the parts that it lays above the base, and its answer as it grows."""

    mode: str
    parts: "tuple[LoraWeights, ...]"
    source: Source
    spoken: Spoken = field(default_factory=Spoken)


def compare(reg: "Registry", entry: "ModelEntry", user_name: str, text: str, asking: Asking) -> Iterator[Event]:
    """The same question to base, fused and adapted, with the same prompt. Answers that cannot be are None."""
    check_message(text)
    voice = Voice.open(reg, entry, reg.users.get(user_name), asking)
    ids, _, items = voice.fitted([{"role": "user", "content": text}], voice.history(text))
    yield from left_out(0, items)
    yield from compare_with(voice, text, ids)


def compare_with(voice: Voice, text: str, ids: list[int]) -> Iterator[Event]:
    """Every mode's answer to one prompt, streamed by column; the voice is as before afterwards."""
    columns = _columns(voice)
    with voice.bare():
        yield from _weigh(voice, ids, columns) if voice.weighs_labels else _speak(voice, ids, columns)
    if columns[-1].mode != "adapted":
        yield from hints(voice)
    answers: dict[str, str | None] = dict.fromkeys(MODES)
    details: dict[str, Any] = dict.fromkeys(MODES)
    for column in columns:
        answers[column.mode] = column.spoken.text
        details[column.mode] = answer_json(voice.user, voice.task.name, column.source, column.spoken)
    yield Done(
        {"user": voice.user.name if voice.user else None, "prompt": text, "answers": answers, "details": details}
    )


def _columns(voice: Voice) -> list[Column]:
    """What there is for this user, the base first."""
    base, task = voice.base.fingerprint, voice.task.name
    best = best_mode(voice.reg, voice.user, task, base)
    columns = [Column("base", (), Source("base"))]
    for mode in MODES[1 : MODES.index(best) + 1]:
        try:
            parts, source = parts_above(voice.reg, base, voice.user, task, mode)
        except NotFound:  # a stack may stand on the task adapter alone, without a recipe
            continue
        columns.append(Column(mode, (*task_part(voice.reg, task, base), *parts), source))
    return columns


def _speak(voice: Voice, ids: list[int], columns: Sequence[Column]) -> Iterator[Event]:
    """Everybody's own words, a token each in turn."""
    from mta_cli.engine.generate import Decoder
    from mta_cli.engine.many import Choice, stream_many

    options, started = voice.asking.answer, time.perf_counter()
    choice = Choice(options.max_tokens, options.temperature, options.top_p)
    decoders = [Decoder(voice.base.tokenizer) for _ in columns]
    stream = stream_many(
        voice.base, [ids] * len(columns), [column.parts for column in columns], range(len(columns)), choice,
        seed=voice.asking.machine.seed, int8=options.int8,
    )  # fmt: skip
    for place, token in stream:
        columns[place].spoken.tokens += 1
        columns[place].spoken.seconds = time.perf_counter() - started
        yield from _said(columns[place], decoders[place].push(token))
    room = min(options.max_tokens, voice.base.window - len(ids))
    for column, decoder in zip(columns, decoders, strict=True):
        yield from _said(column, decoder.flush())
        column.spoken.ended = "length" if column.spoken.tokens >= room else "end"


def _weigh(voice: Voice, ids: list[int], columns: Sequence[Column]) -> Iterator[Event]:
    """Everybody's likeliest label."""
    from mta_cli.engine.generate import require_window
    from mta_cli.engine.passes import Fork
    from mta_cli.engine.score import likelihoods

    labels, started = voice.task.labels, time.perf_counter()
    answers = [tuple(voice.prompter.answer_ids(label)) for label in labels]
    require_window(voice.base, ids, max(map(len, answers)))
    asked = [(0, place) for place in range(len(columns))]
    found = likelihoods(voice.base, [Fork(tuple(ids), tuple(answers))], [column.parts for column in columns], asked)
    for column, scores in zip(columns, found, strict=True):
        spoken = column.spoken
        best = voice.decide(spoken, scores, column.mode)
        spoken.tokens, spoken.seconds, spoken.ended = len(answers[best]), time.perf_counter() - started, "label"
        yield from _said(column, labels[best])


def _said(column: Column, piece: str) -> Iterator[Event]:
    if piece:
        column.spoken.text += piece
        yield Token(piece, column.mode)
