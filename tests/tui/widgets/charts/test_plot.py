"""Plots in the colours of the theme, over whatever lies behind them."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest
from rich.text import Text
from textual.app import App, ComposeResult

from mta_cli.tui.widgets.charts.canvas import Canvas
from mta_cli.tui.widgets.charts.plot import Plot


class Two(Plot):
    COMPONENT_PREFIX = "two"
    COMPONENT_CLASSES: ClassVar[set[str]] = {"two--plain", "two--loud"}
    DEFAULT_CSS = """
    Two {
        background: #000000;
        & > .two--plain { color: #ffffff 50%; }
        & > .two--loud { color: $primary; text-style: bold; }
    }
    """

    def render(self) -> Text:
        sheet = Canvas(5, 1)
        sheet.write_text(0, 0, "ab", "plain")
        sheet.write_text(2, 0, "cd", "loud")
        return self.render_canvas(sheet)


def painted(*themes: str) -> list[Text]:
    class Alone(App[None]):
        def compose(self) -> ComposeResult:
            yield Two()

    async def drive() -> list[Text]:
        app, found = Alone(), []
        async with app.run_test() as pilot:
            for theme in themes:
                app.theme = theme
                await pilot.pause()
                found.append(app.query_one(Two).render())
        return found

    return asyncio.run(drive())


def test_a_transparent_colour_is_mixed_with_what_lies_behind() -> None:
    plain, loud = painted("textual-dark")[0].spans
    assert plain.style.color.triplet == (127, 127, 127)
    assert loud.style.bold and not plain.style.bold


def test_the_background_shows_through() -> None:
    assert all(span.style.bgcolor is None for span in painted("textual-dark")[0].spans)


def test_another_theme_gives_other_colours() -> None:
    dark, light = painted("textual-dark", "gruvbox")
    assert dark.plain == light.plain
    assert dark.spans[1].style.color != light.spans[1].style.color


def test_without_colours_the_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = painted("textual-dark")[0].plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert painted("textual-dark")[0].plain == shown
