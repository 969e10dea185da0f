"""Builds token rows from stored items: retrieves the history items of a prompt and fills the prompt.

The prompt of an item shows neither the item itself nor later items.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from store.records import Item, Query

if TYPE_CHECKING:
    from mta_cli.engine.model.load import BaseInfo, LoadedBase
    from mta_cli.engine.text.prompts import HistoryExample, TrainingRow
    from mta_cli.engine.text.tasks import Task
    from store.registry import Registry

MAX_ITEM_ID = 2**62  # larger than every stored item number


def history_mix(history_items: int) -> tuple[int, ...]:
    """The numbers of history items in the task adapter's training prompts: none, one, or as many as at inference."""
    return tuple(sorted({0, min(1, history_items), history_items}))


class PromptRowBuilder:
    """Builds the token rows of one task for one base.

    `among` maps a user's id to the ids of the items that prompts may show; prompts of other users may show all their
    items. With `until` (a time), the training row of an item without a time shows no item later than `until`.
    """

    def __init__(
        self,
        reg: Registry,
        base: LoadedBase | BaseInfo,
        task: Task,
        history_items: int,
        among: Mapping[int, Sequence[int]] | None = None,
        until: str | None = None,
    ) -> None:
        from mta_cli.engine.text.prompts import PromptBuilder

        self.reg, self.task, self.history_items, self.until = reg, task, history_items, until
        self.allowed_items = among if among is not None else {}
        self.shown_answers: Mapping[int, str] = {}
        self.prompter: PromptBuilder = PromptBuilder(base.tokenizer, task, base.end_ids, base.window)

    def with_shown_answers(self, answers: Mapping[int, str]) -> Self:
        """A copy of the builder that shows `answers` (by item id) instead of the stored answers of history items."""
        other = copy.copy(self)
        other.shown_answers = answers
        return other

    def with_history_items(self, count: int) -> Self:
        """A copy of the builder with at most `count` history items in a prompt."""
        other = copy.copy(self)
        other.history_items = count
        return other

    def retrieve_history(
        self,
        user_id: int,
        text: str,
        count: int,
        *,
        exclude: int | None = None,
        before: tuple[str | None, int] | None = None,
        fill: bool = True,
    ) -> list[HistoryExample]:
        """At most `count` items of the user's history that share words with `text`, found by full-text search.

        Item `exclude` and items known to be later than `before` are left out. If the search finds fewer than `count`
        items, the user's most recent items are added; with `fill=False` they are not.
        """
        from mta_cli.engine.text.prompts import HistoryExample

        if count == 0:
            return []
        found = self.reg.items.search_items(
            user_id,
            self.task.name,
            text,
            limit=count,
            exclude=exclude,
            before=before,
            among=self.allowed_items.get(user_id),
            fill=fill,
        )
        return [HistoryExample(item.input, self.shown_answers.get(item.id, item.output)) for item in found]

    def training_rows(
        self, items: Sequence[Item], *, mix: Sequence[int] | None = None, seed: int = 0
    ) -> list[TrainingRow]:
        """A training row for each item. The number of other items in the row's prompt is drawn from `mix`; without
        `mix` it is the number at inference.
        """
        counts = tuple(mix) if mix is not None else (self.history_items,)
        choose = random.Random(seed)
        return [self._row(item, choose.choice(counts)) for item in items]

    def rows_for_every_history_count(self, items: Sequence[Item]) -> list[TrainingRow]:
        """The training rows of all items, once for each number of history items in `history_mix`."""
        return [row for count in history_mix(self.history_items) for row in self.training_rows(items, mix=(count,))]

    def query_prompt(self, query: Query) -> list[int]:
        """The token ids of a held-out query's prompt, which shows no history items known to be later than the query."""
        shown = self.retrieve_history(query.user_id, query.input, self.history_items, before=(query.time, MAX_ITEM_ID))
        return self.prompter.prompt_ids(query.input, shown)

    def query_rows(self, queries: Sequence[Query]) -> list[TrainingRow]:
        """A row for each held-out query, with its gold answer. The rows are for measurement, never for training."""
        from mta_cli.engine.text.prompts import TrainingRow

        rows = []
        for query in queries:
            prompt = self.query_prompt(query)
            rows.append(TrainingRow((*prompt, *self.prompter.answer_ids(query.gold)), len(prompt)))
        return rows

    def _row(self, item: Item, count: int) -> TrainingRow:
        before = (self.until, MAX_ITEM_ID) if item.time is None else (item.time, item.id)
        shown = self.retrieve_history(item.user_id, item.input, count, exclude=item.id, before=before)
        return self.prompter.training_row(item.input, item.output, shown)
