"""Shots as evidence and stacks learn from them, and stacks that rest on the label memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mta_cli.engine.methods.shots import shot_examples
from mta_cli.engine.scoring.label_examples import LabelExample, build_prompt_tree, example_log_likelihood
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, mean_losses
from mta_cli.options import MemoryOptions
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import refresh_bank_profiles
from mta_cli.pipeline.requests import AdaptRequest, FuseRequest, adapt_request_json, restore_adapt_request
from mta_cli.pipeline.user_weights import load_fusion_and_stack, load_weights
from mta_cli.pipeline.workbench import Workbench
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import CPU, QUICK, TASK, finish, fuse_request

ALONE = MemoryOptions(memory="habit")


@contextmanager
def prepared(reg: Registry, request: FuseRequest, *names: str) -> Iterator[Workbench[FuseRequest]]:
    """The workbench on which these users are fused; the base holds the bank's task adapter."""
    bench = Workbench(reg, request, reg.banks.get("lamp-2"))
    list(refresh_bank_profiles(bench, [reg.users.get(name) for name in names]))
    with bench.holding_task_adapter():
        yield bench


def test_shots_are_label_examples_where_neighbours_count(banked: Registry) -> None:
    ida = banked.users.get("ida")
    banked.items.append_items(ida.id, [NewItem("odd", TASK.name, "a film", "no tag of the list", "2020-02-01")])
    items = banked.items.recent_items(ida.id, TASK.name)
    with prepared(banked, fuse_request(), "ida") as bench:
        own, methods, memory = bench.user_shots(ida, items), bench.methods, MemoryOptions()
        assert own.rows == tuple(bench.rows.training_rows(items))
        assert shot_examples(methods, own, ALONE) == own.rows, "without neighbours a shot is a text"
        for n, (item, one) in enumerate(zip(items, shot_examples(methods, own, memory), strict=True)):
            if item.output not in TASK.labels:
                assert one == own.rows[n]
                continue
            others = [each.output for each in items if each is not item]
            prior = methods.memory.leave_one_out_prior(others, ida.id, memory)
            assert prior is not None and isinstance(one, LabelExample) and one.row == own.rows[n]
            assert one.target_index == TASK.labels.index(item.output) and one.model_weight == prior.model_weight
            assert one.log_prior == pytest.approx(prior(item.input, item.time))
            tokens = [bench.rows.prompter.answer_ids(tag) for tag in TASK.labels]
            assert [list(label) for label in one.label_tokens] == tokens
        assert shot_examples(methods, bench.user_shots(ida, []), memory) == ()


def test_a_recipe_is_weighed_by_the_likelihood_of_the_shots(banked: Registry) -> None:
    jon, request = banked.users.get("jon"), fuse_request(sharpness=1.0, scale=1.0)
    bank = banked.banks.get("lamp-2")
    finish(adapt_users(banked, AdaptRequest([jon], QUICK, request)))
    recipe = banked.recipes.get(jon.id, TASK.name, bank.id)
    assert recipe is not None
    with prepared(banked, request, "jon") as bench:
        items = banked.items.recent_items(jon.id, TASK.name, 5)
        shots = shot_examples(bench.methods, bench.user_shots(jon, items), request.memory)
        digests = {anchor.id: anchor.digest for anchor in banked.banks.anchors(bank.id)}
        parts = [(), *((load_weights(banked, str(digests[s.anchor_id]), bank.base),) for s in recipe.shares)]
        asked = [(shot, part) for part in range(len(parts)) for shot in range(len(shots))]
        values = iter(completion_log_likelihoods(bench.base, [build_prompt_tree(one) for one in shots], parts, asked))
        null, *sums = [sum(example_log_likelihood(one, next(values)) for one in shots) for _ in parts]
        rest = 1.0 - sum(s.weight for s in recipe.shares)
        for share, total in zip(recipe.shares, sums, strict=True):
            assert share.weight / rest == pytest.approx(math.exp(total - null), rel=1e-3)


def test_losses_are_of_the_decision_beside_neighbours(banked: Registry) -> None:
    """On shots without themselves, on held-out queries with all that the user answered."""
    kim, bank = banked.users.get("kim"), banked.banks.get("lamp-2")
    banked.banks.set_kernel(bank.id, {"sharpness": 2.0, "votes": 0.3, "habit": 0.3, "linear": 0.0})
    request = fuse_request()
    ((result,), _) = finish(adapt_users(banked, AdaptRequest([kim], QUICK, request)))
    assert 0.0 < result["loss_after"] < result["loss_before"]
    with prepared(banked, request, "kim") as bench:
        (parts, _) = load_fusion_and_stack(banked, bank.base, kim, TASK.name, "adapted")
        items = banked.items.recent_items(kim.id, TASK.name, 5)
        shots = shot_examples(bench.methods, bench.user_shots(kim, items), request.memory)
        queries = banked.items.queries(kim.id, TASK.name)
        heldout = bench.query_examples(kim, request.memory)
        assert mean_losses(bench.base, [(shots, parts), (heldout, parts)]) == pytest.approx(
            [result["loss_after"], result["heldout_after"]], abs=1e-4
        )
        prior = bench.memory.prior_for(kim, "adapted", request.memory)
        assert prior is not None
        for query, one in zip(queries, heldout, strict=True):
            assert isinstance(one, LabelExample) and one.log_prior == pytest.approx(prior(query.input, query.time))
            assert one.target_index == TASK.labels.index(query.gold)
        alone = bench.query_examples(kim, ALONE)
        assert alone == bench.rows.query_rows(queries)


def test_a_stack_rests_on_how_neighbours_count(banked: Registry) -> None:
    """Answers are decided beside them: under another weight, or another kernel, it has to be trained again."""
    ida, bank = banked.users.get("ida"), banked.banks.get("lamp-2")

    def adapt(answer: MemoryOptions) -> tuple[bool, str]:
        request = replace(fuse_request(), memory=answer)
        ((result,), _) = finish(adapt_users(banked, AdaptRequest([ida], QUICK, request)))
        stack = banked.stacks.get(ida.id, TASK.name, bank.id)
        assert stack is not None
        return result.get("unchanged", False), stack.digest

    unchanged, first = adapt(MemoryOptions())
    assert not unchanged and adapt(MemoryOptions()) == (True, first)
    unchanged, alone = adapt(ALONE)
    assert not unchanged and alone != first
    assert adapt(MemoryOptions()) == (False, first)
    kernel = banked.banks.by_id(bank.id).kernel
    assert kernel is not None
    banked.banks.set_kernel(bank.id, {**kernel, "habit": kernel["habit"] + 1.0})
    assert not adapt(MemoryOptions())[0]


def test_a_stopped_adaptation_goes_on_with_the_same_weight(banked: Registry) -> None:
    request = replace(fuse_request(), memory=replace(MemoryOptions(), neighbour_weight=0.5))
    document = adapt_request_json(AdaptRequest(None, QUICK, request))
    assert restore_adapt_request(banked, 0, document, CPU).fuse.memory == request.memory
