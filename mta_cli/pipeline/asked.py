"""What a job was asked, as a document of its run, and back again: so that it can go on with the same options.

Documents name nobody: a run refers to users by key. Runs no job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli.errors import IntegrityFault
from mta_cli.options import (
    AdaptOptions,
    BankOptions,
    EvalOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    PromptOptions,
    ScreeningOptions,
)
from store.records import Bank, Run, User
from store.tables.evaluations import Evaluation

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.build import BankRequest
    from mta_cli.pipeline.evaluation.design import EvalRequest
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.personalize.fuse import FuseRequest
    from store.registry import Registry

T = TypeVar("T")
REQUEST_KEY = "asked"  # the key of a run's config under which the document stands
ADAPT_RUN_KIND = "adaptation"  # the kind of a run about everybody who is adapted together; each of them has one as well


def bank_label(bank: Bank) -> str:
    """What a bank is called, also as the subject of runs."""
    return f"{bank.name} v{bank.version}"


@contextmanager
def record_request(
    reg: Registry,
    kind: str,
    document: Mapping[str, Any],
    *,
    user_id: int | None = None,
    bank_id: int | None = None,
    evaluation_id: int | None = None,
    asked_users: Sequence[int] = (),
) -> Iterator[None]:
    """A run that says what was asked of whom, from here to the end of the block, and how that ended."""
    run = reg.runs.start_run(
        kind,
        {REQUEST_KEY: dict(document)},
        user_id=user_id,
        bank_id=bank_id,
        evaluation_id=evaluation_id,
        asked_users=asked_users,
    )
    with fail_run_on_error(reg, run):
        yield
    reg.runs.finish_run(run.id, {})


@contextmanager
def fail_run_on_error(reg: Registry, run: Run) -> Iterator[None]:
    """What ends the block before its time is the end of the run as well: stopped, or failed and why."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        reg.runs.fail_run(run.id, "stopped", interrupted=True)
        raise
    except Exception as error:
        reg.runs.fail_run(run.id, str(error))
        raise


def adapt_request_json(request: FuseRequest, options: AdaptOptions, *, everybody: bool) -> dict[str, Any]:
    """The document of `adapt_users`; who was asked for is said by key, unless it was `everybody` who is no anchor."""
    return {
        "task": request.task.name,
        "base": request.base.fingerprint,
        "embedder": request.embedder.fingerprint,
        "everybody": everybody,
        "options": asdict(options),
        "fuse": asdict(request.options),
        "history_items": request.prompt.history_items,
        "seed": request.machine.seed,
        "dtype": request.machine.dtype,
        "memory": asdict(request.memory),
    }


def restore_adapt_request(
    reg: Registry, run_id: int, document: Mapping[str, Any], machine: MachineOptions
) -> tuple[list[User] | None, FuseRequest, AdaptOptions]:
    """What a run asked of `adapt_users`, on the device of `machine`. Who was forgotten since is left out."""
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.personalize.fuse import FuseRequest

    request = FuseRequest(
        find_task(reg, document["task"]),
        model_by_fingerprint(reg, document["base"], "base"),
        model_by_fingerprint(reg, document["embedder"], "embedder"),
        options_from_json(FuseOptions, document["fuse"]),
        PromptOptions(document["history_items"]),
        _restore_machine(machine, document),
        _restore_memory(document),
    )
    users = None if document["everybody"] else reg.runs.asked_users(run_id)
    return users, request, options_from_json(AdaptOptions, document["options"])


def eval_request_json(request: EvalRequest) -> dict[str, Any]:
    """The document of `run_evaluation` and `tune_evaluation`: what the evaluation's own config does not say."""
    options = request.options
    return {
        "methods": options.methods,
        "reference": options.reference,
        "calibrate": options.calibrate,
        "given": {method: dict(settings) for method, settings in request.method_settings.items()},
    }


def restore_eval_request(
    reg: Registry, one: Evaluation, document: Mapping[str, Any], machine: MachineOptions
) -> EvalRequest:
    """The request for an evaluation that was begun, with the document's methods, on the device of `machine`."""
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.evaluation.design import EvalRequest
    from mta_cli.pipeline.models.lookup import resolve_model

    design = options_from_json(EvalOptions, {**one.config, **document})
    return EvalRequest(
        find_task(reg, one.task),
        resolve_model(one.config["base"], "base"),
        resolve_model(one.config["embedder"], "embedder"),
        design,
        options_from_json(BankOptions, one.config["bank"]),
        PromptOptions(one.config["history_items"]),
        _restore_machine(machine, one.config),
        document.get("given", {}),
    )


def restore_bank_request(reg: Registry, bank: Bank, machine: MachineOptions) -> BankRequest:
    """The request that began a bank, on the device of `machine`."""
    from mta_cli.pipeline.bank.build import BankRequest
    from mta_cli.pipeline.bank.screening import SCREENING_OPTIONS_KEY
    from mta_cli.pipeline.data.tasks import find_task

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


def options_from_json(cls: type[T], document: Mapping[str, Any]) -> T:
    """Options of a class from the keys of a document that are fields of it; the rest keeps its defaults."""
    names = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in document.items() if name in names})


def model_by_fingerprint(reg: Registry, fingerprint: str, kind: str) -> ModelEntry:
    """The model of this fingerprint, ready to load. IntegrityFault when its name stands for another one by now."""
    from mta_cli.pipeline.models.lookup import resolve_model

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
