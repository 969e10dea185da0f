"""Acting on people in the screen of users: adapting and removing, and what others do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_cli.errors import IntegrityFault
from mta_cli.events import Event, JobResult
from mta_cli.tui.dialogs.basic import ConfirmDialog, ErrorDialog
from mta_cli.tui.dialogs.form import FormDialog
from mta_cli.tui.screens.users import UsersScreen
from mta_cli.tui.workers.undo import NOTHING_VALUES
from store.registry import Registry
from tests.tui.driving import PATIENCE, open_app, screen_text, settled, until
from tests.tui.screens.test_users import EVERYBODY, names, pane, table, this_screen_alone

__all__ = ["this_screen_alone"]


async def test_adapting_asks_first_and_queues_the_job(demo_store: Path) -> None:
    async with open_app(demo_store, (100, 40)) as (app, pilot):
        await pilot.press("down", "down", "a")
        await until(pilot, lambda: isinstance(app.screen, FormDialog))
        assert app.selected_user == "kim" and app.screen.form_values["users"] == "kim"  # type: ignore[attr-defined]
        await pilot.press("escape")
        await settled(app, pilot)
        assert not app.job_queue.jobs
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, FormDialog))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bool(app.screen.plan_shown))  # type: ignore[attr-defined]
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bool(app.job_queue.jobs) and app.job_queue.jobs[0].finished)
        await settled(app, pilot)
        assert app.job_queue.jobs[0].state == "done", app.job_queue.jobs[0].log
        assert table(app).cursor_row.name == "kim" and table(app).cursor_row.status == "adapted"
        assert "adapted" in pane(app) and "Loss of the last adaptation" in pane(app)


async def test_removing_says_what_goes_asks_and_leaves_no_trace(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await pilot.press("enter", "d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        text = screen_text(app)
        assert "Remove ida" in text and "history items: 3" in text and "stacks: 1" in text
        assert not any(f": {value}\n" in text for value in NOTHING_VALUES)
        await pilot.press("n")
        await settled(app, pilot)
        assert names(app) == EVERYBODY and not app.job_queue.jobs
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await until(pilot, lambda: bool(app.job_queue.jobs) and app.job_queue.jobs[0].finished)
        await until(pilot, lambda: table(app).row_count == 11)
        await settled(app, pilot)
        assert names(app) == EVERYBODY[1:] and app.selected_user is None
        with Registry.open(demo_store) as reg:
            assert "ida" not in reg.users.names()


async def test_a_removal_that_fails_is_told(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(reg: Registry, name: str) -> Iterator[Event]:
        raise IntegrityFault("the store is damaged")
        yield JobResult()

    monkeypatch.setattr("mta_cli.pipeline.users.removal.remove_user", refuse)

    async with open_app(demo_store) as (app, pilot):
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        assert "the store is damaged" in screen_text(app)
        await pilot.press("escape")
        await settled(app, pilot)
        assert names(app) == EVERYBODY


async def test_a_removal_that_ends_while_another_screen_is_shown_is_told(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mta_cli.pipeline.users import removal

    may_end, remove_user = threading.Event(), removal.remove_user

    def later(reg: Registry, name: str) -> Iterator[Event]:
        may_end.wait(PATIENCE)
        yield from remove_user(reg, name)

    monkeypatch.setattr(removal, "remove_user", later)

    async with open_app(demo_store) as (app, pilot):
        await pilot.press("enter", "d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await until(pilot, lambda: bool(app.job_queue.jobs))
        await pilot.press("3")
        await settled(app, pilot)
        may_end.set()
        await until(pilot, lambda: app.job_queue.jobs[0].finished)
        await until(pilot, lambda: app.selected_user is None)
        assert "forgotten; history items: 3" in [notice.message[:27] for notice in app._notifications]


async def test_somebody_who_is_gone_meanwhile_is_no_error(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        with Registry.open(demo_store) as reg:
            reg.users.forget(reg.users.get("jon").id)
        await pilot.press("down")
        await settled(app, pilot)
        assert isinstance(app.screen, UsersScreen) and pane(app).strip() == "This user was removed."
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        assert "There is no user 'jon'" in screen_text(app)


async def test_new_rows_appear_when_the_store_changes_and_the_cursor_stays(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await pilot.press("down")
        with Registry.open(demo_store) as reg:
            reg.users.add("adam")
            reg.users.add("zoe")
        app.select_task(None)
        await settled(app, pilot)
        assert table(app).row_count == 14 and table(app).cursor_row.name == "jon" and table(app).cursor == 2
