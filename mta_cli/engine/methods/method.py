"""What every method of the evaluation is given and gives back. Knows tensors and rows; no store and no terminal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.knn import EmbedFunction, NeighbourIndex, NeighbourKernel
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.engine.text.tasks import Task

Value = float | int | str
Settings = Mapping[str, Value]
BaseLevel = Literal["base", "task"]


@dataclass(frozen=True)
class UserShots:
    """Somebody as a method sees them: their shots and nothing else.

    `rows` are the shots' training rows under the prompt that all methods share, each without itself in the history
    shown; `profile` is the shots' unit embedding, `[width]` float32. `number` only tells people apart.
    """

    number: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: tuple[TrainingRow, ...]
    profile: Tensor


@dataclass(frozen=True)
class MethodContext:
    """What a fold's people share. `base` holds the task adapter where the method stands on it, else nothing.

    `anchors` stand above the task adapter, and `profiles` `[anchors, width]` are theirs. `rates` is how often the
    bank's people give each label (they sum to one), and `answers` each label's tokens; empty for a task of texts.
    `items` are what they answered to what, with the kernel fitted to them and the embedder they are found by; None for
    a task of texts. `known` is what one method has computed of people and others need too, by what it is and whose.
    """

    base: LoadedBase
    task: Task
    anchors: Sequence[LoraWeights]
    profiles: Tensor
    rates: tuple[float, ...]
    seed: int
    neighbour_index: tuple[NeighbourIndex, NeighbourKernel, EmbedFunction] | None = None
    label_tokens: tuple[tuple[int, ...], ...] = ()
    cache: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UserModel:
    """One person's model: LoRAs above what the base holds, their label prior, and a `shift` of the last state.

    `bytes` is what must be kept of it for the person. `failed`: there were shots, and training on them came to no
    finite weights; the rest of the model is there. `direct` answers by itself, without a model, where it is given:
    the answer to each text.
    """

    loras: tuple[LoraWeights, ...] = ()
    prior: LabelPrior | None = None
    bytes: int = 0
    answerer: DirectAnswerer | None = None
    failed: bool = False
    state_shift: Tensor | None = None


class DirectAnswerer(Protocol):
    """Answers without a language model."""

    def __call__(self, text: str) -> tuple[str, tuple[float, ...]]:
        """The answer to a query and, for a task of labels, the log-probability of each label."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to make a model personal.

    `below` is what the base holds underneath; `history`: whether prompts show the person's own items. `settings` are
    its own defaults, and `grid` what `mta eval tune` tries: whole settings, each laid over the defaults. `version` goes
    up when the same settings begin to give other models: older answers then are not taken for its own. `stands`: its
    direct answers are what they are, and not what the calibrated likelihoods of labels would decide.
    """

    name: str
    about: str
    build_models: BuildModels
    base_level: BaseLevel = "task"
    shows_history: bool = True
    settings: Settings = field(default_factory=dict)
    grid: tuple[Settings, ...] = ()
    version: int = 1
    keeps_own_answer: bool = False


class BuildModels(Protocol):
    """Makes the models of a group of people. The same people in the same order give the same models."""

    def __call__(self, bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
        """A model for each of `people`."""
        ...
