"""What shots teach: choices beside neighbours and habit where these count, else texts; and stacks that rest on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mta_cli.pipeline.personalize.training_examples import TrainingExampleBuilder

from mta_cli.engine.scoring.label_examples import LabelExample, build_prompt_tree, example_log_likelihood
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, mean_losses
from mta_cli.options import MemoryOptions
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import load_with_task_adapter
from mta_cli.pipeline.personalize.weights import load_fusion_and_stack, load_weights
from mta_cli.pipeline.requests import AdaptRequest, FuseRequest, adapt_request_json, restore_adapt_request
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import CPU, QUICK, TASK, built, finish, fuse_request

ALONE = MemoryOptions(memory="habit")


def teaching(reg: Registry, request: FuseRequest) -> TrainingExampleBuilder:
    return TrainingExampleBuilder(reg, load_with_task_adapter(reg, reg.banks.get("lamp-2"), request), request)


def test_shots_are_choices_where_neighbours_count_in_answers(peopled: Registry) -> None:
    built(peopled)
    ida = peopled.users.get("ida")
    peopled.items.append_items(ida.id, [NewItem("odd", TASK.name, "a film", "no tag of the list", "2020-02-01")])
    items = peopled.items.recent_items(ida.id, TASK.name)
    ours, plain = teaching(peopled, fuse_request()), teaching(peopled, replace(fuse_request(), memory=ALONE))
    rows = plain.examples_from_shots(ida, items)
    assert rows == list(plain.row_builder.training_rows(items)), "without neighbours a shot is a text"
    priors = ours.label_priors.leave_one_out_priors(ida, items)
    assert priors is not None
    for item, one, row, prior in zip(items, ours.examples_from_shots(ida, items), rows, priors, strict=True):
        if item.output not in TASK.labels:
            assert one == row
            continue
        assert isinstance(one, LabelExample) and one.row == row and one.target_index == TASK.labels.index(item.output)
        assert one.log_prior == pytest.approx(prior(item.input)) and one.model_weight == prior.model_weight
        assert [list(label) for label in one.label_tokens] == [
            ours.row_builder.prompter.answer_ids(tag) for tag in TASK.labels
        ]
    assert ours.examples_from_shots(ida, []) == []


def test_a_recipe_is_weighed_by_what_the_shots_teach(peopled: Registry) -> None:
    built(peopled)
    jon, request = peopled.users.get("jon"), fuse_request(sharpness=1.0, scale=1.0)
    bank = peopled.banks.get("lamp-2")
    finish(adapt_users(peopled, [jon], request, QUICK))
    recipe = peopled.recipes.get(jon.id, TASK.name, bank.id)
    assert recipe is not None
    base = load_with_task_adapter(peopled, bank, request)
    shots = TrainingExampleBuilder(peopled, base, request).examples_from_shots(
        jon, peopled.items.recent_items(jon.id, TASK.name)
    )
    digests = {anchor.id: anchor.digest for anchor in peopled.banks.anchors(bank.id)}
    parts = [(), *((load_weights(peopled, str(digests[s.anchor_id]), bank.base),) for s in recipe.shares)]
    asked = [(shot, part) for part in range(len(parts)) for shot in range(len(shots))]
    values = iter(completion_log_likelihoods(base, [build_prompt_tree(one) for one in shots], parts, asked))
    null, *sums = [sum(example_log_likelihood(one, next(values)) for one in shots) for _ in parts]
    for share, total in zip(recipe.shares, sums, strict=True):
        rest = 1.0 - sum(s.weight for s in recipe.shares)
        assert share.weight / rest == pytest.approx(2.718281828 ** (total - null), rel=1e-3)


def test_losses_are_of_the_decision_beside_neighbours(peopled: Registry) -> None:
    """On shots without themselves, on held-out queries with all that the person answered."""
    built(peopled)
    kim, bank = peopled.users.get("kim"), peopled.banks.get("lamp-2")
    peopled.banks.set_kernel(bank.id, {"sharpness": 2.0, "votes": 0.3, "habit": 0.3, "linear": 0.0})
    request = fuse_request()
    ((result,), _) = finish(adapt_users(peopled, [kim], request, QUICK))
    assert 0.0 < result["loss_after"] < result["loss_before"]
    base = load_with_task_adapter(peopled, bank, request)
    ours = TrainingExampleBuilder(peopled, base, request)
    (parts, _) = load_fusion_and_stack(peopled, bank.base, kim, TASK.name, "adapted")
    shots = ours.examples_from_shots(kim, peopled.items.recent_items(kim.id, TASK.name))
    queries = peopled.items.queries(kim.id, TASK.name)
    heldout = ours.examples_from_queries(kim, queries)
    assert mean_losses(base, [(shots, parts), (heldout, parts)]) == pytest.approx(
        [result["loss_after"], result["heldout_after"]], abs=1e-4
    )
    prior = ours.label_priors.prior_for(kim, "adapted")
    assert prior is not None
    for query, one in zip(queries, heldout, strict=True):
        assert isinstance(one, LabelExample) and one.log_prior == pytest.approx(prior(query.input))
        assert one.target_index == TASK.labels.index(query.gold)
    alone = teaching(peopled, replace(request, memory=ALONE))
    assert alone.examples_from_queries(kim, queries) == alone.row_builder.query_rows(queries)


def test_a_stack_rests_on_how_neighbours_count(peopled: Registry) -> None:
    """Answers are decided beside them: under another weight, or another kernel, it has to be trained again."""
    built(peopled)
    ida, bank = peopled.users.get("ida"), peopled.banks.get("lamp-2")

    def adapt(answer: MemoryOptions) -> tuple[bool, bytes | None]:
        request = replace(fuse_request(), memory=answer)
        ((result,), _) = finish(adapt_users(peopled, [ida], request, QUICK))
        stack = peopled.stacks.get(ida.id, TASK.name, bank.id)
        assert stack is not None
        return result.get("unchanged", False), stack.numbers

    unchanged, first = adapt(MemoryOptions())
    assert not unchanged and adapt(MemoryOptions()) == (True, first)
    unchanged, alone = adapt(ALONE)
    assert not unchanged and alone != first
    assert adapt(MemoryOptions()) == (False, first)
    kernel = peopled.banks.by_id(bank.id).kernel
    assert kernel is not None
    peopled.banks.set_kernel(bank.id, {**kernel, "habit": kernel["habit"] + 1.0})
    assert not adapt(MemoryOptions())[0]


def test_a_stopped_adaptation_goes_on_with_the_same_weight(peopled: Registry) -> None:
    built(peopled)
    request = replace(fuse_request(), memory=replace(MemoryOptions(), neighbour_weight=0.5))
    document = adapt_request_json(peopled, AdaptRequest(None, QUICK, request))
    assert restore_adapt_request(peopled, document, CPU).fuse.memory == request.memory
    older = {key: value for key, value in document.items() if key != "memory"}
    assert restore_adapt_request(peopled, older, CPU).fuse.memory == MemoryOptions()
