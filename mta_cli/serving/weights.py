"""A user's model in the engine's form: factors in memory, or a folder that vLLM loads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

from mta_cli.pipeline.user_weights import load_fusion_and_stack, load_weights

if TYPE_CHECKING:
    from mta_cli.engine.lora.row_factors import UserFactors
    from mta_cli.engine.model.llama import FusedFactors
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.pipeline.user_weights import AnswerSource
    from store.records import Bank, User
    from store.registry import Registry


class Weights(Protocol):
    """A user's model in the engine's form; two models are equal only if they are the same object."""

    @property
    def num_bytes(self) -> int:
        """The model's size in memory or on disk, in bytes."""
        ...


W = TypeVar("W", bound=Weights)


class WeightsMaker(Protocol[W]):
    """Makes users' models from the store. Used in the thread that reads the store."""

    @property
    def bare_base(self) -> W:
        """The model without LoRAs: the base alone."""
        ...

    def make(self, reg: Registry, user: User | None, task: str, mode: str, bank: Bank) -> tuple[W, AnswerSource]:
        """The user's model for a task; without a user the common model. Raises MtaError."""
        ...

    def still_exists(self, weights: W) -> bool:
        """Whether weights that `make` returned still exist; a folder may have been removed."""
        ...

    def drop_all_except(self, models: Iterable[W]) -> None:
        """Drop data that models share, such as task adapters, unless one of `models` uses it."""
        ...


class FactorsMaker:
    """Makes models as factors in this process's memory, for the base's decoder. Task adapters are shared."""

    def __init__(self, base: LoadedBase) -> None:
        from mta_cli.engine.lora.row_factors import UserFactors

        self._decoder, self._fingerprint = base.decoder, base.fingerprint
        self.bare_base = UserFactors({}, {}, {})
        self._task_adapters: dict[str, FusedFactors] = {}

    def make(
        self, reg: Registry, user: User | None, task: str, mode: str, bank: Bank
    ) -> tuple[UserFactors, AnswerSource]:
        """See `WeightsMaker`."""
        from mta_cli.engine.lora.row_factors import UserFactors

        loras, source = load_fusion_and_stack(reg, self._fingerprint, user, task, mode)
        shared = self._task_adapter(reg, bank.task_adapter) if bank.task_adapter else {}
        return UserFactors.from_loras(self._decoder, loras, shared), source

    def _task_adapter(self, reg: Registry, digest: str) -> FusedFactors:
        from mta_cli.engine.lora.row_factors import fused_factors

        if digest not in self._task_adapters:
            weights = load_weights(reg, digest, self._fingerprint)
            self._task_adapters[digest] = fused_factors(self._decoder, weights)
        return self._task_adapters[digest]

    def still_exists(self, weights: UserFactors) -> bool:
        """See `WeightsMaker`."""
        return True

    def drop_all_except(self, models: Iterable[UserFactors]) -> None:
        """See `WeightsMaker`."""
        used = {id(model.shared) for model in models}
        self._task_adapters = {digest: one for digest, one in self._task_adapters.items() if id(one) in used}
