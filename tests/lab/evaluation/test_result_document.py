"""From stored answers to the document: figures by hand, and temperatures fitted on other users than they are applied
to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mta_cli.engine.evaluation.calibration import NO_LABEL_LOGLIK
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.lab.evaluation.result_document import CALIBRATION_PARTS, reference_for, result_document, score_method
from mta_cli.pipeline.evaluation.scored_answers import FoldSettings, rescore_method
from store.registry import Registry
from tests.lab.evaluation.trial import Answers, Made, Trial, eval_request, make_up
from tests.metrics_by_hand import score

TAGS, SCORES, TEXTS = (
    replace(BUILTIN_TASKS["lamp-2"], labels=("a", "b", "c")),
    BUILTIN_TASKS["lamp-3"],
    BUILTIN_TASKS["lamp-4"],
)
ONE: FoldSettings = [{}]
LOUD = (4.0, 0.0, 0.0)  # scores that are sure of the first label


@pytest.fixture
def reg(store_root: Path) -> Iterator[Registry]:
    with Registry.open(store_root, create=True) as registry:
        yield registry


def softmax(scores: Any) -> Any:
    powers = np.exp(np.asarray(scores, dtype=float) - np.max(scores))
    return powers / powers.sum()


def crossed(reg: Registry) -> Made:
    """Two folds of two people with two queries each; u and v are tested in the first."""
    return make_up(reg, "lamp-2", dict.fromkeys("uvwx", 2), ("wx", "", "uv"), ("uv", "", "wx"))


def answered(made: Made, first: Answers, second: Answers, method: str = "m") -> None:
    made.answer(method, first, 0)
    made.answer(method, second, 1)


RIGHT = [("a", LOUD), ("a", LOUD)]
MISSED = [("a", LOUD[::-1]), ("a", LOUD[::-1])]
WRONG = [("b", LOUD), ("b", LOUD)]


def warmth(reg: Registry, made: Made, *folds: str) -> dict[str, float]:
    """The temperature that each person is read with."""
    found = score_method(reg, TAGS, made.plan, made.evaluation, "m", [{}, {}], True).temperatures
    assert found is not None and [len(own) for own in found] == [CALIBRATION_PARTS[0]] * 2
    return {
        name: found[n][made.users[name] % CALIBRATION_PARTS[0]]
        for n, fold in enumerate(folds or ("uv", "wx"))
        for name in fold
    }


def test_a_temperature_comes_from_the_others_of_the_same_fold(reg: Registry) -> None:
    made = crossed(reg)
    answered(made, {"u": RIGHT, "v": RIGHT}, {"w": WRONG, "x": RIGHT})
    first = warmth(reg, made)
    assert first["w"] < 1 < first["x"] and first["u"] == first["v"] < 1
    answered(made, {"u": WRONG, "v": RIGHT}, {"w": WRONG, "x": RIGHT})
    second = warmth(reg, made)
    assert second == {**first, "v": second["v"]} and second["v"] > 2


def test_who_is_alone_in_a_fold_is_read_by_the_other_folds(reg: Registry) -> None:
    made = make_up(reg, "lamp-2", dict.fromkeys("uwx", 2), ("wx", "", "u"), ("u", "", "wx"))
    answered(made, {"u": RIGHT}, {"w": WRONG, "x": WRONG})
    first = warmth(reg, made, "u", "wx")
    answered(made, {"u": WRONG}, {"w": WRONG, "x": WRONG})
    assert warmth(reg, made, "u", "wx") == first and first["u"] > 2


def test_users_whose_ids_agree_modulo_five_have_the_temperature_of_each_other(reg: Registry) -> None:
    made = make_up(reg, "lamp-2", dict.fromkeys("uvwxyz", 1), ("vwxy", "", "uz"))
    made.answer("m", {"u": RIGHT[:1], "z": WRONG[:1]})
    found = score_method(reg, TAGS, made.plan, made.evaluation, "m", ONE, True).temperatures
    assert found is not None and len(found[0]) == 4 and made.users["z"] - made.users["u"] == 5
    assert found[0][made.users["u"] % 4] > 2 and found[0][made.users["z"] % 4] < 1


def test_an_evaluation_of_one_temperature_a_fold_is_read_as_it_was(trial: Trial) -> None:
    """As documents of before have it."""
    kept = trial.reg.evaluations.get(trial.number)
    warm = {**kept.result["calibration"], "mta": [1.5] * len(trial.plan.folds)}
    nested = {**warm, "mta": [[1.5]] * len(trial.plan.folds)}
    one, other = (
        rescore_method(trial.reg, trial.request.task, replace(kept, result={**kept.result, "calibration": own}), "mta")
        for own in (warm, nested)
    )
    assert one.user_sums.metric_values() == other.user_sums.metric_values()


def test_a_temperature_of_a_plain_split_comes_from_the_tuning_people(reg: Registry) -> None:
    made = make_up(reg, "lamp-2", dict.fromkeys("uvw", 2), ("w", "v", "u"))
    found = []
    for tested, tuning in ((RIGHT, RIGHT), (WRONG, RIGHT), (WRONG, WRONG)):
        made.answer("m", {"u": tested, "v": tuning})
        judged = score_method(reg, TAGS, made.plan, made.evaluation, "m", ONE, True)
        assert judged.temperatures is not None and {p.user_id for p in judged.predictions} == {made.users["u"]}
        found += judged.temperatures[0]
    assert found[0] == found[1] < 1 < found[2]


def test_without_calibration_or_labels_there_is_none(reg: Registry) -> None:
    made = crossed(reg)
    answered(made, {"u": RIGHT, "v": RIGHT}, {"w": WRONG, "x": RIGHT})
    judged = score_method(reg, TAGS, made.plan, made.evaluation, "m", [{}, {}], False)
    assert judged.temperatures is None
    assert judged.user_sums.metric_values()["gold_loglik"] == pytest.approx(
        (6 * math.log(softmax(LOUD)[0]) + 2 * math.log(softmax(LOUD)[1])) / 8
    )
    assert score_method(reg, TEXTS, made.plan, made.evaluation, "m", [{}, {}], True).temperatures is None


def test_a_gold_that_is_no_label_is_wrong_unlikely_and_teaches_no_temperature(reg: Registry) -> None:
    made = make_up(reg, "lamp-2", {"u": 2, "v": 2, "w": 1}, ("w", "v", "u"))
    made.answer("m", {"u": [("a", LOUD), ("?", LOUD)], "v": [("?", LOUD), ("?", LOUD)]})
    judged = score_method(reg, TAGS, made.plan, made.evaluation, "m", ONE, True)
    assert judged.temperatures == [[1.0]]
    values = judged.user_sums.metric_values()
    assert values["accuracy"] == 0.5
    assert values["gold_loglik"] == pytest.approx((math.log(softmax(LOUD)[0]) + NO_LABEL_LOGLIK) / 2)


def test_a_gold_with_spaces_around_it_is_that_label(reg: Registry) -> None:
    made = make_up(reg, "lamp-2", {"u": 1, "v": 1, "w": 1}, ("w", "v", "u"))
    made.answer("m", {"u": [(" a ", LOUD)], "v": [("a\n", LOUD)]})
    judged = score_method(reg, TAGS, made.plan, made.evaluation, "m", ONE, True)
    assert (
        judged.user_sums.metric_values()["accuracy"] == 1.0 and judged.user_sums.metric_values()["gold_loglik"] > -0.5
    )
    assert judged.temperatures is not None and judged.temperatures[0][0] < 1


def test_a_score_is_the_median_of_its_probabilities(reg: Registry) -> None:
    """Two thirds are at the ends; the likeliest is 1, and 3 is nearest to all."""
    made = make_up(reg, "lamp-3", {"u": 2, "v": 1, "w": 1}, ("w", "v", "u"))
    split = tuple(map(math.log, (0.4, 0.05, 0.15, 0.05, 0.35)))
    made.answer("m", {"u": [("3", split), ("5", split)], "v": [("1", split)]}, answer="1")
    values = score_method(reg, SCORES, made.plan, made.evaluation, "m", ONE, False).user_sums.metric_values()
    assert values["mae"] == pytest.approx(1.0) and values["rmse"] == pytest.approx(math.sqrt(2))
    made.answer("majority", {"u": [("3", split), ("5", split)], "v": [("1", split)]}, answer="4.5", tokens=0)
    values = score_method(reg, SCORES, made.plan, made.evaluation, "majority", ONE, False).user_sums.metric_values()
    assert values["mae"] == pytest.approx(1.0) and values["rmse"] == pytest.approx(math.sqrt((1.5**2 + 0.5**2) / 2))
    assert values["gold_loglik"] == pytest.approx((math.log(0.15) + math.log(0.35)) / 2)


@pytest.mark.parametrize("method", ["m", "neighbours"])
def test_a_score_is_decided_from_the_calibrated_probabilities_with_a_model_or_without(
    reg: Registry, method: str
) -> None:
    """So often right elsewhere that it is made surer, and its median moves."""
    made = make_up(reg, "lamp-3", {"u": 1, "v": 9, "w": 1}, ("w", "v", "u"))
    near = tuple(map(math.log, (0.3, 0.15, 0.1, 0.1, 0.35)))
    made.answer(method, {"u": [("5", near)], "v": [("5", near)] * 9}, answer="3", tokens=0 if method != "m" else 9)
    for calibrate, error in ((False, 2.0), (True, 0.0)):
        values = score_method(reg, SCORES, made.plan, made.evaluation, method, ONE, calibrate).user_sums.metric_values()
        assert values["mae"] == pytest.approx(error)


def test_a_text_is_judged_by_its_words_and_its_likelihood_a_token(reg: Registry) -> None:
    made = make_up(reg, "lamp-4", {"u": 2, "v": 1}, ("v", "", "u"))
    made.answer("m", {"u": [("the red fox", ()), ("a whale", ())]}, answer="the fox", gold_loglik=-6.0, gold_tokens=4)
    values = score_method(reg, TEXTS, made.plan, made.evaluation, "m", ONE, True).user_sums.metric_values()
    assert values["gold_loglik"] == pytest.approx(-1.5)
    assert values["rouge_1"] == pytest.approx(0.8 / 2) and set(values) == {"rouge_1", "rouge_l", "gold_loglik"}
    made.answer("direct", {"u": [("x", ()), ("y", ())]}, answer="", gold_loglik=None, gold_tokens=None, tokens=0)
    values = score_method(reg, TEXTS, made.plan, made.evaluation, "direct", ONE, True).user_sums.metric_values()
    assert set(values) == {"rouge_1", "rouge_l"}


def document(reg: Registry, made: Made, chosen: dict[str, FoldSettings], **changes: Any) -> dict[str, Any]:
    request = replace(eval_request(folds=2, **changes), task=TAGS)
    return result_document(reg, request, made.plan, made.evaluation, chosen, {})


def test_costs_are_means_over_tested_people(reg: Registry) -> None:
    made = make_up(reg, "lamp-2", {"u": 1, "v": 3, "w": 1}, ("", "w", "uv"))
    made.answer("m", {"u": [("a", LOUD)]}, bytes=10, spent=1.0, seconds=0.5, tokens=30)
    made.answer("m", {"v": [("a", LOUD)] * 3}, bytes=20, spent=3.0, seconds=0.1, tokens=10)
    made.answer("m", {"w": [("a", LOUD)]}, bytes=999, spent=99.0, seconds=9.0, tokens=999)
    made.answer("direct", {"u": [("a", LOUD)], "v": [("a", LOUD)] * 3, "w": [("a", LOUD)]}, tokens=0, seconds=0.0)
    result = document(reg, made, {"m": ONE, "direct": ONE})
    assert result["costs"]["m"] == {
        "bytes": 15,
        "seconds": 2.0,
        "seconds_per_query": pytest.approx(0.2),
        "tokens_per_second": pytest.approx(60 / 0.8),
    }
    assert result["costs"]["direct"]["tokens_per_second"] is None and result["costs"]["direct"]["bytes"] == 0


def test_differences_are_the_references_less_the_others(reg: Registry) -> None:
    made = crossed(reg)
    answered(made, {"u": RIGHT, "v": RIGHT}, {"w": RIGHT, "x": MISSED}, "good")
    answered(made, {"u": RIGHT, "v": MISSED}, {"w": MISSED, "x": MISSED}, "bad")
    result = document(reg, made, {"good": [{}, {}], "bad": [{}, {}]}, reference="good")
    (row,) = [row for row in result["differences"] if row["metric"] == "accuracy"]
    assert (row["a"], row["b"], row["value"]) == ("good", "bad", 0.5) and row["low"] <= 0.5 <= row["high"]
    assert 0 < row["p"] <= row["p_holm"] <= 1 and result["reference"] == "good"
    assert result["power"]["metric"] == "accuracy" and "good and bad" in result["power"]["basis"]
    other = document(reg, made, {"good": [{}, {}], "bad": [{}, {}]}, reference="mta")
    assert other["reference"] == "bad" and other["differences"][0]["value"] == -0.5


@pytest.mark.parametrize(
    ("reference", "method", "own"),
    [
        ("mta", "pooled-rag", "mta+off"),
        ("mta", "pooled-rag+neighbours", "mta"),
        ("mta", "permuted-mta+off", "mta+off"),
        ("mta", "pooled-rag+habit", "mta"),  # mta+habit was not measured
        ("mta", "mta+off", "mta"),  # what the memory brings
        ("mta+off", "mta", "mta+off"),  # named with its memory: all are compared with it
        ("mta+off", "mta-recipe", "mta+off"),
        ("mta", "neighbours", "mta"),  # memory alone has no memory to choose
        ("mta", "majority", "mta"),
        ("mta", "of an earlier version", "mta"),
        ("pooled-rag", "mta", "pooled-rag+neighbours"),
        ("of an earlier version", "mta", "of an earlier version"),
    ],
)
def test_the_reference_has_the_label_memory_of_the_other(reference: str, method: str, own: str) -> None:
    assert reference_for(method, reference, {"mta", "mta+off", "pooled-rag", "pooled-rag+neighbours"}) == own


def test_differences_are_between_methods_with_the_same_label_memory(reg: Registry) -> None:
    made, names = crossed(reg), ("mta", "mta+off", "pooled-rag", "pooled-rag+neighbours", "neighbours")
    for name in names:
        answered(made, {"u": RIGHT, "v": RIGHT}, {"w": RIGHT, "x": MISSED if name == "pooled-rag" else RIGHT}, name)
    result = document(reg, made, {name: [{}, {}] for name in names}, reference="mta")
    pairs = {(row["a"], row["b"]): row["value"] for row in result["differences"] if row["metric"] == "accuracy"}
    assert pairs == {
        ("mta", "mta+off"): 0.0,
        ("mta+off", "pooled-rag"): 0.25,
        ("mta", "pooled-rag+neighbours"): 0.0,
        ("mta", "neighbours"): 0.0,
    }
    assert "as mta+off and pooled-rag differed" in result["power"]["basis"] and result["reference"] == "mta"


def test_one_method_alone_is_compared_with_nothing(reg: Registry) -> None:
    made = crossed(reg)
    answered(made, {"u": RIGHT, "v": RIGHT}, {"w": RIGHT, "x": WRONG})
    result = document(reg, made, {"m": [{}, {}]})
    assert result["differences"] == [] and result["power"] is None and result["reference"] == "m"
    assert (result["users"], result["queries"]) == (4, 8)


def test_settings_are_told_once_where_all_folds_have_the_same(reg: Registry) -> None:
    made = crossed(reg)
    for settings, fold, people in (({"a": 1}, 0, "uv"), ({"a": 2}, 1, "wx"), ({"a": 1}, 1, "wx")):
        made.answer("m", dict.fromkeys(people, RIGHT), fold, settings)
    assert document(reg, made, {"m": [{"a": 1}, {"a": 1}]})["settings"] == {"m": {"a": 1}}
    assert document(reg, made, {"m": [{"a": 1}, {"a": 2}]})["settings"] == {"m": [{"a": 1}, {"a": 2}]}


def test_answers_under_other_settings_are_not_counted(reg: Registry) -> None:
    made = crossed(reg)
    for settings, own in (({"a": 1}, RIGHT), ({"a": 2}, WRONG)):
        made.answer("m", dict.fromkeys("uv", own), 0, settings)
        made.answer("m", dict.fromkeys("wx", own), 1, settings)
    for settings, accuracy in (({"a": 1}, 1.0), ({"a": 2}, 0.0)):
        judged = score_method(reg, TAGS, made.plan, made.evaluation, "m", [settings, settings], True)
        assert judged.user_sums.metric_values()["accuracy"] == accuracy


def test_the_documents_figures_are_those_of_the_stored_answers(trial: Trial) -> None:
    """Everything from raw scores by hand: temperature, decision, accuracy, macro-F1 and likelihood."""
    labels, task = trial.request.task.labels, trial.request.task
    for method in ("pooled-rag", "mta", "oppu", "majority"):
        rows, warm = [], trial.result["calibration"][method]
        for fold, own in enumerate(warm):
            settings = trial.result["settings"][method]
            for p in trial.reg.evaluations.predictions.load_predictions(
                trial.number, fold=fold, method=method, settings=settings
            ):
                assert p.scores is not None and p.user_id in trial.plan.folds[fold].test
                probabilities = softmax(np.frombuffer(p.scores, dtype="<f4") / own[p.user_id % len(own)])
                answer = p.answer if method == "majority" else labels[int(probabilities.argmax())]
                rows.append((answer, p.gold, math.log(probabilities[labels.index(p.gold)])))
        answers, golds, logliks = zip(*rows, strict=True)
        found, plain = trial.result["methods"][method], score("accuracy", answers, golds, labels)
        assert found["accuracy"]["value"] == pytest.approx(
            sum(a == g for a, g in zip(answers, golds, strict=True)) / 24
        )
        assert found["macro_f1"]["value"] == pytest.approx(plain["macro_f1"])
        assert found["gold_loglik"]["value"] == pytest.approx(sum(logliks) / 24, abs=1e-6)
        assert Counter(golds).total() == trial.result["queries"] == 24 and task.metric == trial.result["metric"]


def test_the_document_has_what_reports_are_made_of(trial: Trial) -> None:
    keys = (
        "task metric users queries shots seed folds history_items anchors placement base options evaluation "
        "reference methods"
    )
    assert set(keys.split()) | {"differences", "costs", "power", "settings", "calibration"} <= set(trial.result)
    assert (trial.result["base"], trial.result["placement"], trial.result["history_items"]) == ("tiny", "late", 2)
    assert set(trial.result["costs"]) == set(trial.result["settings"]) == set(trial.result["methods"])
    assert trial.reg.evaluations.get(trial.number).result == trial.result
