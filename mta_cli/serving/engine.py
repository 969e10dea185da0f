"""What computes the answers: this process (`scheduler`), or a vLLM server (`vllm`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol

from mta_cli.errors import MtaError
from mta_cli.serving.weights import W, WeightsMaker

if TYPE_CHECKING:
    from mta_cli.engine.generation.sampler import TokenConstraint
    from mta_cli.engine.model.load import BaseInfo, LoadedBase
    from mta_cli.serving.answer import AnswerRequest


class QueueFull(MtaError):
    """As many answers wait as may."""


class Stopping(MtaError):
    """The server ends and takes no more answers."""


class EngineUnavailable(MtaError):
    """What computes is not there, or not as it has to be."""


class AnswerEngine(Protocol[W]):
    """Makes answers, and tells each what comes of it. Its methods may be called from any thread."""

    def start(self) -> None:
        """Begin to answer."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        ...

    def require_reachable(self) -> None:
        """Raises EngineUnavailable where another server computes and does not answer; waits for it a moment."""
        ...

    def submit(self, answers: Sequence[AnswerRequest[W]]) -> None:
        """Let these wait for their turn. Raises QueueFull where too many wait, and Stopping after `stop`."""
        ...

    def cancel(self, answers: Sequence[AnswerRequest[W]]) -> None:
        """End these without a word."""
        ...

    def known_owners(self) -> set[int]:
        """The numbers of the users whose answers wait or run, or of whose conversations something is kept."""
        ...

    def forget(self, gone: Sequence[W], owners: Sequence[int]) -> None:
        """Drop what is kept of these models and of users number `owners`, whose answers end; wait for it."""
        ...

    def stop(self, *, drain_seconds: float) -> None:
        """Take no more answers, and let those that are there end for a while."""
        ...


class Formats(Protocol):
    """Answers that are JSON."""

    def constraints(self, schema: dict[str, Any], count: int) -> Sequence[TokenConstraint | None]:
        """What each of `count` answers of a schema may say; None where the engine sees to it. Raises ApiError."""
        ...


@dataclass(frozen=True)
class ServedBase(Generic[W]):
    """A base that is served, and what computes with it."""

    base: LoadedBase | BaseInfo
    maker: WeightsMaker[W]
    engine: AnswerEngine[W]
    formats: Formats
