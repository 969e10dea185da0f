"""What the tests of Chat and Compare share: a window with these screens only, and ways to wait for answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
from textual.pilot import Pilot

from mta_cli.tui.app import MtaApp
from mta_cli.tui.screens.base import BaseScreen
from mta_cli.tui.screens.chat import ChatScreen
from mta_cli.tui.screens.compare import CompareScreen
from mta_cli.tui.widgets.prompt import PromptArea
from mta_cli.tui.workers.chat_turn import ActiveRequest
from tests.tui.driving import settled, until

begun = [0]  # how many talks there were


class Hall(BaseScreen):
    """An empty screen to begin in."""

    SCREEN_NAME = "users"


def only_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window has a hall and the two screens with voices; answers are short, and talks are counted."""
    begin = ActiveRequest.start_request

    def counted(self: ActiveRequest, *rest: Any) -> None:
        begin(self, *rest)
        begun[0] += 1

    monkeypatch.setattr(ActiveRequest, "start_request", counted)
    monkeypatch.setattr(MtaApp, "MODES", {"users": Hall, "compare": CompareScreen, "chat": ChatScreen})
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "users")
    monkeypatch.setenv("MTA_ANSWER_MAX_TOKENS", "12")
    monkeypatch.setenv("MTA_ANSWER_TEMPERATURE", "1.0")  # the tiny base's likeliest tokens are not characters


async def enter(app: MtaApp, pilot: Pilot[None], screen: str, user: str | None) -> Any:
    """Select a user and show a screen."""
    if user is not None:
        app.select_user(user)
    app.show_screen(screen)
    await settled(app, pilot)
    return app.screen


async def type_and_ask(app: MtaApp, pilot: Pilot[None], words: str) -> None:
    """Type into the prompt and press Enter; waits until the talk is over and shown."""
    app.screen.query_one(PromptArea).focus()
    await press_and_hear(app, pilot, *words, "enter")


async def compare_without_task(app: MtaApp, pilot: Pilot[None], user: str, words: str) -> None:
    """Ask in Compare for a user, without their task's prompt."""
    await enter(app, pilot, "compare", user)
    app.screen.set_focus(None)
    await pilot.press("t")
    await type_and_ask(app, pilot, words)


async def press_and_hear(app: MtaApp, pilot: Pilot[None], *keys: str) -> None:
    """Press keys that start a talk; waits until it is over and shown."""
    before = begun[0]
    await pilot.press(*keys)
    await until(pilot, lambda: begun[0] > before)
    await answered(app, pilot)


async def answered(app: MtaApp, pilot: Pilot[None]) -> None:
    """Wait until no answer is being generated and everything is shown."""
    await until(pilot, lambda: not turn(app).in_progress)
    await settled(app, pilot)


def turn(app: MtaApp) -> ActiveRequest:
    """The request of the screen that is shown."""
    return cast(ActiveRequest, cast(Any, app.current_screen).active_request)
