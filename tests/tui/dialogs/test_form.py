"""Forms: defaults are shown, bad values are refused in place, the plan comes before the start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.css.query import NoMatches
from textual.pilot import Pilot
from textual.widgets import Button, Collapsible, Input, Select

from mta_cli.configuration.settings import Settings
from mta_cli.errors import BadInput, Command, Flag, UsageError
from mta_cli.events import JobPlan, PlanLine
from mta_cli.options import BankOptions, MachineOptions
from mta_cli.tui.dialogs.form import (
    FieldRow,
    Form,
    FormDialog,
    FormField,
    FormValues,
    plan_table,
    setting_field,
    split_faults_by_field,
)
from tests.tui.driving import run, until

NOT_ASKED = "not asked"


class Window(App[None]):
    """A window with only a form; `answer` is the form's result."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.answer: FormValues | str | None = NOT_ASKED

    def on_mount(self) -> None:
        self.push_screen(FormDialog(self.form), self._took)

    def _took(self, answer: FormValues | None) -> None:
        self.answer = answer


def driven(
    form: Form, act: Callable[[Window, Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24)
) -> Window:
    window = Window(form)

    async def go() -> None:
        async with window.run_test(size=size) as pilot:
            await pilot.pause()
            await act(window, pilot)

    run(go())
    return window


def bank_form(**changes: Any) -> Form:
    settings = Settings.load()

    def check(filled: FormValues) -> None:
        settings.build_options(BankOptions, **{name: value or None for name, value in filled.items() if name != "name"})

    fields = (
        FormField("name", "name", help="Its name.", required=True),
        *(setting_field(settings, BankOptions, name) for name in ("anchors", "rank", "placement", "task_adapter")),
        setting_field(settings, BankOptions, "alpha", advanced=True),
    )
    return Form(**{"title": "bank", "fields": fields, "check": check, **changes})


def fault(window: Window, name: str) -> str:
    row = next(row for row in window.screen.query("FieldRow") if row.field.name == name)  # type: ignore[attr-defined]
    return str(row.query_one(".fault").content) if row.has_class("-wrong") else ""


def dialog(window: Window) -> FormDialog:
    assert isinstance(window.screen, FormDialog)
    return window.screen


async def wait_for_plan(pilot: Pilot[None], window: Window) -> None:
    await until(pilot, lambda: dialog(window).plan_shown)


def test_defaults_come_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_ANCHORS", "5")
    field = setting_field(Settings.load(), BankOptions, "anchors")
    assert (field.default_text, field.initial_value, field.setting_key) == ("5", "", "bank.anchors") and field.help
    assert setting_field(Settings.load(), BankOptions, "task_adapter").choices == ("yes", "no")
    assert setting_field(Settings.load(), BankOptions, "task_min_items").default_text == "not given"
    assert setting_field(Settings.load(), MachineOptions, "dtype").choices[0] == "auto"


def test_what_is_left_empty_was_not_given() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"mine", "tab", *"4", "enter")

    filled = driven(bank_form(), act).answer
    assert filled == {"name": "mine", "anchors": "4", "rank": "", "placement": "", "task_adapter": "", "alpha": ""}


def test_a_bad_value_is_refused_beside_its_field() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"mine", "tab", *"many", "tab", *"0")
        assert "a whole number is needed" in fault(window, "anchors")
        await pilot.press("enter")
        assert window.answer == NOT_ASKED and window.focused is window.screen.query(Input)[1]
        await pilot.press("backspace", "backspace", "backspace", "backspace", "3")
        assert fault(window, "anchors") == ""
        assert fault(window, "rank") == "rank = 0: the least is 1"

    assert driven(bank_form(), act).answer == NOT_ASKED


def test_what_is_missing_is_said_only_when_somebody_goes_on() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press("tab", "4")
        assert fault(window, "name") == ""
        await pilot.press("ctrl+s")
        assert fault(window, "name") == "required"
        await pilot.press(*"x")
        assert fault(window, "name") == ""

    driven(bank_form(), act)


def test_a_fault_among_the_folded_fields_unfolds_them() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        assert window.screen.query_one(Collapsible).collapsed
        window.screen.query(Input).last().value = "-1"
        await pilot.press(*"x", "enter")
        assert not window.screen.query_one(Collapsible).collapsed
        assert fault(window, "alpha") == "alpha = -1.0: the least is 0.001"

    driven(bank_form(), act)


def test_a_choice_is_one_of_those_there_are() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        window.screen.query(Select).first().value = "late"
        window.screen.query(Select).last().value = "no"
        await pilot.press(*"x", "enter")

    filled = driven(bank_form(), act).answer
    assert isinstance(filled, dict) and filled["placement"] == "late" and filled["task_adapter"] == "no"


def test_escape_closes_an_open_choice_then_the_form() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        choice = window.screen.query(Select).first()
        choice.focus()
        await pilot.press("enter")
        assert choice.expanded
        await pilot.press("escape")
        assert not choice.expanded and window.answer == NOT_ASKED
        await pilot.press("escape")

    assert driven(bank_form(), act).answer is None


def test_the_plan_is_shown_before_the_start_and_can_be_left_again() -> None:
    asked: list[FormValues] = []

    async def plan(filled: FormValues) -> Sequence[JobPlan]:
        asked.append(filled)
        return [JobPlan("bank", (PlanLine("bank.rank", "4", "flag --rank"), PlanLine("tokens", "[red]\x1b12")))]

    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"x", "enter")
        await wait_for_plan(pilot, window)
        assert window.answer == NOT_ASKED and str(window.screen.query_one("#go", Button).label) == "Start"
        await pilot.press("escape")
        assert not dialog(window).plan_shown and str(window.screen.query_one("#go", Button).label) == "Plan"
        await pilot.press(*"y", "enter")
        await wait_for_plan(pilot, window)
        await pilot.press("enter")

    filled = driven(bank_form(plan=plan), act).answer
    assert isinstance(filled, dict) and filled["name"] == "xy" and [each["name"] for each in asked] == ["x", "xy"]


def test_a_plan_of_what_was_changed_meanwhile_is_not_shown() -> None:
    go_on, asked = asyncio.Event(), list[FormValues]()

    async def plan(filled: FormValues) -> Sequence[JobPlan]:
        asked.append(filled)
        await go_on.wait()
        return [JobPlan("bank", (PlanLine("bank.rank", "4", "flag --rank"),))]

    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"x", "enter")
        await until(pilot, lambda: bool(asked))
        await pilot.press("y")
        go_on.set()
        await until(pilot, lambda: not window.screen.query_one("#go", Button).disabled)
        assert not dialog(window).plan_shown and str(window.screen.query_one("#go", Button).label) == "Plan"
        await pilot.press("enter")
        await wait_for_plan(pilot, window)
        await pilot.press("enter")

    filled = driven(bank_form(plan=plan), act).answer
    assert isinstance(filled, dict) and filled["name"] == "xy" and [each["name"] for each in asked] == ["x", "xy"]


def test_what_the_plan_meets_is_told_in_the_form() -> None:
    async def plan(filled: FormValues) -> Sequence[JobPlan]:
        if filled["name"] == "x":
            raise BadInput("12 anchors asked for, and 9 [b]users", hint=Flag("anchors", 9), faults=("one", "two"))
        raise ValueError("unforeseen")

    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"x", "enter")
        faults = window.screen.query_one("#faults")
        await until(pilot, lambda: "9 [b]users" in str(faults.content))  # type: ignore[attr-defined]
        assert "Try: anchors 9" in str(faults.content) and "two" in str(faults.content)  # type: ignore[attr-defined]
        await pilot.press(*"y", "enter")
        await until(pilot, lambda: "ValueError: unforeseen" in str(faults.content))  # type: ignore[attr-defined]
        assert not window.screen.query_one("#go", Button).disabled and not dialog(window).plan_shown

    assert driven(bank_form(plan=plan), act).answer == NOT_ASKED


def test_a_plan_that_nobody_waits_for_ends_with_the_form() -> None:
    begun = asyncio.Event()

    async def plan(filled: FormValues) -> Sequence[JobPlan]:
        begun.set()
        await asyncio.sleep(60)
        return []

    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"x", "enter")
        await begun.wait()
        await pilot.press("enter")
        assert window.screen.query_one("#go", Button).disabled
        await pilot.press("escape")
        await until(pilot, lambda: window.answer is None)
        await until(pilot, lambda: not list(window.workers))

    driven(bank_form(plan=plan), act)


def test_what_no_terminal_should_get_is_not_kept_in_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        window.screen.query(Input).first().value = "a\x1b[31m\u202eb"
        await pilot.pause()
        await pilot.press("ctrl+s")

    filled = driven(bank_form(), act).answer
    assert isinstance(filled, dict) and filled["name"] == "a[31mb"
    monkeypatch.setenv("MTA_BANK_TARGETS", "q\x1b[31m\u202e_proj")
    assert setting_field(Settings.load(), BankOptions, "targets").default_text == "q[31m_proj"


def test_the_help_of_the_focused_field_is_shown() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        hint = window.screen.query_one("#hint")
        assert str(hint.content) == "Its name."  # type: ignore[attr-defined]
        await pilot.press("tab")
        assert "anchor users" in str(hint.content)  # type: ignore[attr-defined]

    driven(bank_form(), act)


def test_everything_can_be_reached_in_a_small_terminal() -> None:
    async def act(window: Window, pilot: Pilot[None]) -> None:
        window.screen.query_one(Collapsible).collapsed = False
        await pilot.pause()
        assert window.screen.query_one("#go").region.bottom <= 20
        last = window.screen.query(Input).last()
        last.focus()
        await pilot.pause()
        assert window.screen.query_one("#fields").region.contains_region(last.region)

    driven(bank_form(), act, (60, 20))


def test_a_long_plan_scrolls_by_keys() -> None:
    async def plan(filled: FormValues) -> Sequence[JobPlan]:
        return [JobPlan("bank", tuple(PlanLine(f"line {n}", "", "") for n in range(60)))]

    async def act(window: Window, pilot: Pilot[None]) -> None:
        await pilot.press(*"x", "enter")
        await wait_for_plan(pilot, window)
        shown = window.screen.query_one("#plan")
        for key in ("down", "pagedown", "pageup", "up"):
            before = shown.scroll_offset.y
            await pilot.press(key)
            await pilot.pause()
            assert (shown.scroll_offset.y > before) is key.endswith("down"), key

    driven(bank_form(plan=plan), act, (80, 24))


def test_faults_find_their_fields_and_the_rest_stands_alone() -> None:
    fields = (
        FormField("rank", "rank", setting_key="bank.rank"),
        FormField("alpha", "alpha", setting_key="bank.alpha"),
        FormField("x", "x"),
    )
    several = UsageError("2 settings cannot be used:\nbank.rank = 0 (flag --rank): the least is 1\nbank.alpha: no")
    own, rest = split_faults_by_field(several, fields)
    assert own == {"rank": "rank = 0: the least is 1", "alpha": "alpha: no"} and rest == []
    assert split_faults_by_field(UsageError("all wrong", hint="begin anew"), fields) == (
        {},
        ["all wrong", "Try: begin anew"],
    )


def test_a_form_speaks_of_fields_and_not_of_flags() -> None:
    fields = (FormField("anchors", "anchors"), FormField("min_items", "min items"))
    hint = (Flag("anchors", 1), ", or a smaller ", Flag("min_items"), ", else ", Flag("other_flag"))
    refused = BadInput((Flag("min_items"), ": none has 8"), hint=hint)
    assert split_faults_by_field(refused, fields)[1] == [
        "min items: none has 8",
        "Try: anchors 1, or a smaller min items, else --other-flag",
    ]
    assert split_faults_by_field(BadInput("no user", hint="did you mean 'corin'?"), ())[1][1] == "Did you mean 'corin'?"


def test_a_plan_names_the_form_where_the_shell_has_flags() -> None:
    from rich.console import Console

    console = Console(width=70, no_color=True)
    with console.capture() as captured:
        console.print(plan_table([JobPlan("data import", (PlanLine("file", "a.csv", "flag PATH"),))]))
    assert captured.get().split() == ["file", "a.csv", "this", "form"]


def test_a_plan_says_what_was_found_out_first_and_shows_markup_as_it_is() -> None:
    from rich.console import Console

    lines = (
        PlanLine("bank.rank", "8", "default"),
        PlanLine("candidates", "[b]9\x1b[31m users"),
        PlanLine("bank", "b v1"),
    )
    console = Console(width=70, no_color=True)
    with console.capture() as captured:
        console.print(plan_table([JobPlan("bank build", lines)]))
    shown = [row.split() for row in captured.get().splitlines()]
    assert [row[0] for row in shown] == ["candidates", "bank", "bank.rank"] and shown[0][1] == "[b]9[31m"


def test_a_form_is_styled_by_themes_alone() -> None:
    styles = Path("mta_cli/tui/dialogs/form.tcss").read_text(encoding="utf-8")
    assert "#" not in "".join(part.partition(":")[2] for part in styles.split("\n"))


def test_empty_fields_say_what_a_file_suggests_and_faults_of_it_stand_below() -> None:
    async def suggest(filled: FormValues) -> dict[str, str]:
        if filled["path"] == "bad":
            raise BadInput("bad has no columns", hint="mta quick GOOD")
        return {"user": f"the column of {filled['path']}\x1b[1m"} if filled["path"] else {}

    fields = (FormField("path", "file"), FormField("user", "user", default_text="guessed", help="Whose."))
    form = Form("quick", fields, about="From a file.", suggest=suggest)

    async def act(window: Window, pilot: Pilot[None]) -> None:
        path, user = dialog(window).query(Input)
        assert user.placeholder == "guessed"
        path.value = "good"
        await until(pilot, lambda: user.placeholder == "the column of good[1m")
        assert "Empty: the column of good" in dialog(window).help_for(user)
        path.value = "bad"
        faults = dialog(window).query_one("#faults")
        await until(pilot, lambda: faults.render_line(0).text.strip() == "bad has no columns")
        assert user.placeholder == "guessed" and faults.size.height == 1
        assert not dialog(window).query_one("#hint").display
        path.value = ""
        await until(pilot, lambda: dialog(window).query_one("#hint").display)
        await pilot.press("ctrl+s")

    assert driven(form, act).answer == {"path": "", "user": ""}


def test_a_form_that_is_closed_while_it_looks_at_a_file_ends_quietly() -> None:
    asked: list[FormValues] = []
    gate = asyncio.Event()

    async def suggest(filled: FormValues) -> dict[str, str]:
        asked.append(filled)
        await gate.wait()
        raise OSError("no such disk")

    async def act(window: Window, pilot: Pilot[None]) -> None:
        form = dialog(window)
        form.query(Input).first().value = "good"
        await until(pilot, lambda: bool(asked))
        gate.set()
        await until(pilot, lambda: "OSError: no such disk" in str(form.query_one("#faults").content))  # type: ignore[attr-defined]
        form.query(Input).first().value = "better"
        await pilot.press("ctrl+s")
        await pilot.pause(0.5)

    window = driven(Form("quick", (FormField("path", "file"),), suggest=suggest), act)
    assert window.answer == {"path": "better"} and all(set(filled) == {"path"} for filled in asked)


@pytest.mark.parametrize("work", ["suggest", "plan"])
def test_a_form_that_is_left_while_it_works_reads_no_field_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    opened: list[Window] = []

    def gone(row: FieldRow) -> str:
        raise NoMatches(f"the editor of {row.field.name} is gone")

    async def leave(filled: FormValues) -> Any:
        dialog(opened[0]).dismiss(None)
        monkeypatch.setattr(FieldRow, "value", property(gone))
        return {}

    async def act(window: Window, pilot: Pilot[None]) -> None:
        opened.append(window)
        dialog(window).query(Input).first().value = "good"
        if work == "plan":
            await pilot.press("ctrl+s")
        await until(pilot, lambda: window.answer != NOT_ASKED)
        await pilot.pause(0.2)

    changes: dict[str, Any] = {work: leave}
    assert driven(Form("quick", (FormField("path", "file"),), **changes), act).answer is None


def test_a_command_in_a_hint_keeps_its_flags() -> None:
    fields = [FormField("me", "your name")]
    _, rest = split_faults_by_field(
        UsageError((Flag("me"), " is missing"), hint=("for example: ", Command("quick", "a.csv", me="NAME"))), fields
    )
    assert rest == ["your name is missing", "Try: for example: mta quick a.csv --me NAME"]
