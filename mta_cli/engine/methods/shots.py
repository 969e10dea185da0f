"""A user's shots as training examples for evidence and stacks."""

from __future__ import annotations

from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.scoring.label_examples import LabelExample, TrainingExample
from mta_cli.engine.text.labels import find_label
from mta_cli.options import MemoryOptions


def shot_examples(context: MethodContext, user: UserShots, memory: MemoryOptions) -> tuple[TrainingExample, ...]:
    """The user's shots as examples, each with its label prior (neighbours, other answers) where neighbours count.

    So nothing is trained that the memory already knows. A shot whose output is not a label counts as a text.
    """
    key = ("shots", user.number, user.rows, memory)
    return context.cached(key, lambda: _shot_examples(context, user, memory))


def _shot_examples(context: MethodContext, user: UserShots, memory: MemoryOptions) -> tuple[TrainingExample, ...]:
    if not context.memory.uses_neighbours(memory):
        return user.rows
    labels, examples = context.task.labels, list[TrainingExample](user.rows)
    for shot, (text, output) in enumerate(zip(user.inputs, user.outputs, strict=True)):
        prior = context.memory.leave_one_out_prior(user.answers_without(shot), user.number, memory)
        label = find_label(output, labels)
        if label is not None and prior is not None:
            time = user.times[shot] if user.times else None
            examples[shot] = LabelExample.from_prior(user.rows[shot], context.label_tokens, label, prior, text, time)
    return tuple(examples)
