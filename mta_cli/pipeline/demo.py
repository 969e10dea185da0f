"""The job behind `mta demo`: runs every stage on the included sample with the jobs of the other commands.

There are two tasks: `voice`, a writing task, in which a reader can see the difference, and `taste`, a labelling task.
Both are measured on held-out queries at each step of the ladder. Finished stages are kept, so a stopped demo can be
resumed.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Flag, NotFound
from mta_cli.events import Event, JobPlan, JobResult, Note, PlanLine, forward_events
from mta_cli.options import (
    AdaptOptions,
    BankOptions,
    FuseOptions,
    MemoryOptions,
    ModelOptions,
    OptionSet,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import DemoRequest
    from store.registry import Registry

SAMPLE = Path(__file__).parent.parent / "sample"
MAX_NEW_USER_ITEMS = 12  # a user with at most this many items is new: adapted, never an anchor
SAMPLE_USERS = ("bryn", "fleur", "piran")  # a store with one of these users is taken for a demo's store


@dataclass(frozen=True)
class DemoTask:
    """One task of the demo with its options."""

    task: str
    bank: BankOptions
    prompt: PromptOptions


def demo_tasks(full: bool) -> tuple[DemoTask, DemoTask]:
    """The two tasks, sized for less than three minutes on two cores; with `full`, about seven minutes."""
    # Short histories give few steps, so batches are small and the anchors' learning rate is higher.
    bank = BankOptions(
        anchors=6,
        epochs=2,
        task_epochs=1,
        min_items=MAX_NEW_USER_ITEMS + 1,
        batch_size=4,
        learning_rate=1e-3,
        held_out_weights=False,  # True trains one more task adapter, a fifth of the demo's time
    )
    if full:
        return (
            DemoTask("voice", bank, PromptOptions(2)),
            DemoTask("taste", replace(bank, task_epochs=2), PromptOptions(2)),
        )
    # Without history items prompts are short, and only weights and label memory are personal.
    texts = replace(bank, anchors=8, epochs=4)
    labels = replace(bank, anchors=4, epochs=1, batch_size=8, task_placement="upper")
    return (
        DemoTask("voice", texts, PromptOptions(0)),
        DemoTask("taste", labels, PromptOptions(0)),
    )


def plan_demo(root: Path, request: DemoRequest) -> Iterator[Event]:
    """Yield the plan of `run_demo` in a store at `root`. The store is not changed."""
    models = request.models
    lines = [PlanLine("store", str(root)), PlanLine("base", models.base), PlanLine("embedder", models.embedder)]
    for course in demo_tasks(request.full):
        lines += [
            PlanLine(
                f"{course.task}: bank",
                f"{pluralise(course.bank.anchors or 0, 'anchor')}, {pluralise(course.bank.epochs, 'epoch')}",
            ),
            PlanLine(f"{course.task}: recipes and stacks", f"all users with {MAX_NEW_USER_ITEMS} items or fewer"),
        ]
    yield JobPlan("demo", tuple(lines))
    yield JobResult({"dry_run": True, "store": str(root)})


def run_demo(reg: Registry, request: DemoRequest) -> Iterator[Event]:
    """Run every stage of both tasks. `JobResult.result`: {store, base, embedder, quick, seconds, courses: [...]}."""
    started = time.monotonic()
    yield Note(f"The demo stores everything in {reg.root}")
    base, embedder = yield from pull_missing_models(request.models)
    results = []
    for course in demo_tasks(request.full):
        result = yield from _run_demo_task(reg, course, _options(course, request))
        results.append(result)
    yield JobResult(
        {
            "store": str(reg.root),
            "base": base.name,
            "embedder": embedder.name,
            "quick": not request.full,
            "seconds": round(time.monotonic() - started, 1),
            "courses": results,
        }
    )


def demo_history_items(full: bool) -> int:
    """The number of history items in the demo's prompts. The demo's models answer worse with another number."""
    return max(course.prompt.history_items for course in demo_tasks(full))


def require_demo_store(root: Path) -> None:
    """Raise BadInput if the store at `root` has users, but none from the sample.

    The demo's banks would be trained on their histories too.
    """
    from store.registry import Registry

    if not (root / "registry.db").exists():
        return
    with Registry.open(root) as reg:
        if reg.users.names() and not reg.users.existing_names(SAMPLE_USERS):
            raise BadInput(
                f"The store at {root} contains other users, and the demo would train on their histories.",
                hint=("name another folder with ", Flag("keep")),
            )


def pull_missing_models(models: ModelOptions) -> Generator[Event, None, tuple[ModelEntry, ModelEntry]]:
    """Pull the base and the embedder unless they are on this machine. Returns both.

    Raises NotFound for a model that is missing and cannot be pulled.
    """
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
        FuseOptions(),
        AdaptOptions(),
        course.prompt,
        MemoryOptions(),
        request.models,
        request.machine,
    )


def _run_demo_task(reg: Registry, course: DemoTask, options: OptionSet) -> Generator[Event, None, dict[str, Any]]:
    from mta_cli.pipeline.data.tasks import add_task
    from mta_cli.pipeline.evaluation.stored_models import evaluate_users
    from mta_cli.pipeline.personalize.adapt import adapt_users
    from mta_cli.pipeline.personalize.fuse import fuse_users
    from mta_cli.pipeline.requests import adapt_request, fuse_request
    from mta_cli.pipeline.users.import_file import import_file

    started = time.monotonic()
    yield Note(f"{course.task}, 1 of 4: the task and the histories")
    task, _ = add_task(reg, SAMPLE / f"{course.task}.toml")
    imported = yield from forward_events(
        import_file(reg, "users", SAMPLE / f"{course.task}.users.json", task=task.name)
    )
    yield Note(f"{course.task}, 2 of 4: the bank (the task adapter, then a meta-LoRA for each anchor)")
    bank = yield from _build_demo_bank(reg, course, options)
    users = [user for user, items in reg.users.users_with_items(course.task) if items <= MAX_NEW_USER_ITEMS]
    yield Note(f"{course.task}, 3 of 4: a recipe and a stack for each of {len(users)} new users")
    request = adapt_request(reg, options, [user.name for user in users], course.task)
    # adapting also makes missing recipes; `fuse_users` then only reports them
    adapted = yield from forward_events(adapt_users(reg, request))
    recipes = yield from forward_events(fuse_users(reg, users, request.fuse))
    yield Note(f"{course.task}, 4 of 4: every held-out query of these users, at each step of the ladder")
    evaluation = yield from forward_events(evaluate_users(reg, fuse_request(reg, options, course.task), users))
    return {
        "task": task.name,
        "description": task.description,
        "imported": imported,
        "bank": bank,
        "recipes": recipes,
        "adapted": adapted,
        **{key: evaluation.pop(key) for key in ("ladder", "example_rule", "examples")},
        "evaluation": evaluation,
        "seconds": round(time.monotonic() - started, 1),
    }


def _build_demo_bank(reg: Registry, course: DemoTask, options: OptionSet) -> Generator[Event, None, dict[str, Any]]:
    """Build the bank; returns its JSON document.

    Screening findings are shown without the advice to inspect users, because the sample is harmless.
    """
    from mta_cli.pipeline.anchors import format_finding
    from mta_cli.pipeline.bank.build import build_bank
    from mta_cli.pipeline.bank.screening import screening_notes
    from mta_cli.pipeline.requests import bank_request
    from mta_cli.pipeline.user_weights import current_bank

    request = bank_request(reg, options, course.task)
    warnings = list[Note]()
    built: dict[str, Any] = yield from forward_events(_collect_warnings(build_bank(reg, request), warnings))
    advice = {note.text for note in screening_notes(reg, reg.banks.get(built["bank"], built["version"]))}
    yield from (note for note in warnings if note.text not in advice)
    for one in built["gates"]:
        yield Note(
            f"{format_finding(one)}. The sample is harmless: this shows how a bank limits a user unlike all others."
        )
    newest = current_bank(reg, course.task, request.base.fingerprint)
    if newest.version != built["version"]:  # built by a demo with --full, or by hand
        yield Note(f"Bank {newest.name} v{newest.version} is newer and is used instead.", warning=True)
    return built


def _collect_warnings(events: Iterator[Event], warnings: list[Note]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, Note) and event.warning:
            warnings.append(event)
        else:
            yield event
