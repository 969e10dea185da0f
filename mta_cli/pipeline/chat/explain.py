"""Why an answer is as it is: the step of the ladder, the items its prompt showed, label memory, and sampling."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label
from mta_cli.pipeline.chat.answer import ChatModel, Generation
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.user_weights import FREE_TASK, PERSONALISATION_MODES, AnswerSource, tasks_with_model
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.ladder import Step
    from mta_cli.engine.text.prompts import HistoryExample

MAX_VOTES = 5  # at most this many neighbours are listed


@dataclass(frozen=True)
class AnsweredPrompt:
    """A question, the history items that its prompt showed, and the answer."""

    question: str
    shown: tuple[HistoryExample, ...]
    generation: Generation


def ladder_steps_up_to(source: AnswerSource, *, examples: int, memory: bool) -> list[Step]:
    """The steps of the ladder from the base to the model that answered, which comes last.

    `examples` is the number of own items in the prompt; `memory` says whether the label memory was used.
    """
    from mta_cli.engine.evaluation.ladder import ladder_steps

    own = [mode for mode in ("fused", "adapted") if mode == source.mode or source.anchors]
    top = PERSONALISATION_MODES.index(source.mode)
    steps = ladder_steps(memory=memory, examples=examples > 0, weights=own)
    return [one for one in steps if one.weights in PERSONALISATION_MODES[: top + 1] and not one.is_control]


def explain_answer(model: ChatModel, asked: AnsweredPrompt) -> dict[str, Any]:
    """The JSON document that explains an answer of `model`.

    `step` is the step of the ladder that answered; `made_of` lists what it and each step below it add. `chosen_among`:
    see `candidate_tasks`. `history` lists the items in the prompt. `decoding` says how the answer was chosen.

    Only if the answer is a label: `labels` has each label's probability without and with the label memory, how often
    the user gave it, and its share of the neighbours' votes. `memory` is the kind of memory used. `neighbours` lists
    the items with the most votes, out of `neighbour_count`.
    """
    from mta_cli.engine.evaluation.ladder import BASE_EXAMPLES

    shown = f"{pluralise(len(asked.shown), 'own example')} in the prompt"
    steps = ladder_steps_up_to(model.source, examples=len(asked.shown), memory=asked.generation.has_memory)
    return {
        "user": model.user.name if model.user is not None else None,
        "task": model.task.name,
        "chosen_among": candidate_tasks(model),
        "step": steps[-1].name,
        "made_of": [shown if step.name == BASE_EXAMPLES else step.adds for step in steps],
        "source": model.source.as_json(),
        "question": asked.question,
        "answer": asked.generation.text,
        "history": [{"input": item.input, "output": item.output} for item in asked.shown],
        "decoding": _decoding(model, asked.generation),
        **(_label_reasons_json(model, asked) if asked.generation.label_logliks else {}),
    }


def candidate_tasks(model: ChatModel) -> list[str]:
    """The user's tasks of texts from which the first message chose one; empty if it did not choose."""
    if model.options.task is not None or model.user is None:
        return []
    own = tasks_with_model(model.reg, model.user, model.base.fingerprint)
    texts = sorted(name for name in own if not find_task(model.reg, name).labels)
    return texts if len(texts) > 1 and FREE_TASK not in texts else []


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


def _label_reasons_json(model: ChatModel, asked: AnsweredPrompt) -> dict[str, Any]:
    import numpy as np

    from mta_cli.engine.evaluation.calibration import log_probabilities

    spoken, options = asked.generation, model.options.memory
    votes = None
    if spoken.has_memory and model.user is not None:
        votes = model.memory.votes_on(model.user, asked.question, options, MAX_VOTES)
    alone, whole = (
        np.exp(log_probabilities(list(logliks.values()), 1.0)).tolist()
        for logliks in (spoken.model_logliks, spoken.label_logliks)
    )
    counts = _count_own_labels(model) if spoken.has_memory else Counter[str]()
    label_votes = votes.label_shares if votes is not None else [None] * len(alone)
    labels = [
        {"label": label, "model": before, "with_memory": after, "own_answers": counts[label], "votes": share}
        for label, before, after, share in zip(spoken.label_logliks, alone, whole, label_votes, strict=True)
    ]
    if votes is None:
        return {"labels": labels, "memory": "habit" if spoken.has_memory else None}
    strongest = [asdict(vote) for vote in votes.strongest]
    return {"labels": labels, "memory": "neighbours", "neighbours": strongest, "neighbour_count": votes.count}


def _count_own_labels(model: ChatModel) -> Counter[str]:
    """How often the user gave each label, in the items that the label memory uses."""
    assert model.user is not None
    labels = model.task.labels
    places = (find_label(item.output, labels) for item in model.memory.recent_items(model.user))
    return Counter(labels[place] for place in places if place is not None)
