"""What fits into the time: less time or a slower machine gives fewer passes, items and users, never more."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from mta_cli.options import AdaptOptions, BankOptions
from mta_cli.pipeline.quick.plan import QuickPlan, Workload, estimate_seconds, make_plan

WORK = Workload(held=(12,) * 60, queries=(2,) * 60, labels=True)


def test_much_time_trains_on_everything_and_measures_everybody() -> None:
    plan = make_plan(WORK, BankOptions(), rows_per_second=1e6, minutes=3)
    sizes = plan.sizes
    assert (sizes.anchors, sizes.min_items, sizes.max_items, sizes.bank_users) == (16, 8, 200, None)
    assert (sizes.task_epochs, sizes.epochs, sizes.held_out_weights, sizes.measured_users) == (2, 2, True, 44)


def test_a_plan_fits_where_any_does_and_less_time_never_gives_more() -> None:
    before = None
    for minutes in (60, 10, 5, 3):
        plan = make_plan(WORK, BankOptions(), rows_per_second=3.0, minutes=minutes)
        assert plan.seconds <= 60 * minutes
        assert before is None or plan.seconds <= before
        before = plan.seconds
    hurried = make_plan(WORK, BankOptions(), rows_per_second=3.0, minutes=1).sizes
    assert hurried.bank_users is not None and hurried.bank_users < 60


def test_where_nothing_fits_the_plan_says_so_and_takes_the_least() -> None:
    plan = make_plan(WORK, BankOptions(), rows_per_second=0.01, minutes=1)
    assert plan.seconds > 60 and "for the smallest plan" in plan.lines[-1].value
    assert plan.sizes.bank_users == 6 and plan.sizes.measured_users == 8, "fewer give no interval over users"


def test_the_measured_users_fill_the_time_that_the_bank_leaves() -> None:
    many, found = Workload(held=(16,) * 400, queries=(4,) * 400, labels=True), []
    for minutes in (4, 8, 16, 60):
        plan = make_plan(many, BankOptions(), rows_per_second=30.0, minutes=minutes)
        one_more = replace(plan.sizes, measured_users=plan.sizes.measured_users + 1)
        assert plan.seconds <= 60 * minutes
        assert plan.sizes.measured_users == 384 or estimate_seconds(many, one_more, 30.0) > 60 * minutes
        found.append(plan.sizes.measured_users)
    assert found == sorted(found) and found[0] > 12 and found[-1] == 384


def test_more_questions_show_smaller_differences() -> None:
    def least(users: int, each: int) -> float:
        work = Workload((20,) * users, (each,) * users, labels=False)
        line = next(one for one in make_plan(work, BankOptions(), 1e6, 3).lines if one.name == "power")
        assert "0.15 nats" in line.origin
        return float(line.value.split()[3])

    # by hand: 8 users of 4 questions, without the 4 anchors; design effect 1 + 3 * .1
    assert least(12, 4) == pytest.approx(2.8 * 0.15 * (1.3 / 32) ** 0.5, abs=5e-4)
    assert least(60, 4) < least(12, 4) and least(12, 8) < least(12, 4)


def test_every_line_says_where_its_value_comes_from() -> None:
    lines = {line.name: line for line in make_plan(WORK, BankOptions(anchors=4), 1e6, 3).lines}
    assert "anchors" not in lines, "it was given, and the settings say where"
    assert lines["items of an anchor"].origin == "by the data" and lines["passes"].origin == "what fits into 3 min"
    assert "training steps" in lines["rate"].origin


@pytest.mark.parametrize("labels", [True, False])
def test_fusion_and_stack_are_made_for_every_kind_of_task(labels: bool) -> None:
    lines = {line.name: line for line in make_plan(replace(WORK, labels=labels), BankOptions(), 1e6, 3).lines}
    assert lines["users' models"].value == "fusions from at most 12 items, stacks from the same in 60 steps"


def test_shots_steps_and_passes_that_were_given_count() -> None:
    texts, sizes = replace(WORK, labels=False), make_plan(WORK, BankOptions(), 1e6, 3).sizes

    def seconds(**changes: AdaptOptions) -> float:
        return estimate_seconds(replace(texts, **changes), sizes, 1.0)

    usual = seconds()
    assert seconds(adapt=AdaptOptions(steps=90)) > usual > seconds(adapt=AdaptOptions(steps=1))
    assert seconds(adapt=AdaptOptions(epochs=6)) > usual, "five passes over twelve items are usual"
    assert seconds(adapt=AdaptOptions(shots=2)) < usual
    assert seconds(adapt=AdaptOptions(shots=12)) == usual, "12 items are all there are"
    assert estimate_seconds(replace(texts, held=(12, 2)), sizes, 1.0) < estimate_seconds(
        replace(texts, held=(12, 12)), sizes, 1.0
    ), "each user takes as many shots as they have"
    assert (
        make_plan(replace(WORK, adapt=AdaptOptions(shots=1)), BankOptions(), 3.0, 3).sizes
        != make_plan(WORK, BankOptions(), 3.0, 3).sizes
    ), "what takes longer leaves less for the rest"


def test_users_models_are_made_from_no_more_items_than_the_plan_reads() -> None:
    work = replace(WORK, held=(200, 30, 4), adapt=AdaptOptions(shots=150))
    assert work.shots(200) == [150, 30, 4] and work.shots(25) == [25, 25, 4]


def test_passes_that_settings_change_are_kept_where_time_is_short() -> None:
    for options, passes, origin in (
        (BankOptions(epochs=5), (1, 5), "settings, and what fits into 1 min"),
        (BankOptions(epochs=5, task_epochs=3), (3, 5), "settings"),
        (BankOptions(), (1, 1), "what fits into 1 min"),
    ):
        plan = make_plan(WORK, options, rows_per_second=0.1, minutes=1)
        assert (plan.sizes.task_epochs, plan.sizes.epochs) == passes
        assert next(line.origin for line in plan.lines if line.name == "passes") == origin


def test_a_plan_goes_through_json() -> None:
    plan = make_plan(WORK, BankOptions(), 3.0, 3)
    assert QuickPlan.from_json(asdict(plan)) == plan
