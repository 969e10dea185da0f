"""Answers in OpenAI's format, whole or streamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.serving.answer import FinishReason, Piece

if TYPE_CHECKING:
    from mta_cli.engine.generation.sampler import SampledToken

REPLACEMENT = "\ufffd"  # what a tokenizer shows for an incomplete character
MIN_LOGPROB = -9999.0  # OpenAI's value, because JSON has no infinity


def normalised(scores: Sequence[float]) -> list[float]:
    """The log-softmax of `scores`: log-probabilities in nats."""
    top = max(scores)
    total = top + math.log(sum(math.exp(score - top) for score in scores))
    return [score - total for score in scores]


@dataclass
class Choice:
    """The state of one of a request's answers."""

    index: int
    text: str = ""
    tokens: int = 0
    reason: FinishReason | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


def token_entries(tokenizer: Any, tokens: Sequence[SampledToken]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat's answer: each token with its log-probability (nats) and its UTF-8 bytes.

    `bytes` is null for a token that holds only a part of a character. Tokens without a log-probability are left out.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        content = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": content}

    return [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in tokens
        if one.logprob is not None
    ]


def label_entries(labels: Sequence[str], logprobs: Sequence[float], place: int, top: int) -> list[dict[str, Any]]:
    """`logprobs.content` of an answer that is a label: the label at index `place` as one token, and the `top` best.

    `logprobs` are the log-probabilities of all labels (nats).
    """

    def entry(n: int) -> dict[str, Any]:
        return {"token": labels[n], "logprob": max(logprobs[n], MIN_LOGPROB), "bytes": list(labels[n].encode())}

    order = sorted(range(len(labels)), key=lambda n: -logprobs[n])
    return [entry(place) | {"top_logprobs": [entry(n) for n in order[:top]]}]


def completion_logprobs(entries: Sequence[dict[str, Any]], place: int) -> dict[str, Any]:
    """The `logprobs` object of `/v1/completions`. `place` is where the text begins in its answer, in characters."""
    offsets = []
    for entry in entries:
        offsets.append(place)
        place += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
        "text_offset": offsets,
    }


@dataclass(frozen=True)
class AnswerFormat:
    """Formats one request's answers for an endpoint. `mta` is the object that this program adds to each answer."""

    id: str
    model: str
    created: int
    is_chat: bool
    with_logprobs: bool
    prompt_tokens: int
    mta: dict[str, Any]

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """The tokens of the prompt and of all answers."""
        answered = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self.prompt_tokens + answered,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The complete response to a request without streaming."""
        return self._head("chat.completion" if self.is_chat else "text_completion") | {
            "choices": [self._choice(one, one.text, one.logprobs, "message") for one in choices],
            "usage": self.usage(choices),
            "mta": self.mta,
        }

    def first(self, choice: Choice) -> dict[str, Any]:
        """The first chunk of a chat's answer, with the role and without text."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk() | {
            "choices": [{"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}],
            "mta": self.mta,
        }

    def text_chunk(self, choice: Choice, piece: Piece, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """The chunk of a stream for a piece of text."""
        return self._chunk() | {"choices": [self._choice(choice, piece.text, entries, "delta")]}

    def last(self, choice: Choice) -> dict[str, Any]:
        """The last chunk of one answer, with its finish reason."""
        return self._chunk() | {"choices": [self._choice(choice, "", [], "delta")], "mta": self.mta}

    def usage_chunk(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The last chunk of a stream, if usage was requested."""
        return self._chunk() | {"choices": [], "usage": self.usage(choices)}

    def _chunk(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.is_chat else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, choice: Choice, text: str, entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
        """A choice in the response: the whole answer if `name` is `message`, a part of it if `name` is `delta`."""
        logprobs: dict[str, Any] | None = None
        start = 0 if name == "message" else len(choice.text) - len(text)
        if self.with_logprobs and (entries or name == "message"):
            logprobs = {"content": entries, "refusal": None} if self.is_chat else completion_logprobs(entries, start)
        rest = {"logprobs": logprobs, "finish_reason": choice.reason}
        if choice.reason == "repetition":  # OpenAI's interface has no such reason; `stop_reason` is a field of vLLM's
            rest |= {"finish_reason": "stop", "stop_reason": "repetition"}
        if not self.is_chat:
            return {"index": choice.index, "text": text, **rest}
        said: dict[str, Any] = {"content": text} if text or name == "message" else {}
        if name == "message":
            said = {"role": "assistant", **said, "refusal": None}
        return {"index": choice.index, name: said, **rest}
