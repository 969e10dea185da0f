"""Measures what an export changes: the loss of a user's own answers, and the greedy answers of the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from mta_cli.errors import Flag, NotFound
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.models.load import load_on_device

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.engine.text.tasks import Task
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

CHECKED_QUESTIONS = 20


class ExportCheck:
    """Compares models on at most `CHECKED_QUESTIONS` questions of a user: held-out queries first, then newest items.

    The base is loaded once. A prompt shows at most `history_items` of the user's other items.
    """

    def __init__(
        self,
        reg: Registry,
        entry: ModelEntry,
        user: User,
        task: Task,
        machine: MachineOptions,
        history_items: int,
    ) -> None:
        self.reg, self.entry, self.user, self.task = reg, entry, user, task
        self.machine, self.history_items = machine, history_items

    @cached_property
    def base(self) -> LoadedBase:
        """The base without any adapter."""
        return load_on_device(self.entry, self.machine, reg=self.reg)

    @cached_property
    def rows(self) -> list[TrainingRow]:
        """A training row for each question: prompt and answer."""
        queries = self.reg.items.queries(self.user.id, self.task.name, CHECKED_QUESTIONS)
        items = self.reg.items.recent_items(self.user.id, self.task.name, CHECKED_QUESTIONS - len(queries))
        if not queries and not items:
            return []
        builder = PromptRowBuilder(self.reg, self.base, self.task, self.history_items)
        return [*builder.query_rows(queries), *builder.training_rows(items)]

    def loss(self, loras: Sequence[LoraWeights]) -> float:
        """The loss of the user's own answers with these LoRAs on the base, in nats a token."""
        from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
        from mta_cli.engine.scoring.prefix_tree import PromptTree

        rows = self.rows
        trees = [PromptTree(row.input_ids[: row.answer_start], (row.input_ids[row.answer_start :],)) for row in rows]
        asked = [(place, 0) for place in range(len(trees))]
        found = completion_log_likelihoods(self.base, trees, [tuple(loras)], asked)
        return -sum(value for (value,) in found) / sum(len(row.input_ids) - row.answer_start for row in rows)

    def count_changed_answers(self, before: Sequence[LoraWeights], after: LoraWeights) -> tuple[int, int]:
        """The number of questions with different greedy answers from `before` and `after`, and of all questions.

        Raises NotFound if the user has no items.
        """
        from mta_cli.engine.generation.generate import generate_answers
        from mta_cli.engine.generation.request import SamplingParams

        if not self.rows:
            raise NotFound(
                f"{self.user.name} has no items of task {self.task.name}, so no answers can be compared.",
                hint=("leave out ", Flag("check")),
            )
        prompts = [list(row.input_ids[: row.answer_start]) for row in self.rows]
        ours, theirs = (
            generate_answers(
                self.base, prompts, [tuple(loras)], [0] * len(prompts), SamplingParams(self.task.answer_tokens)
            )
            for loras in (before, (after,))
        )
        return sum(one != other for one, other in zip(ours, theirs, strict=True)), len(prompts)
