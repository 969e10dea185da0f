"""The interface of engines that compute answers: this process (`scheduler`), or a vLLM server (`vllm`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol

from mta_cli.errors import MtaError
from mta_cli.serving.weights import W, WeightsMaker

if TYPE_CHECKING:
    from mta_cli.engine.model.load import BaseInfo, LoadedBase
    from mta_cli.serving.answer import AnswerRequest
    from mta_cli.serving.json_format import JsonFormats


class QueueFull(MtaError):
    """The queue of answers is full."""


class Stopping(MtaError):
    """The server is stopping and accepts no more answers."""


class EngineUnavailable(MtaError):
    """The inference server is not reachable, or not configured as required."""


class AnswerEngine(Protocol[W]):
    """Computes answers and emits their pieces. Its methods may be called from any thread."""

    def start(self) -> None:
        """Start to compute answers."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether the engine is running."""
        ...

    def require_reachable(self) -> None:
        """Raises EngineUnavailable if the engine uses an inference server that does not answer in time."""
        ...

    def submit(self, answers: Sequence[AnswerRequest[W]]) -> None:
        """Queue these answers. Raises QueueFull if too many wait, and Stopping after `stop`."""
        ...

    def cancel(self, answers: Sequence[AnswerRequest[W]]) -> None:
        """Cancel these answers without emitting anything."""
        ...

    def known_owners(self) -> set[int]:
        """The ids of users with waiting or running answers or with cached conversations."""
        ...

    def forget(self, gone: Sequence[W], owners: Sequence[int]) -> None:
        """Drop cached data of the models `gone` and the users `owners`, whose answers fail. Waits until it is done."""
        ...

    def stop(self, *, drain_seconds: float) -> None:
        """Accept no more answers. Answers that have not ended after `drain_seconds` fail with `Stopping`."""
        ...


@dataclass(frozen=True)
class ServedBase(Generic[W]):
    """A served base and its engine. `formats` makes grammars from schemas; None if the engine makes them itself."""

    base: LoadedBase | BaseInfo
    maker: WeightsMaker[W]
    engine: AnswerEngine[W]
    formats: JsonFormats | None
