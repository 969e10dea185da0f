"""Equal numbers are one label, wherever labels count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.engine.evaluation.calibration import gold_loglik
from mta_cli.engine.evaluation.user_sums import sum_by_user
from mta_cli.engine.memory.label_prior import label_rates, user_label_prior
from mta_cli.engine.methods.majority import METHOD
from mta_cli.engine.methods.personalize import build_models
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.text.labels import find_label
from mta_cli.engine.text.prompts import HistoryExample, PromptBuilder
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from tests.engine.methods.tagging import tag_context, tagger
from tests.engine.shapes import byte_plain, end_ids

SCORES = BUILTIN_TASKS["lamp-3"].labels
SPELLED, PLAIN = ["01", "4.0", " 4 ", "+5", "six", "4.5"], ["1", "4", "4", "5", "six", "4.5"]


@pytest.mark.parametrize(
    ("text", "labels", "place"),
    [
        ("1", SCORES, 0),
        ("01", SCORES, 0),
        (" 5.0\n", SCORES, 4),
        ("4.5", SCORES, None),
        ("nan", SCORES, None),
        ("", SCORES, None),
        ("-1", ("1", "-01"), 1),
        ("comedy ", ("action", "comedy"), 1),
        ("01", ("1", "01"), 1),
        ("001", ("1", "01"), None),  # of another kind than scores: the texts alone are the labels
        ("1", ("one", "two"), None),
        ("1", (), None),
        ("3.50", ("3", "3.5", "4.0"), 1),
        ("4", ("3", "3.5", "4.0"), 2),
        ("4.25", ("3", "3.5", "4.0"), None),
        ("inf", ("nan", "inf"), 1),
        ("infinity", ("nan", "inf"), None),  # words, not numbers
    ],
)
def test_which_label_a_text_names(text: str, labels: tuple[str, ...], place: int | None) -> None:
    assert find_label(text, labels) == place


def test_rates_priors_and_likelihoods_of_other_spellings() -> None:
    rates = label_rates(PLAIN, SCORES)
    assert label_rates(SPELLED, SCORES) == rates
    assert user_label_prior(SPELLED, SCORES, rates, 1.0) == user_label_prior(PLAIN, SCORES, rates, 1.0)
    values = [0.0, 1.0, 2.0, 3.0, 4.0]
    for one, other in zip(SPELLED, PLAIN, strict=True):
        assert gold_loglik(values, SCORES, one) == gold_loglik(values, SCORES, other)


@pytest.mark.parametrize("metric", ["accuracy", "mae"])
def test_metrics_of_other_spellings(metric: str) -> None:
    golds, users = ["1", "4", "4", "5"], [1, 1, 2, 2]
    spelled, plain = (sum_by_user(metric, SCORES, users, own[:4], golds, [None] * 4) for own in (SPELLED, PLAIN))
    assert spelled.metric_values() == plain.metric_values()


def test_prompts_show_and_learn_the_label() -> None:
    tokenizer = byte_plain()
    prompter = PromptBuilder(tokenizer, BUILTIN_TASKS["lamp-3"], end_ids(tokenizer))
    assert prompter.answer_ids("04") == prompter.answer_ids(" 4 ") == prompter.answer_ids("4")
    shown = [prompter.render_item(HistoryExample("a lamp", output)) for output in ("04", "4")]
    assert shown[0] == shown[1]


def test_the_majority_of_other_spellings(base: LoadedBase) -> None:
    bench = tag_context(base, 0)
    task = replace(BUILTIN_TASKS["lamp-3"], kind="label", metric="accuracy")
    bench = replace(bench, task=task, memory=replace(bench.memory, rates=(0.2,) * 5, labels=task.labels))
    for outputs in (["01", "1", "5", "5.0", "1.0"], ["1", "1", "5", "5", "1"]):
        (made,) = build_models(METHOD, bench, [tagger(base, task, outputs)], METHOD.default_settings)
        assert made.answerer is not None and made.answerer("any")[0] == "1"
