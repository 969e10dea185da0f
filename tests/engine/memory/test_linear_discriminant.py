"""The linear discriminant against scikit-learn's, and what it says where there is little to say it from."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mta_cli.engine.memory import linear_discriminant
from mta_cli.engine.memory.linear_discriminant import SHRINKAGE, Moments, Vectors


def cloud(count: int, seed: int, labels: int = 3, width: int = 6) -> tuple[Vectors, np.ndarray]:
    """Vectors around a middle of their label's own."""
    rng = np.random.default_rng(seed)
    places, middles = rng.integers(0, labels, count), rng.normal(size=(labels, width))
    return (middles[places] + rng.normal(size=(count, width))).astype(np.float32), places


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_shrunk_discriminant_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(linear_discriminant, "MEAN_PRIOR_COUNT", 0.0)
    vectors, labels = cloud(90, seed)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(vectors, labels)
    asked, _ = cloud(20, seed + 10)
    expected = theirs.decision_function(asked) - np.log(theirs.priors_)
    found = Moments.from_labelled_vectors(vectors, labels, 3).fit_discriminant()(asked)
    assert found - found[:, :1] == pytest.approx(expected - expected[:, :1], abs=1e-3)


def test_taking_vectors_out_is_never_having_had_them() -> None:
    vectors, labels = cloud(60, 1)
    whole, some = (
        Moments.from_labelled_vectors(vectors, labels, 3),
        Moments.from_labelled_vectors(vectors[40:], labels[40:], 3),
    )
    found, expected = (
        (whole - some).fit_discriminant(),
        Moments.from_labelled_vectors(vectors[:40], labels[:40], 3).fit_discriminant(),
    )
    assert found(vectors) == pytest.approx(expected(vectors), abs=1e-3)


def test_a_label_that_nobody_gave_is_as_likely_as_the_average_text() -> None:
    vectors, labels = cloud(30, 2)
    found = Moments.from_labelled_vectors(vectors, labels, 4).fit_discriminant()(vectors)
    assert found[:, 3].tolist() == pytest.approx([0.0] * 30, abs=1e-9) and np.abs(found[:, :3]).max() > 0.1


def test_a_label_given_once_says_less_than_one_given_often() -> None:
    vectors, labels = cloud(60, 3, labels=2)
    once = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:1]])
    often, seldom = (
        Moments.from_labelled_vectors(vectors[i], labels[i], 2).fit_discriminant()(vectors)
        for i in (np.arange(60), once)
    )
    assert np.abs(seldom[:, 1]).mean() < np.abs(often[:, 1]).mean()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_where_there_is_nothing_to_tell_apart_it_says_nothing(count: int) -> None:
    vectors, labels = np.ones((count, 4), np.float32), np.arange(count) % 3
    found = Moments.from_labelled_vectors(vectors, labels, 3).fit_discriminant()(np.ones((2, 4), np.float32))
    assert found.tolist() == [pytest.approx([0.0] * 3, abs=1e-6)] * 2
