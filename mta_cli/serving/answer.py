"""The state of one answer: its tokens, the text that may be shown, and its finish reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal

from mta_cli.engine.generation.answer_text import AnswerText
from mta_cli.engine.generation.repetition import RepetitionFilter
from mta_cli.errors import MtaError
from mta_cli.serving.weights import W

if TYPE_CHECKING:
    from mta_cli.engine.generation.sampler import SampledToken, TokenSampler

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class Piece:
    """A piece of an answer's text, with its tokens."""

    text: str
    tokens: tuple[SampledToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer. For a task with labels, `label_scores` are the labels' log-likelihoods (nats)."""

    reason: FinishReason
    tokens: int
    label_scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Failed:
    """The end of an answer that failed with an error."""

    error: MtaError | Exception


Emit = Callable[[Piece | Finished | Failed], None]


@dataclass(eq=False)
class AnswerRequest(Generic[W]):
    """A request to a model, and its answer so far.

    `labels` are the token ids of the possible labels; empty for a text. `owner` is the user's id, None for the base.
    With a `schema` the answer is JSON. `emit` may be called from any thread. `keeps_prefix` says whether the prompt's
    keys and values may be cached for a later request.
    """

    model: W
    prompt: Sequence[int]
    sampler: TokenSampler
    max_tokens: int
    emit: Emit
    tokenizer: Any
    owner: int | None = None
    labels: Sequence[Sequence[int]] = ()
    stops: Sequence[str] = ()
    end_ids: Sequence[int] = ()
    schema: dict[str, Any] | None = None
    cancelled: bool = False
    keeps_prefix: bool = True

    def __post_init__(self) -> None:
        # A schema's grammar ends the answer; an answer that is cut at a repetition would not match the schema.
        self._repetition = RepetitionFilter(self.tokenizer, active=self.schema is None)
        self._text = AnswerText(self.tokenizer, self.stops)
        self._held: deque[SampledToken] = deque()  # tokens not shown yet, because they may be a repetition
        self._unshown: list[SampledToken] = []

    @property
    def tokens(self) -> list[int]:
        """The answer's tokens so far."""
        return self._repetition.tokens

    @property
    def ids(self) -> list[int]:
        """The prompt and the answer so far."""
        return [*self.prompt, *self.tokens]

    def add(self, chosen: SampledToken) -> bool:
        """Add the next token; returns whether the answer has ended."""
        if chosen.token in self.end_ids:
            return self.end("stop")
        self._held.append(chosen)
        new, repeats = self._repetition.add(chosen.token)
        if self._show_tokens(len(new)):
            return True
        if repeats:
            return self.end("repetition")
        if len(self.tokens) < self.max_tokens:
            return False
        return self.end("repetition" if self._repetition.end_at_limit() else "length")

    def end(self, reason: FinishReason) -> bool:
        """End the answer; always returns True."""
        if self._show_tokens(len(self._repetition.flush())):
            return True
        self._show(self._text.flush(), last=True)
        self.emit(Finished("stop" if self._text.stopped else reason, len(self.tokens)))
        return True

    def _show_tokens(self, count: int) -> bool:
        """Show the first `count` held-back tokens; returns whether a stop text was found, which ends the answer."""
        for _ in range(count):
            chosen = self._held.popleft()
            self._unshown.append(chosen)
            self._show(self._text.add_token(chosen.token))
            if self._text.stopped:
                self._unshown.clear()
                self.emit(Finished("stop", len(self.tokens) - len(self._held)))
                return True
        return False

    def _show(self, text: str, *, last: bool = False) -> None:
        if text or (last and self._unshown):
            self.emit(Piece(text, tuple(self._unshown)))
            self._unshown.clear()
