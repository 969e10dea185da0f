"""The job behind `mta demo`: runs every stage on the included sample, with the jobs of the other commands.

Two tasks: `taste`, a labelling task that is measured on held-out queries, and `voice`, a writing task that is shown.
Every stage can be repeated. Finished stages are kept, so a stopped demo continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, NotFound
from mta_cli.events import Event, JobPlan, JobProgress, JobResult, JobStarted, Note, PlanLine, TextChunk, forward_events
from mta_cli.options import (
    AdaptOptions,
    AnswerOptions,
    BankOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    OptionSet,
    PromptOptions,
    ScreeningOptions,
)

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import DemoRequest
    from store.records import User
    from store.registry import Registry

SAMPLE = Path(__file__).parent.parent / "sample"
MAX_NEW_USER_ITEMS = 12  # a user with at most this many items is new: adapted, never an anchor
SHOWN_USERS = ("bryn", "fleur", "piran")  # short histories, three kinds of taste and three voices
EVALUATED_MODES = ("base", "pooled", "fused", "adapted")


@dataclass(frozen=True)
class DemoTask:
    """One task of the demo. `users` are adapted, or all new users; `is_evaluated`: held-out queries are scored."""

    task: str
    bank: BankOptions
    adapt: AdaptOptions
    prompt: PromptOptions
    users: tuple[str, ...] = ()
    is_evaluated: bool = False


def demo_tasks(quick: bool) -> tuple[DemoTask, DemoTask]:
    """The two tasks, sized for a few minutes on two cores; with `quick` for about half of that."""
    anchors, epochs = (3, 1) if quick else (6, 2)
    # Short histories give few steps, so batches are small and the anchors' learning rate is higher.
    bank = BankOptions(
        anchors=anchors,
        epochs=epochs,
        task_epochs=epochs,
        min_items=MAX_NEW_USER_ITEMS + 1,
        batch_size=4,
        learning_rate=1e-3,
        held_out_weights=False,  # a task adapter more would take a fifth of the time
    )
    return (
        DemoTask(
            "taste", bank, AdaptOptions(), PromptOptions(2), users=SHOWN_USERS if quick else (), is_evaluated=True
        ),
        DemoTask("voice", replace(bank, task_epochs=1), AdaptOptions(), PromptOptions(2), users=SHOWN_USERS),
    )


def plan_demo(root: Path, request: DemoRequest) -> Iterator[Event]:
    """The plan of `run_demo` in a store at `root`, which is not changed."""
    models = request.models
    lines = [PlanLine("store", str(root)), PlanLine("base", models.base), PlanLine("embedder", models.embedder)]
    for course in demo_tasks(request.quick):
        who = ", ".join(course.users) or f"all users with {MAX_NEW_USER_ITEMS} items or fewer"
        lines += [
            PlanLine(f"{course.task}: bank", f"{course.bank.anchors} anchors, {course.bank.task_epochs} epochs"),
            PlanLine(f"{course.task}: adapted", who),
        ]
    yield JobPlan("demo", tuple(lines))
    yield JobResult({"dry_run": True, "store": str(root)})


def run_demo(reg: Registry, request: DemoRequest) -> Iterator[Event]:
    """Every stage of both tasks. `JobResult.result`: {store, base, embedder, quick, seconds, courses: [...]}."""
    started = time.monotonic()
    yield Note(f"This demo keeps everything in {reg.root}")
    base, embedder = yield from pull_missing_models(request.models)
    results = []
    for course in demo_tasks(request.quick):
        result = yield from _run_demo_task(reg, course, _options(course, request))
        results.append(result)
    yield JobResult(
        {
            "store": str(reg.root),
            "base": base.name,
            "embedder": embedder.name,
            "quick": request.quick,
            "seconds": round(time.monotonic() - started, 1),
            "courses": results,
        }
    )


def require_demo_store(root: Path) -> None:
    """Raise BadInput where the store at `root` has other users, because the demo's banks would use their histories."""
    from store.registry import Registry

    if not (root / "registry.db").exists():
        return
    with Registry.open(root) as reg:
        if reg.users.names() and not reg.users.existing_names(SHOWN_USERS):
            raise BadInput(f"The store at {root} holds other users.", hint="name another place with --keep")


def pull_missing_models(models: ModelOptions) -> Generator[Event, None, tuple[ModelEntry, ModelEntry]]:
    """Pull the base and the embedder where they are not on this machine."""
    from mta_cli.pipeline.models.bases import can_be_pulled
    from mta_cli.pipeline.models.installed import resolve_model
    from mta_cli.pipeline.models.pull import pull_model

    for name, kind in ((models.base, "base"), (models.embedder, "embedder")):
        try:
            resolve_model(name, kind)
        except NotFound:
            if not can_be_pulled(name):
                raise
            yield from forward_events(pull_model(name))
    return resolve_model(models.base, "base"), resolve_model(models.embedder, "embedder")


def _options(course: DemoTask, request: DemoRequest) -> OptionSet:
    return OptionSet(
        course.bank,
        ScreeningOptions(),
        FuseOptions(shots=course.adapt.shots),
        course.adapt,
        course.prompt,
        AnswerOptions(max_tokens=40),
        MemoryOptions(),
        request.models,
        request.machine,
    )


def _run_demo_task(reg: Registry, course: DemoTask, options: OptionSet) -> Generator[Event, None, dict[str, Any]]:
    started = time.monotonic()
    task, imported = yield from _import(reg, course)
    bank = yield from _build_demo_bank(reg, course, options)
    adapted = yield from _adapt(reg, course, options)
    comparisons = yield from _compare(reg, course, options)
    evaluation = None
    if course.is_evaluated:
        evaluation = yield from _evaluate(reg, course, task, options)
    return {
        "task": task.name,
        "description": task.description,
        "imported": imported,
        "bank": bank,
        "recipes": [_shown_user_recipe(reg, name, task.name, options) for name in SHOWN_USERS],
        "adapted": adapted,
        "comparisons": comparisons,
        "evaluation": evaluation,
        "seconds": round(time.monotonic() - started, 1),
    }


def _import(reg: Registry, course: DemoTask) -> Generator[Event, None, tuple[Task, dict[str, Any]]]:
    from mta_cli.pipeline.data.tasks import add_task
    from mta_cli.pipeline.users.import_file import import_file

    yield Note(f"{course.task}, 1 of 4: the task and the histories")
    task, _ = add_task(reg, SAMPLE / f"{course.task}.toml")
    imported = yield from forward_events(
        import_file(reg, "users", SAMPLE / f"{course.task}.users.json", task=task.name)
    )
    return task, imported


def _build_demo_bank(reg: Registry, course: DemoTask, options: OptionSet) -> Generator[Event, None, dict[str, Any]]:
    from mta_cli.pipeline.bank.build import build_bank
    from mta_cli.pipeline.requests import bank_request

    yield Note(f"{course.task}, 2 of 4: the bank (the task adapter, then a meta-LoRA for each anchor)")
    request = bank_request(reg, options, course.task)
    built: dict[str, Any] = yield from forward_events(build_bank(reg, request))
    return built


def _adapt(reg: Registry, course: DemoTask, options: OptionSet) -> Generator[Event, None, list[dict[str, Any]]]:
    from mta_cli.pipeline.personalize.adapt import adapt_users
    from mta_cli.pipeline.requests import adapt_request

    names = [user.name for user in _adapted_users(reg, course)]
    yield Note(f"{course.task}, 3 of 4: a recipe and a stack for each of {len(names)} new users")
    request = adapt_request(reg, options, names, course.task)
    job = adapt_users(reg, request.users, request.fuse, request.options)
    adapted: list[dict[str, Any]] = yield from forward_events(job)
    return adapted


def _adapted_users(reg: Registry, course: DemoTask) -> list[User]:
    if course.users:
        return [reg.users.get(name) for name in course.users]
    return [user for user, items in reg.users.users_with_items(course.task) if items <= MAX_NEW_USER_ITEMS]


def _shown_user_recipe(reg: Registry, name: str, task: str, options: OptionSet) -> dict[str, Any]:
    from mta_cli.pipeline.personalize.fuse import recipe_json
    from mta_cli.pipeline.requests import base_model
    from mta_cli.pipeline.user_weights import current_bank

    user, bank = reg.users.get(name), current_bank(reg, task, base_model(options).fingerprint)
    recipe = reg.recipes.get(user.id, task, bank.id)
    assert recipe is not None  # every shown user was adapted, which makes a recipe first
    return recipe_json(reg, user, bank, recipe)


def _compare(reg: Registry, course: DemoTask, options: OptionSet) -> Generator[Event, None, list[dict[str, Any]]]:
    """The same held-out question to three users' models, with the gold of each."""
    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.chat.compare import compare_prompt
    from mta_cli.pipeline.requests import base_model, chat_options

    yield Note(f"{course.task}, 4 of 4: answers on held-out queries")
    asking = chat_options(options, course.task)
    users = [reg.users.get(name) for name in SHOWN_USERS]
    yield JobStarted(f"compare {course.task}", unit="tokens")
    model, found, spoken = ChatModel.load_for_user(reg, base_model(options), users[0], asking), [], 0
    for user in users:
        query = reg.items.queries(user.id, course.task, 1)[0]
        model.set_user(user, None)
        ids, _, _ = model.fit_prompt([{"role": "user", "content": query.input}], model.prompt_history(query.input))
        for event in compare_prompt(model, query.input, ids):
            if isinstance(event, JobResult):
                found.append({**event.result, "gold": query.gold})
            elif isinstance(event, TextChunk):
                spoken += 1
                yield JobProgress(f"{user.name}, {event.column}", spoken)
    return found


def _evaluate(
    reg: Registry, course: DemoTask, task: Task, options: OptionSet
) -> Generator[Event, None, dict[str, Any]]:
    from mta_cli.pipeline.evaluation.stored_models import evaluate_users
    from mta_cli.pipeline.requests import base_model

    users = _adapted_users(reg, course)
    base, machine = base_model(options), options[MachineOptions]
    job = evaluate_users(reg, base, task, users, EVALUATED_MODES, course.prompt, machine)
    evaluation: dict[str, Any] = yield from forward_events(job)
    return evaluation
