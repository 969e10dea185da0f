"""Fusion and stack: what each part is, what the stack stands on, and what has to be kept of both."""

import pytest

from mta_cli.engine.base import LoadedBase
from mta_cli.engine.methods.fusion import SHARE_BYTES, by_evidence, by_similarity, fused
from mta_cli.engine.methods.merge_then_adapt import METHODS
from mta_cli.engine.methods.prior import COUNT_BYTES, habits
from mta_cli.engine.methods.shape import Bench, Made, Person, Settings
from mta_cli.engine.methods.stacks import stack_bytes, stacks_as
from mta_cli.engine.score import mean_loss
from tests.engine.methods.benches import a_bench, a_person, same
from tests.engine.methods.tagging import LABELS, tag_bench, tagger

BY_NAME = {method.name: method for method in METHODS}
FUSED = [name for name in BY_NAME if name != "stack"]


def make(name: str, bench: Bench, people: list[Person], **changes: float | str) -> list[Made]:
    settings: Settings = {**BY_NAME[name].settings, **changes}
    return BY_NAME[name].make(bench, people, settings)


@pytest.mark.parametrize(
    ("name", "weigh"), [("mta", by_evidence), ("mta-evidence", by_evidence), ("mta-cosine", by_similarity)]
)
def test_a_stack_is_trained_above_the_fusion(base: LoadedBase, name: str, weigh: object) -> None:
    bench, person, settings = a_bench(base, 3, placement="late"), a_person(3), BY_NAME[name].settings
    (shares,) = weigh(bench, [person], settings)  # type: ignore[operator]
    fusion = fused(bench, shares)
    (stack,) = stacks_as(bench, [person], [fusion], settings)
    (made,) = make(name, bench, [person])
    assert stack is not None and len(made.parts) == 2
    assert same(made.parts[0], fusion[0]) and same(made.parts[1], stack)
    assert made.bytes == SHARE_BYTES * len(shares) + stack_bytes(stack) and made.prior == ()


@pytest.mark.parametrize("name", list(BY_NAME))
def test_the_stack_lowers_the_loss_on_the_shots(base: LoadedBase, name: str) -> None:
    bench, person = a_bench(base, 2, placement="late"), a_person(4)
    (made,) = make(name, bench, [person], steps=20, learning_rate=1e-2)
    assert mean_loss(base, person.rows, made.parts) < mean_loss(base, person.rows, made.parts[:-1]) - 0.01


def test_without_a_fusion_it_is_a_stack_alone(base: LoadedBase) -> None:
    person = a_person(2)
    (stack,) = make("stack", a_bench(base, 3, placement="late"), [person])
    assert len(stack.parts) == 1 and stack.bytes == stack_bytes(stack.parts[0])
    for name in FUSED:
        (made,) = make(name, a_bench(base, 0), [person])
        assert len(made.parts) == 1 and same(made.parts[0], stack.parts[0]) and made.bytes == stack.bytes


def test_the_default_has_a_label_prior_and_pays_for_it(base: LoadedBase) -> None:
    bench = tag_bench(base, 2)
    person = tagger(base, bench.task, [LABELS[1], LABELS[2]])
    (made,), (without,) = make("mta", bench, [person]), make("mta-evidence", bench, [person])
    assert made.prior == habits(bench, [person], BY_NAME["mta"].settings)[0][0] and any(made.prior)
    assert without.prior == () and made.bytes == without.bytes + 2 * COUNT_BYTES
    assert all(same(one, other) for one, other in zip(made.parts, without.parts, strict=True))


@pytest.mark.parametrize("name", list(BY_NAME))
def test_who_has_no_shots_gets_nothing(base: LoadedBase, name: str) -> None:
    some, nobody = make(name, a_bench(base, 2, placement="late"), [a_person(1), a_person(0, 1)])
    assert nobody == Made() and some.bytes > 0
