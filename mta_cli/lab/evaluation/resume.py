"""Resumes an evaluation that was stopped or killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mta_cli.errors import Command
from mta_cli.events import Event
from mta_cli.lab.evaluation.design import make_design
from mta_cli.lab.evaluation.run import run_evaluation, tune_evaluation
from mta_cli.options import MachineOptions
from mta_cli.pipeline.maintenance.resume import EVAL_TUNE, UnfinishedJob, changed_since_error
from mta_cli.pipeline.requests import restore_eval_request

if TYPE_CHECKING:
    from store.registry import Registry


def resume_evaluation(reg: Registry, one: UnfinishedJob, machine: MachineOptions) -> Iterator[Event]:
    """Resume an evaluation; see `resume_job`."""
    begun = reg.evaluations.get(one.number)
    request = restore_eval_request(reg, begun, one.request, machine)
    if make_design(reg, request).key != begun.key:
        raise changed_since_error(begun.label, Command("eval run", task=begun.task))
    work = tune_evaluation if one.kind == EVAL_TUNE else run_evaluation
    yield from work(reg, request)
