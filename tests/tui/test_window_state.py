"""The window's state between two starts, and files that another program wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mta_cli.tui.dialogs.basic import ErrorDialog
from mta_cli.tui.window_state import FILE_NAME, MAX_FILE_BYTES, WindowState
from store.registry import Registry
from tests.tui.driving import open_app, run, screen_text, settled


def test_a_window_begins_where_the_last_one_was_left(demo_store: Path) -> None:
    async def leave() -> None:
        async with open_app(demo_store) as (app, pilot):
            app.theme = "nord"
            app.select_user("jon")
            await pilot.press("4")
            await settled(app, pilot)

    async def come_back() -> None:
        async with open_app(demo_store) as (app, _):
            assert (app.theme, app.selected_user, app.current_mode) == ("nord", "jon", "jobs")
            assert "● jon" in screen_text(app).splitlines()[0]

    run(leave())
    run(come_back())


def test_no_name_is_left_of_a_user_who_was_removed(demo_store: Path) -> None:
    async def leave() -> None:
        async with open_app(demo_store) as (app, _):
            app.select_user("jon")

    async def come_back() -> None:
        async with open_app(demo_store) as (app, _):
            assert app.selected_user is None and not isinstance(app.screen, ErrorDialog)

    run(leave())
    assert "jon" not in (demo_store / FILE_NAME).read_text()
    with Registry.open(demo_store) as reg:
        reg.users.forget(reg.users.get("jon").id)
    run(come_back())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{",
        b"[]",
        b"null",
        b'{"theme": 3, "screen": ["users"], "user_id": "1"}',
        b'{"theme": "no such theme", "screen": "../../etc", "user_id": 99999999999999999999999}',
        b'{"theme": "\\u001b]0;x\\u0007", "screen": "_default", "user_id": -1}',
        b'{"user_id": true, "user_id": 1e999}',
        b"[" * (MAX_FILE_BYTES - 1),
        b'{"theme": "' + b"x" * MAX_FILE_BYTES + b'"}',
    ],
)
async def test_a_file_that_cannot_be_used_is_as_good_as_none(demo_store: Path, content: bytes) -> None:
    (demo_store / FILE_NAME).write_bytes(content)

    async with open_app(demo_store) as (app, _):
        assert app.selected_user is None and app.current_mode == "home" and "12 users" in screen_text(app)


def test_nothing_is_read_from_what_is_no_file_and_no_store_is_made(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)  # reading it would wait for ever
    assert WindowState.load(tmp_path) == WindowState()
    WindowState("nord").save(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state = WindowState("nord", "bank", 7)
    state.save(tmp_path)
    assert WindowState.load(tmp_path) == state
