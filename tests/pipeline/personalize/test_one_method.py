"""Product and evaluation run one method: for the same bank, user, shots and settings they make the same bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.memory.label_prior import add_label_prior
from mta_cli.engine.methods.method import Method, UserModel
from mta_cli.engine.methods.personalize import build_models
from mta_cli.lab.evaluation.banks import PURPOSE
from mta_cli.lab.evaluation.context import EvalContext
from mta_cli.lab.evaluation.design import Design, EvalRequest
from mta_cli.options import MEMORIES, WEIGHT_METHODS, AdaptOptions, MemoryOptions, ScreeningOptions
from mta_cli.pipeline.anchors import usable_anchors
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.memory.bank_memory import BankMemory
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest
from mta_cli.pipeline.user_weights import load_fusion_and_stack
from store.records import Bank
from store.registry import Registry
from tests.lab.evaluation.trial import eval_request
from tests.pipeline.town import QUICK, TASK, bank_request, finish, fuse_request

LORA: dict[str, Any] = {"rank": 2, "alpha": 4.0, "targets": "q_proj,v_proj", "placement": "upper"}


def measured(reg: Registry, bank: Bank, method: Method, user: int, settings: dict[str, Any]) -> UserModel:
    """What `mta eval` makes of a user above `bank`."""
    from mta_cli.pipeline.data.profiles import load_profiles

    one = reg.users.by_id(user)
    request: EvalRequest = eval_request()
    design = Design("", (), {user: reg.items.recent_items(user, TASK.name, 5)}, {})
    context = EvalContext(
        reg, request, design, {(0, ""): bank}, dict(load_profiles(reg, TASK.name, bank.embedder, [one.id]))
    )
    context.merge_task_adapter(0, method)
    (found,) = build_models(method, context.workbench(0).methods, context.method_users([user]), settings)
    return found


def same(ours: LoraWeights, theirs: LoraWeights) -> bool:
    return ours.to_bytes({}) == theirs.to_bytes({})


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("anchors", WEIGHT_METHODS)
def test_what_adapt_stores_is_what_eval_measures(banked: Registry, anchors: str, memory: str) -> None:
    """The merged parts and the label weights, for every method that the product can store."""
    ida, bank = banked.users.get("ida"), banked.banks.get("lamp-2")
    options = MemoryOptions(memory)
    request = replace(fuse_request(weights=anchors), memory=options)
    finish(adapt_users(banked, AdaptRequest([ida], QUICK, request)))
    stored, _ = load_fusion_and_stack(banked, bank.base, ida, TASK.name, "adapted")

    method = Method("any", "", anchors=anchors, stack="lora", memory=memory)  # type: ignore[arg-type]
    settings = {
        **{name: getattr(QUICK, name) for name in ("steps", "batch_size", "learning_rate")},
        **LORA,
    }
    model = measured(banked, bank, method, ida.id, settings)
    merged = merge_loras([(lora, 1.0) for lora in model.loras])
    assert merged is not None and len(stored) == 1 and same(stored[0], merged)

    prior = BankMemory(banked, TASK, bank).prior_for(ida, "adapted", options)
    for text, time in (("a film about a ship", None), ("another horse", "2020-01-03")):
        scores = [-float(n) for n in range(len(TASK.labels))]
        assert add_label_prior(scores, prior, text, time) == add_label_prior(scores, model.prior, text, time)


@pytest.mark.parametrize("anchors", WEIGHT_METHODS)
def test_the_fusion_alone_too(banked: Registry, anchors: str) -> None:
    from mta_cli.pipeline.personalize.fuse import fuse_user

    jon, bank = banked.users.get("jon"), banked.banks.get("lamp-2")
    finish(fuse_user(banked, jon, fuse_request(weights=anchors)))
    stored, _ = load_fusion_and_stack(banked, bank.base, jon, TASK.name, "fused")
    method = Method("any", "", anchors=anchors, memory="neighbours")  # type: ignore[arg-type]
    (fusion,) = measured(banked, bank, method, jon.id, {}).loras
    assert len(stored) == 1 and same(stored[0], fusion)


def test_the_anchors_that_the_screening_refuses_serve_in_neither(peopled: Registry) -> None:
    """The bank of an evaluation's fold has the screening of a bank of the same users that is built for use."""
    strict = ScreeningOptions(max_norm=1.05)
    left = []
    for name, purpose in (("used", ""), ("fold", PURPOSE)):
        finish(
            build_bank(peopled, replace(bank_request(name=name, anchors=5, min_items=1), gates=strict, purpose=purpose))
        )
        bank = peopled.banks.get(name, 1)
        left.append({anchor.user for anchor in usable_anchors(peopled, bank)})
        anchors = peopled.banks.anchors(bank.id)
        assert {anchor.user for anchor in anchors if anchor.stale} == {anchor.user for anchor in anchors} - left[-1]
    assert left[0] == left[1] and 0 < len(left[0]) < 5


def test_the_defaults_are_one_table() -> None:
    """`mta` in an evaluation has the settings that `mta user adapt` takes when nothing is given."""
    from mta_cli.lab.methods.catalog import find_method
    from mta_cli.options import FuseOptions

    for name, value in find_method("mta").default_settings.items():
        known = [getattr(one, name) for one in (AdaptOptions(), FuseOptions(), MemoryOptions()) if hasattr(one, name)]
        assert known == [value], name
