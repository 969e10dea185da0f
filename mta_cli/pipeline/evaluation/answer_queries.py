"""Answers to held-out queries with how likely the gold was, under many user_loras's parts at once. Stores nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from store.records import Query


@dataclass(frozen=True)
class ModelQuery:
    """A query, and whose parts answer it: a number among the user_loras who are asked together."""

    query: Query
    model_index: int


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer. `scores` are the log-likelihoods of the task's labels with the person's prior, nats; nothing
    where the task has no labels.

    `gold_loglik` is summed over the gold's `gold_tokens` tokens (nats). `seconds` is an equal share of the time that
    all answers took together.
    """

    prompt: tuple[int, ...]
    answer: str
    gold_loglik: float
    gold_tokens: int
    scores: tuple[float, ...]
    seconds: float


def answer_queries(
    base: LoadedBase,
    examples: PromptRowBuilder,
    asked: Sequence[ModelQuery],
    user_loras: Sequence[tuple[LoraWeights, ...]],
    priors: Sequence[LabelPrior | None] = (),
) -> list[ScoredAnswer]:
    """An answer to each of `asked`: a label (see `labels.decide`), or the model's own words where the task has none.

    `user_loras` are the parts that stand above what the base holds now, `priors` the label prior of each of them,
    if any. Each query stands in one prompt, whoever answers.
    """
    from mta_cli.engine.memory.label_prior import add_label_prior, decide_label

    started = time.perf_counter()
    prompts = {one.query.id: tuple(examples.query_prompt(one.query)) for one in asked}
    labels = examples.task.labels
    options = {one.query.id: (*labels, one.query.gold) if one.query.gold not in labels else labels for one in asked}
    found = _score_options(base, examples, asked, user_loras, prompts, options)
    scores = [
        add_label_prior(
            values[: len(labels)], priors[one.model_index] if priors else None, one.query.input, one.query.time
        )
        for one, values in zip(asked, found, strict=True)
    ]
    if labels:
        texts = [labels[decide_label(own, labels, examples.task.metric)] for own in scores]
    else:
        texts = _generate_texts(base, examples, asked, user_loras, prompts)
    seconds = (time.perf_counter() - started) / max(1, len(asked))
    answers = []
    for one, text, values, own in zip(asked, texts, found, scores, strict=True):
        gold = one.query.gold
        loglik, tokens = values[options[one.query.id].index(gold)], len(examples.prompter.answer_ids(gold))
        prompt = prompts[one.query.id]
        answers.append(ScoredAnswer(prompt, text, loglik, tokens, own, seconds))
    return answers


def _generate_texts(
    base: LoadedBase,
    examples: PromptRowBuilder,
    asked: Sequence[ModelQuery],
    user_loras: Sequence[tuple[LoraWeights, ...]],
    prompts: dict[int, tuple[int, ...]],
) -> list[str]:
    from mta_cli.engine.generation.generate_batch import generate_answers

    found = generate_answers(
        base,
        [prompts[one.query.id] for one in asked],
        user_loras,
        [one.model_index for one in asked],
        max_tokens=examples.task.answer_tokens,
    )
    decode = base.tokenizer.decode
    return [decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() for ids in found]


def _score_options(
    base: LoadedBase,
    examples: PromptRowBuilder,
    asked: Sequence[ModelQuery],
    user_loras: Sequence[tuple[LoraWeights, ...]],
    prompts: dict[int, tuple[int, ...]],
    options: dict[int, tuple[str, ...]],
) -> list[list[float]]:
    """The log-likelihood of each of a query's `options`, for each that is asked."""
    from mta_cli.engine.generation.generate import require_window
    from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree

    numbers = {number: n for n, number in enumerate(prompts)}
    trees = []
    for number, prompt in prompts.items():
        branches = tuple(tuple(examples.prompter.answer_ids(text)) for text in options[number])
        require_window(base, prompt, max(map(len, branches)))
        trees.append(PromptTree(prompt, branches))
    return completion_log_likelihoods(
        base, trees, user_loras, [(numbers[one.query.id], one.model_index) for one in asked]
    )
