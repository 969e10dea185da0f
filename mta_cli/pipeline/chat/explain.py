"""Why an answer is as it is: the items its prompt showed, what the label memory added, and how words were chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label
from mta_cli.pipeline.chat.answer import ChatModel, Generation

if TYPE_CHECKING:
    from mta_cli.engine.text.prompts import HistoryExample

MAX_VOTES = 5  # neighbours that are named


@dataclass(frozen=True)
class AnsweredPrompt:
    """A question, the history items that its prompt showed, and the answer."""

    question: str
    shown: tuple[HistoryExample, ...]
    generation: Generation


def explain_answer(model: ChatModel, asked: AnsweredPrompt) -> dict[str, Any]:
    """The reasons of an answer of `model`, as plain values for JSON.

    `history` are the items that the prompt showed, `decoding` says how words were chosen. Where the answer is a label,
    `labels` are each label's probability by the model alone and with the label memory, how often the user gave it, and
    its share of the neighbours' votes; `memory` is the kind that counted, and `neighbours` are the items that voted
    most, of `neighbour_count`, with their shares of all votes.
    """
    return {
        "user": model.user.name if model.user is not None else None,
        "task": model.task.name,
        "source": model.source.as_json(),
        "question": asked.question,
        "answer": asked.generation.text,
        "history": [{"input": item.input, "output": item.output} for item in asked.shown],
        "decoding": _decoding(model, asked.generation),
        **(_label_reasons(model, asked) if asked.generation.label_logliks else {}),
    }


def _decoding(model: ChatModel, spoken: Generation) -> dict[str, Any]:
    if spoken.label_logliks:
        return {"by": "median label" if model.task.metric == "mae" else "likeliest label"}
    options = model.options.answer
    return {
        "by": "likeliest token" if options.temperature == 0 else "sampling",
        "temperature": options.temperature,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": model.repetition_penalty,
        "max_tokens": model.max_tokens,
        "seed": model.options.machine.seed,
    }


def _label_reasons(model: ChatModel, asked: AnsweredPrompt) -> dict[str, Any]:
    import numpy as np

    from mta_cli.engine.evaluation.calibration import log_probabilities

    spoken, options = asked.generation, model.options.memory
    prior = model.memory.prior_for(model.user, model.source.mode, options)
    votes = None
    if prior is not None and model.user is not None:
        votes = model.memory.votes_on(model.user, asked.question, options, MAX_VOTES)
    alone, whole = (
        np.exp(log_probabilities(list(logliks.values()), 1.0)).tolist()
        for logliks in (spoken.model_logliks, spoken.label_logliks)
    )
    counts = _own_answers(model) if prior is not None else Counter[str]()
    label_votes = votes.label_shares if votes is not None else [None] * len(alone)
    labels = [
        {"label": label, "model": before, "with_memory": after, "own_answers": counts[label], "votes": share}
        for label, before, after, share in zip(spoken.label_logliks, alone, whole, label_votes, strict=True)
    ]
    if votes is None:
        return {"labels": labels, "memory": None if prior is None else "habit"}
    strongest = [asdict(vote) for vote in votes.strongest]
    return {"labels": labels, "memory": "neighbours", "neighbours": strongest, "neighbour_count": votes.count}


def _own_answers(model: ChatModel) -> Counter[str]:
    """How often the user gave each label, among the answers that count in the label prior."""
    assert model.user is not None
    labels = model.task.labels
    places = (find_label(item.output, labels) for item in model.memory.recent_items(model.user))
    return Counter(labels[place] for place in places if place is not None)
