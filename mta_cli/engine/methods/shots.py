"""A user's shots as training examples for evidence and stacks."""

from __future__ import annotations

from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.scoring.label_examples import LabelExample, TrainingExample
from mta_cli.engine.text.labels import find_label
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.options import MemoryOptions


def shot_examples(context: MethodContext, user: UserShots, memory: MemoryOptions) -> tuple[TrainingExample, ...]:
    """The user's shots as examples.

    If the memory uses neighbours, a shot whose output is a label has a label prior, from neighbours and the user's
    other answers, so that training does not learn what the memory already knows. All other shots are examples of text.
    """
    return _cached_examples(context, user, user.rows, memory)


def stack_examples(context: MethodContext, user: UserShots, memory: MemoryOptions) -> tuple[TrainingExample, ...]:
    """The training examples of the user's stack: like `shot_examples`, but from `stack_rows` if there are any."""
    return _cached_examples(context, user, user.stack_rows or user.rows, memory)


def _cached_examples(
    context: MethodContext, user: UserShots, rows: tuple[TrainingRow, ...], memory: MemoryOptions
) -> tuple[TrainingExample, ...]:
    key = ("shots", user.number, rows, memory)
    return context.cached(key, lambda: _examples(context, user, rows, memory))


def _examples(
    context: MethodContext, user: UserShots, rows: tuple[TrainingRow, ...], memory: MemoryOptions
) -> tuple[TrainingExample, ...]:
    """The examples of `rows`, which repeat the sequence of shots once or several times."""
    if not context.memory.uses_neighbours(memory):
        return rows
    labels, examples, count = context.task.labels, list[TrainingExample](rows), len(user.inputs)
    for shot, (text, output) in enumerate(zip(user.inputs, user.outputs, strict=True)):
        prior = context.memory.leave_one_out_prior(user.answers_without(shot), user.number, memory)
        label = find_label(output, labels)
        if label is not None and prior is not None:
            time = user.times[shot] if user.times else None
            for n in range(shot, len(rows), count):
                examples[n] = LabelExample.from_prior(rows[n], context.label_tokens, label, prior, text, time)
    return tuple(examples)
