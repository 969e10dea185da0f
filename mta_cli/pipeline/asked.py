"""What a job was asked, as a document of its run, and back again: so that it can go on with the same options.

Names of people stand in documents as values only, never as keys: so they can be forgotten. Runs no job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli.errors import IntegrityFault
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
from store.records import Bank, Run, User
from store.tables.evaluations import Evaluation

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.build import BankRequest
    from mta_cli.pipeline.evaluation.design import EvalRequest
    from mta_cli.pipeline.models.lookup import ModelEntry
    from mta_cli.pipeline.personalize.fuse import FuseRequest
    from store.registry import Registry

T = TypeVar("T")
ASKED = "asked"  # the key of a run's config under which the document stands
ADAPTATION = "adaptation"  # the kind of a run about everybody who is adapted together; each of them has one as well


def bank_label(bank: Bank) -> str:
    """The subject of runs about a bank."""
    return f"{bank.name} v{bank.version}"


@contextmanager
def written_down(reg: Registry, kind: str, subject: str, document: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """A run that says what was asked, from here to the end of the block, and how that ended.

    `document` is asked for in the transaction that stores it: whoever it names is there then.
    """
    with reg.transaction():
        run = reg.runs.start(kind, subject, {ASKED: dict(document())})
    with failures_of(reg, run):
        yield
    reg.runs.finish(run.id, {})


@contextmanager
def failures_of(reg: Registry, run: Run) -> Iterator[None]:
    """What ends the block before its time is the end of the run as well: stopped, or failed and why."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        reg.runs.fail(run.id, "stopped", interrupted=True)
        raise
    except Exception as error:
        reg.runs.fail(run.id, str(error))
        raise


def adaptation(
    reg: Registry, users: Sequence[User] | None, request: FuseRequest, options: AdaptOptions
) -> dict[str, Any]:
    """The document of `adapt_users`, with those of `users` who are still there; None: everybody who is no anchor."""
    there = reg.users.there(users or ())
    return {
        "task": request.task.name,
        "base": request.base.fingerprint,
        "embedder": request.embedder.fingerprint,
        "users": None if users is None else [user.name for user in users if user.id in there],
        "options": asdict(options),
        "fuse": asdict(request.options),
        "history_items": request.prompt.history_items,
        "seed": request.machine.seed,
        "dtype": request.machine.dtype,
        "answer": asdict(request.answer),
    }


def asked_adaptation(
    reg: Registry, document: Mapping[str, Any], machine: Machine
) -> tuple[list[User] | None, FuseRequest, AdaptOptions]:
    """What the document asks of `adapt_users`, on the devices of `machine`. Who was forgotten since is left out."""
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.personalize.fuse import FuseRequest

    request = FuseRequest(
        find_task(reg, document["task"]),
        model(reg, document["base"], "base"),
        model(reg, document["embedder"], "embedder"),
        known(FuseOptions, document["fuse"]),
        PromptOptions(document["history_items"]),
        _machine(machine, document),
        known(AnswerOptions, document.get("answer", {})),
    )
    names = document["users"]
    there = set(reg.users.names()) if names is not None else set()
    users = None if names is None else [reg.users.get(name) for name in names if name in there]
    return users, request, known(AdaptOptions, document["options"])


def evaluation(request: EvalRequest) -> dict[str, Any]:
    """The document of `run_evaluation` and `tune_evaluation`: what the evaluation's own config does not say."""
    options = request.options
    return {
        "methods": options.methods,
        "reference": options.reference,
        "calibrate": options.calibrate,
        "given": {method: dict(settings) for method, settings in request.given.items()},
    }


def asked_evaluation(reg: Registry, one: Evaluation, document: Mapping[str, Any], machine: Machine) -> EvalRequest:
    """The request for an evaluation that was begun, with the document's methods, on the devices of `machine`."""
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.evaluation.design import EvalRequest
    from mta_cli.pipeline.models.lookup import resolve

    design = known(EvalOptions, {**one.config, **document})
    return EvalRequest(
        find_task(reg, one.task),
        resolve(one.config["base"], "base"),
        resolve(one.config["embedder"], "embedder"),
        design,
        known(BankOptions, one.config["bank"]),
        PromptOptions(one.config["history_items"]),
        _machine(machine, one.config),
        document.get("given", {}),
    )


def asked_bank(reg: Registry, bank: Bank, machine: Machine) -> BankRequest:
    """The request that began a bank, on the devices of `machine`."""
    from mta_cli.pipeline.bank.build import BankRequest
    from mta_cli.pipeline.bank.screening import ASKED_GATES
    from mta_cli.pipeline.data.tasks import find_task

    return BankRequest(
        find_task(reg, bank.task),
        model(reg, bank.base, "base"),
        model(reg, bank.embedder, "embedder"),
        known(BankOptions, bank.config),
        PromptOptions(bank.config["history_items"]),
        replace(_machine(machine, bank.config), seed=bank.seed),
        bank.name,
        gates=known(GateOptions, bank.config.get(ASKED_GATES, {})),
    )


def known(cls: type[T], document: Mapping[str, Any]) -> T:
    """Options of a class from the keys of a document that are fields of it; the rest keeps its defaults."""
    names = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in document.items() if name in names})


def model(reg: Registry, fingerprint: str, kind: str) -> ModelEntry:
    """The model of this fingerprint, ready to load. IntegrityFault when its name stands for another one by now."""
    from mta_cli.pipeline.models.lookup import resolve

    name = reg.models.get(fingerprint).name
    entry = resolve(name, kind)
    if entry.fingerprint != fingerprint:
        raise IntegrityFault(
            f"{name} is no longer the {kind} that this was begun with.", hint="begin anew with the one that is here"
        )
    return entry


def _machine(machine: Machine, document: Mapping[str, Any]) -> Machine:
    return replace(machine, seed=document.get("seed", machine.seed), dtype=document["dtype"])
