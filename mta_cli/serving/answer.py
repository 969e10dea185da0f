"""One answer in the making: its tokens, the text that may be shown, and why it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

from mta_cli.errors import MtaError
from mta_cli.serving.weights import W

if TYPE_CHECKING:
    from mta_cli.engine.generation.sampler import SampledToken, TokenSampler

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """Text that is shown, and the tokens that made it."""

    text: str
    tokens: tuple[SampledToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer. `label_scores` are log-likelihoods, nats, where the answer is one of a task's labels."""

    reason: FinishReason
    tokens: int
    label_scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Failed:
    """An answer that ended with an error."""

    error: MtaError | Exception


Emit = Callable[[Piece | Finished | Failed], None]


class StopFilter:
    """Holds back text that may be the beginning of a stop text, and ends at the first stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [stop for stop in stops if stop], ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop text was met; nothing is shown from there on."""
        self._held += text
        met = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if met:
            shown, self._held = self._held[: min(met)], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """What is still held back."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(eq=False)
class Answer(Generic[W]):
    """What was asked of a model, and what came of it so far.

    `labels` are the token ids of the labels of which one is the answer; empty for a text. `owner` is the user's number,
    None for the base. `detokenizer` turns tokens into text. The answer is JSON of `schema`, where there is one. `emit`
    may be called from any thread.
    """

    model: W
    prompt: Sequence[int]
    sampler: TokenSampler
    max_tokens: int
    emit: Emit
    detokenizer: Any
    owner: int | None = None
    labels: Sequence[Sequence[int]] = ()
    stops: Sequence[str] = ()
    end_ids: Sequence[int] = ()
    schema: dict[str, Any] | None = None
    cancelled: bool = False
    keeps_prefix: bool = True
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._filter = StopFilter(self.stops)
        self._unshown: list[SampledToken] = []

    @property
    def ids(self) -> list[int]:
        """The prompt and the answer so far."""
        return [*self.prompt, *self.tokens]

    def add(self, chosen: SampledToken) -> bool:
        """Take the next token; whether the answer has ended."""
        if chosen.token in self.end_ids:
            return self.end("stop")
        self.tokens.append(chosen.token)
        self._unshown.append(chosen)
        shown, stopped = self._filter.add(self.detokenizer.add_token(chosen.token))
        self._show(shown)
        if stopped:
            self._unshown.clear()
            self.emit(Finished("stop", len(self.tokens)))
            return True
        return self.end("length") if len(self.tokens) >= self.max_tokens else False

    def end(self, reason: FinishReason) -> bool:
        """There is no further token; always true."""
        shown, stopped = self._filter.add(self.detokenizer.flush())
        self._show(shown if stopped else shown + self._filter.flush(), last=True)
        self.emit(Finished("stop" if stopped else reason, len(self.tokens)))
        return True

    def _show(self, text: str, *, last: bool = False) -> None:
        if text or (last and self._unshown):
            self.emit(Piece(text, tuple(self._unshown)))
            self._unshown.clear()
