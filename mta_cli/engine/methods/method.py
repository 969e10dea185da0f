"""The types of a method: its definition, its input and its result."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.memory.label_memory import LabelMemory
from mta_cli.engine.memory.label_prior import LabelPrior
from mta_cli.engine.methods.weightings import WEIGHTINGS
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.text.tasks import Task
from mta_cli.options import AdaptOptions, FuseOptions, MemoryOptions, options_from_json

Value = float | int | str | bool
Settings = Mapping[str, Value]
BaseLevel = Literal["base", "task"]
StackKind = Literal["none", "lora"]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class UserShots:
    """What a method knows of a user: the shots, but no held-out query.

    `rows` are the shots' training rows; each prompt shows as many other items of the user as at inference. If
    `stack_rows` are given, stacks are trained on them: every shot with no other item in its prompt, then every shot
    with one other item, and so on, so that the weights learn the user's style and examples still help. `times` are ISO
    8601 or None. `other_answers` are the user's known answers besides the shots; they count in the label prior only.
    `profile` is the user's unit embedding [width], float32; None for a user without items. `number` identifies the
    user.
    """

    number: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: tuple[TrainingRow, ...]
    profile: Tensor | None = None
    times: tuple[str | None, ...] = ()
    other_answers: tuple[str, ...] = ()
    stack_rows: tuple[TrainingRow, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """All known answers of the user."""
        return (*self.other_answers, *self.outputs)

    def answers_without(self, shot: int) -> tuple[str, ...]:
        """All known answers of the user except the answer of one shot."""
        return (*self.other_answers, *self.outputs[:shot], *self.outputs[shot + 1 :])


@dataclass(frozen=True)
class MethodContext:
    """The inputs of a method that all users of one bank share.

    `base` has the task adapter merged if the method uses it; None until it is loaded, since similarity weights need no
    base. `anchors` act above the task adapter and have `profiles` [anchors, width]. `min_similarities` maps an anchor's
    index to the least cosine of users whom it may serve. `label_tokens` are each label's tokens. `cache` holds results
    that several methods need.
    """

    base: LoadedBase | None
    task: Task
    anchors: Sequence[LoraWeights]
    profiles: Tensor
    seed: int
    memory: LabelMemory = field(default_factory=LabelMemory)
    label_tokens: tuple[tuple[int, ...], ...] = ()
    min_similarities: Mapping[int, float] = field(default_factory=dict)
    cache: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def loaded_base(self) -> LoadedBase:
        """The base. Raises ValueError if it is not loaded."""
        if self.base is None:
            raise ValueError("this needs the base, which is not loaded")
        return self.base

    def cached(self, key: Hashable, compute: Callable[[], ResultT]) -> ResultT:
        """The result of `compute`, which is called once for each `key`."""
        if key not in self.cache:
            self.cache[key] = compute()
        result: ResultT = self.cache[key]
        return result


DirectAnswerer = Callable[[str, str | None], tuple[str, tuple[float, ...]]]
"""Maps a query's text and time to an answer and each label's log-probability, without a language model. There are no
log-probabilities for a task of texts.
"""


@dataclass(frozen=True)
class UserModel:
    """One user's model: LoRAs above the base as loaded, and the label prior.

    `bytes` is the size stored for the user. `failed`: the training diverged, so the stack is missing. `answerer`, if
    set, replaces the language model.
    """

    loras: tuple[LoraWeights, ...] = ()
    prior: LabelPrior | None = None
    bytes: int = 0
    answerer: DirectAnswerer | None = None
    failed: bool = False


@dataclass(frozen=True)
class MethodOptions:
    """The options of a method, in the same classes as the options of the commands."""

    fuse: FuseOptions = field(default_factory=FuseOptions)
    adapt: AdaptOptions = field(default_factory=AdaptOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)

    @classmethod
    def from_settings(cls, method: Method, settings: Settings) -> MethodOptions:
        """The options of `method` with `settings`; all others keep their defaults."""
        return cls(
            options_from_json(FuseOptions, settings),
            options_from_json(AdaptOptions, settings),
            replace(options_from_json(MemoryOptions, settings), memory=method.memory or "off"),
        )


BuildModels = Callable[[MethodContext, Sequence[UserShots], Settings], list[UserModel]]
"""Makes a model for each user of a group. The same users in the same order get the same models."""


@dataclass(frozen=True)
class Method:
    """A way to personalise a model: five choices, or a `build` function of its own.

    `below`: the weights below the user's own (base, or base and task adapter). `anchors`: how they are chosen and
    weighted. `stack`: the adapter that is trained on top. `memory`: the label memory; None if the method has none.
    `shows_history`: whether prompts show the user's items. `overrides` replace defaults of `mta_cli.options`; `grid`
    has the settings that `mta eval tune` tries. `version` is raised when the same settings give different models, so
    that stored answers are not reused. `bank_preset`: the preset of the bank that it needs, if any. `step`: the step
    of the ladder that it measures, if any. `permuted`: each user gets the LoRAs of the next user in the group, but
    keeps their own memory. `control_of`: the method for which this one is a control, and whose settings it shares.
    """

    name: str
    about: str
    below: BaseLevel = "task"
    anchors: str = "none"
    stack: StackKind = "none"
    memory: str | None = "off"
    shows_history: bool = True
    overrides: Settings = field(default_factory=dict)
    grid: tuple[Settings, ...] = ()
    version: int = 1
    bank_preset: str = ""
    build: BuildModels | None = None
    permuted: bool = False
    control_of: str = ""
    step: str = ""

    @property
    def version_settings(self) -> Settings:
        """The version as a setting; empty for the first version."""
        return {"version": self.version} if self.version > 1 else {}

    @property
    def default_settings(self) -> Settings:
        """All settings of this method that have a default."""
        named = WEIGHTINGS[self.anchors].settings, _STACK_SETTINGS[self.stack], MEMORY_SETTINGS[self.memory or "off"]
        names = {name for own in named for name in own}
        defaults = {
            spec.name: getattr(options, spec.name)
            for options in (FuseOptions(), AdaptOptions(), MemoryOptions())
            for spec in fields(options)
            if spec.name in names and getattr(options, spec.name) is not None
        }
        return {**defaults, **self.overrides}


_STACK_SETTINGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "lora": ("rank", "alpha", "targets", "placement", "batch_size", "learning_rate"),
}
MEMORY_SETTINGS: dict[str, tuple[str, ...]] = {
    "off": (),
    "habit": ("prior_weight", "prior_strength"),
    "neighbours": ("neighbour_weight", "prior_weight", "prior_strength", "look_ahead"),
}
