"""The jobs that can be started from the window: what each asks for, and the job that the answers make.

Values take the same way as flags on the command line. Knows no widget; nothing here runs a job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, UsageFault
from mta_cli.events import Done, Event, Note, PlanLine, Planned
from mta_cli.options import (
    AdaptOptions,
    AnswerOptions,
    BankOptions,
    EvalOptions,
    FuseOptions,
    GateOptions,
    Machine,
    PromptOptions,
)
from mta_cli.pipeline.data.formats import FORMATS
from mta_cli.settings import ModelOptions, Settings, StoreOptions
from mta_cli.tui.forms import Field, Filled, Form, flags, setting_field

if TYPE_CHECKING:
    from mta_cli.tui.app import MtaApp
    from mta_cli.tui.workers.job_queue import Job
    from store.registry import Registry

BANK_FIRST = ("anchors", "rank", "epochs", "min_items")
BANK_MORE = (
    "alpha",
    "learning_rate",
    "batch_size",
    "targets",
    "placement",
    "pick",
    "max_items",
    "task_adapter",
    "task_min_items",
    "task_placement",
    "task_rank",
    "task_epochs",
    "task_learning_rate",
)
ADAPT_FIRST = ("shots", "kind", "rank", "steps")
ADAPT_MORE = ("learning_rate", "batch_size", "pull", "alpha", "targets", "placement")
EVAL_FIRST = ("methods", "reference", "shots", "folds")
EVAL_MORE = ("placement", "calibrate")
EVAL_BANK = ("anchors", "epochs", "min_items", "max_items", "task_epochs")
MACHINE = ("seed", "device", "dtype")


@dataclass(frozen=True)
class Known:
    """What a form's first values come from."""

    settings: Settings
    store: Path
    tasks: tuple[str, ...] = ()
    person: str | None = None
    task: str | None = None
    empty: bool = False


@dataclass(frozen=True)
class Order:
    """A job that was asked for; `make` is called where it runs, or with `dry_run` where its plan is worked out."""

    kind: str
    title: str
    make: Callable[[Registry, bool], Iterator[Event]]


@dataclass(frozen=True)
class Start:
    """A kind of job: `fields` asks for it, `order` makes it of the answers and raises UsageFault for bad values."""

    kind: str
    key: str
    about: str
    fields: Callable[[Known], tuple[Field, ...]]
    order: Callable[[Known, Filled], Order]


def form_of(start: Start, known: Known, app: MtaApp) -> Form:
    """The form that asks for a job and shows its plan."""

    async def plan(filled: Filled) -> Sequence[Planned]:
        return await app.shelf.read(partial(planned, start.order(known, filled)))

    def check(filled: Filled) -> None:
        start.order(known, filled)

    return Form(start.kind, start.fields(known), check, plan, "Start", start.about)


async def ask_and_start(app: MtaApp, kind: str, **values: str) -> Job | None:
    """Ask for a job of this kind and queue it; `values` stand in its fields at first. Await it in a worker."""
    start, known = STARTS[kind], await known_now(app)
    form = form_of(start, known, app)
    fields = tuple(replace(field, value=values.get(field.name, field.value)) for field in form.fields)
    filled = await app.fill(replace(form, fields=fields))
    if filled is None:
        return None
    order = start.order(known, filled)
    return app.board.add(order.kind, order.title, lambda reg: order.make(reg, False))


async def known_now(app: MtaApp) -> Known:
    """What a form needs to know at this moment."""

    def look(reg: Registry) -> tuple[tuple[str, ...], str | None, bool]:
        from mta_cli.pipeline.data.tasks import task_names

        return tuple(task_names(reg)), likely_task(reg, app.chosen), not reg.counts()["users"]

    tasks, likely, empty = await app.shelf.read(look)
    return Known(app.settings, app.shelf.root, tasks, app.chosen, app.chosen_task or likely, empty)


def likely_task(reg: Registry, person: str | None) -> str | None:
    """The task of the chosen person, else the only one that has a bank, else the only one that there is."""
    if person is not None and (held := reg.users.tasks_of(reg.users.get(person).id)):
        return held[0][0]
    found = {bank.task for bank in reg.banks.all()}
    found = found or {task for task, _ in reg.people.tasks()}
    return found.pop() if len(found) == 1 else None


def planned(order: Order, reg: Registry) -> list[Planned]:
    """The plans of a dry run; what it remarks on stands with them."""
    events = [event for event in order.make(reg, True) if not isinstance(event, Done)]
    notes = tuple(PlanLine("note", event.text) for event in events if isinstance(event, Note))
    plans = [event for event in events if isinstance(event, Planned)]
    return [*plans, Planned("notes", notes)] if notes else plans


def built(settings: Settings, filled: Filled, *classes: type[Any]) -> list[Any]:
    """Options of every class from the fields. UsageFault lists every value of all of them that cannot be."""
    made, faults = [], []
    for cls in classes:
        names = [name for name in cls.__dataclass_fields__ if name in filled]
        try:
            made.append(settings.build(cls, **flags(filled, names)))
        except UsageFault as error:
            faults += [text for text in error.message.splitlines() if not text.endswith("cannot be used:")]
    if faults:
        raise UsageFault("\n".join(faults))
    return made


def _bank_fields(known: Known) -> tuple[Field, ...]:
    of = partial(setting_field, known.settings, BankOptions)
    return (
        _task(known, needed=True),
        Field("name", "name", shown="the task's", help="The bank's name."),
        *map(of, BANK_FIRST),
        *(of(name, more=True) for name in BANK_MORE),
        *_shared(known),
    )


def _bank_order(known: Known, filled: Filled) -> Order:
    settings = known.settings
    options, gates, prompt, machine, models = built(
        settings, filled, BankOptions, GateOptions, PromptOptions, Machine, ModelOptions
    )
    plan = settings.plan_lines(options, gates, prompt, machine)

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.bank.build import BankRequest, build_bank
        from mta_cli.pipeline.data.tasks import find_task
        from mta_cli.pipeline.models.lookup import resolve

        entries = resolve(models.base, "base"), resolve(models.embedder, "embedder")
        name = filled["name"] or None
        request = BankRequest(find_task(reg, filled["task"]), *entries, options, prompt, machine, name, gates=gates)
        return build_bank(reg, request, plan=plan, dry_run=dry_run)

    return Order("bank build", filled["name"] or filled["task"], make)


def _adapt_fields(known: Known) -> tuple[Field, ...]:
    of = partial(setting_field, known.settings, AdaptOptions)
    weigh = partial(setting_field, known.settings, FuseOptions, more=True)
    people = "Whom, with commas between them; left empty: everybody with a history who is no anchor."
    return (
        Field("users", "people", known.person or "", "everybody", people),
        _task(known),
        *map(of, ADAPT_FIRST),
        *(of(name, more=True) for name in ADAPT_MORE),
        weigh("weights"),
        weigh("top_k"),
        *_shared(known),
    )


def _adapt_order(known: Known, filled: Filled) -> Order:
    settings = known.settings
    options, fuse, prompt, machine, models = built(
        settings, filled, AdaptOptions, FuseOptions, PromptOptions, Machine, ModelOptions
    )
    options.settled(labels=True)  # a value that its kind does not have is told before the job begins

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.data.tasks import find_task
        from mta_cli.pipeline.models.lookup import resolve
        from mta_cli.pipeline.personalize.adapt import adapt_users, task_to_adapt
        from mta_cli.pipeline.personalize.fuse import FuseRequest

        names = people(filled["users"], known.person)
        if filled["users"].strip() and not names:
            raise BadInput(f"--users: {filled['users']!r:.80} names nobody", hint="leave it empty for everybody")
        chosen = [reg.users.get(name) for name in names] or None
        task = find_task(reg, task_to_adapt(reg, chosen, filled["task"] or None))
        entries = resolve(models.base, "base"), resolve(models.embedder, "embedder")
        request = FuseRequest(task, *entries, fuse, prompt, machine, settings.build(AnswerOptions))
        asked, top = options.settled(bool(task.labels)), bool(filled["top_k"])
        plan = [line for line in settings.plan_lines(asked, fuse, prompt, machine) if line.name not in asked.unused]
        return adapt_users(reg, chosen, request, asked, plan=plan, explicit_top_k=top, dry_run=dry_run)

    return Order("user adapt", filled["users"] or "everybody", make)


def people(text: str, whole: str | None = None) -> list[str]:
    """Names with commas between them, each once; a text that is the name `whole` is that alone."""
    names = [whole] if whole is not None and text == whole.strip() else [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _eval_fields(known: Known) -> tuple[Field, ...]:
    of = partial(setting_field, known.settings, EvalOptions)
    bank = partial(setting_field, known.settings, BankOptions, more=True)
    own = "Methods' own settings, METHOD.SETTING=VALUE, with blanks between them."
    return (
        _task(known, needed=True),
        *map(of, EVAL_FIRST),
        *(of(name, more=True) for name in EVAL_MORE),
        *map(bank, EVAL_BANK),
        Field("set", "settings", help=own, more=True),
        *_shared(known),
    )


def _eval_order(known: Known, filled: Filled) -> Order:
    from mta_cli.pipeline.evaluation.design import EvalRequest, bank_options, parse_settings

    settings = known.settings
    options, bank, prompt, machine, models = built(
        settings, filled, EvalOptions, BankOptions, PromptOptions, Machine, ModelOptions
    )
    given = parse_settings(filled["set"].split())

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.data.tasks import find_task
        from mta_cli.pipeline.evaluation.run import run_evaluation
        from mta_cli.pipeline.models.lookup import resolve

        entries = resolve(models.base, "base"), resolve(models.embedder, "embedder")
        request = EvalRequest(find_task(reg, filled["task"]), *entries, options, bank, prompt, machine, given)
        plan = settings.plan_lines(options, bank_options(request), prompt, machine)
        return run_evaluation(reg, request, plan=plan, dry_run=dry_run)

    return Order("eval run", filled["task"], make)


def _import_fields(known: Known) -> tuple[Field, ...]:
    return (
        Field("path", "file", help="Where it lies.", needed=True),
        Field(
            "format",
            "format",
            shown="by its name",
            choices=FORMATS,
            help="How the file is written; left empty: "
            "jsonl or csv by the file's name, and of .json files lamp where answers are given, else users.",
        ),
        Field("outputs", "answers", shown="none", help="Of the format lamp: the file of answers to its questions."),
        _task(known),
        Field(
            "can_anchor",
            "may be anchors",
            shown="new users may",
            choices=("yes", "no"),
            help="Whether these users may be anchors, who help to serve others.",
        ),
    )


def _import_order(known: Known, filled: Filled) -> Order:
    from mta_cli.pipeline.data.parse_file import Source

    path, outputs = _path(filled["path"]), _path(filled["outputs"]) if filled["outputs"] else None
    form = filled["format"]
    if not form and filled["path"]:  # without a file the form says that it is needed
        form = form_by_name(path, answers=outputs is not None)
    if form:
        Source(form, path, filled["task"] or None, outputs).check()
    can_anchor = {"yes": True, "no": False}.get(filled["can_anchor"])

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.data.import_file import import_file

        task = filled["task"] or None
        return import_file(reg, form, path, task=task, outputs=outputs, can_anchor=can_anchor, dry_run=dry_run)

    return Order("data import", path.name, make)


def form_by_name(path: Path, *, answers: bool) -> str:
    """The format that a file's name stands for. UsageFault where it stands for none."""
    ending = path.suffix.lower()
    if ending == ".json":
        return "lamp" if answers else "users"
    if ending.removeprefix(".") in ("jsonl", "csv"):
        return ending.removeprefix(".")
    raise UsageFault(f"{path.name:.80}: the name does not say how the file is written", hint="choose a format")


def _demo_fields(known: Known) -> tuple[Field, ...]:
    return (
        Field(
            "where",
            "where",
            "this store" if known.empty else "its own",
            choices=("this store", "its own"),
            help="Into the store that is open, or into one of its own beside it.",
            needed=True,
        ),
        Field(
            "quick",
            "quick",
            shown="no",
            choices=("yes", "no"),
            help="Train less and adapt fewer people: faster, and less is learnt.",
        ),
        *_shared(known, prompt=False),
    )


def _demo_order(known: Known, filled: Filled) -> Order:
    from mta_cli.pipeline.demo import DemoRequest, plan_demo, run_demo

    machine, models = built(known.settings, filled, Machine, ModelOptions)
    request = DemoRequest(models.base, models.embedder, machine, filled["quick"] == "yes")
    own = known.store.with_name(f"{known.store.name}-demo")

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        if dry_run:
            yield from plan_demo(reg.root if filled["where"] == "this store" else own, request)
        elif filled["where"] == "this store":
            yield from run_demo(reg, request)
        else:
            from store.registry import Registry

            with Registry.open(own, create=True, timeout=known.settings.build(StoreOptions).timeout) as beside:
                yield from run_demo(beside, request)

    return Order("demo", filled["where"], make)


def _path(text: str) -> Path:
    if "\0" in text:
        raise UsageFault("a path holds no NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # `~nobody`
        raise UsageFault(f"{text!r:.80} cannot be used: {error}") from None


def _task(known: Known, *, needed: bool = False) -> Field:
    value = known.task if known.task in known.tasks else ""
    return Field("task", "task", value or "", help="The task.", choices=known.tasks, needed=needed)


def _shared(known: Known, *, prompt: bool = True) -> tuple[Field, ...]:
    """Models, machine and prompt, folded away."""
    models = partial(setting_field, known.settings, ModelOptions, more=True)
    machine = partial(setting_field, known.settings, Machine, more=True)
    shown = (setting_field(known.settings, PromptOptions, "history_items", more=True),) if prompt else ()
    return (*shown, models("base"), models("embedder"), *map(machine, MACHINE))


STARTS = {
    start.kind: start
    for start in (
        Start("bank build", "b", "Anchors, the task adapter and a meta-LoRA for each.", _bank_fields, _bank_order),
        Start("user adapt", "a", "A stack for one person, for several, or for everybody.", _adapt_fields, _adapt_order),
        Start("eval run", "e", "Methods compared on the same people.", _eval_fields, _eval_order),
        Start("data import", "i", "Histories from a file, checked as a whole first.", _import_fields, _import_order),
        Start("demo", "m", "The carried sample through every stage.", _demo_fields, _demo_order),
    )
}
"""What can be started, by kind, in the order of the data."""
