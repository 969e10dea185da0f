"""The form of `mta eval run`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.events import Event
from mta_cli.options import (
    BankOptions,
    EvalOptions,
    MachineOptions,
    ModelOptions,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.tui.dialogs.form import FormField, FormValues, option_fields, setting_field
from mta_cli.tui.dialogs.job_request import FormContext, JobForm, JobRequest, build_options, shared_fields, task_field

if TYPE_CHECKING:
    from store.registry import Registry

EVAL_MAIN_FIELDS = ("methods", "reference", "shots", "folds")
EVAL_BANK_FIELDS = ("anchors", "epochs", "min_items", "max_items", "task_epochs")


def _eval_fields(context: FormContext) -> tuple[FormField, ...]:
    bank = partial(setting_field, context.settings, BankOptions, advanced=True)
    own = "Settings of single methods, as METHOD.SETTING=VALUE, separated by spaces."
    return (
        task_field(context, needed=True),
        *option_fields(context.settings, EvalOptions, EVAL_MAIN_FIELDS),
        *map(bank, EVAL_BANK_FIELDS),
        FormField("set", "settings", help=own, advanced=True),
        *shared_fields(context),
    )


def _eval_request(context: FormContext, filled: FormValues) -> JobRequest:
    from mta_cli.lab.evaluation.method_settings import parse_settings

    options = build_options(
        context, filled, EvalOptions, BankOptions, ScreeningOptions, PromptOptions, ModelOptions, MachineOptions
    )
    method_settings = parse_settings(filled["set"].split())

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.lab.evaluation.run import run_evaluation
        from mta_cli.pipeline.requests import eval_request

        request = eval_request(reg, options, filled["task"], method_settings)
        return run_evaluation(reg, request, plan=context.settings.plan_lines(*request.plan_options), dry_run=dry_run)

    return JobRequest("eval run", filled["task"], make)


EVAL_FORM = JobForm("eval run", "e", "Methods compared on the same users.", _eval_fields, _eval_request)
