"""What a person's shots teach: the rows on which anchors are weighed and stacks are trained.

Where a bank's neighbours count in answers, each shot counts beside what they and the person's other answers say of it.
Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.memory.label_prior import LabelPriors
from store.records import Item, Query, User

if TYPE_CHECKING:
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import TrainingExample
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.pipeline.personalize.fuse import FuseRequest
    from store.registry import Registry


class TrainingExampleBuilder:
    """Shots of one task for one base, as a fusion or an adaptation is asked to take them."""

    def __init__(self, reg: Registry, base: LoadedBase, request: FuseRequest) -> None:
        self.row_builder = PromptRowBuilder(reg, base, request.task, request.prompt.history_items)
        self.label_priors = LabelPriors(reg, request.task, base.fingerprint, request.memory, request.machine.device)
        self._labels = request.task.labels

    def examples_from_shots(self, user: User, items: Sequence[Item]) -> list[TrainingExample]:
        """What each of a user's own `items` teaches; one whose output is no label of the task teaches as a text."""
        rows, priors = self.row_builder.training_rows(items), self.label_priors.leave_one_out_priors(user, items)
        asked = [(item.input, item.output) for item in items]
        return list(rows) if priors is None else self._label_examples(rows, asked, priors)

    def examples_from_queries(self, user: User, queries: Sequence[Query]) -> list[TrainingExample]:
        """Held-out queries and their golds, to be measured in the same way."""
        rows = self.row_builder.query_rows(queries)
        prior = self.label_priors.prior_for(user, "adapted") if self.label_priors.neighbour_settings else None
        asked = [(query.input, query.gold) for query in queries]
        return list(rows) if prior is None else self._label_examples(rows, asked, [prior] * len(rows))

    def _label_examples(
        self, rows: Sequence[TrainingRow], asked: Sequence[tuple[str, str]], priors: Sequence[LabelPrior]
    ) -> list[TrainingExample]:
        from mta_cli.engine.scoring.label_examples import LabelExample

        answers = [self.row_builder.prompter.answer_ids(label) for label in self._labels]
        return [
            LabelExample.from_prior(row, answers, self._labels.index(output.strip()), prior, text)
            if output.strip() in self._labels
            else row
            for row, (text, output), prior in zip(rows, asked, priors, strict=True)
        ]
