"""The job behind `mta user fuse`: chooses and weights a user's anchors. Stores the recipe, not the merged weights."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, Flag, NotFound, UsageError, UsersChanged
from mta_cli.events import (
    ArtifactSaved,
    Event,
    JobPlan,
    JobProgress,
    JobResult,
    JobStarted,
    Note,
    PlanLine,
    forward_events,
)
from mta_cli.options import SHOT_WEIGHTINGS, FuseOptions
from mta_cli.pipeline.anchors import usable_anchors
from mta_cli.pipeline.bases_in_use import on_base
from mta_cli.pipeline.executors import open_executors
from mta_cli.pipeline.runs import bank_label
from mta_cli.pipeline.user_weights import anchor_label, current_bank
from mta_cli.pipeline.workbench import Workbench
from store.records import Anchor, AnchorWeight, Bank, Item, Recipe, User

if TYPE_CHECKING:
    from mta_cli.engine.methods.anchor_weights import AnchorShare, EvidenceWork
    from mta_cli.engine.methods.method import UserShots
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import FuseRequest
    from store.registry import Registry


def fuse_user(
    reg: Registry,
    user: User,
    request: FuseRequest,
    *,
    plan: Sequence[PlanLine] = (),
    explicit_top_k: bool = False,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Make and store the recipe of one user. `JobResult.result` has the keys of `mta user fuse --json`."""
    bank = current_bank(reg, request.task.name, request.base.fingerprint)
    bank_embedder(reg, bank, request.embedder)
    if explicit_top_k:
        check_top_k(reg, bank, request.options)
    yield JobPlan("user fuse", (*plan, PlanLine("user", user.name), *bank_plan_lines(bank, request)))
    if dry_run:
        yield JobResult({"dry_run": True, "user": user.name, "bank": bank.name})
        return
    recipes = yield from _fuse(reg, bank, [user], request)
    yield ArtifactSaved("recipe", user.name, f"{recipes[user.id].bytes} bytes")
    yield JobResult(recipe_json(reg, user, bank, recipes[user.id]))


def fuse_users(reg: Registry, users: Sequence[User], request: FuseRequest) -> Iterator[Event]:
    """Make and store recipes for those `users` who have none on the current bank. The base is loaded once.

    `JobResult.result` is the list of the users' documents of `mta user fuse --json`.
    """
    bank = current_bank(reg, request.task.name, request.base.fingerprint)
    bank_embedder(reg, bank, request.embedder)
    kept = {user.id: reg.recipes.get(user.id, request.task.name, bank.id) for user in users}
    if missing := [user for user in users if kept[user.id] is None]:
        kept |= yield from _fuse(reg, bank, missing, request)
    yield JobResult([recipe_json(reg, user, bank, recipe) for user in users if (recipe := kept[user.id]) is not None])


def _fuse(
    reg: Registry, bank: Bank, users: Sequence[User], request: FuseRequest
) -> Generator[Event, None, dict[int, Recipe]]:
    """Make and store the recipes of `users`; returns them by user id. Loads the base if evidence needs it."""
    task, shots = request.task.name, request.options.shots
    needs_base = requested_weighting(request.options) in SHOT_WEIGHTINGS and any(
        reg.items.recent_items(user.id, task, shots) for user in users
    )
    used = [*(user.id for user in users), *anchor_users(reg, bank)]
    with (
        reg.hold_users(job_title("fusion", reg, request), used),
        open_executors(request.executor) as executors,
    ):
        bench = Workbench(reg, request, bank, executors, loads_base=needs_base)
        yield from refresh_bank_profiles(bench, users)
        with bench.holding_task_adapter():
            return (yield from make_recipes(bench, users, request))


def job_title(job: str, reg: Registry, request: FuseRequest) -> str:
    """The title of a running job: its task, its base if the store has banks on several, and its Ray workers if any."""
    return f"{job} for {request.task.name}{on_base(reg, request.base.fingerprint)}{request.executor.title_suffix}"


def anchor_users(reg: Registry, bank: Bank) -> list[int]:
    """The ids of the bank's anchor users, without those who were forgotten."""
    return [anchor.user_id for anchor in reg.banks.anchors(bank.id) if anchor.user_id is not None]


def bank_plan_lines(bank: Bank, request: FuseRequest) -> tuple[PlanLine, ...]:
    """Plan lines with the task, the bank and the base."""
    return (
        PlanLine("task", request.task.name),
        PlanLine("bank", f"{bank.name} v{bank.version}"),
        PlanLine("base", request.base.name),
    )


def check_top_k(reg: Registry, bank: Bank, options: FuseOptions) -> None:
    """Raise UsageError if `top_k` is larger than the bank's number of usable anchors."""
    size = len(usable_anchors(reg, bank))
    if options.top_k > size:
        raise UsageError(
            (Flag("top_k", options.top_k), f": bank {bank.name} v{bank.version} has only {size} usable anchors."),
            hint=("at most ", Flag("top_k", size)),
        )


def bank_embedder(reg: Registry, bank: Bank, asked: ModelEntry | None = None) -> ModelEntry:
    """The embedder of the bank, ready to load, because profiles of different embedders cannot be compared.

    Raises UsageError if another one was `asked` for, and NotFound if the bank's is not on this machine.
    """
    from mta_cli.pipeline.models.installed import resolve_model

    name, label = reg.models.get(bank.embedder).name, bank_label(bank)
    if asked is not None:
        if asked.fingerprint == bank.embedder:
            return asked
        raise UsageError(
            (Flag("embedder", asked.name), f": bank {label} was built with {name}."),
            hint=(
                "leave ",
                Flag("embedder"),
                " out, or build another bank: ",
                Command("bank build", task=bank.task, embedder=asked.name),
            ),
        )
    anew = Command("bank build", task=bank.task)
    try:
        found = resolve_model(name, "embedder")
    except NotFound as error:
        raise NotFound(
            f"Bank {label} was built with the embedder {name}, which is not on this machine.",
            hint=(error.hint or "", ", or build the bank again with an installed embedder: ", anew),
        ) from None
    if found.fingerprint != bank.embedder:
        raise NotFound(
            f"Bank {label} was built with another version of the embedder {name} than this machine has.",
            hint=("build the bank again with this version: ", anew),
        )
    return found


def requested_weighting(options: FuseOptions) -> str:
    """The name of the requested weighting, by default `evidence`. A user without shots may get another; see
    `weighting_for`.
    """
    return options.weights or "evidence"


def refresh_bank_profiles(bench: Workbench[FuseRequest], users: Sequence[User]) -> Iterator[Event]:
    """Bring the profiles of `users` and of the bank's anchors up to date."""
    from mta_cli.pipeline.data.profiles import refresh_profiles

    reg, bank, known = bench.reg, bench.bank, {user.id for user in users}
    embedder = bank_embedder(reg, bank, bench.spec.embedder)
    anchor_ids = {one.user_id for one in usable_anchors(reg, bank) if one.user_id is not None}
    wanted = [*users, *(reg.users.by_id(number) for number in sorted(anchor_ids - known))]
    yield from forward_events(refresh_profiles(reg, bench.task.name, embedder, wanted, bench.spec.machine.device))


def make_recipes(
    bench: Workbench[FuseRequest], users: Sequence[User], request: FuseRequest
) -> Generator[Event, None, dict[int, Recipe]]:
    """Compute and store the recipes of `users`; returns them by user id.

    The task adapter must be merged into the base. The recipes of a batch are stored together as soon as they are
    computed. Raises UsersChanged if anchors were replaced meanwhile, and NotFound if the bank was removed.
    """
    reg = bench.reg
    by_id = {user.id: user for user in users}
    shots = {user.id: _evidence_items(reg, user, request) for user in users}
    asking = [bench.user_shots(user, shots[user.id]) for user in users]
    for one in asking:
        if one.profile is None:
            yield Note(
                f"{by_id[one.number].name} has no history for task {request.task.name}: "
                "the task adapter alone answers.",
                warning=True,
            )
    recipes, anchors = dict[int, Recipe](), bench.anchors  # read once, so that all recipes use the same anchors
    yield JobStarted("weights of anchors", total=len(asking), unit="users")
    for found in _weigh_batches(bench, asking, request):
        batch = [
            _make_recipe(bench, anchors, by_id[one.number], _method(one, request), shares, shots[one.number])
            for one, shares in found
        ]
        with reg.transaction():
            known = {anchor.id for anchor in reg.banks.anchors(bench.bank.id)}
            if not known.issuperset(share.anchor_id for recipe in batch for share in recipe.shares):
                changed = f"Anchors of bank {bench.bank.name} v{bench.bank.version} were replaced during the fusion."
                raise UsersChanged(changed, hint="run this again")
            for recipe in batch:
                reg.recipes.save_recipe(recipe)
        recipes |= {recipe.user_id: recipe for recipe in batch}
        yield JobProgress(by_id[batch[-1].user_id].name if len(asking) == 1 else "", len(recipes))
    return recipes


def _make_recipe(
    bench: Workbench[FuseRequest],
    anchors: Sequence[Anchor],
    user: User,
    method: str,
    shares: Sequence[AnchorShare],
    shots: Sequence[Item],
) -> Recipe:
    from mta_cli.engine.methods.anchor_weights import SHARE_BYTES

    items_hash = bench.reg.items.hash_items(shots) if method in SHOT_WEIGHTINGS else ""
    rows = tuple(AnchorWeight(anchors[one.anchor].id, one.similarity, one.weight) for one in shares)
    size = SHARE_BYTES * len(rows)
    return Recipe(user.id, bench.task.name, bench.bank.id, method, rows, size, items_hash=items_hash)


def hash_evidence_items(reg: Registry, user: User, request: FuseRequest) -> str:
    """The hash of the items from whose likelihood the user's anchor weights are computed."""
    return reg.items.hash_items(_evidence_items(reg, user, request))


def _evidence_items(reg: Registry, user: User, request: FuseRequest) -> list[Item]:
    return reg.items.recent_items(user.id, request.task.name, request.options.shots)


def _method(user: UserShots, request: FuseRequest) -> str:
    from mta_cli.engine.methods.anchor_weights import weighting_for

    return weighting_for(user, requested_weighting(request.options))


def _weigh_batches(
    bench: Workbench[FuseRequest], asking: Sequence[UserShots], request: FuseRequest
) -> Iterator[list[tuple[UserShots, list[AnchorShare]]]]:
    """Yields the users of each batch with the weights of their anchors.

    Batches come in the order of the users, even if the executor finishes them in another. So a resumed job forms the
    same batches as before, which matters because the last bits of a weight depend on its batch.
    """
    from mta_cli.engine.methods.anchor_weights import EvidenceWork, shot_cases, user_batches, weigh_anchors

    context, options, memory = bench.methods, request.options, request.memory
    weighting = requested_weighting(options)
    batches: list[list[UserShots]] = []
    weighed = [one for one in asking if _method(one, request) in SHOT_WEIGHTINGS]
    if others := [one for one in asking if _method(one, request) not in SHOT_WEIGHTINGS]:
        yield list(zip(others, weigh_anchors(context, others, weighting, options, memory), strict=True))
    if not weighed:
        return

    def works() -> Iterator[EvidenceWork]:
        for batch in user_batches(context, weighed, weighting, options):
            batches.append(batch)
            yield EvidenceWork(shot_cases(context, batch, options, memory), options)
            context.cache.clear()  # these users are not needed again

    done, early = 0, dict[int, Any]()  # the number of yielded batches, and batches that finished before their turn
    for number, found in bench.executor.run(works(), bench.task_adapter, context.anchors):
        early[number] = found
        while done in early:
            yield list(zip(batches[done], early.pop(done), strict=True))
            done += 1


def recipe_json(reg: Registry, user: User, bank: Bank, recipe: Recipe) -> dict[str, Any]:
    """The JSON document of `mta user fuse`."""
    names = {anchor.id: anchor_label(anchor) for anchor in reg.banks.anchors(bank.id)}
    anchors = [{"user": names.get(s.anchor_id), "similarity": s.similarity, "weight": s.weight} for s in recipe.shares]
    rest = 1.0 - sum(share.weight for share in recipe.shares)
    return {
        "user": user.name,
        "task": recipe.task,
        "bank": bank.name,
        "version": bank.version,
        "method": recipe.method,
        "anchors": anchors,
        "null_weight": round(max(0.0, rest), 12),
        "recipe_bytes": recipe.bytes,
    }
