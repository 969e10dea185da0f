"""Forms: fields with defaults, faults beside the fields, and the job's plan before it starts.

An empty field has the value of the setting, which is shown dimmed. Works for any kind of job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.table import Table
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import DescendantFocus
from textual.widget import Widget
from textual.widgets import Button, Collapsible, Input, Select, Static

from mta_cli.errors import BadInput, Command, Flag, MtaError, words_to_text
from mta_cli.events import JobPlan
from mta_cli.text.printable import clean_line, clean_text
from mta_cli.tui.dialogs.basic import ScrollingDialog
from mta_cli.tui.text import block_text, format_hint, line_text

if TYPE_CHECKING:
    from mta_cli.configuration.settings import Settings

FormValues = dict[str, str]
FormCheck = Callable[[FormValues], None]
FormPlanner = Callable[[FormValues], Awaitable[Sequence[JobPlan]]]
FormSuggester = Callable[[FormValues], Awaitable[Mapping[str, str]]]
SUGGEST_DELAY_SECONDS = 0.3  # pause in typing before suggestions are computed
FORM_ORIGIN = "this form"


@dataclass(frozen=True)
class FormField:
    """One field of a form. `default_text` is the value that applies while the field is empty.

    `setting_key` is the setting whose faults are shown here. `choices`: only these values can be chosen. `advanced`
    fields are collapsed at first.
    """

    name: str
    label: str
    initial_value: str = ""
    default_text: str = ""
    help: str = ""
    choices: tuple[str, ...] = ()
    setting_key: str = ""
    required: bool = False
    advanced: bool = False


@dataclass(frozen=True)
class Form:
    """The fields of a form, and its functions. `check` raises MtaError for invalid values.

    `plan` returns the job's plan for the values, which is shown before the job starts. `suggest` returns defaults for
    empty text fields, computed from the others; it may raise MtaError.
    """

    title: str
    fields: tuple[FormField, ...]
    check: FormCheck = lambda filled: None
    plan: FormPlanner | None = None
    about: str = ""
    suggest: FormSuggester | None = None


def setting_field(settings: Settings, cls: type[Any], name: str, *, advanced: bool = False) -> FormField:
    """The form field of one option, with help and choices of the option and the default of the settings."""
    from mta_cli.configuration.settings import settings_of

    setting = settings_of(cls)[name]
    value = getattr(settings.build_options(cls), name)
    choices = ("yes", "no") if setting.kind is bool else setting.choices
    shown = "not given" if value in (None, ()) else ("yes" if value else "no") if setting.kind is bool else str(value)
    return FormField(
        name,
        name.replace("_", " "),
        default_text=clean_line(shown),
        help=setting.help,
        choices=choices,
        setting_key=setting.key,
        advanced=advanced,
    )


def option_fields(settings: Settings, cls: type[Any], main: Sequence[str] = ()) -> Iterator[FormField]:
    """The form fields of a class's options that have flags: first the `main` ones, then the others, collapsed."""
    others = (spec.name for spec in fields(cls) if not spec.metadata["settings_only"] and spec.name not in main)
    yield from (setting_field(settings, cls, name) for name in main)
    yield from (setting_field(settings, cls, name, advanced=True) for name in others)


def split_faults_by_field(error: MtaError, fields: Sequence[FormField]) -> tuple[dict[str, str], list[str]]:
    """The first line of an error about each field, by the field's name, and the error's other lines.

    Flags in these lines are replaced by the labels of their fields; commands stay as they are typed in a shell.
    """
    labels = {field.name: field.label for field in fields}

    def word(part: Command | Flag) -> str:
        if isinstance(part, Command) or part.name not in labels:
            return str(part)
        return labels[part.name] if part.value is None else f"{labels[part.name]} {part.value}"

    own: dict[str, str] = {}
    rest: list[str] = []
    for text in (
        *words_to_text(error.message, word).splitlines(),
        *(error.faults if isinstance(error, BadInput) else ()),
    ):
        owner = next(
            (f for f in fields if f.setting_key and text.startswith((f"{f.setting_key} = ", f"{f.setting_key}:"))), None
        )
        if owner is None:
            rest.append(text)
        else:
            told = text.replace(owner.setting_key, owner.label, 1).replace(f" (flag {Flag(owner.name)})", "", 1)
            own.setdefault(owner.name, told)
    if own and rest and rest[0].endswith("cannot be used:"):
        del rest[0]
    return own, [*rest, *([format_hint(words_to_text(error.hint, word))] if error.hint else [])]


class FieldRow(Vertical):
    """A field's label and value, with its fault below."""

    def __init__(self, field: FormField) -> None:
        super().__init__(classes="row")
        self.field = field

    def compose(self) -> ComposeResult:
        """Label, editor, fault."""
        with Horizontal():
            yield Static(line_text(self.field.label), classes="label")
            yield self._editor()
        yield Static(classes="fault")

    @property
    def value(self) -> str:
        """The field's value; empty if nothing was entered."""
        editor = self.query_one(".editor")
        if isinstance(editor, Select):
            return "" if editor.is_blank() else str(editor.value)
        return cast("Input", editor).value.strip()

    def show_default(self, text: str) -> None:
        """Show the default of an empty text field; a field with choices keeps its own."""
        editor = self.query_one(".editor")
        if isinstance(editor, Input):
            editor.placeholder = clean_line(text)

    def show_fault(self, text: str) -> None:
        """Show a fault below the field; an empty text hides it."""
        self.query_one(".fault", Static).update(line_text(text))
        self.set_class(bool(text), "-wrong")

    def _editor(self) -> Input | Select[str]:
        field = self.field
        if not field.choices:
            return Input(field.initial_value, field.default_text, compact=True, classes="editor", select_on_focus=False)
        options = [(line_text(choice), choice) for choice in field.choices]
        value: Any = field.initial_value if field.initial_value in field.choices else Select.NULL
        return Select(options, prompt=field.default_text, value=value, compact=True, classes="editor")


class FormDialog(ScrollingDialog[FormValues | None]):
    """A form over a screen: the fields, then the job's plan. Returns the values, or None if it was cancelled."""

    CSS_PATH = "form.tcss"
    HELP: ClassVar[str] = (
        "An empty field has the default that is shown dimmed. Tab and Shift+Tab move between fields, Enter opens a "
        "list of choices.\nCtrl+S shows the plan; Ctrl+S again starts the job."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "submit", "Continue", id="form.go", tooltip="Show the plan, then start", priority=True),
        Binding(
            "escape",
            "back",
            "Back",
            id="form.back",
            tooltip="Back to the fields; from the fields, close the form",
            priority=True,
        ),
    ]

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self._submit_tried = False
        self._suggested: Mapping[str, str] = {}

    def compose(self) -> ComposeResult:
        """Title, fields, the focused field's help, faults, the plan, the buttons."""
        with Vertical(classes="dialog form"):
            yield Static(line_text(self.form.title, "bold"), id="title")
            if self.form.about:
                yield Static(block_text(self.form.about), id="form-about")
            with VerticalScroll(id="fields", can_focus=False):
                yield from (FieldRow(field) for field in self.form.fields if not field.advanced)
                if folded := [field for field in self.form.fields if field.advanced]:
                    with Collapsible(title="More options"):
                        yield from map(FieldRow, folded)
            with VerticalScroll(id="plan", classes="long", can_focus=False):
                yield Static(id="plan-lines")
            yield Static(id="hint")
            yield Static(id="faults")
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(self._next_label(), id="go", variant="primary", compact=True)

    def on_mount(self) -> None:
        """Hide the plan and focus the first field."""
        self.query_one("#plan").display = False
        self.query(".editor").first().focus()

    @property
    def form_values(self) -> FormValues:
        """The values of the fields."""
        return {row.field.name: row.value for row in self._rows()}

    @property
    def _is_open(self) -> bool:
        """Whether the dialog is still open. After closing, its fields disappear while background work may still run."""
        return self in self.app.screen_stack

    @property
    def plan_shown(self) -> bool:
        """Whether the plan is shown."""
        return bool(self.query_one("#plan").display)

    @on(Input.Changed)
    @on(Select.Changed)
    def recheck_values(self, event: Input.Changed | Select.Changed) -> None:
        """Check the values while they are typed. Required ones may be missing until the form is submitted.

        Control characters are removed from pasted text.
        """
        if not self._is_open:
            return
        if isinstance(event, Input.Changed) and clean_text(event.value) != event.value:
            event.input.value = clean_text(event.value)
        self._check(show_missing=self._submit_tried)
        if self.form.suggest is not None:
            self._show_suggestions(self.form.suggest)

    @work(exclusive=True, group="suggest")
    async def _show_suggestions(self, suggest: FormSuggester) -> None:
        """After a pause in typing, show suggested defaults in empty fields, and an error of computing them."""
        await asyncio.sleep(SUGGEST_DELAY_SECONDS)
        if not self._is_open:
            return
        filled = self.form_values
        suggested: Mapping[str, str] = {}
        error: MtaError | None = None
        try:
            suggested = await suggest(filled)
        except MtaError as raised:
            error = MtaError(raised.message)
        except Exception as raised:  # shown, not raised, because the user is still typing
            error = MtaError(f"{type(raised).__name__}: {raised}")
        if not self._is_open or self.form_values != filled:  # closed or changed meanwhile
            return
        self._suggested = suggested
        for row in self._rows():
            row.show_default(self._suggested.get(row.field.name, row.field.default_text))
        if error is not None and not self.plan_shown:
            self._show_faults(error)

    @on(Input.Submitted)
    def action_submit(self) -> None:
        """Show the plan if it is not shown yet; otherwise return the values."""
        if self.query_one("#go", Button).disabled:
            return
        if self.plan_shown:
            self.dismiss(self.form_values)
            return
        self._submit_tried = True
        if not self._check(show_missing=True):
            wrong = next((row for row in self._rows() if row.has_class("-wrong")), None)
            if wrong is not None:
                for node in wrong.ancestors:
                    if isinstance(node, Collapsible):
                        node.collapsed = False
                wrong.query_one(".editor").focus()
        elif self.form.plan is None:
            self.dismiss(self.form_values)
        else:
            self._compute_plan(self.form.plan)

    def action_back(self) -> None:
        """Close an open list of choices, or go back from the plan to the fields, or close the form."""
        opened = next((s for s in self.query(Select) if s.expanded), None)
        if opened is not None:
            opened.expanded = False
        elif self.plan_shown:
            self._show_plan(None)
        else:
            self.dismiss(None)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Run a button's action."""
        if event.button.id == "go":
            self.action_submit()
        else:
            self.action_back()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Show help on the focused field."""
        row = _row_of(event.widget)
        self.query_one("#hint", Static).update(block_text(row.field.help if row else "", "dim"))

    @work(exclusive=True, group="plan")
    async def _compute_plan(self, plan: FormPlanner) -> None:
        go = self.query_one("#go", Button)
        go.disabled, go.label = True, "Computing the plan …"
        filled = self.form_values
        planned: Sequence[JobPlan] = ()
        fault: MtaError | None = None
        try:
            planned = await plan(filled)
        except MtaError as error:
            fault = error
        except Exception as error:
            fault = MtaError(f"{type(error).__name__}: {error}")
        if not self._is_open:
            return
        if fault is not None:
            self._show_faults(fault)
        elif self.form_values == filled:  # otherwise the values changed meanwhile
            self._show_plan(planned)
        go.disabled, go.label = False, self._next_label()
        if self.plan_shown:
            go.focus()

    def help_for(self, widget: Widget | None) -> str:
        """Help on the focused field and on the form."""
        row = _row_of(widget)
        if row is None:
            return self.HELP
        field = replace(row.field, default_text=self._suggested.get(row.field.name, row.field.default_text))
        return "\n\n".join([field_help(field), self.HELP])

    def _next_label(self) -> str:
        return "Start" if self.form.plan is None or (self.is_mounted and self.plan_shown) else "Plan"

    def _show_plan(self, planned: Sequence[JobPlan] | None) -> None:
        """Show the plan instead of the fields; with None, the fields again."""
        shown = planned is not None
        if planned is not None:
            self.query_one("#plan-lines", Static).update(plan_table(planned))
        self.query_one("#plan").display = shown
        self.query_one("#fields").display = not shown
        self.query_one("#hint").display = not shown
        self.query_one("#cancel", Button).label = "Back" if shown else "Cancel"
        self.query_one("#go", Button).label = self._next_label()
        if not shown:
            self.query(".editor").first().focus()

    def _check(self, *, show_missing: bool) -> bool:
        """Check all values and show faults beside their fields; returns whether there is none."""
        lacking = {row.field.name: "required" for row in self._rows() if row.field.required and not row.value}
        try:
            self.form.check(self.form_values)
        except MtaError as error:
            self._show_faults(error, lacking if show_missing else {})
            return False
        self._show_faults(None, lacking if show_missing else {})
        return not lacking

    def _show_faults(self, error: MtaError | None, lacking: FormValues | None = None) -> None:
        own, rest = split_faults_by_field(error, self.form.fields) if error is not None else ({}, [])
        for row in self._rows():
            row.show_fault(own.get(row.field.name, (lacking or {}).get(row.field.name, "")))
        self.query_one("#faults", Static).update(block_text("\n".join(rest)))
        self.set_class(bool(rest), "-faulty")

    def _rows(self) -> Iterator[FieldRow]:
        yield from self.query(FieldRow)


def field_help(field: FormField) -> str:
    """Help on a field: its meaning, choices and default, and the setting that the default comes from."""
    lines = [f"{field.label}: {field.help}"]
    lines += [f"Choices: {', '.join(field.choices)}"] if field.choices else []
    lines += [f"Empty: {field.default_text}"] if field.default_text else []
    lines += [f"Setting: {field.setting_key}"] if field.setting_key else []
    return "\n".join(lines)


def _row_of(widget: Widget | None) -> FieldRow | None:
    nodes = widget.ancestors if widget is not None else ()
    return next((node for node in nodes if isinstance(node, FieldRow)), None)


def plan_table(planned: Sequence[JobPlan]) -> Table:
    """A table of plans: name, value and origin of each line. Computed values come before the job's options."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, ratio=2)
    table.add_column(overflow="fold", ratio=4)
    table.add_column(overflow="fold", ratio=3)
    for each in sorted((each for event in planned for each in event.lines), key=lambda each: "." in each.name):
        given = each.origin.startswith(("flag ", "file ", "environment "))
        value = block_text(each.value.replace("\n", " "), "bold" if given else "")
        origin = FORM_ORIGIN if each.origin.startswith("flag ") else each.origin
        table.add_row(line_text(each.name), value, line_text(origin, "dim"))
    return table
