"""What a kind of job asks for in the window, and the request that the answers make. Knows no kind of job.

Values take the same way as flags on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.configuration.settings import Settings
from mta_cli.errors import UsageError
from mta_cli.events import Event
from mta_cli.options import MachineOptions, ModelOptions, OptionSet, PromptOptions
from mta_cli.tui.dialogs.form import FormField, FormValues, setting_field

if TYPE_CHECKING:
    from store.registry import Registry

MACHINE_FIELDS = ("seed", "device", "dtype", "quantize", "max_memory")


@dataclass(frozen=True)
class FormContext:
    """What a form's first values come from."""

    settings: Settings
    store_path: Path
    task_names: tuple[str, ...] = ()
    user: str | None = None
    task: str | None = None
    store_is_empty: bool = False


@dataclass(frozen=True)
class JobRequest:
    """A job that was asked for. `make_events(registry, dry_run)` is called where it runs or is planned."""

    kind: str
    title: str
    make_events: Callable[[Registry, bool], Iterator[Event]]


@dataclass(frozen=True)
class JobForm:
    """A kind of job: the fields that ask for it, and its request made from their values; UsageError for bad values.

    `suggest` reads the file that the values name: what holds for fields that are left empty.
    """

    kind: str
    key: str
    about: str
    make_fields: Callable[[FormContext], tuple[FormField, ...]]
    make_request: Callable[[FormContext, FormValues], JobRequest]
    suggest: Callable[[FormValues], Mapping[str, str]] | None = None


def build_options(context: FormContext, filled: FormValues, *classes: type[Any]) -> OptionSet:
    """Options of every class from the fields. UsageError lists every bad value of all of them."""
    return context.settings.build_option_set(classes, {name: value or None for name, value in filled.items()})


def parse_path(text: str) -> Path:
    """The path of a typed text. Raises UsageError for a text that can be none."""
    if "\0" in text:
        raise UsageError("a path holds no NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # `~nobody`
        raise UsageError(f"{text!r:.80} cannot be used: {error}") from None


def task_field(context: FormContext, *, needed: bool = False) -> FormField:
    """The field of a task, with the likely one; one of the tasks must be chosen where it is `needed`."""
    value = context.task if context.task in context.task_names else ""
    return FormField("task", "task", value or "", help="The task.", choices=context.task_names, required=needed)


def shared_fields(context: FormContext, *, prompt: bool = True) -> tuple[FormField, ...]:
    """Models, machine and prompt, folded away."""
    models = partial(setting_field, context.settings, ModelOptions, advanced=True)
    machine = partial(setting_field, context.settings, MachineOptions, advanced=True)
    shown = (setting_field(context.settings, PromptOptions, "history_items", advanced=True),) if prompt else ()
    return (*shown, models("base"), models("embedder"), *map(machine, MACHINE_FIELDS))
