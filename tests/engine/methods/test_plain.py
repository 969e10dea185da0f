"""Methods that train nothing: what stands below, what the prompt shows, and the label prior."""

from __future__ import annotations

import pytest

from mta_cli.engine.methods.label_priors import priors
from mta_cli.engine.methods.method import Made
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
    assert (method.below, method.history) == (below, history)
    assert method.make(a_bench(base, 2), [a_person(2), a_person(0)], method.settings) == [Made(), Made()]


@pytest.mark.parametrize("name", ["pooled-prior", "pooled-neighbours"])
def test_the_prior_stands_alone(base: LoadedBase, name: str) -> None:
    method, bench = BY_NAME[name], tag_bench(base, 2)
    people = [tagger(base, bench.task, [LABELS[0], LABELS[1]]), tagger(base, bench.task, [])]
    made = method.make(bench, people, method.settings)
    assert (method.below, method.history) == ("task", True)
    assert [(one.prior, one.bytes) for one in made] == priors(bench, people, method.settings)
    assert all(one.parts == () and one.direct is None for one in made)
