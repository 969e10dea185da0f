"""The base of plots: a canvas of characters in the theme's colours."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from mta_cli.tui.widgets.charts.canvas import Canvas


class Plot(Widget):
    """The base class of plots. Styles of a canvas are component classes `COMPONENT_PREFIX--name`."""

    COMPONENT_PREFIX: ClassVar[str] = ""

    def render_canvas(self, canvas: Canvas) -> Text:
        """A canvas as text in the colours of the style sheets, on the widget's own background."""
        ground = self.background_colors[1]

        @cache
        def style(name: str) -> Style:
            found = self.get_component_styles(f"{self.COMPONENT_PREFIX}--{name}")
            return Style(color=(ground + found.color).rich_color) + found.text_style

        return canvas.to_rich_text(style)
