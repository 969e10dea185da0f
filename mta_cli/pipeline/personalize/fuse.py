"""The job behind `mta user fuse`: which anchors, and how much of each. Only the recipe is stored, no merged weights."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound, StoreBusy, UsageError
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobResult, JobStarted, Note, PlanLine
from mta_cli.options import FuseOptions, MachineOptions, MemoryOptions, PromptOptions
from mta_cli.pipeline.bank.screening import similarity_floors, usable_anchors
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.personalize.training_examples import TrainingExampleBuilder
from mta_cli.pipeline.personalize.weights import anchor_label, current_bank, load_weights
from store.records import Anchor, AnchorWeight, Bank, Item, Recipe, User

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

MODEL_BASED_WEIGHTS = ("evidence", "learned")
USER_LIST_HINT = "mta user list shows who there is"
COSINE_TOLERANCE = 1e-6  # by which a cosine may differ from the same one computed in other company
MAX_USERS_PER_BATCH, MAX_ANCHORS_PER_BATCH = 16, 64  # people and different anchors at most, where evidence is weighed


@dataclass(frozen=True)
class FuseRequest:
    """Everything a fusion needs to know. It rests on the newest ready bank of the task for this base.

    `answer`: how its models will answer; what they then add to labels' likelihoods need not be learned.
    """

    task: Task
    base: ModelEntry
    embedder: ModelEntry
    options: FuseOptions
    prompt: PromptOptions
    machine: MachineOptions
    memory: MemoryOptions = field(default_factory=MemoryOptions)


@dataclass(frozen=True)
class FuseTarget:
    """A user with the shots that count and the nearest anchors (`candidates` of them, or `top_k`), nearest first."""

    user: User
    shots: list[Item]
    nearest_anchors: list[tuple[Anchor, float]]


def fuse_user(
    reg: Registry,
    user: User,
    request: FuseRequest,
    *,
    plan: Sequence[PlanLine] = (),
    explicit_top_k: bool = False,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Make and store the recipe of one user. `Done.result` has the keys of `mta user fuse --json`."""
    bank = current_bank(reg, request.task.name, request.base.fingerprint)
    if explicit_top_k:
        check_top_k(reg, bank, request.options)
    yield JobPlan("user fuse", (*plan, PlanLine("user", user.name), *bank_plan_lines(bank, request)))
    if dry_run:
        yield JobResult({"dry_run": True, "user": user.name, "bank": bank.name})
        return
    people = yield from gather_fuse_targets(reg, bank, [user], request)
    shots = [person.shots for person in people]
    base = None
    if shots and choose_weighting(shots[0], request.options) in MODEL_BASED_WEIGHTS:
        base = load_with_task_adapter(reg, bank, request)
    recipe = (yield from make_recipes(reg, bank, people, request, base)).get(user.id)
    if recipe is None:
        raise NotFound(f"{user.name} was removed while being fused.", hint=USER_LIST_HINT)
    yield ArtifactSaved("recipe", user.name, f"{recipe.bytes} bytes")
    yield JobResult(recipe_json(reg, user, bank, recipe))


def bank_plan_lines(bank: Bank, request: FuseRequest) -> tuple[PlanLine, ...]:
    """What of somebody a plan is about, and what it stands on."""
    return (
        PlanLine("task", request.task.name),
        PlanLine("bank", f"{bank.name} v{bank.version}"),
        PlanLine("base", request.base.name),
    )


def check_top_k(reg: Registry, bank: Bank, options: FuseOptions) -> None:
    """UsageFault when a recipe of `top_k` anchors is asked of a bank that has fewer."""
    size = len(reg.banks.anchors(bank.id))
    if options.top_k > size:
        raise UsageError(
            f"--top-k {options.top_k}: bank {bank.name} v{bank.version} has {size} anchors.", hint=f"--top-k {size}"
        )


def choose_weighting(shots: Sequence[Item], options: FuseOptions) -> str:
    """How this user's anchors are weighted: as asked, else by evidence where there are shots, else by similarity.

    Without shots, what needs them falls back to similarity.
    """
    if not shots and options.weights in (None, *MODEL_BASED_WEIGHTS):
        return "similarity"
    return options.weights or "evidence"


def load_with_task_adapter(reg: Registry, bank: Bank, request: FuseRequest) -> LoadedBase:
    """The base with the bank's task adapter folded in, for good: for computing fusions and stacks above it."""
    base = load_on_device(request.base, request.machine, reg=reg)
    fold_task_adapter(reg, bank, base)
    return base


def fold_task_adapter(reg: Registry, bank: Bank, base: LoadedBase) -> None:
    """Fold the bank's task adapter, if it has one, into a base for good."""
    from mta_cli.engine.lora.adapter import AdapterMerger

    if bank.task_adapter:
        AdapterMerger(base).set_adapter(load_weights(reg, bank.task_adapter, bank.base))


def gather_fuse_targets(
    reg: Registry, bank: Bank, users: Sequence[User], request: FuseRequest
) -> Generator[Event, None, list[FuseTarget]]:
    """Profiles, shots and the nearest anchors of those of `users` who are still there; `return`s a list of people."""
    from mta_cli.engine.retrieval.nearest import nearest_rows
    from mta_cli.pipeline.data.profiles import profile_matrix, refresh_profiles

    anchors, floors = usable_anchors(reg, bank), similarity_floors(reg.banks.by_id(bank.id))
    known = {a.user_id for a in anchors if a.user_id is not None}
    wanted = [*users, *(reg.users.by_id(i) for i in sorted(known - {u.id for u in users}))]
    for event in refresh_profiles(reg, request.task.name, request.embedder, wanted, request.machine.device):
        if not isinstance(event, JobResult):
            yield event
    ids, matrix = profile_matrix(reg, request.task.name, request.embedder.fingerprint, [user.id for user in wanted])
    row, there = {user_id: i for i, user_id in enumerate(ids)}, reg.users.existing_users(users)
    reachable = [(a, row[a.user_id]) for a in anchors if a.user_id in row and a.digest is not None]
    most = max(request.options.candidates, request.options.top_k)
    people = []
    for user in (user for user in users if user.id in there):
        shots = reg.items.recent_items(user.id, request.task.name, request.options.shots)
        if user.id not in row:
            yield Note(
                f"{user.name} has no history for task {request.task.name}: the task adapter alone answers.",
                warning=True,
            )
            people.append(FuseTarget(user, shots, []))
            continue
        wanted_of = most + len(floors)  # next ones take over from those that draw too many
        chosen, values = nearest_rows(matrix[[place for _, place in reachable]], matrix[row[user.id]], wanted_of)
        ranked = [(reachable[i][0], v) for i, v in zip(chosen.tolist(), values.tolist(), strict=True)]
        served = [(anchor, v) for anchor, v in ranked if v >= floors.get(anchor.id, v) - COSINE_TOLERANCE]
        people.append(FuseTarget(user, shots, served[:most]))
    return people


def make_recipes(
    reg: Registry, bank: Bank, people: Sequence[FuseTarget], request: FuseRequest, base: LoadedBase | None
) -> Generator[Event, None, dict[int, Recipe]]:
    """Recipes of those of `people` who are still there, stored; `return`s them by user id.

    For evidence `base` must hold the task adapter. Raises StoreBusy where anchors left the bank meanwhile, and NotFound
    where it is gone itself.
    """
    evidence = yield from _evidence(reg, bank, people, request, base) if base is not None else _no_evidence()
    recipes = {}
    for person in people:
        method = choose_weighting(person.shots, request.options)
        shares = _shares(reg, bank, person, method, evidence.get(person.user.id, {}), request, base)
        recipe = Recipe(person.user.id, request.task.name, bank.id, method, tuple(shares), 12 * len(shares))
        recipes[person.user.id] = recipe
    with reg.transaction():  # together, for those who were left would be weighed in other company, to other bytes
        there = reg.users.existing_users(person.user for person in people)
        kept = {user_id: recipe for user_id, recipe in recipes.items() if user_id in there}
        _require_anchors(reg, bank, [share.anchor_id for recipe in kept.values() for share in recipe.shares])
        for recipe in kept.values():
            reg.recipes.save_recipe(recipe)
    return kept


def _require_anchors(reg: Registry, bank: Bank, anchors: Sequence[int]) -> None:
    known = {anchor.id for anchor in reg.banks.anchors(reg.banks.by_id(bank.id).id)}
    if not known.issuperset(anchors):
        raise StoreBusy(
            f"Anchors of bank {bank.name} v{bank.version} were replaced while it was fused.", hint="run this again"
        )


def _no_evidence() -> Generator[Event, None, dict[int, dict[int, float]]]:
    yield from ()
    return {}


def _evidence(
    reg: Registry, bank: Bank, people: Sequence[FuseTarget], request: FuseRequest, base: LoadedBase
) -> Generator[Event, None, dict[int, dict[int, float]]]:
    """Summed log-likelihood of what each person's shots teach, by anchor id (0: no anchor).

    What the anchors do not touch is computed once for each shot, and serves all of them. Labels that next to nothing
    speaks for without an anchor do not run with one.
    """
    from mta_cli.engine.scoring.label_examples import build_prompt_tree, example_log_likelihood
    from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, prune_examples

    teaching = TrainingExampleBuilder(reg, base, request)
    asking = [p for p in people if p.shots and choose_weighting(p.shots, request.options) in MODEL_BASED_WEIGHTS]
    _require_anchors(reg, bank, [anchor.id for person in asking for anchor, _ in person.nearest_anchors])
    known = {anchor.id: anchor.digest for anchor in reg.banks.anchors(bank.id)}
    found: dict[int, dict[int, float]] = {}
    yield JobStarted("evidence", total=len(asking), unit="users")
    loaded: dict[int, tuple[LoraWeights, ...]] = {0: ()}
    for portion in _evidence_batches(asking, request.options.candidates):
        weighed = [(person, i) for person, ids in portion for i in ids]
        loaded |= {i: _load_anchor_weights(reg, known[i], bank) for _, i in weighed if i not in loaded}
        places = {i: place for place, i in enumerate(dict.fromkeys(i for _, i in weighed))}
        whole = [(teaching.examples_from_shots(person.user, person.shots), ()) for person, _ in portion]
        where = [part.placement for i in places for part in loaded[i]]
        short = prune_examples(base, whole, where)
        shots = dict(zip([person.user.id for person, _ in portion], short, strict=True))
        forks = [build_prompt_tree(one) for own in shots.values() for one in own]
        first = dict(zip(shots, accumulate(map(len, shots.values()), initial=0), strict=False))
        asked = [
            (first[person.user.id] + n, places[i]) for person, i in weighed for n in range(len(shots[person.user.id]))
        ]
        values = iter(completion_log_likelihoods(base, forks, [loaded[i] for i in places], asked))
        for person, ids in portion:
            own = shots[person.user.id]
            found[person.user.id] = {i: sum(example_log_likelihood(one, next(values)) for one in own) for i in ids}
            yield JobProgress(person.user.name, len(found))
    return found


def _evidence_batches(people: Sequence[FuseTarget], candidates: int) -> Iterator[list[tuple[FuseTarget, list[int]]]]:
    """People who are weighed together, each with their candidates' ids (0: no anchor), in their order."""
    portion: list[tuple[FuseTarget, list[int]]] = []
    different: set[int] = set()
    for person in people:
        ids = [0, *(anchor.id for anchor, _ in person.nearest_anchors[:candidates])]
        if portion and (len(portion) == MAX_USERS_PER_BATCH or len(different.union(ids)) > MAX_ANCHORS_PER_BATCH):
            yield portion
            portion, different = [], set()
        portion.append((person, ids))
        different.update(ids)
    if portion:
        yield portion


def _load_anchor_weights(reg: Registry, digest: str | None, bank: Bank) -> tuple[LoraWeights, ...]:
    return (load_weights(reg, digest, bank.base),) if digest else ()


def _shares(
    reg: Registry,
    bank: Bank,
    person: FuseTarget,
    method: str,
    evidence: dict[int, float],
    request: FuseRequest,
    base: LoadedBase | None,
) -> list[AnchorWeight]:
    from mta_cli.engine.lora import merge

    options, top_k = request.options, request.options.top_k
    if not person.nearest_anchors:
        return []
    if method not in MODEL_BASED_WEIGHTS:
        nearest = person.nearest_anchors[:top_k]
        values = [min(similarity, options.max_cosine) for _, similarity in nearest]
        weigh = {
            "similarity": lambda: merge.similarity_weights(values),
            "uniform": lambda: merge.uniform_weights(len(values)),
            "softmax": lambda: merge.softmax_weights(values, options.temperature),
        }
        weights = weigh[method]()
        return [
            AnchorWeight(anchor.id, similarity, w) for (anchor, similarity), w in zip(nearest, weights, strict=True)
        ]
    best = sorted(
        ((anchor, value) for anchor, value in person.nearest_anchors if anchor.id in evidence),
        key=lambda pair: -evidence[pair[0].id],
    )[:top_k]
    shares, _ = merge.evidence_weights([evidence[a.id] for a, _ in best], evidence[0], options.sharpness)
    weights = [options.scale * share for share in shares]
    if method == "learned" and base is not None:
        weights = _learn_shares(reg, bank, person, [anchor for anchor, _ in best], weights, request, base)
    return [AnchorWeight(anchor.id, value, weight) for (anchor, value), weight in zip(best, weights, strict=True)]


def _learn_shares(
    reg: Registry,
    bank: Bank,
    person: FuseTarget,
    anchors: Sequence[Anchor],
    prior: list[float],
    request: FuseRequest,
    base: LoadedBase,
) -> list[float]:
    from mta_cli.engine.training.fusion_weights import learn_weights

    loaded: list[LoraWeights] = [load_weights(reg, a.digest, bank.base) for a in anchors if a.digest is not None]
    return learn_weights(
        base, loaded, prior, TrainingExampleBuilder(reg, base, request).examples_from_shots(person.user, person.shots)
    )


def recipe_json(reg: Registry, user: User, bank: Bank, recipe: Recipe) -> dict[str, Any]:
    """The document of `mta user fuse`."""
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
