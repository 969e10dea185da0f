"""The label prior: nothing without weight or labels, else what calibration says of the person's habit."""

import pytest

from mta_cli.engine.base import LoadedBase
from mta_cli.engine.labels import habit
from mta_cli.engine.methods.prior import COUNT_BYTES, habits
from tests.engine.methods.benches import a_bench, a_person
from tests.engine.methods.tagging import LABELS, tag_bench, tagger


def test_without_weight_or_labels_it_is_nothing(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    people = [tagger(base, bench.task, [LABELS[0]]), tagger(base, bench.task, [])]
    assert habits(bench, people, {"prior_weight": 0.0, "prior_strength": 4.0}) == [((), 0), ((), 0)]
    assert habits(a_bench(base, 0), [a_person(2)], {"prior_weight": 1.0, "prior_strength": 4.0}) == [((), 0)]


def test_it_is_a_share_of_the_habit(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    person = tagger(base, bench.task, [LABELS[3], LABELS[3], LABELS[0], "no label"])
    whole = habit(person.outputs, bench.task.labels, bench.rates, 2.0)
    for weight in (0.25, 1.0):
        ((prior, size),) = habits(bench, [person], {"prior_weight": weight, "prior_strength": 2.0})
        assert prior == pytest.approx([weight * value for value in whole])
        assert prior[3] > 0 > prior[5] and size == 2 * COUNT_BYTES


def test_who_answered_nothing_has_no_habit(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    ((prior, size),) = habits(bench, [tagger(base, bench.task, [])], {"prior_weight": 1.0, "prior_strength": 4.0})
    assert prior == pytest.approx([0.0] * len(LABELS)) and size == 0


def test_a_label_with_spaces_around_it_is_that_label(base: LoadedBase) -> None:
    bench, settings = tag_bench(base, 0), {"prior_weight": 1.0, "prior_strength": 4.0}
    plain, spaced = (tagger(base, bench.task, outputs) for outputs in ([LABELS[1]], [f" {LABELS[1]}\n"]))
    assert habits(bench, [plain], settings) == habits(bench, [spaced], settings)
