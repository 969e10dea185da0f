"""Answers under many people's parts at once: the likeliest label or own words, and how likely the gold was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.answer_queries import ModelQuery, ScoredAnswer, answer_queries
from store.records import NewItem, Query
from store.registry import Registry
from tests.engine.likelihoods import row_log_likelihoods
from tests.engine.memory.fixed_prior import FixedPrior
from tests.pipeline.town import SHORT, TASK
from tests.pipeline.world import random_lora

TEXTS = replace(BUILTIN_TASKS["lamp-4"], query_tokens=32, item_tokens=16, answer_tokens=6)


@pytest.fixture
def base(tiny_base_path: Path) -> LoadedBase:
    return load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype="float32")


@pytest.fixture
def people(base: LoadedBase) -> list[tuple[LoraWeights, ...]]:
    placed = {"targets": "q_proj,v_proj", "rank": 2}
    return [(), *((random_lora(base, seed, placement=where, **placed),) for seed, where in ((1, "late"), (2, "upper")))]


def queries(reg: Registry, task: str = "lamp-2") -> list[Query]:
    return [reg.items.queries(reg.users.get(name).id, task)[0] for name in SHORT]


def likelihood(
    examples: PromptRowBuilder, base: LoadedBase, given: ScoredAnswer, text: str, parts: tuple[LoraWeights, ...]
) -> float:
    """Of one answer, in a pass of its own."""
    row = TrainingRow((*given.prompt, *examples.prompter.answer_ids(text)), len(given.prompt))
    return row_log_likelihoods(base, [row], parts)[0][0]


def test_each_person_answers_with_their_likeliest_label(
    peopled: Registry, base: LoadedBase, people: list[tuple[LoraWeights, ...]]
) -> None:
    examples = PromptRowBuilder(peopled, base, TASK, 2)
    asked = [ModelQuery(query, owner) for query in queries(peopled) for owner in (2, 0, 1)]
    found = answer_queries(base, examples, asked, people)
    for one, given in zip(asked, found, strict=True):
        assert list(given.prompt) == examples.query_prompt(one.query) and given.seconds > 0
        assert given.answer == TASK.labels[given.scores.index(max(given.scores))] and len(given.scores) == 15
        for place in (0, 2, 7):
            alone = likelihood(examples, base, given, TASK.labels[place], people[one.model_index])
            assert given.scores[place] == pytest.approx(alone, abs=1e-3)
        assert given.gold_loglik == given.scores[TASK.labels.index(one.query.gold)]
        assert given.gold_tokens == len(one.query.gold) + 1
    assert len({given.scores for given in found}) == len(found)


def test_a_gold_that_is_no_label_is_weighed_and_never_answered(peopled: Registry, base: LoadedBase) -> None:
    examples, (query, other, _) = PromptRowBuilder(peopled, base, TASK, 2), queries(peopled)
    odd = replace(query, gold="x")
    first, second = answer_queries(base, examples, [ModelQuery(odd, 0), ModelQuery(other, 0)], [()])
    assert first.answer in TASK.labels and len(first.scores) == len(second.scores) == 15
    assert first.gold_loglik == pytest.approx(likelihood(examples, base, first, "x", ()), abs=1e-3)
    assert first.gold_loglik > max(first.scores), "one letter is likelier than a word here, and stays out of the choice"


def test_a_persons_prior_is_added_to_the_labels_and_not_to_the_gold(peopled: Registry, base: LoadedBase) -> None:
    examples, (query, *_) = PromptRowBuilder(peopled, base, TASK, 2), queries(peopled)
    prior = tuple(100.0 * (place == 4) for place in range(15))
    plain, with_it = answer_queries(
        base, examples, [ModelQuery(query, 0), ModelQuery(query, 1)], [(), ()], [None, FixedPrior(prior)]
    )
    assert with_it.answer == TASK.labels[4] and with_it.gold_loglik == plain.gold_loglik
    assert with_it.scores == pytest.approx([a + b for a, b in zip(plain.scores, prior, strict=True)])


def test_a_score_is_answered_with_the_median(peopled: Registry, base: LoadedBase) -> None:
    task, (query, *_) = BUILTIN_TASKS["lamp-3"], queries(peopled)
    examples, asked = (
        PromptRowBuilder(peopled, base, task, 0),
        [ModelQuery(replace(query, gold="3"), owner) for owner in (0, 1)],
    )
    plain, _ = answer_queries(base, examples, asked, [(), ()])
    wanted = [math.log(share) - score for share, score in zip((0.4, 0.05, 0.15, 0.05, 0.35), plain.scores, strict=True)]
    assert answer_queries(base, examples, asked, [(), ()], [None, FixedPrior(tuple(wanted))])[1].answer == "3"


def test_a_task_of_texts_is_answered_in_own_words(
    peopled: Registry, base: LoadedBase, people: list[tuple[LoraWeights, ...]]
) -> None:
    for name in SHORT:
        user = peopled.users.get(name).id
        peopled.items.append_items(user, [NewItem("t", "lamp-4", f"news of {name}", f"the {name}")])
        peopled.items.append_queries(user, [NewItem("q", "lamp-4", f"more about {name}", "a headline that is long")])
    examples = PromptRowBuilder(peopled, base, TEXTS, 1)
    asked = [ModelQuery(query, owner) for query in queries(peopled, "lamp-4") for owner in range(3)]
    found = answer_queries(base, examples, asked, people)
    for one, given in zip(asked, found, strict=True):
        (alone,) = answer_queries(base, examples, [replace(one, model_index=0)], [people[one.model_index]])
        assert given.answer == alone.answer == given.answer.strip() and given.scores == ()
        assert len(base.tokenizer(given.answer, add_special_tokens=False)["input_ids"]) <= TEXTS.answer_tokens
        assert given.gold_tokens == TEXTS.answer_tokens, "as far as an answer may go"
        assert given.gold_loglik == pytest.approx(
            likelihood(examples, base, given, one.query.gold, people[one.model_index]), abs=1e-3
        )
    assert len({given.answer for given in found}) > 1


def test_nothing_asked(peopled: Registry, base: LoadedBase) -> None:
    for task in (TASK, TEXTS):
        assert answer_queries(base, PromptRowBuilder(peopled, base, task, 2), [], []) == []
