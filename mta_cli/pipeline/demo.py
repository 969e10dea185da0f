"""The job behind `mta demo`: the carried sample through every stage, with the jobs that everybody else uses.

Two courses: `taste`, a labelling task that is measured on held-out queries, and `voice`, a writing task that is shown.
Renders nothing. Every stage can be repeated: what is there already is kept, so a stopped demo goes on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, NotFound
from mta_cli.events import Done, Event, Note, PlanLine, Planned, Started, Step, Token
from mta_cli.options import AdaptOptions, AnswerOptions, BankOptions, FuseOptions, Machine, PromptOptions
from mta_cli.pipeline.passing import passed_on

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.lookup import ModelEntry
    from store.records import User
    from store.registry import Registry

SAMPLE = Path(__file__).parent.parent / "sample"
SHORT = 12  # a person with no more items than this is new: no candidate for an anchor, adapted in the end
SHOWN = ("bryn", "fleur", "piran")  # short histories, three kinds of taste and three voices
EVALUATED = ("base", "pooled", "fused", "adapted")


@dataclass(frozen=True)
class Course:
    """One task of the demo. `who` is adapted, or everybody who is new; `measured` says whether queries are scored."""

    task: str
    bank: BankOptions
    adapt: AdaptOptions
    prompt: PromptOptions
    who: tuple[str, ...] = ()
    measured: bool = False


@dataclass(frozen=True)
class DemoRequest:
    """Which models, on which machine; `quick` trains less and adapts only the three people who are shown."""

    base: str
    embedder: str
    machine: Machine
    quick: bool = False


@dataclass(frozen=True)
class Models:
    """The two models, ready to load."""

    base: ModelEntry
    embedder: ModelEntry


def courses(quick: bool) -> tuple[Course, Course]:
    """What the demo trains: sized so that two cores need a few minutes; with `quick` about half of it."""
    anchors, epochs = (3, 1) if quick else (6, 2)
    # Histories this short give few steps: small batches make more of them, and anchors need a higher rate to move.
    bank = BankOptions(
        anchors=anchors, epochs=epochs, task_epochs=epochs, min_items=SHORT + 1, batch_size=4, learning_rate=1e-3
    )
    return (
        Course("taste", bank, AdaptOptions(), PromptOptions(2), who=SHOWN if quick else (), measured=True),
        Course("voice", replace(bank, task_epochs=1), AdaptOptions(), PromptOptions(2), who=SHOWN),
    )


def plan_demo(root: Path, request: DemoRequest) -> Iterator[Event]:
    """What `run_demo` would do in a store at `root`, which is not touched."""
    lines = [PlanLine("store", str(root)), PlanLine("base", request.base), PlanLine("embedder", request.embedder)]
    for course in courses(request.quick):
        who = ", ".join(course.who) or f"everybody with {SHORT} items or fewer"
        lines += [
            PlanLine(f"{course.task}: bank", f"{course.bank.anchors} anchors, {course.bank.task_epochs} epochs"),
            PlanLine(f"{course.task}: adapted", who),
        ]
    yield Planned("demo", tuple(lines))
    yield Done({"dry_run": True, "store": str(root)})


def run_demo(reg: Registry, request: DemoRequest) -> Iterator[Event]:
    """Every stage of both courses. `Done.result`: {store, base, embedder, quick, seconds, courses: [...]}."""
    started = time.monotonic()
    yield Note(f"This demo keeps everything in {reg.root}")
    models = yield from _models(request)
    results = []
    for course in courses(request.quick):
        result = yield from _run_course(reg, course, models, request.machine)
        results.append(result)
    yield Done(
        {
            "store": str(reg.root),
            "base": models.base.name,
            "embedder": models.embedder.name,
            "quick": request.quick,
            "seconds": round(time.monotonic() - started, 1),
            "courses": results,
        }
    )


def require_own(root: Path) -> None:
    """BadInput where a store of other people lies at `root`: the demo's banks would be made of their histories too."""
    from store.registry import Registry

    if not (root / "registry.db").exists():
        return
    with Registry.open(root) as reg:
        if reg.users.names() and not reg.users.known(SHOWN):
            raise BadInput(f"The store at {root} holds other people.", hint="name another place with --keep")


def _models(request: DemoRequest) -> Generator[Event, None, Models]:
    """Both models; an embedded default or a hub model that is not here yet is pulled."""
    from mta_cli.pipeline.models.catalog import PACKAGES
    from mta_cli.pipeline.models.lookup import pull, resolve

    for name, kind in ((request.base, "base"), (request.embedder, "embedder")):
        try:
            resolve(name, kind)
        except NotFound:
            if name not in PACKAGES and not name.startswith("hf:"):
                raise
            yield from passed_on(pull(name))
    return Models(resolve(request.base, "base"), resolve(request.embedder, "embedder"))


def _run_course(
    reg: Registry, course: Course, models: Models, machine: Machine
) -> Generator[Event, None, dict[str, Any]]:
    started = time.monotonic()
    task, imported = yield from _import(reg, course)
    bank = yield from _bank(reg, course, task, models, machine)
    adapted = yield from _adapt(reg, course, task, models, machine)
    comparisons = yield from _compare(reg, course, models, machine)
    evaluation = None
    if course.measured:
        evaluation = yield from _evaluate(reg, course, task, models, machine)
    return {
        "task": task.name,
        "description": task.description,
        "imported": imported,
        "bank": bank,
        "recipes": [_recipe(reg, name, task.name, models) for name in SHOWN],
        "adapted": adapted,
        "comparisons": comparisons,
        "evaluation": evaluation,
        "seconds": round(time.monotonic() - started, 1),
    }


def _import(reg: Registry, course: Course) -> Generator[Event, None, tuple[Task, dict[str, Any]]]:
    from mta_cli.pipeline.data.import_file import import_file
    from mta_cli.pipeline.data.tasks import add_task

    yield Note(f"{course.task}, 1 of 4: the task and the histories")
    task, _ = add_task(reg, SAMPLE / f"{course.task}.toml")
    imported = yield from passed_on(import_file(reg, "users", SAMPLE / f"{course.task}.users.json", task=task.name))
    return task, imported


def _bank(
    reg: Registry, course: Course, task: Task, models: Models, machine: Machine
) -> Generator[Event, None, dict[str, Any]]:
    from mta_cli.pipeline.bank.build import BankRequest, build_bank

    yield Note(f"{course.task}, 2 of 4: the bank (the task adapter, then a meta-LoRA for each anchor)")
    request = BankRequest(task, models.base, models.embedder, course.bank, course.prompt, machine)
    built: dict[str, Any] = yield from passed_on(build_bank(reg, request))
    return built


def _adapt(
    reg: Registry, course: Course, task: Task, models: Models, machine: Machine
) -> Generator[Event, None, list[dict[str, Any]]]:
    from mta_cli.pipeline.personalize.adapt import adapt_users
    from mta_cli.pipeline.personalize.fuse import FuseRequest

    people = _people(reg, course)
    yield Note(f"{course.task}, 3 of 4: a recipe and a stack for each of {len(people)} new people")
    fuse = FuseOptions(shots=course.adapt.shots)
    request = FuseRequest(task, models.base, models.embedder, fuse, course.prompt, machine)
    adapted: list[dict[str, Any]] = yield from passed_on(adapt_users(reg, people, request, course.adapt))
    return adapted


def _people(reg: Registry, course: Course) -> list[User]:
    if course.who:
        return [reg.users.get(name) for name in course.who]
    return [user for user, items in reg.users.with_items(course.task) if items <= SHORT]


def _recipe(reg: Registry, name: str, task: str, models: Models) -> dict[str, Any]:
    from mta_cli.pipeline.personalize.fuse import recipe_json
    from mta_cli.pipeline.personalize.weights import current_bank

    user, bank = reg.users.get(name), current_bank(reg, task, models.base.fingerprint)
    recipe = reg.recipes.get(user.id, task, bank.id)
    assert recipe is not None  # everybody who is shown was adapted, which makes a recipe first
    return recipe_json(reg, user, bank, recipe)


def _compare(
    reg: Registry, course: Course, models: Models, machine: Machine
) -> Generator[Event, None, list[dict[str, Any]]]:
    """The same held-out question to three people's models, beside what each of them said."""
    from mta_cli.pipeline.chat.answer import Asking, Voice
    from mta_cli.pipeline.chat.compare import compare_with

    yield Note(f"{course.task}, 4 of 4: answers on held-out queries")
    asking = Asking(machine, course.prompt, AnswerOptions(max_tokens=40), task=course.task)
    people = [reg.users.get(name) for name in SHOWN]
    yield Started(f"compare {course.task}", unit="tokens")
    voice, found, spoken = Voice.open(reg, models.base, people[0], asking), [], 0
    for user in people:
        query = reg.items.queries(user.id, course.task, 1)[0]
        voice.become(user, None)
        ids, _, _ = voice.fitted([{"role": "user", "content": query.input}], voice.history(query.input))
        for event in compare_with(voice, query.input, ids):
            if isinstance(event, Done):
                found.append({**event.result, "gold": query.gold})
            elif isinstance(event, Token):
                spoken += 1
                yield Step(f"{user.name}, {event.column}", spoken)
    return found


def _evaluate(
    reg: Registry, course: Course, task: Task, models: Models, machine: Machine
) -> Generator[Event, None, dict[str, Any]]:
    from mta_cli.pipeline.evaluation.stored_models import evaluate_users

    people = _people(reg, course)
    job = evaluate_users(reg, models.base, task, people, EVALUATED, course.prompt, machine)
    evaluation: dict[str, Any] = yield from passed_on(job)
    return evaluation
