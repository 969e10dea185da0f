"""The job behind `mta quick`: imports a file, builds a bank and users' models, and measures held-out answers.

It runs the same jobs as the ordinary commands, so these commands list everything that it makes. Finished parts are
kept, and a stopped run can be resumed with its original plan.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import find_label, parse_number, round_number
from mta_cli.engine.text.task_files import task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.errors import BadInput, Command, Flag, NotFound, UsageError
from mta_cli.events import Event, JobPlan, JobResult, Note, PlanLine, forward_events
from mta_cli.options import (
    AdaptOptions,
    BankOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    OptionSet,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.pipeline.bases_in_use import base_name_if_several
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.parse_file import import_notes
from mta_cli.pipeline.data.tasks import find_task, has_task, is_task_stored
from mta_cli.pipeline.demo import pull_missing_models
from mta_cli.pipeline.evaluation.ladder_text import short_verdict, verdict_lines
from mta_cli.pipeline.quick.columns import CompleteSource, complete_columns
from mta_cli.pipeline.quick.draft_task import FileSummary, draft_task, summarise_file, task_name
from mta_cli.pipeline.quick.plan import (
    QuickPlan,
    QuickSizes,
    Workload,
    make_plan,
    measure_row_rate,
    sample_rows,
)
from mta_cli.pipeline.requests import adapt_request, bank_request, base_model
from mta_cli.pipeline.runs import REQUEST_KEY, record_request
from mta_cli.pipeline.training.estimate import format_duration
from mta_cli.pipeline.user_weights import current_bank
from mta_cli.pipeline.users.import_file import (
    KEPT_ITEMS,
    AskConsent,
    hold_out_notes,
    import_source,
    stage_source,
)
from mta_cli.text.formatting import pluralise
from store.records import Bank, Run, User

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from store.registry import Registry

AskTime = Callable[[float], None]
"""Called with the seconds of the smallest plan; raises if that is too long."""

RUN_KIND, PLAN_KEY, SEAL_KEY = "quick", "plan", "seal"
SHOWN_PROMPTS, SHOWN_LINES, SHOWN_LINE = 3, 16, 160
HELD_OUT_SHARE, MIN_HELD_OUT, MAX_HELD_OUT = 5, 2, 12  # one item in five, at least 2 and at most 12
MAX_NEXT_QUESTION = 120  # preferred maximum length of a question in a suggested command
OPTION_CLASSES: tuple[type[Any], ...] = (
    BankOptions,
    ScreeningOptions,
    FuseOptions,
    AdaptOptions,
    MemoryOptions,
    PromptOptions,
    ModelOptions,
    MachineOptions,
)


@dataclass(frozen=True)
class QuickRequest:
    """The request of `mta quick`. `options` has each of `OPTION_CLASSES`; the source may name an existing task."""

    source: ImportSource
    options: OptionSet
    minutes: float

    @property
    def machine(self) -> MachineOptions:
        """The device and the seed."""
        return self.options[MachineOptions]


def run_quick(
    reg: Registry,
    request: QuickRequest,
    *,
    can_anchor: bool | None = None,
    ask: AskConsent | None = None,
    ask_time: AskTime | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Import a file, build a bank and users' models, and measure them. `can_anchor` and `ask` are as in an import.

    `JobResult.result` is the document of `mta quick --json`. If the smallest plan does not fit into the minutes,
    `ask_time` may raise before anything is trained; otherwise the job continues with a warning. A finished run is not
    repeated if its users, items and models have not changed; its stored document is returned.

    Raises the errors of an import and of a bank build, and BadInput if no user has enough items to hold some out.
    """
    started = time.monotonic()
    complete = complete_columns(request.source)
    if complete.plan_lines:
        yield Note(complete.text)
    source, summary, task = yield from _read_file(reg, complete)
    _require_possible_anchors(reg, source, summary, can_anchor, ask)
    _require_no_other_users(reg, summary, task)
    held = yield from _check_hold_out(reg, request, source, summary, task, as_notes=dry_run)
    file_lines = (*complete.plan_lines, *_file_lines(complete, source, summary, task, held))
    if dry_run:
        yield from _plan_without_import(reg, request, summary, task, held, file_lines)
        return
    if summary.third_parties and can_anchor is None and ask is not None:
        ask = _ask_before(reg, source, summary, ask)
    yield from pull_missing_models(request.options[ModelOptions])
    yield Note(f"1 of 4: the task {task.name} ({task.kind}) and the histories")
    imported = yield from forward_events(import_source(reg, source, task=task, can_anchor=can_anchor, ask=ask))
    document = {
        "file": source.name,
        "task": task.name,
        "kind": task.kind,
        "users": imported["users"],
        "items": imported["items_added"] + imported["items_unchanged"],
        "queries": imported["queries_added"] + imported["queries_unchanged"],
        "minutes": request.minutes,
    }
    run = _find_run(reg, request, task)
    if run is not None and _is_current(reg, request, task, summary, run):
        yield JobPlan("quick", (*file_lines, *_plan_of(run).lines))
        yield Note("2 to 4 of 4: measured already, and nothing has changed since")
        yield JobResult(document | _describe(reg, request, task, summary, run, file_lines))
        return
    base = _load(reg, request)
    yield from (Note(text) for text in show_prompts(reg, base, task, request.options[PromptOptions].history_items))
    plan = _plan(reg, request, base, summary, task) if run is None else _plan_of(run)
    del base
    yield JobPlan("quick", (*file_lines, *plan.lines))
    if run is None and plan.seconds > 60 * request.minutes:
        if ask_time is not None:
            ask_time(plan.seconds)
        takes = f"the smallest plan takes about {format_duration(plan.seconds)}"
        yield Note(f"{takes}, more than the {request.minutes:g} min of --minutes", warning=True)
    with record_request(reg, RUN_KIND, _identity(reg, request, task) | {PLAN_KEY: asdict(plan)}) as kept:
        evaluation = yield from _make_and_measure(reg, request, task, plan, summary)
        kept |= {  # without names and texts of users, which are read from the store
            "task": task.name,
            "evaluation": evaluation["evaluation"],
            "measured_users": evaluation["users"],
            "verdict": short_verdict(evaluation["ladder"]),
            "seconds": round(time.monotonic() - started, 1),
            SEAL_KEY: _inputs_digest(reg, request, task, summary),
        }
    finished = _find_run(reg, request, task)
    assert finished is not None
    yield JobResult(document | _describe(reg, request, task, summary, finished, file_lines))


def _read_file(
    reg: Registry, complete: CompleteSource
) -> Generator[Event, None, tuple[ImportSource, FileSummary, Task]]:
    """The source with its task's name, its summary, and the task: the named existing one, else a draft."""
    source = complete.source
    own = source.own_task
    name = source.task or (task_name(source.path) if own is None else own.name)
    if source.task is None and name in BUILTIN_TASKS:
        name = f"my-{name}"
    source = replace(source, task=name)
    there = _find_existing(reg, complete)
    if own is not None and there is None:
        there = find_task(reg, name) if has_task(reg, name) else replace(own, name=name)
    # a placeholder task reads the outputs from which the task is drafted
    summary = yield from _summarise(reg, source, there or Task(name, "text", ""))
    if there is not None:
        task, step = there, _step_of(there, summary)
    else:
        task, step = draft_task(name, source, summary)
        _require_same_task(reg, task)
    if step and complete.plan_lines:
        numbers = sorted(float(label) for label in task.labels)
        source = replace(source, round_to=step, scale=(min(numbers), max(numbers)))
        if _has_unknown_label(task, summary):
            if any(_is_between(text, step) for text in summary.outputs):
                yield Note(f"outputs are rounded to steps of {step:g} from {numbers[0]:g} to {numbers[-1]:g}")
            summary = yield from _summarise(reg, source, task)
    if source.hold_out == 0:
        source = replace(source, hold_out=_stored_hold_out(reg, name, summary) or choose_hold_out(summary))
    return source, summary, task


def _summarise(reg: Registry, source: ImportSource, task: Task) -> Generator[Event, None, FileSummary]:
    """The source's summary. Raises the errors of reading the file, and BadInput if no user has enough items."""
    summary = yield from summarise_file(reg, source, task)
    if max(summary.counts.values(), default=0) <= KEPT_ITEMS:
        scale = f" with a score from {source.scale[0]:g} to {source.scale[1]:g}" if source.round_to else ""
        raise BadInput(
            f"no user of {source.name} has more than {KEPT_ITEMS} items{scale}, so none of them can be held out",
            hint=f"bring more items: at least one user needs {KEPT_ITEMS + 1}; eight or more are better",
        )
    return summary


def choose_hold_out(summary: FileSummary) -> int:
    """A fifth of the median user's items, 2 to 12; for a single user at least as many as a verdict needs."""
    from mta_cli.engine.evaluation.ladder import MIN_UNITS

    if summary.is_of_one_user:
        fifth = max(MIN_UNITS["questions"], summary.records // HELD_OUT_SHARE)
        return min(MAX_HELD_OUT, fifth, summary.records - KEPT_ITEMS)
    middle = statistics.median_low(summary.counts.values())
    return min(MAX_HELD_OUT, max(MIN_HELD_OUT, middle // HELD_OUT_SHARE))


def _stored_hold_out(reg: Registry, task: str, summary: FileSummary) -> int:
    """The largest number of stored queries of the task for any user, if the whole file is stored; otherwise 0."""
    if len(reg.users.existing_names(set(summary.counts))) < len(summary.counts):
        return 0
    most = 0
    for name, records in summary.counts.items():
        counts = {of: both for of, *both in reg.users.tasks_of_user(reg.users.get(name).id)}
        items, queries = counts.get(task, (0, 0))
        if items + queries < records:
            return 0
        most = max(most, queries)
    return most


@dataclass(frozen=True)
class _HeldOut:
    """The number of queries that each user will have, as far as known, and whether records are stored already."""

    queries: Counter[str]
    is_stored: bool


def _check_hold_out(
    reg: Registry, request: QuickRequest, source: ImportSource, summary: FileSummary, task: Task, *, as_notes: bool
) -> Generator[Event, None, _HeldOut]:
    """The items that the import will hold out; with `as_notes`, the import's notes are yielded. Stores nothing.

    Raises BadInput if the file was imported with another number, because history items may have been trained on.
    """
    if not as_notes and not reg.users.existing_names(set(summary.counts)):
        return _HeldOut(Counter(), is_stored=False)
    with reg.stage_records() as staged:
        intake, known, *_ = yield from stage_source(reg, source, staged, lambda name: task)
        queries = Counter(record.user for record in staged if record.held_out)
        if (fixed := intake.held_out.fixed) and (request.source.hold_out or not queries):
            least, most, users = min(fixed.values()), max(fixed.values()), len(fixed)
            each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            whose = f"{'its' if summary.is_of_one_user else 'each'} user"
            if users < len(summary.counts):
                whose = f"{users:,} of its {len(summary.counts):,} users"
            raise BadInput(
                f"{source.name} is stored in task {task.name} already, with {each} held-out items of "
                f"{whose} and not {source.hold_out:,}; stored items stay history or held out as they are",
                hint=("store the file as another task: add ", Flag("task", f"{task.name}-{source.hold_out}")),
            )
        if as_notes:
            yield from hold_out_notes(source, intake)
            yield from import_notes(intake)
    return _HeldOut(queries, known.total() > 0)


def _step_of(task: Task, summary: FileSummary) -> float:
    """The step to which outputs are rounded if some are not on the scale of an existing task; 0 if all are."""
    numbers = sorted(number for label in task.labels if (number := parse_number(label)) is not None)
    if task.kind != "score" or len(numbers) != len(task.labels) or len(numbers) < 2:
        return 0.0
    step = numbers[1] - numbers[0]
    if not step or any(_is_between(label, step) for label in task.labels):  # such as labels 1, 3, 5
        return 0.0
    return step if _has_unknown_label(task, summary) else 0.0


def _is_between(output: str, step: float) -> bool:
    """Whether the output is a number that is not a multiple of `step`."""
    number = parse_number(output)
    return number is not None and not math.isclose(round_number(number, step), number, abs_tol=1e-6)


def _has_unknown_label(task: Task, summary: FileSummary) -> bool:
    return any(find_label(text, task.labels) is None for text in summary.outputs)


def _require_possible_anchors(
    reg: Registry, source: ImportSource, summary: FileSummary, can_anchor: bool | None, ask: AskConsent | None
) -> None:
    """Raises UsageError if none of the file's users may be an anchor, by default or by `can_anchor`."""
    if can_anchor is None and summary.third_parties and ask is None and not _has_consenting(reg, summary):
        raise UsageError(
            f"the users of {source.name} are {summary.third_parties}, so no bank is built from them by default",
            hint=("if they agree, or if the bank stays with you, add ", Flag("can_anchor")),
        )
    if can_anchor is None and summary.input_authors:
        raise UsageError(
            f"the inputs of {source.name} are the words of {' and '.join(summary.input_authors)}, so no bank is built "
            "from them by default",
            hint=("to build one in this store, add ", Flag("can_anchor"), "; only users whom you import are in it"),
        )
    if can_anchor is False:
        raise UsageError(
            ("a bank needs users who may be anchors, and ", Flag("no_can_anchor"), " forbids this"),
            hint=("leave ", Flag("no_can_anchor"), " out"),
        )


def _has_consenting(reg: Registry, summary: FileSummary) -> bool:
    """Whether one of the file's users is in the store already and may be an anchor."""
    return any(reg.users.get(name).can_anchor for name in reg.users.existing_names(set(summary.counts)))


def _ask_before(reg: Registry, source: ImportSource, summary: FileSummary, ask: AskConsent) -> AskConsent:
    """Ask about new users before anything is stored; returns a function that repeats the answer.

    Raises UsageError if no user may be an anchor after that.
    """
    new = len(summary.counts) - len(reg.users.existing_names(set(summary.counts)))
    agreed = ask(new) if new else False
    if not agreed and not _has_consenting(reg, summary):
        raise UsageError(
            f"nothing was stored: a bank needs users who may be anchors, and no user of {source.name} may",
            hint=(Command("data import", str(source.path)), " stores them without a bank"),
        )
    return lambda users: agreed


def _require_no_other_users(reg: Registry, summary: FileSummary, task: Task) -> None:
    """Raises BadInput for a file of a single user if other users, who would be in its bank, have items of its task."""
    others = [user for user, _ in reg.users.users_with_items(task.name) if user.name not in summary.counts]
    if summary.is_of_one_user and others:
        raise BadInput(
            f"task {task.name} has items of {pluralise(len(others), 'other user')}, but the bank for a file of one "
            "user is built from that user alone",
            hint=("store the file as a task of its own: add ", Flag("task", "OTHER")),
        )


def _file_lines(
    complete: CompleteSource, source: ImportSource, summary: FileSummary, task: Task, held: _HeldOut
) -> Iterator[PlanLine]:
    """Plan lines on the task and on the held-out items."""
    labels = f": {', '.join(task.labels)}"[:60] if task.labels else ""
    by_data = "by the outputs" if source.own_task is None else "by the format"
    origin = by_data if complete.source.task is None else "flag --task"
    yield PlanLine("task", f"{task.name}, {task.kind}{labels}", origin)
    why = "flag --hold-out" if complete.source.hold_out else "by the store" if held.is_stored else "by the data"
    yield PlanLine("held out", _hold_out_words(source, summary, held), why)


def _hold_out_words(source: ImportSource, summary: FileSummary, held: _HeldOut) -> str:
    """A description of the held-out items: the latest ones, or a draw by the seed for users with missing times."""
    items, alone = pluralise(source.hold_out, "item"), summary.is_of_one_user
    some = f"{items}{'' if alone else ' of each user'}"
    drawn = f"drawn by seed {source.seed}, because not all times are known"
    if held.is_stored:
        return f"{some}, as they are stored"
    if len(summary.untimed) == len(summary.counts):
        return f"{some}, {drawn}"
    last = f"the last {items}" if alone else f"each user's last {items}"
    return last + (f"; of {pluralise(len(summary.untimed), 'user')} {drawn}" if summary.untimed else "")


def _find_existing(reg: Registry, complete: CompleteSource) -> Task | None:
    """The named task, if it exists. Raises NotFound if it does not exist and the file is a document."""
    if complete.source.task is None:
        return None
    try:
        return find_task(reg, complete.source.task)
    except NotFound:
        if complete.is_document:
            raise
        return None


def _require_same_task(reg: Registry, task: Task) -> None:
    """Raises BadInput if the store has a different task of this name."""
    try:
        is_task_stored(reg, task)
    except BadInput as error:
        error.hint = (Flag("task", task.name), " takes it as it is; ", Flag("task", "OTHER"), " makes another")
        raise


def _plan_without_import(
    reg: Registry,
    request: QuickRequest,
    summary: FileSummary,
    task: Task,
    held: _HeldOut,
    lines: tuple[PlanLine, ...],
) -> Iterator[Event]:
    """The plan of a dry run, as if all users may be anchors. If the base is not installed, the plan has no sizes."""
    history = request.options[PromptOptions].history_items
    try:
        base = _load(reg, request)
    except NotFound:
        lines += (PlanLine("base", f"{request.options[ModelOptions].base} is pulled first; then the rate is measured"),)
    else:
        rows = sample_rows(base, task, summary.sample, (history,))
        for user, row in list(zip(summary.sample, rows, strict=True))[:SHOWN_PROMPTS]:
            prompt = base.tokenizer.decode(list(row.input_ids[: row.answer_start]))
            yield Note(_prompt_text(user, prompt, summary.sample[user][-1].output))
        queries = tuple(held.queries[user] for user in summary.counts)
        left = tuple(count - held.queries[user] for user, count in summary.counts.items())
        work = _workload(request, task, left, queries)
        rate = _measure_rate(request, base, summary, task)
        lines += make_plan(work, request.options[BankOptions], rate, request.minutes).lines
    yield JobPlan("quick", lines)
    yield JobResult({"dry_run": True, "task": task.name, "kind": task.kind, "users": len(summary.counts)})


def _load(reg: Registry, request: QuickRequest) -> LoadedBase:
    from mta_cli.pipeline.models.load import load_on_device

    return load_on_device(base_model(request.options), request.machine, reg=reg)


def show_prompts(reg: Registry, base: LoadedBase, task: Task, history_items: int) -> list[str]:
    """Complete prompts of the first held-out question of three users, each with the user's answer."""
    from mta_cli.pipeline.data.examples import PromptRowBuilder

    rows, shown = PromptRowBuilder(reg, base, task, history_items), list[str]()
    for user, _ in reg.users.users_with_items(task.name):
        for query in reg.items.queries(user.id, task.name, 1):
            shown.append(_prompt_text(user.name, base.tokenizer.decode(rows.query_prompt(query)), query.gold))
        if len(shown) == SHOWN_PROMPTS:
            break
    return shown


def _prompt_text(user: str, prompt: str, answer: str) -> str:
    lines = [line if len(line) <= SHOWN_LINE else line[:SHOWN_LINE] + "…" for line in prompt.splitlines()]
    if (hidden := len(lines) - SHOWN_LINES) > 0:
        lines[SHOWN_LINES // 2 : -SHOWN_LINES // 2] = [f"({hidden} more lines)"]
    return "\n".join([f"A complete prompt for {user}, who answered {answer!r:.80}:", *lines])


def _find_run(reg: Registry, request: QuickRequest, task: Task) -> Run | None:
    """The newest run of the same request on the same number of items, finished or not; its plan is used again."""
    identity = _identity(reg, request, task)
    for run in reg.runs.of_kind(RUN_KIND):
        if {key: value for key, value in run.config[REQUEST_KEY].items() if key != PLAN_KEY} == identity:
            return run
    return None


def _plan_of(run: Run) -> QuickPlan:
    return QuickPlan.from_json(run.config[REQUEST_KEY][PLAN_KEY])


def _is_current(reg: Registry, request: QuickRequest, task: Task, summary: FileSummary, run: Run) -> bool:
    """Whether a run has finished, and its evaluation still exists and was made from the present inputs."""
    found = run.result or {}
    there = {one.id for one in reg.evaluations.all()}
    return found.get("evaluation") in there and found.get(SEAL_KEY) == _inputs_digest(reg, request, task, summary)


def _inputs_digest(reg: Registry, request: QuickRequest, task: Task, summary: FileSummary) -> str:
    """A digest of the inputs of the figures besides the request's identity: items, queries, options and models."""
    bank = reg.banks.latest_ready_bank(task.name, base_model(request.options).fingerprint)
    users = [user.id for user, _ in reg.users.users_with_items(task.name)]
    of_file = [user.id for user, _ in reg.users.users_with_items(task.name) if user.name in summary.counts]
    parts: list[Any] = [reg.items.hash_histories(users, task.name), of_file]
    parts += [[query.id for query in reg.items.queries(user, task.name)] for user in of_file]
    parts += [asdict(request.options[cls]) for cls in OPTION_CLASSES]
    if bank is not None:
        parts += [bank.id, bank.config, *((one.id, one.digest) for one in reg.banks.anchors(bank.id))]
        for user in of_file:
            if (stack := reg.stacks.get(user, task.name, bank.id)) is not None:
                parts.append([stack.identity, stack.digest, [asdict(one) for one in stack.recipe]])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plan(reg: Registry, request: QuickRequest, base: LoadedBase, summary: FileSummary, task: Task) -> QuickPlan:
    """A new plan for the measured rate."""
    queries = tuple(len(reg.items.queries(user.id, task.name)) for user, _ in reg.users.users_with_items(task.name))
    work = _workload(request, task, _items_of_consenting(reg, task), queries)
    return make_plan(work, request.options[BankOptions], _measure_rate(request, base, summary, task), request.minutes)


def _workload(request: QuickRequest, task: Task, held: Sequence[int], queries: Sequence[int]) -> Workload:
    """The inputs of a plan. Raises BadInput if nothing is held out."""
    if not any(queries):
        raise BadInput(
            f"no user of task {task.name} has held-out items: an item that occurs twice is never held out",
            hint="import a file with more different items of each user",
        )
    return Workload(tuple(held), tuple(queries), bool(task.labels), request.options[AdaptOptions])


def _measure_rate(request: QuickRequest, base: LoadedBase, summary: FileSummary, task: Task) -> float:
    """The task adapter's training rows per second on this file."""
    from mta_cli.pipeline.data.examples import history_mix

    rows = sample_rows(base, task, summary.sample, history_mix(request.options[PromptOptions].history_items))
    return measure_row_rate(base, rows, request.options[BankOptions])


def _identity(reg: Registry, request: QuickRequest, task: Task) -> dict[str, Any]:
    """The JSON that identifies a plan's inputs, without the machine's rate."""
    options = request.options
    return {
        "task": task.name,
        # hashed, because its labels are users' answers
        "task_sha256": hashlib.sha256(task_to_toml(task).encode()).hexdigest(),
        "minutes": request.minutes,
        "base": base_model(options).fingerprint,
        "seed": request.machine.seed,
        "dtype": request.machine.dtype,
        "bank": asdict(options[BankOptions]),
        "fuse": asdict(options[FuseOptions]),
        "adapt": asdict(options[AdaptOptions]),
        **asdict(options[PromptOptions]),
        "held": sorted(_items_of_consenting(reg, task)),
    }


def _items_of_consenting(reg: Registry, task: Task) -> tuple[int, ...]:
    """The number of items of each consenting user."""
    return tuple(count for user, count in reg.users.users_with_items(task.name) if user.can_anchor and count)


def _make_and_measure(
    reg: Registry, request: QuickRequest, task: Task, plan: QuickPlan, summary: FileSummary
) -> Generator[Event, None, dict[str, Any]]:
    """Build the bank, make fusions and stacks for users of the file, and measure them; the evaluation's document."""
    from mta_cli.pipeline.evaluation.stored_models import evaluate_users
    from mta_cli.pipeline.personalize.adapt import adapt_users

    options, adapt = request.options, request.options[AdaptOptions]
    options = options.with_instance(plan.sizes.bank_options(options[BankOptions]))
    options = options.with_instance(replace(adapt, shots=min(adapt.shots, plan.sizes.max_items)))
    yield Note(
        f"2 of 4: the bank of {pluralise(plan.sizes.anchors, 'anchor')}; steps 2 to 4 take about "
        f"{format_duration(plan.seconds)}"
    )
    bank = yield from _build_bank(reg, options, task, plan.sizes)
    users, are_anchors = measurable_users(reg, bank, summary.counts)
    users = draw_users(users, plan.sizes.measured_users, request.machine.seed)
    if are_anchors and not summary.is_of_one_user:
        yield Note(
            "Every user with held-out items is an anchor, so the bank was trained on the measured users' histories.",
            warning=True,
        )
    yield Note(f"3 of 4: the models of {pluralise(len(users), 'user')}")
    made = adapt_request(reg, options, [user.name for user in users], task.name)
    yield from forward_events(adapt_users(reg, made))
    # a user whose training diverged has no stack
    users = [user for user in users if reg.stacks.get(user.id, task.name, bank.id) is not None]
    if not users:
        half = made.options.peak_rate(bool(task.labels)) / 2
        raise BadInput(
            "no user could be adapted: every training diverged",
            hint=("try a lower learning rate: ", Command("user adapt", learning_rate=f"{half:g}")),
        )
    yield Note("4 of 4: answers to held-out questions, step by step from no model to the personal one")
    return (yield from forward_events(evaluate_users(reg, made.fuse, users)))  # type: ignore[no-any-return]


def _describe(
    reg: Registry,
    request: QuickRequest,
    task: Task,
    summary: FileSummary,
    run: Run,
    file_lines: Sequence[PlanLine],
) -> dict[str, Any]:
    """The result document of a finished run, read from the store, so that a repeated run gives the same."""
    from mta_cli.pipeline.evaluation.stored_models import load_evaluation_document

    plan, kept = _plan_of(run), run.result or {}
    evaluation = load_evaluation_document(reg, kept["evaluation"])
    bank = current_bank(reg, task.name, base_model(request.options).fingerprint)
    measurable, are_anchors = measurable_users(reg, bank, summary.counts)
    answers = reg.evaluations.predictions.load_predictions(evaluation["evaluation"])
    measured = {one.user_id for one in answers}
    prompts = {one.user_id: one for one in reversed(answers) if one.method == evaluation["reference"]}
    shots = min(request.options[AdaptOptions].shots, plan.sizes.max_items)
    is_cut = shots < request.options[AdaptOptions].shots and max(_items_of_consenting(reg, task), default=0) > shots
    ways = ["--minutes N measures more users"] if len(measured) < len(measurable) else []
    ways += ["--hold-out N with another --task asks more questions", "or bring more items of each user"]
    return {
        "prompts": [
            {"user": reg.users.by_id(one.user_id).name, "prompt": one.prompt, "answer": one.gold}
            for one in sorted(prompts.values(), key=lambda one: one.user_id)[:SHOWN_PROMPTS]
        ],
        "plan": [asdict(line) for line in (*file_lines, *plan.lines)],
        "planned_seconds": round(plan.seconds, 1),
        "seconds": kept["seconds"],
        "bank": bank.name,
        "version": bank.version,
        "anchors": len(reg.banks.anchors(bank.id)),
        "memory": request.options[MemoryOptions].memory if task.labels else "off",
        "shots": shots if is_cut else None,
        "measured_users": evaluation["users"],
        "measured_queries": evaluation["queries"],
        "measured_on_anchors": are_anchors,
        **{key: evaluation[key] for key in ("evaluation", "ladder", "example_rule", "examples")},
        "verdict": verdict_lines(evaluation["ladder"], f"More: {'; '.join(ways)}."),
        "next": _next_commands(
            reg,
            task,
            [user for user in measurable if user.id in measured],
            bank.base,
            evaluation["evaluation"],
            alone=summary.is_of_one_user,
        ),
    }


def _build_bank(reg: Registry, options: OptionSet, task: Task, sizes: QuickSizes) -> Generator[Event, None, Bank]:
    """Build the bank from all users, or from the users with the longest histories if there is no time for all."""
    from mta_cli.pipeline.bank.build import build_bank

    request = bank_request(reg, options, task.name)
    if sizes.bank_users is not None:
        whose = [(count, -user.id) for user, count in reg.users.users_with_items(task.name) if user.can_anchor]
        chosen = sorted(whose, reverse=True)[: sizes.bank_users]
        request = replace(request, user_ids=frozenset(-number for _, number in chosen))
    yield from forward_events(build_bank(reg, request))
    return current_bank(reg, task.name, request.base.fingerprint)


def measurable_users(reg: Registry, bank: Bank, names: Container[str]) -> tuple[list[User], bool]:
    """The users among `names` with held-out items, by id, and whether they are anchors.

    Anchors are measured only if there are no other users.
    """
    anchors = {anchor.user_id for anchor in reg.banks.anchors(bank.id)}
    named = [user for user, _ in reg.users.users_with_items(bank.task) if user.name in names]
    asked = [user for user in named if reg.items.queries(user.id, bank.task, 1)]
    others = [user for user in asked if user.id not in anchors]
    return sorted(others or asked, key=lambda user: user.id), not others


def draw_users(users: Sequence[User], most: int, seed: int) -> list[User]:
    """At most `most` of these users, drawn by the seed, sorted by id."""
    chosen = random.Random(seed).sample(users, most) if len(users) > most else users
    return sorted(chosen, key=lambda user: user.id)


def _next_commands(
    reg: Registry, task: Task, users: Sequence[User], base: str, evaluation: int, *, alone: bool
) -> list[str]:
    """Suggested commands for the models on `base` (a fingerprint), with a complete question of one of `users`."""
    asked = [(user, " ".join(query.input.split())) for user in users for query in reg.items.queries(user.id, task.name)]
    fitting = [one for one in asked if len(one[1]) <= MAX_NEXT_QUESTION]
    user, question = fitting[0] if fitting else min(asked, key=lambda one: len(one[1]))
    ends, on = "-- " if question.startswith("-") else "", {"task": task.name, "base": base_name_if_several(reg, base)}
    return [
        f"{Command('ask', user=user.name, **on)} {ends}{shlex.quote(question)}",
        str(Command("chat", user=user.name, **on)),
        str(Command("eval show", str(evaluation))),
        *([] if alone else [str(Command("eval run", **on))]),
    ]
