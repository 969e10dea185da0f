"""A token budget for passes that is halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mta_cli.engine.model.device_memory import is_out_of_memory
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.prefix_cache_scoring import device_batch_tokens
from mta_cli.errors import BadInput, Flag

T = TypeVar("T")


class TokenBudget:
    """The number of tokens that run at once, including padding; halved when memory runs out."""

    def __init__(self, base: LoadedBase, tokens: int | None = None) -> None:
        self.tokens = tokens or base.limits.batch_tokens or device_batch_tokens(base.device)
        self._device = base.device

    def run_batches(
        self,
        batches: list[list[T]],
        work: Callable[[list[T]], None],
        work_in_less: Callable[[list[T]], None] | None = None,
    ) -> None:
        """Do `work` on each batch, the last one first; a batch that does not fit into memory is split in halves.

        A single item that does not fit is given to `work_in_less`, which needs less memory. Raises BadInput if that
        runs out of memory too, or is not given.
        """
        waiting = list(batches)
        while waiting:
            batch = waiting.pop()
            if self._fits(work, batch):
                continue
            if len(batch) > 1:
                self.tokens = max(1, self.tokens // 2)
                waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            elif work_in_less is None or not self._fits(work_in_less, batch):
                raise BadInput(
                    f"a single prompt with its answers does not fit into the memory of {self._device}",
                    hint=(
                        "use ",
                        Flag("dtype", "bfloat16"),
                        ", a lower ",
                        Flag("rank"),
                        ", or fewer ",
                        Flag("history_items"),
                    ),
                )

    @staticmethod
    def _fits(work: Callable[[list[T]], None], batch: list[T]) -> bool:
        """Do `work`; returns False if memory runs out."""
        try:
            work(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True
