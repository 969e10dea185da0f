"""The request of every job: made from options and names, written to a run's record as JSON, and restored from it.

Command line, window, resume and demo make their requests here. Runs no job and knows no flags, forms or settings.
Users' names are values in the JSON, never keys, so that they can be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mta_cli.errors import IntegrityFault, NotFound, UsageError
from mta_cli.options import (
    AdaptOptions,
    AnswerOptions,
    BankOptions,
    EvalOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    OptionSet,
    PromptOptions,
    ScreeningOptions,
    options_from_json,
)
from mta_cli.pipeline.bank.screening import SCREENING_OPTIONS_KEY
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.models.lookup import resolve_model
from mta_cli.pipeline.personalize.weights import resolve_user_task
from store.records import Bank, User
from store.tables.evaluations import Evaluation

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry


@dataclass(frozen=True)
class BankRequest:
    """Everything a bank build needs to know. `name` defaults to the task's.

    `user_ids` are the users it may be built from; None: all. For `purpose` see `store.records.Bank`.
    `on_bank_started` gets the bank's number before anything is trained.
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

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that its plan shows."""
        return self.options, self.gates, self.prompt, self.machine


@dataclass(frozen=True)
class FuseRequest:
    """Everything a fusion needs to know. It uses the newest ready bank of the task for this base.

    `memory`: the label memory that the user's model will answer with; evidence need not learn what it adds.
    """

    task: Task
    base: ModelEntry
    embedder: ModelEntry
    options: FuseOptions
    prompt: PromptOptions
    machine: MachineOptions
    memory: MemoryOptions = field(default_factory=MemoryOptions)

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that its plan shows."""
        return self.options, self.prompt, self.machine, self.memory


@dataclass(frozen=True)
class AdaptRequest:
    """Everything an adaptation needs to know: whom, the stack's options, and the fusion below it.

    `users` None: every user with a history of the task who is not an anchor.
    """

    users: Sequence[User] | None
    options: AdaptOptions
    fuse: FuseRequest

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that its plan shows."""
        return self.options, *self.fuse.plan_options


@dataclass(frozen=True)
class EvalRequest:
    """Everything an evaluation needs to know. `method_settings` are settings by method, above all others."""

    task: Task
    base: ModelEntry
    embedder: ModelEntry
    options: EvalOptions
    bank: BankOptions
    prompt: PromptOptions
    machine: MachineOptions
    method_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def plan_options(self) -> tuple[Any, ...]:
        """The options that its plan shows."""
        return self.options, bank_options(self), self.prompt, self.machine


@dataclass(frozen=True)
class ChatOptions:
    """How questions are put. Without `task` words go as typed; without `mode` the most personal weights answer."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    task: str | None = None
    mode: str | None = None
    free_decoding: bool = False
    memory: MemoryOptions = field(default_factory=MemoryOptions)


@dataclass(frozen=True)
class DemoRequest:
    """Which models, on which machine; `quick` trains less and adapts only the three users who are shown."""

    models: ModelOptions
    machine: MachineOptions
    quick: bool = False


def bank_request(reg: Registry, options: OptionSet, task: str, name: str | None = None) -> BankRequest:
    """The request of `mta bank build`. NotFound for a task or a model that does not exist."""
    return BankRequest(
        find_task(reg, task),
        base_model(options),
        embedder_model(options),
        options[BankOptions],
        options[PromptOptions],
        options[MachineOptions],
        name,
        gates=options[ScreeningOptions],
    )


def fuse_request(reg: Registry, options: OptionSet, task: str) -> FuseRequest:
    """The request of `mta user fuse`. NotFound for a task or a model that does not exist."""
    return FuseRequest(
        find_task(reg, task),
        base_model(options),
        embedder_model(options),
        options[FuseOptions],
        options[PromptOptions],
        options[MachineOptions],
        options[MemoryOptions],
    )


def adapt_request(
    reg: Registry, options: OptionSet, names: Sequence[str] | None = None, task: str | None = None
) -> AdaptRequest:
    """The request of `mta user adapt` for the users of these names; None: all who can be adapted.

    NotFound for a user, task or model that does not exist. UsageError where several tasks could be meant, and for an
    option that this kind of stack does not have.
    """
    users = None if names is None else [reg.users.get(name) for name in dict.fromkeys(names)]
    fuse = fuse_request(reg, options, resolve_adapt_task(reg, users, task))
    return AdaptRequest(users, options[AdaptOptions].with_kind_defaults(bool(fuse.task.labels)), fuse)


def eval_request(
    reg: Registry, options: OptionSet, task: str, method_settings: Mapping[str, Mapping[str, Any]]
) -> EvalRequest:
    """The request of `mta eval run` and `tune`. NotFound for a task or a model that does not exist."""
    return EvalRequest(
        find_task(reg, task),
        base_model(options),
        embedder_model(options),
        options[EvalOptions],
        options[BankOptions],
        options[PromptOptions],
        options[MachineOptions],
        method_settings,
    )


def chat_options(
    options: OptionSet, task: str | None = None, mode: str | None = None, *, free_decoding: bool = False
) -> ChatOptions:
    """How `mta ask`, `compare` and `chat` put their questions."""
    return ChatOptions(
        options[MachineOptions],
        options[PromptOptions],
        options[AnswerOptions],
        task,
        mode,
        free_decoding,
        options[MemoryOptions],
    )


def demo_request(options: OptionSet, *, quick: bool) -> DemoRequest:
    """The request of `mta demo`."""
    return DemoRequest(options[ModelOptions], options[MachineOptions], quick)


def base_model(options: OptionSet) -> ModelEntry:
    """The base, ready to load. NotFound where it is not here."""
    return resolve_model(options[ModelOptions].base, "base")


def embedder_model(options: OptionSet) -> ModelEntry:
    """The embedder, ready to load. NotFound where it is not here."""
    return resolve_model(options[ModelOptions].embedder, "embedder")


def bank_options(request: EvalRequest) -> BankOptions:
    """The options of the folds' banks: anchors act where personal parts do, and every user trains the task adapter.

    No user of a fold's bank is tested on it, so no history is too short.
    """
    least = 1 if request.bank.task_min_items is None else request.bank.task_min_items
    return replace(request.bank, placement=request.options.placement, task_min_items=least)


def resolve_adapt_task(reg: Registry, users: Sequence[User] | None, task: str | None) -> str:
    """The task that is meant: `task`, the users' common one, or the only one that has a bank."""
    if task is not None:
        return task
    if users is None:
        found = {bank.task for bank in reg.banks.all() if bank.status == "ready"}
        if not found:
            raise NotFound("There is no bank yet.", hint="mta bank build --task TASK")
    else:
        found = {resolve_user_task(reg, user, None) for user in users}
    if len(found) > 1:
        raise UsageError(f"Several tasks could be meant: {', '.join(sorted(found))}.", hint="say which with --task")
    return found.pop()


def adapt_request_json(request: AdaptRequest) -> dict[str, Any]:
    """The request of `adapt_users` as JSON. Its run names the users by key, unless everybody is asked for."""
    fuse = request.fuse
    return {
        "task": fuse.task.name,
        "base": fuse.base.fingerprint,
        "embedder": fuse.embedder.fingerprint,
        "everybody": request.users is None,
        "options": asdict(request.options),
        "fuse": asdict(fuse.options),
        "history_items": fuse.prompt.history_items,
        "seed": fuse.machine.seed,
        "dtype": fuse.machine.dtype,
        "memory": asdict(fuse.memory),
    }


def restore_adapt_request(
    reg: Registry, run_id: int, document: Mapping[str, Any], machine: MachineOptions
) -> AdaptRequest:
    """The request of a run, whose `document` it is, on the device of `machine`. Users forgotten since are left out."""
    fuse = FuseRequest(
        find_task(reg, document["task"]),
        model_by_fingerprint(reg, document["base"], "base"),
        model_by_fingerprint(reg, document["embedder"], "embedder"),
        options_from_json(FuseOptions, document["fuse"]),
        PromptOptions(document["history_items"]),
        _restore_machine(machine, document),
        _restore_memory(document),
    )
    users = None if document["everybody"] else reg.runs.asked_users(run_id)
    return AdaptRequest(users, options_from_json(AdaptOptions, document["options"]), fuse)


def eval_request_json(request: EvalRequest) -> dict[str, Any]:
    """What a run of `run_evaluation` or `tune_evaluation` asks, besides the evaluation's own config, as JSON."""
    options = request.options
    return {
        "methods": options.methods,
        "reference": options.reference,
        "memory": options.memory,
        "calibrate": options.calibrate,
        "given": {method: dict(settings) for method, settings in request.method_settings.items()},
    }


def restore_eval_request(
    reg: Registry, evaluation: Evaluation, document: Mapping[str, Any], machine: MachineOptions
) -> EvalRequest:
    """The request of an evaluation that was begun, with the document's methods, on the device of `machine`."""
    return EvalRequest(
        find_task(reg, evaluation.task),
        resolve_model(evaluation.config["base"], "base"),
        resolve_model(evaluation.config["embedder"], "embedder"),
        options_from_json(EvalOptions, {**evaluation.config, **document}),
        options_from_json(BankOptions, evaluation.config["bank"]),
        PromptOptions(evaluation.config["history_items"]),
        _restore_machine(machine, evaluation.config),
        document.get("given", {}),
    )


def restore_bank_request(reg: Registry, bank: Bank, machine: MachineOptions) -> BankRequest:
    """The request that began a bank, on the device of `machine`."""
    return BankRequest(
        find_task(reg, bank.task),
        model_by_fingerprint(reg, bank.base, "base"),
        model_by_fingerprint(reg, bank.embedder, "embedder"),
        options_from_json(BankOptions, bank.config),
        PromptOptions(bank.config["history_items"]),
        replace(_restore_machine(machine, bank.config), seed=bank.seed),
        bank.name,
        gates=options_from_json(ScreeningOptions, bank.config.get(SCREENING_OPTIONS_KEY, {})),
    )


def model_by_fingerprint(reg: Registry, fingerprint: str, kind: str) -> ModelEntry:
    """The model of this fingerprint, ready to load. IntegrityFault where its name means another one by now."""
    name = reg.models.get(fingerprint).name
    entry = resolve_model(name, kind)
    if entry.fingerprint != fingerprint:
        raise IntegrityFault(
            f"{name} is no longer the {kind} that this was begun with.", hint="begin anew with the one that is here"
        )
    return entry


def _restore_memory(document: Mapping[str, Any]) -> MemoryOptions:
    """The label memory of a request. Earlier versions kept its weights with the answer; zero switched it off."""
    if "memory" in document:
        return options_from_json(MemoryOptions, document["memory"])
    found = options_from_json(MemoryOptions, document.get("answer", {}))
    if found.neighbour_weight > 0.0:
        return found
    memory = "habit" if found.prior_weight > 0.0 else "off"
    return replace(found, memory=memory, neighbour_weight=MemoryOptions.neighbour_weight)


def _restore_machine(machine: MachineOptions, document: Mapping[str, Any]) -> MachineOptions:
    return replace(machine, seed=document.get("seed", machine.seed), dtype=document["dtype"])
