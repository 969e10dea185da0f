"""Counts the answers that an export changes: greedy answers before and after, to the user's own questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mta_cli.errors import NotFound
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.models.load import load_on_device

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.text.tasks import Task
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

CHECKED_QUESTIONS = 20


def count_changed_answers(
    reg: Registry,
    entry: ModelEntry,
    user: User,
    task: Task,
    before: Sequence[LoraWeights],
    after: LoraWeights,
    machine: MachineOptions,
    history_items: int,
) -> tuple[int, int]:
    """The number of different answers, and the number of questions: held-out queries first, then the newest items.

    `before` are the LoRAs of the user's model, `after` the one that is exported. A prompt has at most `history_items`
    of the user. Raises NotFound without a question.
    """
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams

    queries = reg.items.queries(user.id, task.name, CHECKED_QUESTIONS)
    items = reg.items.recent_items(user.id, task.name, CHECKED_QUESTIONS - len(queries))
    if not queries and not items:
        raise NotFound(f"{user.name} has no item for {task.name} to ask about.", hint="leave out --check")
    base = load_on_device(entry, machine, reg=reg)
    builder = PromptRowBuilder(reg, base, task, history_items)
    prompts = [builder.query_prompt(query) for query in queries]
    prompts += [list(row.input_ids[: row.answer_start]) for row in builder.training_rows(items)]
    both = [
        generate_answers(base, prompts, [tuple(loras)], [0] * len(prompts), SamplingParams(task.answer_tokens))
        for loras in (before, (after,))
    ]
    return sum(ours != theirs for ours, theirs in zip(*both, strict=True)), len(prompts)
