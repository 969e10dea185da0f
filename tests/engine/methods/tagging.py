"""A bench for a task of labels and people with shots in it, and what models make of rows. Asserts nothing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.memory.knn import MixtureWeights, NeighbourIndex, NeighbourKernel, Vectors
from mta_cli.engine.memory.label_memory import FittedNeighbours, LabelMemory
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.text.prompts import PromptBuilder, TrainingRow
from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from tests.engine.methods.contexts import a_context, units

LABELS = BUILTIN_TASKS["lamp-2"].labels


def tag_context(
    base: LoadedBase, anchors: Sequence[LoraWeights] | int = 3, *, task: str = "lamp-2", seed: int = 0
) -> MethodContext:
    """A context whose users give the first label twice as often as any other."""
    count = len(BUILTIN_TASKS[task].labels)
    rates = tuple((1 + (i == 0)) / (count + 1) for i in range(count))
    places = np.arange(3 * count) % count
    known = NeighbourIndex(embed([f"item {n}" for n in places]), places, np.arange(3 * count) // count, np.array(rates))
    weights = MixtureWeights.from_parts(model=0.6, memory=1.0)
    neighbours = FittedNeighbours(known, NeighbourKernel(4.0, 1.5, 0.5), embed, weights)
    memory = LabelMemory(BUILTIN_TASKS[task].labels, rates, neighbours)
    prompter = PromptBuilder(base.tokenizer, BUILTIN_TASKS[task], base.end_ids)
    answers = tuple(tuple(prompter.answer_ids(label)) for label in BUILTIN_TASKS[task].labels)
    context = a_context(base, anchors, placement="late", seed=seed)
    return replace(context, task=BUILTIN_TASKS[task], memory=memory, label_tokens=answers)


def with_later_items(context: MethodContext, label: int) -> MethodContext:
    """The context with its items of 2020, and as many of 2024 that all have this label (its place)."""
    fitted = context.memory.neighbours
    assert fitted is not None
    early, count = fitted.index, len(fitted.index.labels)
    labels = np.concatenate([early.labels, np.full(count, label)])
    rates = np.bincount(labels, minlength=len(early.rates)) + 1.0
    index = NeighbourIndex(
        np.concatenate([early.vectors, early.vectors]),
        labels,
        np.concatenate([early.item_users, early.item_users]),
        rates / rates.sum(),
        ("2020",) * count + ("2024",) * count,
    )
    return with_index(context, index)


def with_index(context: MethodContext, index: NeighbourIndex) -> MethodContext:
    """The context with these items in its label memory, and their label rates."""
    memory = context.memory
    assert memory.neighbours is not None
    neighbours = replace(memory.neighbours, index=index)
    return replace(context, memory=replace(memory, rates=tuple(index.rates.tolist()), neighbours=neighbours))


def embed(texts: Sequence[str]) -> Vectors:
    """A random unit vector [texts, 6] for each text, always the same one."""
    rows = np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=6) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def tagger(base: LoadedBase, task: Task, outputs: Sequence[str], number: int = 0) -> UserShots:
    """A user whose shots have these outputs."""
    inputs = tuple(f"film {number} {n}" for n in range(len(outputs)))
    prompter = PromptBuilder(base.tokenizer, task, base.end_ids)
    rows = tuple(prompter.training_row(text, output) for text, output in zip(inputs, outputs, strict=True))
    return UserShots(number, inputs, tuple(outputs), rows, units(1, 100 + number)[0])


def taught(base: LoadedBase, rows: Sequence[TrainingRow], *, steps: int = 20) -> LoraWeights:
    """A late part that has learnt `rows`."""
    trainer = Trainer(
        base,
        [
            GroupMember(
                init_lora_weights(base.model, "all-linear", "late", 4, 8.0, 0), rows, Schedule(steps, 8, 2e-2), 0
            )
        ],
    )
    list(trainer.train_steps())
    return trainer.weights(0)
