"""Answers held-out queries with the LoRAs of many users at once, and computes the likelihood of the gold answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.engine.text.labels import find_label
from mta_cli.events import Note

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.memory.label_prior import LabelPrior
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from store.records import Query
    from store.registry import Registry


@dataclass(frozen=True)
class ModelQuery:
    """A query and the index of the LoRAs that answer it."""

    query: Query
    model_index: int


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with its likelihoods.

    `scores` are the log-likelihoods (nats) of the task's labels, with the user's label prior added; empty without
    labels. `gold_loglik` (nats, without the prior) is summed over the gold's `gold_tokens` tokens. `seconds` is an
    equal share of the time of all answers.
    """

    prompt: tuple[int, ...]
    answer: str
    gold_loglik: float
    gold_tokens: int
    scores: tuple[float, ...]
    seconds: float


def scorable_queries(reg: Registry, task: Task, users: Iterable[int]) -> tuple[dict[int, list[Query]], int]:
    """The held-out queries that can be scored, by user id, and the number of those that cannot.

    In a task of scores, a query cannot be scored if its gold is not a finite number.
    """
    from mta_cli.engine.evaluation.metrics import score_of

    found = {user: reg.items.queries(user, task.name) for user in users}
    kept = {
        user: [one for one in own if task.metric != "mae" or score_of(one.gold) is not None]
        for user, own in found.items()
    }
    left = sum(map(len, found.values())) - sum(map(len, kept.values()))
    return kept, left


def unscorable_queries_note(count: int) -> Iterator[Note]:
    """A warning about queries that `scorable_queries` left out; nothing for 0."""
    if count:
        yield Note(f"Held-out queries whose answer is not a number are left out: {count:,}.", warning=True)


def answer_queries(
    base: LoadedBase,
    examples: PromptRowBuilder,
    asked: Sequence[ModelQuery],
    user_loras: Sequence[tuple[LoraWeights, ...]],
    priors: Sequence[LabelPrior | None] = (),
    *,
    generate: bool = True,
) -> list[ScoredAnswer]:
    """Answer each query with a label (see `label_prior.decide_label`) or a generated text, and score it.

    Without `generate`, no text is generated, and the answers of a task of texts are empty. `user_loras` [models] act on
    top of the base and of the adapter merged into it. `priors` [models] are the label priors, if any. A query's prompt
    is the same for all models.
    """
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams
    from mta_cli.engine.memory.label_prior import add_label_prior, decide_label

    # 1. the log-likelihoods of the labels, and of the gold if it is not one of them
    started = time.perf_counter()
    prompts = {one.query.id: tuple(examples.query_prompt(one.query)) for one in asked}
    labels = examples.task.labels
    golds = {one.query.id: find_label(one.query.gold, labels) for one in asked}
    options = {one.query.id: (*labels, one.query.gold) if golds[one.query.id] is None else labels for one in asked}
    found = _score_options(base, examples, asked, user_loras, prompts, options)
    scores = [
        add_label_prior(
            values[: len(labels)], priors[one.model_index] if priors else None, one.query.input, one.query.time
        )
        for one, values in zip(asked, found, strict=True)
    ]
    # 2. the answers: the best label, or generated text
    if labels:
        texts = [labels[decide_label(own, labels, examples.task.metric)] for own in scores]
    elif not generate:
        texts = [""] * len(asked)
    else:
        generated = generate_answers(
            base,
            [prompts[one.query.id] for one in asked],
            user_loras,
            [one.model_index for one in asked],
            SamplingParams(examples.task.answer_tokens),
        )
        decode = base.tokenizer.decode
        texts = [decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() for ids in generated]
    # 3. each answer with the likelihood of its gold
    seconds = (time.perf_counter() - started) / max(1, len(asked))
    answers = []
    for one, text, values, own in zip(asked, texts, found, scores, strict=True):
        place = golds[one.query.id]
        place = len(labels) if place is None else place
        loglik, tokens = values[place], len(examples.prompter.answer_ids(options[one.query.id][place]))
        prompt = prompts[one.query.id]
        answers.append(ScoredAnswer(prompt, text, loglik, tokens, own, seconds))
    return answers


def gold_log_likelihoods(
    base: LoadedBase,
    examples: PromptRowBuilder,
    asked: Sequence[ModelQuery],
    user_loras: Sequence[tuple[LoraWeights, ...]],
    priors: Sequence[LabelPrior | None],
) -> list[float]:
    """The log-likelihood (nats) of each query's gold: over the labels with the label prior, or per token of a text.

    `user_loras` are [models] as in `answer_queries`. `priors` [asked] are the label priors of the users who own the
    queries, even if another user's model answers.
    """
    from mta_cli.engine.evaluation.calibration import gold_loglik
    from mta_cli.engine.memory.label_prior import add_label_prior

    prompts = {one.query.id: tuple(examples.query_prompt(one.query)) for one in asked}
    labels = examples.task.labels
    options = {one.query.id: labels or (one.query.gold,) for one in asked}
    found = _score_options(base, examples, asked, user_loras, prompts, options)
    if labels:
        return [
            gold_loglik(add_label_prior(own, prior, one.query.input, one.query.time), labels, one.query.gold)
            for one, own, prior in zip(asked, found, priors, strict=True)
        ]
    lengths = [max(1, len(examples.prompter.answer_ids(one.query.gold))) for one in asked]
    return [values[0] / length for values, length in zip(found, lengths, strict=True)]


def _score_options(
    base: LoadedBase,
    examples: PromptRowBuilder,
    asked: Sequence[ModelQuery],
    user_loras: Sequence[tuple[LoraWeights, ...]],
    prompts: dict[int, tuple[int, ...]],
    options: dict[int, tuple[str, ...]],
) -> list[list[float]]:
    """The log-likelihood (nats) of each option in `options[query.id]`, for each of `asked`."""
    from mta_cli.engine.generation.request import require_window
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
