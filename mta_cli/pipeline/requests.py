"""The request of every job: made from options and names, stored as JSON with its run, and restored from it.

The command line, the TUI, resume and the demo make their requests here. Users' names are values in the JSON, never
keys, so that they can be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command, Flag, IntegrityFault, NotFound, UsageError
from mta_cli.options import (
    AdaptOptions,
    AnswerOptions,
    BankOptions,
    EvalOptions,
    ExecutorOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    OptionSet,
    PromptOptions,
    ScreeningOptions,
    options_from_json,
)
from mta_cli.pipeline.bank_sizes import choose_bank_sizes
from mta_cli.pipeline.data.examples import history_mix
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.models.installed import resolve_model, resolve_setting
from mta_cli.pipeline.user_weights import FREE_TASK, resolve_user_task
from store.records import Bank, User
from store.tables.evaluations import Evaluation

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

SCREENING_OPTIONS_KEY = "gate_options"  # the key of the screening's options in a bank's config


class JobSpec:
    """The common part of the requests of all jobs on a task and a base."""

    task: Task
    base: ModelEntry
    prompt: PromptOptions
    machine: MachineOptions

    @property
    def identity(self) -> dict[str, Any]:
        """The settings, as JSON, that determine a job's result besides its own options and data."""
        return {
            "base": self.base.fingerprint,
            "task": asdict(self.task),
            **asdict(self.prompt),
            "seed": self.machine.seed,
        }

    @property
    def adapter_config(self) -> dict[str, Any]:
        """The settings that are stored with each adapter that the job trains."""
        return {**asdict(self.prompt), "task": self.task.name}

    @property
    def history_mix(self) -> tuple[int, ...]:
        """The numbers of history items that the task adapter's training prompts show."""
        return history_mix(self.prompt.history_items)


@dataclass(frozen=True)
class BankRequest(JobSpec):
    """The request of a bank build. Without a `name` the bank has the task's name.

    The bank is built from the users `user_ids`, or from all. For `purpose` see `store.records.Bank`. `on_bank_started`
    is called with the bank's id before training. With `permute_answers`, used as a control in evaluations, each anchor
    learns its user's answers in random order. Items that are known to be later than `until` (ISO 8601) are left out.
    """

    task: Task
    base: ModelEntry
    embedder: ModelEntry
    options: BankOptions
    prompt: PromptOptions
    machine: MachineOptions
    name: str | None = None
    user_ids: frozenset[int] | None = None
    purpose: str = ""
    gates: ScreeningOptions = field(default_factory=ScreeningOptions)
    on_bank_started: Callable[[int], None] = lambda number: None
    permute_answers: bool = False
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)
    until: str | None = None

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that the job's plan shows."""
        return self.options, self.gates, self.prompt, self.machine, self.executor


@dataclass(frozen=True)
class FuseRequest(JobSpec):
    """The request of a fusion with the newest ready bank of the task for this base.

    The fusion uses the bank's embedder; an `embedder` that is not the bank's is refused. Evidence for the anchors is
    measured together with the label memory (options `memory`), so that an anchor gets no credit for what the memory
    already predicts.
    """

    task: Task
    base: ModelEntry
    embedder: ModelEntry | None
    options: FuseOptions
    prompt: PromptOptions
    machine: MachineOptions
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that the job's plan shows."""
        return self.options, self.prompt, self.machine, self.memory, self.executor


@dataclass(frozen=True)
class AdaptRequest:
    """The request of an adaptation: the users, the stack's options, and the fusion below it.

    `users` None means every user with a history of the task who is not an anchor. With `explicit_top_k`, recipes with
    another number of anchors than `top_k` are made again.
    """

    users: Sequence[User] | None
    options: AdaptOptions
    fuse: FuseRequest
    explicit_top_k: bool = False

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that the job's plan shows."""
        return self.options, *self.fuse.plan_options


@dataclass(frozen=True)
class MeasuredBank:
    """A bank that is already built, and the ids of the users on whom it is measured."""

    bank: Bank
    test_users: tuple[int, ...]


@dataclass(frozen=True)
class EvalRequest(JobSpec):
    """The request of an evaluation. `method_settings` has settings by method, which override all others.

    `measured` is an existing bank to measure; without it, the evaluation builds its own banks.
    """

    task: Task
    base: ModelEntry
    embedder: ModelEntry
    options: EvalOptions
    bank: BankOptions
    prompt: PromptOptions
    machine: MachineOptions
    method_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured: MeasuredBank | None = None
    gates: ScreeningOptions = field(default_factory=ScreeningOptions)
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that the job's plan shows."""
        return self.options, bank_options(self), self.prompt, self.machine, self.executor


@dataclass(frozen=True)
class ChatOptions:
    """The options of `mta ask`, `compare` and `chat`.

    Without `task` the text is a chat message; without `mode` the most personal model answers. An answer ends before the
    first of the texts `stops`. `system` is a system message in front of the conversation.
    """

    machine: MachineOptions = field(default_factory=MachineOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    task: str | None = None
    mode: str | None = None
    free_decoding: bool = False
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    stops: tuple[str, ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class DemoRequest:
    """The request of the demo. With `full` the demo trains longer, and its prompts show history items."""

    models: ModelOptions
    machine: MachineOptions
    full: bool = False


def bank_request(reg: Registry, options: OptionSet, task: str, name: str | None = None) -> BankRequest:
    """The request of `mta bank build`. Raises NotFound for a task or a model that does not exist."""
    return BankRequest(
        find_task(reg, task),
        base_model(options),
        embedder_model(options),
        options[BankOptions],
        options[PromptOptions],
        options[MachineOptions],
        name,
        gates=options[ScreeningOptions],
        executor=options.get(ExecutorOptions),
    )


def fuse_request(reg: Registry, options: OptionSet, task: str, *, explicit_embedder: bool = False) -> FuseRequest:
    """The request of `mta user fuse`. Raises NotFound for a task or a model that does not exist.

    With `explicit_embedder` the embedder of `options` must be the bank's; otherwise the bank's is used.
    """
    return FuseRequest(
        find_task(reg, task),
        base_model(options),
        embedder_model(options) if explicit_embedder else None,
        options[FuseOptions],
        options[PromptOptions],
        options[MachineOptions],
        options[MemoryOptions],
        options.get(ExecutorOptions),
    )


def adapt_request(
    reg: Registry,
    options: OptionSet,
    names: Sequence[str] | None = None,
    task: str | None = None,
    *,
    explicit_embedder: bool = False,
    explicit_top_k: bool = False,
) -> AdaptRequest:
    """The request of `mta user adapt` for the users of these names; None means all who can be adapted.

    For `explicit_embedder` see `fuse_request`. Recipes are made from the items that the stacks are trained on. Raises
    NotFound for a user, task or model that does not exist, and UsageError if several tasks could be meant.
    """
    users = None if names is None else [reg.users.get(name) for name in dict.fromkeys(names)]
    adapt = options[AdaptOptions]
    options = options.with_instance(replace(options[FuseOptions], shots=adapt.shots))
    fuse = fuse_request(reg, options, resolve_adapt_task(reg, users, task), explicit_embedder=explicit_embedder)
    return AdaptRequest(users, adapt, fuse, explicit_top_k)


def eval_request(
    reg: Registry, options: OptionSet, task: str, method_settings: Mapping[str, Mapping[str, Any]]
) -> EvalRequest:
    """The request of `mta eval run` and `tune`. Raises NotFound for a task or a model that does not exist.

    Bank sizes that the options leave open are chosen from all users of the task, and are the same in every fold.
    """
    return EvalRequest(
        find_task(reg, task),
        base_model(options),
        embedder_model(options),
        options[EvalOptions],
        choose_bank_sizes(reg, task, options[BankOptions]).options,
        options[PromptOptions],
        options[MachineOptions],
        method_settings,
        gates=options[ScreeningOptions],
        executor=options.get(ExecutorOptions),
    )


def chat_options(
    options: OptionSet,
    task: str | None = None,
    mode: str | None = None,
    *,
    free_decoding: bool = False,
    stops: Sequence[str] = (),
    system: str | None = None,
) -> ChatOptions:
    """The options of `mta ask`, `compare` and `chat`. Raises UsageError if options contradict each other."""
    if not all(stops):
        raise UsageError(
            (Flag("stop"), ": an empty text stops nothing."),
            hint=("give the text that ends the answer: ", Flag("stop", "TEXT")),
        )
    if system is not None and task not in (None, FREE_TASK):
        raise UsageError(
            (f"Task {task} has its own prompt, to which ", Flag("system"), " cannot add anything."),
            hint=("leave ", Flag("system"), " out, or use ", Flag("task", FREE_TASK)),
        )
    return ChatOptions(
        options[MachineOptions],
        options[PromptOptions],
        options[AnswerOptions],
        task,
        mode,
        free_decoding,
        options[MemoryOptions],
        tuple(stops),
        system or None,
    )


def demo_request(options: OptionSet, *, full: bool) -> DemoRequest:
    """The request of `mta demo`."""
    return DemoRequest(options[ModelOptions], options[MachineOptions], full)


def base_model(options: OptionSet) -> ModelEntry:
    """The installed base that the options name, not loaded yet. Raises NotFound if it is not installed."""
    return resolve_setting("models.base", options[ModelOptions].base)


def embedder_model(options: OptionSet) -> ModelEntry:
    """The installed embedder that the options name, not loaded yet. Raises NotFound if it is not installed."""
    return resolve_setting("models.embedder", options[ModelOptions].embedder)


def bank_options(request: EvalRequest) -> BankOptions:
    """The options of the folds' banks: anchors have the placement of stacks, and every user trains the task adapter.

    No minimum history is needed, because no user of a fold's bank is tested on it. A measured bank keeps its options.
    """
    if request.measured is not None:
        return request.bank
    least = 1 if request.bank.task_min_items is None else request.bank.task_min_items
    return replace(request.bank, placement=request.options.placement, task_min_items=least)


def resolve_adapt_task(reg: Registry, users: Sequence[User] | None, task: str | None) -> str:
    """The task of an adaptation: `task` if given, else the users' common task; without users, the one with a bank.

    Raises NotFound if there is none, and UsageError if there are several.
    """
    if task is not None:
        return task
    if users is None:
        found = {bank.task for bank in reg.banks.all() if bank.status == "ready"}
        if not found:
            raise NotFound("There is no bank yet.", hint=Command("bank build", task="TASK"))
    else:
        found = {resolve_user_task(reg, user, None) for user in users}
    if len(found) > 1:
        raise UsageError(
            f"Several tasks could be meant: {', '.join(sorted(found))}.", hint=("choose a task with ", Flag("task"))
        )
    return found.pop()


def adapt_request_json(request: AdaptRequest) -> dict[str, Any]:
    """The request of `adapt_users` as JSON, without the users: the run refers to them, unless all are adapted."""
    fuse = request.fuse
    return {
        "task": fuse.task.name,
        "base": fuse.base.fingerprint,
        "embedder": None if fuse.embedder is None else fuse.embedder.fingerprint,
        "everybody": request.users is None,
        "options": asdict(request.options),
        "fuse": asdict(fuse.options),
        **asdict(fuse.prompt),
        "seed": fuse.machine.seed,
        **fuse.machine.formats,
        "memory": asdict(fuse.memory),
        "explicit_top_k": request.explicit_top_k,
    }


def restore_adapt_request(
    reg: Registry, run_id: int, document: Mapping[str, Any], machine: MachineOptions
) -> AdaptRequest:
    """The request of a run, restored from its JSON `document`, on the device of `machine`.

    Users who were forgotten since the run are left out.
    """
    fuse = FuseRequest(
        find_task(reg, document["task"]),
        model_by_fingerprint(reg, document["base"], "base"),
        None,
        options_from_json(FuseOptions, document["fuse"]),
        options_from_json(PromptOptions, document),
        _restore_machine(machine, document),
        options_from_json(MemoryOptions, document["memory"]),
    )
    users = None if document["everybody"] else reg.runs.asked_users(run_id)
    return AdaptRequest(users, options_from_json(AdaptOptions, document["options"]), fuse, document["explicit_top_k"])


def eval_request_json(request: EvalRequest) -> dict[str, Any]:
    """The request of `run_evaluation` or `tune_evaluation` as JSON, without the settings in the evaluation's config."""
    options = request.options
    return {
        "methods": options.methods,
        "reference": options.reference,
        "memory": options.memory,
        "calibrate": options.calibrate,
        "others": options.others,
        "given": {method: dict(settings) for method, settings in request.method_settings.items()},
    }


def restore_eval_request(
    reg: Registry, evaluation: Evaluation, document: Mapping[str, Any], machine: MachineOptions
) -> EvalRequest:
    """The request of an evaluation, restored from its config and the JSON `document`, on the device of `machine`."""
    return EvalRequest(
        find_task(reg, evaluation.task),
        resolve_model(evaluation.config["base"], "base"),
        resolve_model(evaluation.config["embedder"], "embedder"),
        options_from_json(EvalOptions, {**evaluation.config, **document}),
        options_from_json(BankOptions, evaluation.config["bank"]),
        options_from_json(PromptOptions, evaluation.config),
        _restore_machine(machine, evaluation.config),
        document["given"],
        _restore_measured_bank(reg, evaluation),
        options_from_json(ScreeningOptions, evaluation.config[SCREENING_OPTIONS_KEY]),
    )


def _restore_measured_bank(reg: Registry, evaluation: Evaluation) -> MeasuredBank | None:
    """The bank that an evaluation measures. Raises NotFound if the bank was removed."""
    number = evaluation.config.get("measured_bank")
    if number is None:
        return None
    tested = [user for _, user, role in reg.evaluations.fold_members(evaluation.id) if role == "test"]
    return MeasuredBank(reg.banks.by_id(number), tuple(tested))


def restore_bank_request(reg: Registry, bank: Bank, machine: MachineOptions) -> BankRequest:
    """The request that started a bank, restored from the bank's config, on the device of `machine`."""
    return BankRequest(
        find_task(reg, bank.task),
        model_by_fingerprint(reg, bank.base, "base"),
        model_by_fingerprint(reg, bank.embedder, "embedder"),
        options_from_json(BankOptions, bank.config),
        options_from_json(PromptOptions, bank.config),
        replace(_restore_machine(machine, bank.config), seed=bank.seed),
        bank.name,
        gates=options_from_json(ScreeningOptions, bank.config[SCREENING_OPTIONS_KEY]),
    )


def model_by_fingerprint(reg: Registry, fingerprint: str, kind: str) -> ModelEntry:
    """The installed model with this fingerprint. Raises IntegrityFault if its name now means another model."""
    name = reg.models.get(fingerprint).name
    entry = resolve_model(name, kind)
    if entry.fingerprint != fingerprint:
        raise IntegrityFault(
            f"The {kind} {name} has changed since this job was started, so the job cannot be continued.",
            hint="start the job again, so that it uses the present model",
        )
    return entry


def _restore_machine(machine: MachineOptions, document: Mapping[str, Any]) -> MachineOptions:
    seed, quantize = document.get("seed", machine.seed), document.get("quantize", "off")
    return replace(machine, seed=seed, dtype=document["dtype"], quantize=quantize)
