"""Where a question is typed: what is in view after the window has another size."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from mta_cli.tui.widgets.prompt import PromptArea
from tests.tui.driving import screen_text

QUESTION = (
    "Dumpling supper on the quay, Thursday at seven, tables for forty, bring a bowl of your own, tea is provided."
)


class Desk(App[None]):
    def compose(self) -> ComposeResult:
        yield PromptArea("type")


@pytest.mark.parametrize("widths", [(100, 70, 80), (60, 120), (120, 40, 60)])
async def test_every_word_is_in_view_after_each_change_of_width(widths: tuple[int, ...]) -> None:
    app = Desk()
    async with app.run_test(size=(widths[0], 20)) as pilot:
        app.query_one(PromptArea).replace_text(QUESTION)
        await pilot.pause()
        for width in widths[1:]:
            await pilot.resize_terminal(width, 20)
            await pilot.pause()
            await pilot.pause()
            shown = " ".join(screen_text(app).replace("│", " ").split())  # type: ignore[arg-type]
            assert QUESTION in shown
