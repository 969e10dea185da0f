"""Methods that train nothing: what stands below, what the prompt shows, and the label prior."""

from __future__ import annotations

import pytest

from mta_cli.engine.methods.label_priors import label_priors
from mta_cli.engine.methods.method import UserModel
from mta_cli.engine.methods.plain import METHODS
from mta_cli.engine.model.load import LoadedBase
from tests.engine.methods.benches import a_bench, a_person
from tests.engine.methods.tagging import LABELS, tag_bench, tagger

BY_NAME = {method.name: method for method in METHODS}


@pytest.mark.parametrize(
    ("name", "below", "history"),
    [("base", "base", False), ("rag", "base", True), ("pooled", "task", False), ("pooled-rag", "task", True)],
)
def test_everybody_has_the_same_and_nothing_is_kept(base: LoadedBase, name: str, below: str, history: bool) -> None:
    method = BY_NAME[name]
    assert (method.base_level, method.shows_history) == (below, history)
    assert method.build_models(a_bench(base, 2), [a_person(2), a_person(0)], method.settings) == [
        UserModel(),
        UserModel(),
    ]


@pytest.mark.parametrize("name", ["pooled-prior", "pooled-neighbours"])
def test_the_prior_stands_alone(base: LoadedBase, name: str) -> None:
    method, bench = BY_NAME[name], tag_bench(base, 2)
    people = [tagger(base, bench.task, [LABELS[0], LABELS[1]]), tagger(base, bench.task, [])]
    made = method.build_models(bench, people, method.settings)
    assert (method.base_level, method.shows_history) == ("task", True)
    assert [(one.prior, one.bytes) for one in made] == label_priors(bench, people, method.settings)
    assert all(one.loras == () and one.answerer is None for one in made)
