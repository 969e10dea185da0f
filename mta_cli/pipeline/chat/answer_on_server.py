"""`mta ask` by a running server of the same store: nothing is loaded here, so the answer begins at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, JobResult, Note
from mta_cli.pipeline.bases_in_use import on_base
from mta_cli.pipeline.chat.answer import answer_question, cut_notes, own_model_hints, source_line
from mta_cli.pipeline.chat.fit_prompt import check_message
from mta_cli.pipeline.chat.server_client import RemoteAnswer, ServerClient, ServerGone
from mta_cli.pipeline.user_weights import AnswerSource
from mta_cli.pipeline.users.servers import RunningServer, running_servers, short_path

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import ChatOptions
    from store.registry import Registry

BY_SERVER = ("max_tokens", "repetition_penalty")  # where not given, the server's own setting counts


def server_for(reg: Registry, entry: ModelEntry, asking: ChatOptions) -> RunningServer | None:
    """A running server of the store that gives the answer which this process would give; None without one."""
    # OpenAI's interface has no free decoding, and does not tell the end of an answer from a stop text
    if asking.free_decoding or asking.stops:
        return None
    wanted = _settings(asdict(asking), asking)
    for server in running_servers(reg.root):
        about = server.about
        fits = about.get("ready") and about.get("fingerprint") == entry.fingerprint
        if fits and _settings(about.get("chat") or {}, asking) == wanted:
            return server
    return None


def _settings(chat: dict[str, Any], asking: ChatOptions) -> dict[str, Any]:
    """Those of a process's `ChatOptions` that a request does not change: it cannot, or leaves them as the server was
    started.
    """
    machine, memory, answer = (dict(chat.get(name) or {}) for name in ("machine", "memory", "answer"))
    for name in ("seed", "max_memory", "verify"):
        machine.pop(name, None)
    memory.pop("memory", None)
    open_values = {name: answer.get(name) for name in BY_SERVER if getattr(asking.answer, name) is None}
    task = chat.get("task") if asking.task is None else None
    return {"machine": machine, "memory": memory, "answer": open_values, "task": task}


def answer_on_server(
    reg: Registry, server: RunningServer, entry: ModelEntry, user_name: str | None, text: str, asking: ChatOptions
) -> Iterator[Event]:
    """As `answer_question`, by `server`; by the model in this process, if the server has just ended.

    Raises MtaError with the server's reason.
    """
    check_message(text)
    user = reg.users.get(user_name) if user_name is not None else None
    given, answer, started = asking.answer, RemoteAnswer(), time.perf_counter()
    system = [] if asking.system is None else [{"role": "system", "content": asking.system}]
    wishes = {
        "task": asking.task,
        "mode": asking.mode,
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
    body |= {"model": _model_name(user_name), "messages": [*system, {"role": "user", "content": text}]}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        with short_path(server.http) as place:
            yield from answer.read(ServerClient("http://localhost/v1", socket=place).stream_chat(body))
    except ServerGone:
        if answer.text:
            raise
        yield from answer_question(reg, entry, user_name, text, asking)
        return
    seconds, told = time.perf_counter() - started, answer.told
    labels, task = told.labels, str(told.task)
    ended = "label" if labels else "end" if answer.ended == "stop" else answer.ended
    anchors = tuple(name for name in told.anchors if name)
    source = AnswerSource(told.mode, told.bank, told.version, anchors)
    if asking.mode is None and user is not None:
        yield from own_model_hints(reg, user, task, entry)
    line = source_line(source, task, on_base(reg, entry.fingerprint))
    yield Note(f"{line} · {answer.tokens} token{'s' * (answer.tokens != 1)}, {seconds:.1f} s (by mta serve)")
    yield from cut_notes(ended, answer.tokens)
    result = {
        "user": None if user is None else user.name,
        "text": answer.text,
        "tokens": answer.tokens,
        "seconds": round(seconds, 3),
        "ended": ended,
        "task": task,
        "source": source.as_json(),
        **({"labels": labels} if labels else {}),
        "loading_seconds": 0.0,
    }
    yield JobResult(result)


def _model_name(user_name: str | None) -> str:
    """A user's name as the server reads it; `base` is the base there."""
    return "base" if user_name is None else f"base:{user_name}" if user_name == "base" else user_name
