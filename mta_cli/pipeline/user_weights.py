"""Merges the weights of a user's model exactly: task adapter + fusion + stack. Trains nothing.

`W_u = W + s_t B_t A_t + Σ w_a s_a B_a A_a + s_u B_u A_u`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, Flag, IntegrityFault, NotFound, UsageError, Words
from mta_cli.pipeline.bases_in_use import base_flags, base_name, base_name_if_several, base_names
from mta_cli.pipeline.data.tasks import find_task, has_task
from store.records import Anchor, AnchorWeight, Bank, Recipe, Stack, User

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from store.registry import Registry

PERSONALISATION_MODES = ("base", "common", "fused", "adapted")
OWN_MODES = ("fused", "adapted")  # the modes whose weights belong to one user
FREE_TASK = "free"


@dataclass(frozen=True)
class AnswerSource:
    """The model that gave an answer: mode, bank and anchors."""

    mode: str
    bank: str | None = None
    version: int | None = None
    anchors: tuple[str, ...] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """The source as JSON, for the document of an answer."""
        return {"mode": self.mode, "bank": self.bank, "version": self.version, "anchors": list(self.anchors)}


def load_weights(reg: Registry, digest: str, base: str) -> LoraWeights:
    """An adapter from the store. Verifies the file, and that it was trained on `base` (a fingerprint)."""
    from mta_cli.engine.lora.adapter import LoraWeights

    return LoraWeights.from_file(reg.adapters.verified_path(digest, base=base))


def load_stack_weights(reg: Registry, stack: Stack, base: str) -> LoraWeights:
    """The verified weights of a user's stack: an adapter, or a core that an earlier version of `mta` stored."""
    from mta_cli.engine.lora.cores import unpack_core

    weights = load_weights(reg, stack.digest, base)
    return weights if stack.numbers is None else unpack_core(weights, reg.stacks.verified_numbers(stack))


def current_bank(reg: Registry, task: str, base: str) -> Bank:
    """The newest ready bank of a task for a base (a fingerprint). Raises NotFound without one."""
    bank = reg.banks.latest_ready_bank(task, base)
    if bank is not None:
        return bank
    if others := base_names(reg, task):
        raise NotFound(
            f"There is no bank for task {task} on this base; there is one on {', '.join(others)}.",
            hint=("use ", *base_flags(others), ", or run ", Command("bank build", task=task), " with this base"),
        )
    raise NotFound(f"There is no bank for task {task}.", hint=Command("bank build", task=task))


def user_command(reg: Registry, verb: str, user: User, task: str, base: str, name: str | None = None) -> Command:
    """`mta user VERB USER --task TASK`, with `--base` if it is needed. `base` is a fingerprint, `name` its name."""
    return Command(f"user {verb}", user.name, task=task, base=base_name_if_several(reg, base, name))


def other_bases_hint(reg: Registry, user: User, task: str, base: str) -> tuple[Words, ...]:
    """`--base NAME, or ` for each other base on which the user has a model of the task; empty without one."""
    others = [base_name(reg, other) for other in reg.banks.bases_of_user(user.id, task) if other != base]
    return (*base_flags(others), ", or ") if others else ()


def resolve_user_task(reg: Registry, user: User, task: str | None) -> str:
    """`task` if given, else the user's only task, or the user's only task with a bank; removed tasks do not count.

    Raises UsageError if there are several, and NotFound if there are none.
    """
    if task is not None:
        return task
    known = [name for name, _, _ in reg.users.tasks_of_user(user.id) if has_task(reg, name)]
    banked = [name for name in known if reg.banks.latest_ready_bank(name) is not None]
    if len(known) == 1 or len(banked) == 1:
        return (banked or known)[0]
    if known:
        raise UsageError(
            f"{user.name} has items in several tasks: {', '.join(known)}.", hint=("name one with ", Flag("task"))
        )
    raise NotFound(
        f"{user.name} has no items yet.",
        hint=("add some: ", Command("user add", user.name, history="FILE"), "; or name a task with ", Flag("task")),
    )


def anchor_label(anchor: Anchor) -> str:
    """The name of an anchor's user, or a placeholder if the user was forgotten."""
    return anchor.user if anchor.user is not None else f"(forgotten #{anchor.id})"


def load_task_adapter(reg: Registry, task: str, base: str) -> tuple[LoraWeights, ...]:
    """The task adapter of the task's current bank, as a tuple of one; empty if the bank has none."""
    bank = current_bank(reg, task, base)
    return (load_weights(reg, bank.task_adapter, bank.base),) if bank.task_adapter else ()


def load_recipe_anchors(
    reg: Registry, bank: Bank, shares: Sequence[AnchorWeight]
) -> tuple[list[tuple[LoraWeights, float]], tuple[str, ...]]:
    """A recipe's anchors with their weights, and the names of anchors whose weight is not 0.

    Raises IntegrityFault if the bank lacks an anchor.
    """
    loras: list[tuple[LoraWeights, float]] = []
    anchors = {anchor.id: anchor for anchor in reg.banks.anchors(bank.id)}
    names = []
    for share in shares:
        anchor = anchors.get(share.anchor_id)
        if anchor is None or anchor.digest is None:
            raise IntegrityFault(
                f"A recipe names anchor {share.anchor_id}, which bank {bank.name} v{bank.version} does not have.",
                hint=("make the recipe again: ", Command("user fuse", "USER")),
            )
        loras.append((load_weights(reg, anchor.digest, bank.base), share.weight))
        if share.weight != 0.0:
            names.append(anchor_label(anchor))
    return loras, tuple(names)


def model_parts(reg: Registry, user: User, task: str, bank: Bank) -> Hashable:
    """A value that identifies what the user's model on `bank` is made of. Equal values mean equal models."""
    recipe, stack = reg.recipes.get(user.id, task, bank.id), reg.stacks.get(user.id, task, bank.id)
    anchors = tuple((anchor.id, anchor.user) for anchor in reg.banks.anchors(bank.id))
    return (bank.id, bank.key, bank.task_adapter, anchors, repr(recipe), repr(stack))


def available_modes(reg: Registry, user: User | None, task: str, base: str) -> list[str]:
    """The modes that can answer for this user, the most personal one last. With a bank, every user has `common`."""
    bank = reg.banks.latest_ready_bank(task, base)
    if bank is None:
        return ["base"]
    found = ["base", "common"]
    if user is not None and reg.recipes.get(user.id, task, bank.id) is not None:
        found.append("fused")
    if user is not None and reg.stacks.get(user.id, task, bank.id) is not None:  # a stack may exist without a recipe
        found.append("adapted")
    return found


def most_personal_mode(reg: Registry, user: User | None, task: str, base: str) -> str:
    """The user's most personal mode: adapted, else fused, else common if the task has a bank, else base.

    Without a user it is base.
    """
    return "base" if user is None else available_modes(reg, user, task, base)[-1]


def default_task(
    reg: Registry, user: User | None, asked: str | None, base_fingerprint: str, about: str | None = None
) -> str:
    """The task whose weights and items are used for a user: `asked` if given, else `free` without a user.

    Otherwise it is a task for which the user has a model on this base: `free`, else a task of texts, else a task with
    labels. Among several tasks of texts, the one whose items are nearest to the text `about` is used, else the newest.
    A user without a model gets the task with most of their items. A removed task is used only if it is `asked`.
    """
    if asked is not None or user is None:
        return asked or FREE_TASK
    own = tasks_with_model(reg, user, base_fingerprint)
    if not own:
        known = [name for name, _, _ in reg.users.tasks_of_user(user.id) if has_task(reg, name)]
        return known[0] if known else FREE_TASK
    texts = [name for name in own if not find_task(reg, name).labels]
    if FREE_TASK not in texts and len(texts) > 1 and about is not None:
        return reg.items.nearest_task(user.id, texts, about) or texts[0]
    return FREE_TASK if FREE_TASK in texts else [*texts, *own][0]


def tasks_with_model(reg: Registry, user: User, base_fingerprint: str) -> list[str]:
    """The tasks for whose current bank on this base the user has a recipe or a stack, the newest first."""
    parts: list[Recipe | Stack] = [*reg.recipes.of_user(user.id), *reg.stacks.of_user(user.id)]
    found: dict[str, None] = {}
    for part in sorted(parts, key=lambda part: part.created, reverse=True):
        bank = reg.banks.latest_ready_bank(part.task, base_fingerprint)
        if bank is not None and bank.id == part.bank_id and has_task(reg, part.task):
            found[part.task] = None
    return list(found)


def load_fusion_and_stack(
    reg: Registry, base: str, user: User | None, task: str, mode: str
) -> tuple[tuple[LoraWeights, ...], AnswerSource]:
    """The LoRAs that `mode` adds above the task adapter: fusion and stack, one exact merge for each placement.

    Also returns the source of the answers. Raises NotFound if the user has no such model.
    """
    if mode == "base":
        return (), AnswerSource("base")
    bank = current_bank(reg, task, base)
    if mode == "common":
        return (), AnswerSource("common", bank.name, bank.version)
    if user is None:
        return (), AnswerSource("base")
    from mta_cli.engine.lora.merge import merge_loras

    recipe = reg.recipes.get(user.id, task, bank.id)
    stack = reg.stacks.get(user.id, task, bank.id)
    if mode == "adapted" and stack is None:
        raise NotFound(f"{user.name} has no stack for task {task}.", hint=user_command(reg, "adapt", user, task, base))
    if mode == "fused" and recipe is None:
        raise NotFound(f"{user.name} has no recipe for task {task}.", hint=user_command(reg, "fuse", user, task, base))
    # A stack belongs to the recipe that it was trained on, not to a newer one.
    shares = stack.recipe if mode == "adapted" and stack else recipe.shares if recipe else ()
    loras, names = load_recipe_anchors(reg, bank, shares)
    if mode == "adapted" and stack is not None:
        loras.append((load_stack_weights(reg, stack, bank.base), 1.0))
    kinds = dict.fromkeys(lora.placement.late_tokens for lora, _ in loras)
    merged = (merge_loras([(lora, w) for lora, w in loras if lora.placement.late_tokens == kind]) for kind in kinds)
    return tuple(lora for lora in merged if lora is not None), AnswerSource(mode, bank.name, bank.version, names)


def loras_by_placement(
    reg: Registry, base: str, user: User | None, task: str, mode: str
) -> tuple[LoraWeights | None, LoraWeights | None, AnswerSource]:
    """A user's model as two exact merges: the LoRA of all tokens, with the task adapter, and the LoRA of late tokens.

    Each is None without weights. Raises NotFound if the user has no such model, and IntegrityFault if late LoRAs act on
    different numbers of tokens.
    """
    from mta_cli.engine.lora.merge import merge_loras

    loras, source = load_fusion_and_stack(reg, base, user, task, mode)
    if source.bank is None:
        return None, None, source
    loras = (*load_task_adapter(reg, task, base), *loras)
    everywhere = merge_loras([(lora, 1.0) for lora in loras if lora.placement.late_tokens is None])
    return everywhere, merge_loras([(lora, 1.0) for lora in loras if lora.placement.late_tokens is not None]), source


def approximate_on_all_tokens(everywhere: LoraWeights | None, late: LoraWeights) -> LoraWeights | None:
    """An approximation of a user's model: both LoRAs of `loras_by_placement` as one that acts on all tokens."""
    from mta_cli.engine.lora.merge import merge_loras

    moved = replace(late, placement=replace(late.placement, late_tokens=None))
    return merge_loras([(one, 1.0) for one in (everywhere, moved) if one is not None])
