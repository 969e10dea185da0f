"""The number of anchors and of their items if not requested: chosen from the data, and recorded as numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.errors import BadInput, Command
from mta_cli.events import JobPlan
from mta_cli.options import BankOptions, EvalOptions, ModelOptions, OptionSet, PromptOptions, ScreeningOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank_sizes import choose_sizes
from mta_cli.pipeline.requests import eval_request, restore_bank_request
from store.registry import Registry
from tests.pipeline.town import CPU, bank_request, finish


@pytest.mark.parametrize(
    ("held", "anchors", "items"),
    [
        ([20] * 60, 16, 8),
        ([20] * 48 + [2] * 500, 16, 8),
        ([12] * 12, 4, 8),
        ([8] * 5 + [4] * 5, 1, 8),
        ([9, 6, 5, 5, 4, 3], 1, 5),
        ([4] * 9, 3, 4),
        ([3], 1, 3),
        ([], 1, 8),
    ],
)
def test_at_most_sixteen_and_a_third_of_those_who_may_be_one(held: list[int], anchors: int, items: int) -> None:
    found = choose_sizes(held, BankOptions())
    assert (found.options.anchors, found.options.min_items) == (anchors, items)
    assert [line.origin for line in found.plan_lines] == ["by the data"] * 2


def test_what_is_given_stays() -> None:
    found = choose_sizes([12] * 12, BankOptions(anchors=9, min_items=2))
    assert (found.options.anchors, found.options.min_items, found.plan_lines) == (9, 2, ())
    assert choose_sizes([12] * 12, BankOptions(anchors=9)).options.min_items == 8
    assert choose_sizes([12] * 9 + [6] * 3, BankOptions(min_items=6)).options.anchors == 4


def test_a_bank_records_what_the_data_decided_and_says_why(peopled: Registry) -> None:
    request = bank_request(anchors=None, min_items=None)
    _, (plan, *_) = finish(build_bank(peopled, request, plan=(), dry_run=True))
    assert isinstance(plan, JobPlan)
    said = {line.name: (line.value, line.origin) for line in plan.lines}
    assert said["anchors"] == ("3: a third of the 9 users who can be anchors", "by the data")
    assert said["items of an anchor"] == ("8: 9 of 12 users have them", "by the data")
    result, _ = finish(build_bank(peopled, request))
    bank = peopled.banks.get(result["bank"])
    assert len(result["anchors"]) == 3 and (bank.config["anchors"], bank.config["min_items"]) == (3, 8)
    assert restore_bank_request(peopled, bank, CPU).options == replace(request.options, anchors=3, min_items=8)


def test_an_evaluation_takes_the_numbers_of_all_users_in_every_fold(peopled: Registry) -> None:
    others = (EvalOptions(), PromptOptions(), ScreeningOptions(), ModelOptions("tiny", "tiny-embedder"), CPU)
    bank = eval_request(peopled, OptionSet(BankOptions(), *others), "lamp-2", {}).bank
    assert (bank.anchors, bank.min_items) == (3, 8)
    given = eval_request(peopled, OptionSet(BankOptions(anchors=2), *others), "lamp-2", {}).bank
    assert (given.anchors, given.min_items) == (2, 8)


def test_nobody_who_may_be_an_anchor_is_said_as_that(peopled: Registry) -> None:
    for name in peopled.users.names():
        peopled.users.set_can_anchor(peopled.users.get(name).id, False)
    with pytest.raises(BadInput, match="No user of task lamp-2 has consented to be an anchor") as refused:
        finish(build_bank(peopled, bank_request(anchors=None, min_items=None)))
    consent = Command("user consent", all=True, can_anchor=True, task="lamp-2")
    assert refused.value.hint == ("if they all consent: ", consent)
