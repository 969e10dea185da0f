"""Builds the models of a group of users from a method's five choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mta_cli.engine.methods.anchor_weights import SHARE_BYTES, merge_shares, weigh_anchors
from mta_cli.engine.methods.method import Method, MethodContext, MethodOptions, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import UserStack, fit_stacks


def build_models(
    method: Method, context: MethodContext, users: Sequence[UserShots], settings: Settings
) -> list[UserModel]:
    """The model of each of `users` under `method`. The same users in the same order get the same models."""
    options = MethodOptions.from_settings(method, settings)
    models = method.build(context, users, settings) if method.build else _compose(method, context, users, options)
    if method.memory is None:
        return models
    with_memory = []
    for user, model in zip(users, models, strict=True):
        prior = context.memory.prior_of(user.answers, options.memory)
        size = context.memory.stored_bytes(user.answers) if prior is not None else 0
        with_memory.append(replace(model, prior=prior, bytes=model.bytes + size))
    return with_memory


def _compose(
    method: Method, context: MethodContext, users: Sequence[UserShots], options: MethodOptions
) -> list[UserModel]:
    # 1. anchors and their weights
    recipes = weigh_anchors(context, users, method.anchors, options.fuse, options.memory)
    # 2. the frozen merge of the anchors
    released = method.anchors == "released"
    fusions = [
        merge_shares([context.anchors[one.anchor] for one in recipe], [one.weight for one in recipe], released=released)
        for recipe in recipes
    ]
    # 3. the user's own stack above it
    stacks = [UserStack() for _ in users]
    if method.stack != "none":
        stacks = fit_stacks(context, users, fusions, options.adapt, options.memory)
    return [
        UserModel((*fusion, *stack.loras), bytes=SHARE_BYTES * len(recipe) + stack.bytes, failed=stack.failed)
        for recipe, fusion, stack in zip(recipes, fusions, stacks, strict=True)
    ]
