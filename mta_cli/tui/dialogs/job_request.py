"""The types behind job forms: the state that a form shows, a kind of job, and a requested job.

`job_forms` defines the kinds. Values are processed like flags on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.configuration.settings import Settings
from mta_cli.errors import UsageError
from mta_cli.events import Event
from mta_cli.options import MachineOptions, ModelOptions, OptionSet, PromptOptions
from mta_cli.tui.dialogs.form import FormField, FormValues, option_fields

if TYPE_CHECKING:
    from store.registry import Registry


@dataclass(frozen=True)
class FormContext:
    """The settings, tasks and selected user from which a form gets its initial values."""

    settings: Settings
    store_path: Path
    task_names: tuple[str, ...] = ()
    user: str | None = None
    task: str | None = None
    store_is_empty: bool = False


@dataclass(frozen=True)
class JobRequest:
    """A requested job. `make_events(registry, dry_run)` runs or plans it, in the thread that calls it."""

    kind: str
    title: str
    make_events: Callable[[Registry, bool], Iterator[Event]]


@dataclass(frozen=True)
class JobForm:
    """The form of a kind of job: its fields, and the function that makes a request from their values.

    `make_request` raises UsageError for invalid values. `suggest` reads the file named in the values and returns
    defaults for empty fields.
    """

    kind: str
    key: str
    about: str
    make_fields: Callable[[FormContext], tuple[FormField, ...]]
    make_request: Callable[[FormContext, FormValues], JobRequest]
    suggest: Callable[[FormContext, FormValues], Mapping[str, str]] | None = None


def build_options(context: FormContext, filled: FormValues, *classes: type[Any]) -> OptionSet:
    """Options of these classes from a form's values. Raises UsageError that lists all invalid values."""
    return context.settings.build_option_set(classes, {name: value or None for name, value in filled.items()})


def parse_path(text: str) -> Path:
    """The path of a typed text. Raises UsageError for an invalid path."""
    if "\0" in text:
        raise UsageError("The path contains a NUL character.", hint="type the path again")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # `~nobody`
        raise UsageError(f"The path {text!r:.80} cannot be used: {error}") from None


def task_field(context: FormContext, *, needed: bool = False) -> FormField:
    """The form field for a task, filled with the context's task; with `needed`, it must not be empty."""
    value = context.task if context.task in context.task_names else ""
    return FormField("task", "task", value or "", help="The task.", choices=context.task_names, required=needed)


def shared_fields(context: FormContext, *, prompt: bool = True) -> Iterator[FormField]:
    """The collapsed fields of models, machine and prompt."""
    for cls in (*((PromptOptions,) if prompt else ()), ModelOptions, MachineOptions):
        yield from option_fields(context.settings, cls)
