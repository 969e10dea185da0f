"""Bodies of requests, checked strictly. Unsupported parameters are refused by name, never ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from mta_cli.serving.errors import ApiError, invalid, unsupported
from mta_cli.serving.json_format import json_schema

T = TypeVar("T", bound=Struct)
MAX_MESSAGES, MAX_ANSWERS, MAX_STOPS, MAX_INPUTS = 2_000, 16, 16, 2_048
MAX_MODEL_NAME = 600

# Parameters of OpenAI's interface that are accepted and ignored, because they cannot change an answer here: those about
# the client, billing and storage (`store` is refused if true), and the lists of tools, which these models never call.
TOOLS = ("tools", "functions", "parallel_tool_calls")
WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store", *TOOLS)
# Unsupported parameters that would change an answer. `null`, `[]`, `{}` and false are accepted, because they mean the
# same as leaving the parameter out.
REFUSED = {
    "audio": "answers are text",
    "best_of": "",
    "echo": "",
    "function_call": "these models call no functions",
    "logit_bias": "",
    "modalities": "answers are text",
    "prediction": "",
    "reasoning_effort": "these models do not reason apart from their answer",
    "suffix": "",
    "tool_choice": "these models call no tools",
    "verbosity": "",
    "web_search_options": "",
    "dimensions": "",
}
# Further values of these parameters that are accepted, because they change nothing.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
}

Name = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME)]
Temperature = Annotated[float, Meta(ge=0, le=5)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
Count = Annotated[int, Meta(ge=1, le=MAX_ANSWERS)]
Empty = Annotated[list[None], Meta(max_length=0)]


class TextPart(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text that is a part of a message's content."""

    text: str


class ChatMessage(Struct, forbid_unknown_fields=True):
    """A message of a conversation. `name` has no effect."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    # The `openai` client sends an earlier answer back with these fields, all empty
    refusal: None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    """Options of a stream. `include_usage` adds a last chunk with the numbers of tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """The form of the answer: text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class SamplingFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """The common fields of chat and completions."""

    model: Name
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Count | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    task: Name | None = None


class ChatBody(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    truncation: Literal["auto", "disabled"] | None = None  # as in OpenAI's Responses API
    history_items: Annotated[int, Meta(ge=0, le=20)] | None = None  # the most of the user's own items in the prompt
    memory: Literal["off", "habit", "neighbours"] | None = None  # label memory
    mode: Literal["base", "common", "fused", "adapted"] | None = None  # else the user's most personal model


class CompletionBody(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_ANSWERS)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


class EmbeddingBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/embeddings`."""

    model: Name
    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None


class ItemBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/users/{name}/items`: a question and an answer that the user approves."""

    input: Annotated[str, Meta(min_length=1)]
    output: Annotated[str, Meta(min_length=1)]
    task: Name | None = None


class AdaptBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/users/{name}/adapt`."""

    task: Name | None = None
    shots: Annotated[int, Meta(ge=1, le=1000)] | None = None


@dataclass(frozen=True)
class ChatPreferences:
    """A client's choices for a conversation; None means the server's default. See `ChatBody`."""

    truncate: bool = False
    history_items: int | None = None
    memory: str | None = None
    mode: str | None = None


# All parameters of the endpoints that compute. Each endpoint accepts those of the others if they are `null`.
HONOURED = {name for body in (ChatBody, CompletionBody, EmbeddingBody) for name in body.__struct_fields__}


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of a request; None means the server's default."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    count: int
    stops: tuple[str, ...]
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    min_p: float | None
    repetition_penalty: float | None
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    schema: dict[str, Any] | None = None


def parse_body(kind: type[T], content: bytes) -> T:
    """The parsed body of a request. Raises ApiError, which names the parameter at fault."""
    try:
        raw = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(raw, dict):
        raise ApiError(400, "The body is not a JSON object.", code="invalid_json")
    kept = _without_refused(raw, kind)
    try:
        return msgspec.convert(kept, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _as_api_error(str(error)) from error


def _without_refused(raw: Mapping[str, Any], kind: type[Struct]) -> dict[str, Any]:
    own, kept = set(kind.__struct_fields__), dict[str, Any]()
    for name, value in raw.items():
        if name in own:
            kept[name] = value
        elif name in REFUSED:
            left_out = value is None or value is False or value in ([], {})
            if not left_out and value not in HARMLESS.get(name, ()):
                raise unsupported(name, REFUSED[name])
        elif name in WITHOUT_EFFECT:
            if name == "store" and value:
                raise unsupported(name, "this server stores no requests")
        elif value is not None or name not in HONOURED:
            raise ApiError(400, f"There is no parameter {name!r:.100}.", code="unknown_parameter", param=name[:100])
    return kept


def _as_api_error(message: str) -> ApiError:
    """An ApiError from msgspec's message, such as `Expected `int` - at `$.n``, with its parameter."""
    place = re.search(r"at `\$\.?([^`]*)`", message)
    missing = re.search(r"missing required field `([^`]*)`", message)
    unknown = re.search(r"contains unknown field `([^`]*)`", message)
    where = ".".join(part for part in (place[1] if place else "", *(m[1] for m in (missing, unknown) if m)) if part)
    code = "array_above_max_length" if message.startswith("Expected `array` of length <=") else "invalid_value"
    return ApiError(400, f"{message}.", code=code, param=where or None)


def chat_messages(body: ChatBody) -> list[dict[str, str]]:
    """The messages for the prompt, each with its content as one text. Raises ApiError if the last is not the user's."""
    messages = []
    for message in body.messages:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        messages.append({"role": "system" if message.role == "developer" else message.role, "content": text})
    if messages[-1]["role"] != "user":
        raise invalid("messages", "The last message must have the role user.")
    return messages


def chat_sampling(body: ChatBody) -> Sampling:
    """The sampling parameters of a chat. Raises ApiError for invalid or contradictory parameters."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise invalid("max_tokens", "max_tokens and max_completion_tokens differ.")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs: true.")
    top = (body.top_logprobs or 0) if body.logprobs else None
    schema = json_schema(body.response_format)
    return replace(_sampling(body, body.max_completion_tokens or body.max_tokens, top), schema=schema)


def completion_sampling(body: CompletionBody) -> Sampling:
    """The sampling parameters of a completion. Raises ApiError for invalid parameters."""
    return _sampling(body, body.max_tokens, body.logprobs)


def _sampling(body: SamplingFields, max_tokens: int | None, top_logprobs: int | None) -> Sampling:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= 1_000 for stop in stops):
        raise invalid("stop", f"stop takes up to {MAX_STOPS} texts of 1 to 1,000 characters.")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options needs stream: true.")
    return Sampling(
        max_tokens,
        body.temperature,
        body.top_p,
        body.n or 1,
        stops,
        body.seed,
        body.presence_penalty or 0.0,
        body.frequency_penalty or 0.0,
        body.min_p,
        body.repetition_penalty,
        top_logprobs,
        bool(body.stream),
        body.stream_options is not None and body.stream_options.include_usage,
    )
