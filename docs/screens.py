"""Draws the screens of the window from a store, as SVG, into docs/screens. `make screens` runs it on the demo's store.

Usage: python docs/screens.py STORE. Moves through the screens by keys, as a user would; draws nothing itself.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from textual.pilot import Pilot

from mta_cli.configuration.settings import Settings
from mta_cli.tui.app import MtaApp
from mta_cli.tui.workers.model_worker import ModelWorker

FOLDER = Path(__file__).parent / "screens"
SIZE = (120, 36)
MOVING, SHOWN_SECONDS = ("home", "users", "compare", "bank", "results"), 3
PATIENCE = 300.0  # seconds for a question to be answered
WALK: tuple[tuple[str, Sequence[str]], ...] = (
    ("home", ("0",)),
    ("users", ("1", "home", "down", "enter")),  # the same user, also where the store keeps a selected one
    ("bank", ("3",)),
    ("results", ("6",)),
    ("jobs", ("4",)),
)


async def walk(store: Path) -> None:
    """Go through the screens and keep a picture of each."""
    app = MtaApp(store, Settings.load(store))
    async with app.run_test(size=SIZE) as pilot:
        await rest(app, pilot)
        for name, keys in WALK:
            for key in keys:
                await pilot.press(key)
                await rest(app, pilot)
            keep(app, name)
        await compare(app, pilot)


async def compare(app: MtaApp, pilot: Pilot[None]) -> None:
    """Put the first held-out query to the selected user's models, then all of its task."""
    await pilot.press("2")
    await rest(app, pilot)
    await pilot.press("p")
    await rest(app, pilot)
    await pilot.press("enter")
    await rest(app, pilot)
    await pilot.press("enter")
    await rest(app, pilot)
    await pilot.press("escape", "A")
    await rest(app, pilot)
    keep(app, "compare")


async def rest(app: MtaApp, pilot: Pilot[None]) -> None:
    """Wait until nothing is being read, asked or run."""
    for _ in range(int(PATIENCE / 0.1)):
        await pilot.pause(0.1)
        if (
            all(worker.is_finished or worker.group == ModelWorker.GROUP for worker in app.workers)
            and not app.model_worker.has_pending_requests
            and not app.job_queue.has_unfinished_jobs
        ):
            return
    raise TimeoutError("the window never came to rest")


def keep(app: MtaApp, name: str) -> None:
    """Write what is on the screen."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.svg").write_text(app.export_screenshot(title="mta", simplify=True), encoding="utf-8")


def animate() -> None:
    """One picture that shows the pictures in turn; the first alone for those who want no motion."""
    pictures = [(FOLDER / f"{name}.svg").read_text(encoding="utf-8") for name in MOVING]
    head = re.match(r"<svg[^>]*>", pictures[0])
    assert head is not None
    style = (
        f".frame{{visibility:hidden;animation:show {len(MOVING) * SHOWN_SECONDS}s step-end infinite}}"
        f"@keyframes show{{0%{{visibility:visible}}{100 / len(MOVING):g}%{{visibility:hidden}}}}"
        "@media(prefers-reduced-motion){.frame{animation:none}.frame:first-of-type{visibility:visible}}"
    )
    inner = [picture.strip().removesuffix("</svg>").partition(">")[2] for picture in pictures]
    frames = (f'<g class="frame" style="animation-delay:{n * SHOWN_SECONDS}s">{one}</g>' for n, one in enumerate(inner))
    text = f"{head[0]}<style>{style}</style>{''.join(frames)}</svg>\n"
    (FOLDER / "moving.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(walk(Path(sys.argv[1])))
    animate()
