"""Runs: a record of each job with its request, its outcome and the library versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from store.records import Bank, Run

if TYPE_CHECKING:
    from store.registry import Registry
    from store.tables.evaluations import Evaluation

REQUEST_KEY = "asked"  # the key of a run's config that holds its request
ADAPT_RUN_KIND = "adaptation"  # the kind of a run of all users who are adapted together; each user has a run too


def bank_label(bank: Bank) -> str:
    """`NAME vVERSION`, the subject of runs about a bank."""
    return f"{bank.name} v{bank.version}"


def bank_status(reg: Registry, bank: Bank) -> str:
    """The status of a bank: building, ready, or interrupted if no process is building it."""
    return _status(bank.status, "building", lambda: reg.runs.of_bank(bank.id))


def evaluation_status(reg: Registry, evaluation: Evaluation) -> str:
    """The status of an evaluation: done, running, tuned if its last job was a finished `eval tune`, or interrupted."""
    status = _status(evaluation.status, "running", lambda: reg.runs.of_evaluation(evaluation.id))
    ended = reg.runs.of_evaluation(evaluation.id)[:1] if status == "interrupted" else []
    return "tuned" if ended and ended[0].status == "done" else status


def evaluation_lock(task: str, key: str | None) -> str:
    """The name of the lock of an evaluation's job. Evaluations with different design keys can run at the same time."""
    return f"eval {task} {(key or '')[:12]}"


def _status(stored: str, unfinished: str, runs: Callable[[], Sequence[Run]]) -> str:
    goes_on = stored != unfinished or any(run.status == "running" for run in runs())
    return stored if goes_on else "interrupted"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that determine the results of a training."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "safetensors")}


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
) -> Iterator[dict[str, Any]]:
    """Record the block as a run: at its start the request and the subjects, at its end the outcome.

    The block writes the run's result into the dict. A run outlives a forgotten user, so the result must not contain
    names.
    """
    run = reg.runs.start_run(
        kind,
        {REQUEST_KEY: dict(document)},
        user_id=user_id,
        bank_id=bank_id,
        evaluation_id=evaluation_id,
        asked_users=asked_users,
    )
    result: dict[str, Any] = {}
    with fail_run_on_error(reg, run):
        yield result
    reg.runs.finish_run(run.id, result)


@contextmanager
def fail_run_on_error(reg: Registry, run: Run) -> Iterator[None]:
    """If the block raises, end the run as interrupted, or as failed with the error's text."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        reg.runs.fail_run(run.id, "stopped", interrupted=True)
        raise
    except Exception as error:
        reg.runs.fail_run(run.id, str(error))
        raise
