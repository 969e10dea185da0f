"""The forms of jobs that the window can start: the fields of each, and the request made from their values.

Values are processed like flags on the command line. The window's queue runs the jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.configuration.settings import SETTINGS_FILE_NAME, StoreOptions
from mta_cli.configuration.settings_file import write_setting
from mta_cli.errors import BadInput, Flag, NotFound
from mta_cli.events import Event, JobPlan, JobResult, Note, PlanLine
from mta_cli.options import (
    AdaptOptions,
    BankOptions,
    FuseOptions,
    MachineOptions,
    MemoryOptions,
    ModelOptions,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.tui.dialogs.eval_form import EVAL_FORM
from mta_cli.tui.dialogs.form import Form, FormDialog, FormField, FormValues, option_fields, setting_field
from mta_cli.tui.dialogs.import_forms import IMPORT_FORM, QUICK_FORM
from mta_cli.tui.dialogs.job_request import FormContext, JobForm, JobRequest, build_options, shared_fields, task_field

if TYPE_CHECKING:
    from mta_cli.tui.app import MtaApp
    from mta_cli.tui.workers.job_queue import Job
    from store.registry import Registry

BANK_MAIN_FIELDS = ("anchors", "rank", "epochs", "min_items")
ADAPT_MAIN_FIELDS = ("shots", "rank", "steps")


def build_form(job_form: JobForm, context: FormContext, app: MtaApp) -> Form:
    """The form for a kind of job, which can show the job's plan before it starts."""

    async def plan(filled: FormValues) -> Sequence[JobPlan]:
        return await app.profile_thread.run(partial(dry_run_plans, job_form.make_request(context, filled)))

    def check(filled: FormValues) -> None:
        job_form.make_request(context, filled)

    async def suggest(filled: FormValues) -> Mapping[str, str]:
        return await asyncio.to_thread(job_form.suggest, context, filled) if job_form.suggest is not None else {}

    suggestions = suggest if job_form.suggest is not None else None
    return Form(job_form.kind, job_form.make_fields(context), check, plan, job_form.about, suggestions)


async def queue_job_from_form(app: MtaApp, kind: str, **values: str) -> Job | None:
    """Show the form of a kind of job, filled with `values`; submitting it queues the job. Await it in a worker."""
    job_form, context = JOB_FORMS[kind], await read_form_context(app)
    form = build_form(job_form, context, app)
    fields = tuple(replace(field, initial_value=values.get(field.name, field.initial_value)) for field in form.fields)
    filled = await app.push_screen_wait(FormDialog(replace(form, fields=fields)))
    if filled is None:
        return None
    request = job_form.make_request(context, filled)
    given = (f"{field.label} {filled[field.name]}" for field in fields if field.setting_key and filled[field.name])
    title = " · ".join(part for part in (request.title, ", ".join(given)) if part)
    return app.job_queue.add_job(request.kind, title, lambda reg: request.make_events(reg, False), app.notify_if_failed)


async def read_form_context(app: MtaApp) -> FormContext:
    """Read from the store and the window what forms show: tasks, the selected user, a likely task."""

    def look(reg: Registry) -> tuple[tuple[str, ...], str | None, bool]:
        from mta_cli.pipeline.data.tasks import task_names

        return tuple(task_names(reg)), guess_task(reg, app.selected_user), not reg.count_rows()["users"]

    tasks, likely, empty = await app.store_thread.run(look)
    return FormContext(
        app.settings, app.store_thread.root, tasks, app.selected_user, app.selected_task or likely, empty
    )


def guess_task(reg: Registry, user: str | None) -> str | None:
    """The likely task: the user's task with most items, else the only task with a bank, else the only task of users."""
    from mta_cli.pipeline.data.tasks import has_task

    with suppress(NotFound):  # the user was removed elsewhere
        held = reg.users.tasks_of_user(reg.users.get(user).id) if user is not None else []
        if kept := [task for task, _, _ in held if has_task(reg, task)]:
            return kept[0]
    found = {bank.task for bank in reg.banks.all()}
    found = found or {task for task, _ in reg.user_table.tasks_with_user_counts()}
    return found.pop() if len(found) == 1 else None


def dry_run_plans(request: JobRequest, reg: Registry) -> list[JobPlan]:
    """The plans of a job's dry run, and its notes as one more plan."""
    events = [event for event in request.make_events(reg, True) if not isinstance(event, JobResult)]
    notes = tuple(PlanLine("note", event.text) for event in events if isinstance(event, Note))
    plans = [event for event in events if isinstance(event, JobPlan)]
    return [*plans, JobPlan("notes", notes)] if notes else plans


def _bank_fields(context: FormContext) -> tuple[FormField, ...]:
    return (
        task_field(context, needed=True),
        FormField("name", "name", default_text="the task's", help="The bank's name."),
        *option_fields(context.settings, BankOptions, BANK_MAIN_FIELDS),
        *shared_fields(context),
    )


def _bank_request(context: FormContext, filled: FormValues) -> JobRequest:
    options = build_options(context, filled, BankOptions, ScreeningOptions, PromptOptions, ModelOptions, MachineOptions)

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.bank.build import build_bank
        from mta_cli.pipeline.requests import bank_request

        request = bank_request(reg, options, filled["task"], filled["name"] or None)
        return build_bank(reg, request, plan=context.settings.plan_lines(*request.plan_options), dry_run=dry_run)

    return JobRequest("bank build", filled["name"] or filled["task"], make)


def _adapt_fields(context: FormContext) -> tuple[FormField, ...]:
    weigh = partial(setting_field, context.settings, FuseOptions, advanced=True)
    whom = "Users' names, separated by commas. If empty, all users with a history who are not anchors."
    return (
        FormField("users", "users", context.user or "", "all users", whom),
        task_field(context),
        *option_fields(context.settings, AdaptOptions, ADAPT_MAIN_FIELDS),
        weigh("weights"),
        weigh("top_k"),
        setting_field(context.settings, MemoryOptions, "memory", advanced=True),
        *shared_fields(context),
    )


def _adapt_request(context: FormContext, filled: FormValues) -> JobRequest:
    options = build_options(
        context, filled, AdaptOptions, FuseOptions, MemoryOptions, PromptOptions, ModelOptions, MachineOptions
    )

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.personalize.adapt import adapt_users
        from mta_cli.pipeline.requests import adapt_request

        names = parse_user_names(filled["users"], context.user)
        if filled["users"].strip() and not names:
            raise BadInput(
                (Flag("users"), f": {filled['users']!r:.80} names no user"),
                hint="write names separated by commas, or leave the field empty for all users",
            )
        asked = bool(filled["embedder"])
        task, explicit = filled["task"] or None, bool(filled["top_k"])
        request = adapt_request(reg, options, names or None, task, explicit_embedder=asked, explicit_top_k=explicit)
        return adapt_users(reg, request, plan=context.settings.plan_lines(*request.plan_options), dry_run=dry_run)

    return JobRequest("user adapt", filled["users"] or "all users", make)


def parse_user_names(text: str, whole: str | None = None) -> list[str]:
    """The distinct names in a text with commas; a text equal to the name `whole` is one name, even with commas."""
    names = [whole] if whole is not None and text == whole.strip() else [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _demo_fields(context: FormContext) -> tuple[FormField, ...]:
    full = "Train longer: about seven minutes on two cores instead of three."
    return (
        FormField("full", "full", default_text="no", choices=("yes", "no"), help=full),
        *shared_fields(context, prompt=False),
    )


def _demo_request(context: FormContext, filled: FormValues) -> JobRequest:
    """The request to run the demo: in the open store if it has no users, else in a new store beside it."""
    from mta_cli.pipeline.demo import demo_history_items, plan_demo, run_demo
    from mta_cli.pipeline.requests import demo_request

    request = demo_request(build_options(context, filled, ModelOptions, MachineOptions), full=filled["full"] == "yes")
    own = context.store_path.with_name(f"{context.store_path.name}-demo")

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        if dry_run:
            yield from plan_demo(reg.root if context.store_is_empty else own, request)
        elif context.store_is_empty:
            yield from run_demo(reg, request)
        else:
            from store.registry import Registry

            timeout = context.settings.build_options(StoreOptions).timeout
            with Registry.open(own, create=True, timeout=timeout) as beside:
                write_setting(own / SETTINGS_FILE_NAME, "prompt.history_items", demo_history_items(request.full))
                yield from run_demo(beside, request)

    return JobRequest("demo", "this store" if context.store_is_empty else own.name, make)


JOB_FORMS = {
    job_form.kind: job_form
    for job_form in (
        JobForm("bank build", "b", "The task adapter, and anchors with a meta-LoRA each.", _bank_fields, _bank_request),
        JobForm("user adapt", "a", "A stack for one user, for several, or for all.", _adapt_fields, _adapt_request),
        EVAL_FORM,
        IMPORT_FORM,
        QUICK_FORM,
        JobForm("demo", "m", "The included sample users, through every stage.", _demo_fields, _demo_request),
    )
}
"""The forms of all jobs by kind, in the order of the data."""
