"""The Users screen: the table, the filter, the detail pane, and the keys, on a small town's store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from mta_cli.configuration.settings import Settings
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.basic import ChoiceDialog, ConfirmDialog
from mta_cli.tui.dialogs.form import FormDialog
from mta_cli.tui.screens.base import SCREEN_TITLES, BaseScreen
from mta_cli.tui.screens.users import UsersScreen
from mta_cli.tui.widgets.lazy_table import LazyTable
from mta_cli.tui.widgets.user_detail import UserPane
from store.records import NewItem
from store.registry import Registry
from store.tables.predictions import Prediction
from tests.tui.driving import open_app, screen_text, settled, until

EVERYBODY = ["ida", "jon", "kim", *(f"user{n}" for n in range(9))]


@pytest.fixture(autouse=True)
def this_screen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other screens are empty ones."""
    others = {name: type(f"{title}Stub", (BaseScreen,), {"SCREEN_NAME": name}) for name, title in SCREEN_TITLES.items()}
    monkeypatch.setattr(MtaApp, "MODES", {**others, "users": UsersScreen})
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "users")


def table(app: MtaApp) -> LazyTable:
    return app.screen.query_one(LazyTable)


def names(app: MtaApp) -> list[str]:
    people = table(app)
    return [people.row_at(place).name for place in range(people.row_count)]  # type: ignore[union-attr]


def pane(app: MtaApp) -> str:
    """Everything in the pane, scrolled out of view or not."""
    wanted = app.screen.query_one(UserPane)
    shown = [node for node in wanted.walk_children() if node.display and node.size.height]
    return "\n".join(node.render_line(y).text.rstrip() for node in shown for y in range(node.size.height))


def words(app: MtaApp) -> Input:
    return app.screen.query_one("#filter", Input)


async def typed(app: MtaApp, pilot: Pilot[None], text: str) -> None:
    await pilot.press("slash")
    words(app).value = text
    await pilot.pause()
    await settled(app, pilot)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_everybody_is_there_and_the_first_in_detail(demo_store: Path, size: tuple[int, int]) -> None:
    async with open_app(demo_store, size) as (app, _):
        text = screen_text(app)
        assert names(app) == EVERYBODY and text.splitlines()[1].rstrip().endswith("12")
        row = next(line for line in text.splitlines() if line.startswith(" ida "))
        assert "adapted" in row and "lamp-2" in row and " kB" in row
        assert any(sign in row for sign in ("+.", "−."))
        assert "task lamp-2: adapted, 3 items, 2 held-out queries" in text
        assert app.focused is table(app)


async def test_the_pane_says_what_a_model_is_made_of_and_how_it_came(demo_store: Path) -> None:
    async with open_app(demo_store, (200, 60)) as (app, pilot):
        text = pane(app)
        assert "bank lamp-2 v1 · recipe" in text and "by evidence" in text and "░ task adapter ." in text
        assert (
            "the loss on held-out queries" in text
            and "Loss of the last adaptation" in text
            and "user adapt  done" in text
        )
        assert "\nRecipe\n" in text and text.count("█") > 20
        assert text.index("film 2 about a ship → comedy") < text.index("film 0 about a ship → comedy")
        assert "Results" not in text
        await pilot.press("down", "down")
        await settled(app, pilot)
        text = pane(app)
        assert text.startswith("kim") and "no recipe yet: press a to adapt" in text and "Loss" not in text


async def test_it_filters_while_it_is_typed(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await pilot.press("slash")
        for key, found in (("u", 9), ("s", 9), ("e", 9), ("r", 9), ("7", 1)):
            await pilot.press(key)
            await settled(app, pilot)
            assert table(app).row_count == found
        assert names(app) == ["user7"] and "1 of 12" in screen_text(app)
        assert (
            "5 Chat" in screen_text(app)
            and app.current_screen is app.screen
            and isinstance(app.current_screen, UsersScreen)
        )
        await pilot.press("enter")
        assert app.focused is table(app)
        await pilot.press("escape")
        await settled(app, pilot)
        assert words(app).value == "" and names(app) == EVERYBODY
        assert table(app).cursor_row.name == "user7"  # the cursor stayed on them


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("status:adapted", ["ida"]),
        ("status:fused", ["jon"]),
        ("items<5 i", ["ida", "kim"]),
        ("status:anchor", None),
        ("task:lamp-2 KIM", ["kim"]),
        ("change>-99", ["ida"]),
        ("[red]", []),
        ("nobody at all", []),
    ],
)
async def test_other_words_than_names_are_known(demo_store: Path, text: str, found: list[str] | None) -> None:
    async with open_app(demo_store) as (app, pilot):
        await typed(app, pilot, text)
        assert (names(app) == found) if found is not None else (table(app).row_count == 3)
        assert ("No user matches" in screen_text(app)) == (found == [])


async def test_nobody_who_fits_can_be_used(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await typed(app, pilot, "zzz")
        await pilot.press("enter")
        await pilot.press("c", "t", "a", "d", "enter", "o")
        await settled(app, pilot)
        assert isinstance(app.screen, UsersScreen) and app.selected_user is None and not app.job_queue.jobs
        await pilot.press("escape")
        await settled(app, pilot)
        assert names(app) == EVERYBODY and "No user matches" not in screen_text(app)


async def test_keys_and_clicks_sort(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await pilot.press("s")
        await settled(app, pilot)
        assert names(app)[0] == "ida" and names(app)[1] == "jon" and "status▼" in screen_text(app)
        await pilot.press("S")
        await settled(app, pilot)
        assert names(app)[-1] == "ida" and "status▲" in screen_text(app) and table(app).cursor == 0
        await pilot.click(LazyTable, offset=(2, 0))
        await settled(app, pilot)
        assert names(app) == EVERYBODY
        await pilot.click(LazyTable, offset=(2, 0))
        await settled(app, pilot)
        assert names(app) == EVERYBODY[::-1] and "name▼" in screen_text(app)


async def test_choosing_marks_somebody_for_all_screens(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await pilot.press("down", "enter")
        await settled(app, pilot)
        assert app.selected_user == "jon" and "● jon" in screen_text(app)
        assert screen_text(app).splitlines()[0].rstrip().endswith("jon") and table(app).cursor == 1
        await pilot.press("down", "c")
        await settled(app, pilot)
        assert (
            app.selected_user == "kim"
            and app.current_screen is not None
            and app.current_screen.SCREEN_NAME == "compare"
        )
        app.show_screen("users")
        await settled(app, pilot)
        await pilot.press("up", "t")
        await settled(app, pilot)
        assert app.selected_user == "jon" and app.current_screen.SCREEN_NAME == "chat"


async def test_the_screen_opens_on_the_chosen_user(demo_store: Path) -> None:
    app = MtaApp(demo_store, Settings.load(demo_store))
    app.selected_user = "user5"
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(app, pilot)
        assert table(app).cursor_row.name == "user5" and "● user5" in screen_text(app)


async def test_the_cursor_goes_to_a_user_who_is_selected_elsewhere(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        app.select_user("user5")
        await settled(app, pilot)
        assert table(app).cursor_row.name == "user5"
        await pilot.press("down")
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert table(app).cursor_row.name == "user6", "only another selected user moves it"
        await typed(app, pilot, "jo")
        app.select_user("kim")
        await settled(app, pilot)
        assert words(app).value == "" and table(app).cursor_row.name == "kim" and names(app) == EVERYBODY
        table(app).focus()
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        assert "Remove kim and all their data?" in screen_text(app)


async def test_a_task_is_chosen_for_all_screens(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        reg.items.append_items(reg.users.get("kim").id, [NewItem("x", "[b]other", "in", "out")])

    async with open_app(demo_store) as (app, pilot):
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await until(pilot, lambda: "lamp-2  12 users" in screen_text(app))
        assert "[b]other  1 user" in screen_text(app)
        await pilot.press("down", "down", "enter")
        await settled(app, pilot)
        assert app.selected_task == "[b]other" and names(app) == ["kim"]
        assert "1 of task [b]other" in screen_text(app) and "1 item," in pane(app)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        assert app.screen.query_one(OptionList).highlighted == 2
        await pilot.press("escape")
        await settled(app, pilot)
        assert app.selected_task == "[b]other"
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await pilot.press("up", "up", "enter")
        await settled(app, pilot)
        assert app.selected_task is None and names(app) == EVERYBODY


async def test_older_items_are_shown_when_asked_for(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        many = [
            NewItem(f"m{n}", "lamp-2", f"number {n:02} of many", "x", f"2019-01-01T00:00:{n:02}") for n in range(30)
        ]
        reg.items.append_items(reg.users.get("ida").id, many)

    async with open_app(demo_store, (200, 80)) as (app, pilot):
        assert "13 older; o shows more" in pane(app) and "number 12" not in pane(app)
        await pilot.press("o")
        await settled(app, pilot)
        assert "older" not in pane(app) and "number 00 of many" in pane(app) and "2019-01-01 00:00" in pane(app)
        await pilot.press("down", "up")
        await settled(app, pilot)
        assert "13 older" in pane(app)


async def test_an_empty_store_says_what_to_do(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        text = screen_text(app)
        assert "There are no users yet" in text and "mta data import" in text and "mta demo" in text
        assert "i Import" in text and "m Demo" in text and "a Adapt" not in text
        for key, title in (("m", "demo"), ("i", "data import")):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, FormDialog))
            assert title in screen_text(app)
            await pilot.press("escape")
            await settled(app, pilot)
        with Registry.open(empty_store, create=True) as reg:
            reg.users.add("ann")
        app.select_task(None)
        await settled(app, pilot)
        assert names(app) == ["ann"] and app.focused is table(app) and "no items yet" in screen_text(app)
        assert "m Demo" not in screen_text(app) and "a Adapt" in screen_text(app)


HOSTILE = "[red]\U0001f600 '; DROP [/] 名"


async def test_hostile_names_and_texts_are_shown_as_text(demo_store: Path) -> None:
    evil = "\x1b[2J\x07[bold]owned[/bold]\r\nnext\u202e line [@click=app.quit]x[/]"
    with Registry.open(demo_store) as reg:
        user = reg.users.add(HOSTILE)
        reg.items.append_items(user.id, [NewItem(evil, "lamp-2", evil, evil, evil)])
        run_ = reg.runs.start_run("user adapt", {"task": "lamp-2"}, user_id=user.id)
        reg.runs.fail_run(run_.id, evil)

    async with open_app(demo_store, (200, 50)) as (app, pilot):
        await typed(app, pilot, "DROP")
        await pilot.press("enter")
        await settled(app, pilot)
        text = screen_text(app)
        assert "[red]" in text and "'; DROP [/]" in text and "[bold]owned[/bold] next" in pane(app)
        assert not any(sign in text + pane(app) for sign in ("\x1b", "\x07", "\u202e", "\r"))
        await pilot.press("enter", "d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        assert "Remove [red]" in screen_text(app)
        await pilot.press("n")
        await settled(app, pilot)
        assert app.selected_user == HOSTILE


async def test_results_of_an_evaluation_are_bars(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        ida = reg.users.get("ida").id
        number = reg.evaluations.add_evaluation("lamp-2", None, {}, {})
        said = [("base", "x"), ("base", "comedy"), ("adapted", "comedy")]
        rows = [Prediction(ida, 1, method, "p", answer, "comedy", None, 1, 0.1) for method, answer in said]
        reg.evaluations.predictions.add_predictions(number, rows)

    async with open_app(demo_store, (200, 60)) as (app, _):
        lines = pane(app).splitlines()
        assert f"Results: accuracy, evaluation {number}" in lines
        base, adapted = (next(line for line in lines if line.startswith(f"{name} ")) for name in ("base", "adapted"))
        assert base.endswith(".50 of 2") and adapted.endswith("1.00 of 1")
        assert 0 < base.count("█") < adapted.count("█")


async def test_help_names_every_key_and_what_a_filter_knows(demo_store: Path) -> None:
    async with open_app(demo_store, (100, 60)) as (app, pilot):
        await pilot.press("f1")
        await settled(app, pilot)
        text = screen_text(app)
        for piece in ("status:adapted", "change>0", "Compare this user's models", "Sort by the next column"):
            assert piece in text


def test_every_key_has_a_name_and_a_tooltip() -> None:
    bindings: list[Any] = [*UsersScreen.BINDINGS, *LazyTable.BINDINGS]
    assert all(one.id and one.tooltip for one in bindings)
    keys = [key for one in UsersScreen.BINDINGS for key in one.key.split(",")]  # type: ignore[union-attr]
    assert len(keys) == len(set(keys)) and not set(keys) & set("123456q")


async def test_the_pane_moves_beside_the_table_when_there_is_room(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        pane, users = app.screen.query_one(UserPane), table(app)
        assert pane.region.y > users.region.y and pane.region.width == 80
        await pilot.resize_terminal(200, 50)
        await settled(app, pilot)
        assert pane.region.y == users.region.y and pane.region.x > users.region.x
        await pilot.resize_terminal(60, 16)
        await settled(app, pilot)
        assert pane.region.y > users.region.y and users.size.height >= 3 and " ida " in screen_text(app)


def test_users_load_nothing_heavy(demo_store: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from mta_cli.configuration.settings import Settings
from mta_cli.tui.app import MtaApp
app = MtaApp(Path(sys.argv[1]), Settings.load(Path(sys.argv[1])))
async def look():
    async with app.run_test(size=(80, 24)) as pilot:
        while not app.screen.query("#next").first().option_count:
            await pilot.pause(0.05)
        await pilot.press("1")
        while not app.screen.query("#who") or app.screen.query("#who").first().size.height < 2:
            await pilot.pause(0.05)
asyncio.run(look())
heavy = {"numpy", "pandas", "torch", "transformers", "peft", "sklearn", "matplotlib"}
print(sorted({name.partition(".")[0] for name in sys.modules} & heavy))
"""
    found = subprocess.run([sys.executable, "-c", code, str(demo_store)], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found.stderr
