"""The style of charts, and the conversion of figures to SVG or PNG. The same figure gives the same bytes on every run.

The user's own matplotlib settings have no effect. Names are drawn as plain text, never as mathematics.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mta_cli.text.printable import clean_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK_COLOUR, MUTED_COLOUR, GRID_COLOUR, ACCENT_COLOUR, BAND_COLOUR, PAPER_COLOUR = (
    "#1f2328",
    "#6b7480",
    "#dde2e8",
    "#0072b2",
    "#e3f0f8",
    "#ffffff",
)
# A page may set other values for these, as in dark mode; the default colours are the ones above.
CSS_VARIABLES = {
    INK_COLOUR: "ink",
    MUTED_COLOUR: "quiet",
    GRID_COLOUR: "grid",
    ACCENT_COLOUR: "accent",
    BAND_COLOUR: "band",
    PAPER_COLOUR: "paper",
}
RC_PARAMS = {
    "axes.edgecolor": MUTED_COLOUR,
    "axes.facecolor": PAPER_COLOUR,
    "axes.grid": True,
    "axes.labelcolor": INK_COLOUR,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK_COLOUR,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "figure.facecolor": PAPER_COLOUR,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 0.8,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "mta",
    "text.color": INK_COLOUR,
    "text.parse_math": False,
    "xtick.color": MUTED_COLOUR,
    "xtick.labelcolor": INK_COLOUR,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED_COLOUR,
    "ytick.labelcolor": INK_COLOUR,
    "ytick.labelsize": 8.5,
}
WIDTH = 8.4  # inches
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
MAX_NAME_LENGTH = 32


@contextmanager
def chart_style() -> Iterator[None]:
    """Inside the block, figures have the common style, and missing glyphs give no warning."""
    from matplotlib import style as styles

    with styles.context(["default", RC_PARAMS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float, *, between: float = 0.02) -> Figure:
    """An empty figure of `width` × `height` inches; `between` is the share of the width between panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    made = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=between))
    FigureCanvasAgg(made)
    return made


def short_name(name: object, most: int = MAX_NAME_LENGTH) -> str:
    """A name for a chart: one clean line of at most `most` letters."""
    text = clean_line(str(name))
    return text if len(text) <= most else text[: most - 1] + "…"


def figure_png(drawn: Figure) -> bytes:
    """The figure as a PNG without date or program name. Call it within `chart_style`."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def figure_svg(drawn: Figure, name: str, title: str) -> str:
    """The figure as an SVG element whose ids begin with `name`. Call it within `chart_style`."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local_name(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag, element.tail = _local_name(element.tag), None
        element.text = element.text if (element.text or "").strip() else None
        found = {_local_name(key): value for key, value in element.attrib.items()}
        element.attrib = {key: _attribute(key, value, name) for key, value in found.items()}
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"xmlns": SVG_NAMESPACE, "role": "img", "aria-label": clean_line(title)}
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return ElementTree.tostring(root, encoding="unicode")


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    """The value with unique ids, and with colours that a page can set."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key in ("style", "fill", "stroke"):
        for colour, variable in CSS_VARIABLES.items():
            value = value.replace(colour, f"var(--{variable}, {colour})")
    return value.replace("url(#", f"url(#{name}-")
