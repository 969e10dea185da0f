"""Evaluating 64 queries: labels scored by likelihood, and free answers, compared with `generate` for each query.

Invented users, each with a random LoRA and up to four queries; a user's prompts begin with the same task text and
history. The rivals answer one query after another, so their rate does not depend on the number of queries, and they run
on the first few only. Ours drops its caches before each run. Text from `generate` may not be a label; likelihoods
always choose one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness, personal
from benchmarks import rival_answers as rival
from benchmarks.harness import Timed

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase

OURS = "mta"
GENERATE, SCORE = "generate + PEFT each", "labels in one batch, PEFT each"
SHOWN = 3  # history items in a prompt
Prompt = Sequence[int]
Found = Sequence[Sequence[int]]  # for each query: the index of its label, or an answer's tokens


@dataclass(frozen=True)
class Queries:
    """Prompts, each prompt's user, and the labels' tokens (empty for free answers)."""

    prompts: list[Prompt]
    owners: list[int]
    labels: list[tuple[int, ...]]


def queries(base: LoadedBase, task: str, count: int) -> Queries:
    """`count` queries of the task, grouped by user."""
    prompts, of = harness.prompter(base, task), harness.sample_task(task)
    asked = [
        (prompts.prompt_ids(query.input, person.items[:SHOWN]), owner)
        for owner, person in enumerate(harness.people(count, SHOWN, task=task))
        for query in person.queries
    ][:count]
    labels = [tuple(prompts.answer_ids(label)) for label in of.labels]
    return Queries([prompt for prompt, _ in asked], [owner for _, owner in asked], labels)


def weighing(
    base: LoadedBase, people: Sequence[LoraWeights], model: Any, asked: Queries, few: int
) -> dict[str, Callable[[], Found]]:
    """Ways to find each query's label; the rivals find the labels of the first `few` queries."""
    from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree

    prompts, users = asked.prompts[:few], _names(asked)[:few]
    longest = max(map(len, asked.labels))
    forks = [PromptTree(tuple(prompt), tuple(asked.labels)) for prompt in asked.prompts]

    def ours() -> Found:
        personal.fresh(base)
        values = completion_log_likelihoods(base, forks, [(own,) for own in people], list(enumerate(asked.owners)))
        return [[max(range(len(row)), key=row.__getitem__)] for row in values]

    def said() -> Found:
        made = rival.answer_each(model, prompts, longest, users=users).ids
        return [[_label(answer, asked.labels)] for answer in made]

    return {
        GENERATE: said,
        SCORE: lambda: [[place] for place in rival.score_each(model, prompts, asked.labels, users=users).chosen],
        OURS: ours,
    }


def answering(
    base: LoadedBase, people: Sequence[LoraWeights], model: Any, asked: Queries, few: int, tokens: int
) -> dict[str, Callable[[], Found]]:
    """Ways to answer each query with free text; the rival answers the first `few`."""
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams

    ours, users = personal.endless(base), _names(asked)[:few]

    def together() -> Found:
        personal.fresh(ours)
        loras = [(own,) for own in people]
        return generate_answers(
            ours, asked.prompts, loras, asked.owners, SamplingParams(tokens, stop_at_repetition=False)
        )

    return {
        GENERATE: lambda: rival.answer_each(model, asked.prompts[:few], tokens, users=users).ids,
        OURS: together,
    }


def rows(kind: str, runs: Mapping[str, Sequence[Timed[Found]]], limit: float) -> list[dict[str, Any]]:
    """A row for each side; `limit` is the minimum time of all queries in seconds."""
    count = {name: len(taken[-1].value) for name, taken in runs.items()}
    each = {name: harness.median_seconds(taken) / count[name] for name, taken in runs.items()}
    return [
        {
            "64 queries": f"{kind}: {name}",
            "queries": count[name],
            "seconds": harness.median_seconds(taken),
            "ms a query": 1e3 * each[name],
            "% of limit": 100 * limit / count[OURS] / each[name],
            "mta is faster": each[name] / each[OURS],
            "same as mta's": personal.alike(taken[-1].value, runs[OURS][-1].value),
        }
        for name, taken in runs.items()
    ]


def _names(asked: Queries) -> list[str]:
    return [f"user{owner}" for owner in asked.owners]


def _label(answer: Sequence[int], labels: Sequence[Sequence[int]]) -> int:
    """The index of the label with which an answer begins; −1 if it begins with none."""
    return next((i for i, label in enumerate(labels) if list(answer[: len(label) - 1]) == list(label[:-1])), -1)


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("repeats", 5), ("queries", 64), ("few", 4), ("tokens", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    entry, base = harness.base_entry(), harness.load("bfloat16")
    labelled, free = (queries(base, task, chosen.queries) for task in ("taste", "voice"))
    people = personal.adapters(base.model, max(labelled.owners + free.owners) + 1)
    named = max(labelled.owners[: chosen.few] + free.owners[: chosen.few]) + 1
    with tempfile.TemporaryDirectory() as root:
        model = rival.with_adapters(
            entry.path, personal.folders(people[:named], entry, Path(root)), str(base.dtype)[6:]
        )
    bandwidth, products = harness.read_bandwidth(), harness.matrix_rate(base.dtype)
    weighed = harness.interleave(weighing(base, people, model, labelled, chosen.few), chosen.repeats)
    answered = harness.interleave(answering(base, people, model, free, chosen.few, chosen.tokens), chosen.repeats)
    plain = base.llama_decoder
    assert plain is not None
    read = [personal.reading(plain, sum(map(len, asked.prompts))) / products for asked in (labelled, free)]
    steps = (chosen.tokens - 1) * personal.weight_bytes(plain) / bandwidth
    found = rows("labels", weighed, read[0]) + rows("free answers", answered, read[1] + steps)
    lengths = [sum(map(len, asked.prompts)) / len(asked.prompts) for asked in (labelled, free)]
    told = personal.facts(base, people=len(people), mean_prompt=lengths, new_tokens=chosen.tokens)
    harness.report("evaluate", found, read_bandwidth=bandwidth, matrix_rate=products, repeats=chosen.repeats, **told)


if __name__ == "__main__":
    main()
