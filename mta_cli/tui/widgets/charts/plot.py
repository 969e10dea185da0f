"""The base of plots: a canvas of characters in the theme's colours."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from mta_cli.tui.widgets.charts.canvas import Canvas


class Plot(Widget):
    """A widget that draws on a canvas. The styles of its cells are component classes, `PART--name`."""

    COMPONENT_PREFIX: ClassVar[str] = ""

    def render_canvas(self, canvas: Canvas) -> Text:
        """A canvas in the colours that the style sheets give; the widget's own background shows through."""
        ground = self.background_colors[1]

        @cache
        def style(name: str) -> Style:
            found = self.get_component_styles(f"{self.COMPONENT_PREFIX}--{name}")
            return Style(color=(ground + found.color).rich_color) + found.text_style

        return canvas.to_rich_text(style)
