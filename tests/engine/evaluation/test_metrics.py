"""Metrics, against independent computations."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.evaluation.metrics import rouge_1, rouge_l, score_errors
from mta_cli.engine.text.tasks import MOVIE_TAGS
from tests.metrics_by_hand import accuracy, macro_f1, mae, mean_rouge, rmse, score

LABELS = ("a", "b", "c")
near_labels = st.sampled_from(("a", "b", "c", " a", "b ", "A", "", "d"))
sentences = st.lists(
    st.sampled_from(("the", "Cat", "cats", "running", "run", "-", "don't", "3.5", "a_b", "_")), max_size=12
).map(" ".join)


def test_accuracy_is_exact_after_stripping() -> None:
    assert accuracy([" a", "B", "b", "x"], ["a", "b", "b", "x"], LABELS) == 0.5
    assert math.isnan(accuracy([], [], LABELS))
    with pytest.raises(ValueError):
        accuracy(["a"], [], LABELS)


@settings(deadline=None)
@given(st.lists(st.tuples(near_labels, st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_labels_as_scikit_learn_counts_them(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    answers, golds = [answer for answer, _ in pairs], [gold for _, gold in pairs]
    numbers = [LABELS.index(text.strip()) if text.strip() in LABELS else -1 for text in answers]
    wanted = [LABELS.index(gold) for gold in golds]
    expected = f1_score(wanted, numbers, labels=range(len(LABELS)), average="macro", zero_division=0)
    assert macro_f1(answers, golds, LABELS) == pytest.approx(expected)
    assert accuracy(answers, golds, LABELS) == pytest.approx(accuracy_score(wanted, numbers))


def test_a_label_that_never_occurs_counts_as_zero() -> None:
    assert macro_f1(["comedy"], ["comedy"], MOVIE_TAGS) == pytest.approx(1 / 15)


@pytest.mark.parametrize(
    ("answer", "gold", "error"),
    [
        ("4", "2", 2),
        (" 4.5\n", "5", -0.5),
        ("good", "1", 4),
        ("", "5", -4),
        ("x", "3", 2),
        ("x", "4", -3),
        ("nan", "2", 3),
    ],
)
def test_scores_by_lamps_rule(answer: str, gold: str, error: float) -> None:
    assert score_errors([answer], [gold]) == [error]


@pytest.mark.parametrize("gold", ["good", "nan", "-inf"])
def test_a_gold_that_is_no_finite_number_has_no_error(gold: str) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        score_errors(["3"], [gold])


def test_scores_on_another_scale() -> None:
    assert score("mae", ["?", "9"], ["2", "10"], ["1", "2", "10"]) == {
        "mae": 4.5,
        "rmse": pytest.approx(math.sqrt(32.5)),
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=20))
def test_errors_as_scikit_learn_counts_them(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    answers, golds = [str(answer) for answer, _ in pairs], [str(gold) for _, gold in pairs]
    numbers = [list(map(float, side)) for side in (golds, answers)]
    assert mae(answers, golds) == pytest.approx(mean_absolute_error(*numbers))
    assert rmse(answers, golds) == pytest.approx(root_mean_squared_error(*numbers))


@settings(deadline=None)
@given(answer=sentences, gold=sentences)
def test_rouge_as_rouge_score_counts_it(answer: str, gold: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score(gold, answer)
    for ours, name in ((rouge_1(answer, gold), "rouge1"), (rouge_l(answer, gold), "rougeL")):
        assert ours == pytest.approx(theirs[name].fmeasure)


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("Хорошая книга.", "хорошая идея", 0.5),
        ("naïve", "nai\u0308ve", 1),
        ("naïve", "na ve", 0),
        ("हिन्दी किताब", "हिन्दी", 2 / 3),
        ("की", "के", 0),
        ("本を読む", "本を書く。", 0.5),
        ("ดี", "ดี!", 1),
        ("good❤️", "bad❤️", 0),
    ],
)
def test_rouge_reads_words_of_every_script(answer: str, gold: str, expected: float) -> None:
    assert rouge_1(answer, gold) == rouge_l(answer, gold) == pytest.approx(expected)


def test_rouge_does_not_stem() -> None:
    assert rouge_1("running cats", "run cat") == 0
    assert rouge_l("b a", "a b") == 0.5
    assert mean_rouge(["a b", ""], ["a b", "c"]) == {"rouge_1": 0.5, "rouge_l": 0.5}


def test_every_metric_of_a_task_by_name() -> None:
    assert set(score("accuracy", ["a"], ["a"], LABELS)) == {"accuracy", "macro_f1"}
    assert set(score("rouge", ["a"], ["a"])) == {"rouge_1", "rouge_l"}
    with pytest.raises(ValueError, match="no metric"):
        score("bleu", [], [])
