"""Answers `mta ask` and `mta compare` with a running server of the same store, so that no model is loaded here."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import MtaError
from mta_cli.events import Event, JobResult, Note
from mta_cli.pipeline.bases_in_use import on_base
from mta_cli.pipeline.chat.answer import (
    Generation,
    answer_json,
    answer_question,
    early_end_notes,
    missing_own_model_hints,
    source_line,
)
from mta_cli.pipeline.chat.compare import ComparedModel, compare_user_models, comparison_result
from mta_cli.pipeline.chat.fit_prompt import check_message
from mta_cli.pipeline.chat.server_client import RemoteAnswer, ServerClient, ServerUnreachable
from mta_cli.pipeline.user_weights import AnswerSource, available_modes
from mta_cli.pipeline.users.servers import RunningServer, running_servers, short_path
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import ChatOptions
    from store.records import User
    from store.registry import Registry

SERVER_DEFAULTS = ("max_tokens", "repetition_penalty")  # options for which the server has its own default


def find_equivalent_server(reg: Registry, entry: ModelEntry, asking: ChatOptions) -> RunningServer | None:
    """A running server of the store that gives the same answer as this process would; None if there is none."""
    # OpenAI's interface has no free decoding, and the same finish reason for a stop text and the end of an answer
    if asking.free_decoding or asking.stops:
        return None
    wanted = _options_beyond_request(asdict(asking), asking)
    for server in running_servers(reg.root):
        about = server.about
        fits = about.get("ready") and about.get("fingerprint") == entry.fingerprint
        if fits and _options_beyond_request(about.get("chat") or {}, asking) == wanted:
            return server
    return None


def _options_beyond_request(chat: dict[str, Any], asking: ChatOptions) -> dict[str, Any]:
    """The options in `chat` (ChatOptions as JSON) that a request for `asking` cannot set or leaves open.

    The server and this process give the same answer only if these options are equal.
    """
    machine, memory, answer = (dict(chat.get(name) or {}) for name in ("machine", "memory", "answer"))
    for name in ("seed", "max_memory", "verify"):
        machine.pop(name, None)
    memory.pop("memory", None)
    open_values = {name: answer.get(name) for name in SERVER_DEFAULTS if getattr(asking.answer, name) is None}
    task = chat.get("task") if asking.task is None else None
    return {"machine": machine, "memory": memory, "answer": open_values, "task": task}


def answer_on_server(
    reg: Registry, server: RunningServer, entry: ModelEntry, user_name: str | None, text: str, asking: ChatOptions
) -> Iterator[Event]:
    """Answer as `answer_question` does, but on `server`; if the server has just ended, in this process.

    Raises MtaError with the server's error message.
    """
    check_message(text)
    user = reg.users.get(user_name) if user_name is not None else None
    try:
        found = yield from _stream_server_answer(server, user, text, asking, asking.mode)
    except ServerUnreachable:
        yield from answer_question(reg, entry, user_name, text, asking)
        return
    spoken, task = found.model.generation, found.task
    if asking.mode is None and user is not None:
        yield from missing_own_model_hints(reg, user, task, entry)
    line, tokens = source_line(found.model.source, task, on_base(reg, entry.fingerprint)), spoken.tokens
    yield Note(f"{line} · {pluralise(tokens, 'token')}, {spoken.seconds:.1f} s (by mta serve)")
    yield from early_end_notes(spoken.finish_reason, tokens)
    yield JobResult(answer_json(user, task, found.model.source, spoken) | {"loading_seconds": 0.0})


def compare_on_server(
    reg: Registry, server: RunningServer, entry: ModelEntry, names: Sequence[str], text: str, asking: ChatOptions
) -> Iterator[Event]:
    """Compare models as `compare_user_models` does, but on `server`, which answers with one model after another.

    Each user's most personal model comes first. If the server has just ended, this process compares the models.
    Raises MtaError with the server's error message.
    """
    check_message(text)
    users = [reg.users.get(name) for name in names]
    results: list[dict[str, Any]] = []
    for user in users:
        try:
            best = yield from _stream_server_answer(server, user, text, asking, None)
        except ServerUnreachable:
            if results:
                raise
            yield from compare_user_models(reg, entry, names, text, asking)
            return
        columns = [best.model]
        for mode in available_modes(reg, user, best.task, entry.fingerprint):
            if mode != best.model.key:
                columns.append((yield from _stream_server_answer(server, user, text, asking, mode)).model)
        results.append(comparison_result(user, text, best.task, columns, best.own_examples))
        if best.model.key != "adapted":
            yield from missing_own_model_hints(reg, user, best.task, entry)
    yield JobResult(results)


@dataclass(frozen=True)
class ServerAnswer:
    """A server's answer: the model with its answer, the task, and the number of the user's items in the prompt."""

    model: ComparedModel
    task: str
    own_examples: int


def _stream_server_answer(
    server: RunningServer, user: User | None, text: str, asking: ChatOptions, mode: str | None
) -> Generator[Event, None, ServerAnswer]:
    """Stream the server's answer and return it; without `mode`, it comes from the user's most personal model.

    If the connection fails, raises ServerUnreachable before the first text and MtaError after it. Raises MtaError for
    an error that the server reports.
    """
    given, answer, started = asking.answer, RemoteAnswer(), time.perf_counter()
    system = [] if asking.system is None else [{"role": "system", "content": asking.system}]
    wishes = {
        "task": asking.task,
        "mode": mode,
        "history_items": asking.prompt.history_items,
        "memory": asking.memory.memory,
        "temperature": given.temperature,
        "top_p": given.top_p,
        "min_p": given.min_p,
        "max_tokens": given.max_tokens,
        "repetition_penalty": given.repetition_penalty,
        "seed": asking.machine.seed if given.temperature else None,
    }
    body: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
    # on the server, `base` is the bare base, and `base:base` a user whose name is `base`
    name = "base" if user is None else "base:base" if user.name == "base" else user.name
    body |= {"model": name, "messages": [*system, {"role": "user", "content": text}]}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        with short_path(server.http) as place:
            yield from answer.read(ServerClient("http://localhost/v1", socket=place).stream_chat(body))
    except ServerUnreachable as gone:
        if answer.text:
            raise MtaError(str(gone)) from gone
        raise
    told, seconds = answer.told, time.perf_counter() - started
    labels = told.labels or {}
    ended = "label" if labels else "end" if answer.ended == "stop" else answer.ended
    spoken = Generation(answer.text, answer.tokens, seconds, ended, labels, has_memory=told.memory is True)
    anchors = tuple(name for name in told.anchors if name)
    source = AnswerSource(told.mode, told.bank, told.version, anchors)
    model = ComparedModel(source.mode, user, (), source, spoken)
    return ServerAnswer(model, str(told.task), told.own_examples)
