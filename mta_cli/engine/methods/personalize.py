"""Makes the models of a group of users by a method's five choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mta_cli.engine.evaluation.ladder import ADAPTED
from mta_cli.engine.methods.anchor_weights import SHARE_BYTES, merge_shares, weigh_anchors
from mta_cli.engine.methods.method import Method, MethodContext, MethodOptions, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import read_stacks, stack_work
from mta_cli.engine.training.session import TrainingResult
from mta_cli.engine.training.work import GroupWork

MTA = Method(
    "mta",
    "Merge-then-Adapt: fusion by evidence, a LoRA above it, label memory",
    anchors="evidence",
    stack="lora",
    memory="neighbours",
    version=12,
    step=ADAPTED,
)
"""The product's default method."""


@dataclass(frozen=True)
class ModelPlan:
    """`work` trains the stacks of a group of users; None if there is nothing to train. `finish` makes the users' models
    from the result of `work`, or from None without work.
    """

    work: GroupWork | None
    finish: Callable[[TrainingResult | None], list[UserModel]]


def build_models(
    method: Method, context: MethodContext, users: Sequence[UserShots], settings: Settings
) -> list[UserModel]:
    """The model of each of `users` under `method`. The same users in the same order get the same models."""
    plan = plan_models(method, context, users, settings)
    return plan.finish(None if plan.work is None else plan.work.train(context.loaded_base))


def plan_models(method: Method, context: MethodContext, users: Sequence[UserShots], settings: Settings) -> ModelPlan:
    """All of `build_models` except the training of the stacks, which the plan leaves to the caller."""
    options = MethodOptions.from_settings(method, settings)
    if method.build is not None:
        models = method.build(context, users, settings)
        return ModelPlan(None, lambda result: _permuted_with_memory(method, context, users, options, models))
    # 1. anchors and their weights
    recipes = weigh_anchors(context, users, method.anchors, options.fuse, options.memory)
    # 2. the frozen merge of the anchors
    released = method.anchors == "released"
    fusions = [
        merge_shares([context.anchors[one.anchor] for one in recipe], [one.weight for one in recipe], released=released)
        for recipe in recipes
    ]
    # 3. the user's own stack above it
    work = stack_work(context, users, fusions, options.adapt, options.memory) if method.stack != "none" else None

    def finish(result: TrainingResult | None) -> list[UserModel]:
        models = [
            UserModel((*fusion, *stack.loras), bytes=SHARE_BYTES * len(recipe) + stack.bytes, failed=stack.failed)
            for recipe, fusion, stack in zip(recipes, fusions, read_stacks(users, work, result), strict=True)
        ]
        return _permuted_with_memory(method, context, users, options, models)

    return ModelPlan(work, finish)


def _permuted_with_memory(
    method: Method,
    context: MethodContext,
    users: Sequence[UserShots],
    options: MethodOptions,
    models: Sequence[UserModel],
) -> list[UserModel]:
    """The users' models with their own label priors; if `method.permuted`, each user has the LoRAs of the next one."""
    if method.permuted:  # a user alone in the group gets the task adapter only
        models = [UserModel()] if len(models) == 1 else [*models[1:], *models[:1]]
    if method.memory is None:
        return list(models)
    with_memory = []
    for user, model in zip(users, models, strict=True):
        prior = context.memory.prior_of(user.answers, options.memory)
        size = context.memory.stored_bytes(user.answers) if prior is not None else 0
        with_memory.append(replace(model, prior=prior, bytes=model.bytes + size))
    return with_memory
