"""Driving the window in tests: open it, wait for what it does, read what is on the screen."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from textual.app import App
from textual.pilot import Pilot

from mta_cli.configuration.settings import Settings
from mta_cli.events import Event, JobProgress
from mta_cli.tui.app import MtaApp
from mta_cli.tui.workers.job_queue import JobQueue
from mta_cli.tui.workers.model_worker import ModelWorker
from store.registry import Registry

T = TypeVar("T")
PATIENCE = 60.0  # seconds
CELL = 12.2  # width of a cell in a screenshot


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def open_app(store: Path, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[MtaApp, Pilot[None]]]:
    """The window on a store, with nothing left to do."""
    app = MtaApp(store, Settings.load(store))
    async with app.run_test(size=size) as pilot:
        await settled(app, pilot)
        yield app, pilot


async def settled(app: MtaApp, pilot: Pilot[None]) -> None:
    """Wait until the window has read and drawn everything; its jobs and its model may still be at work."""
    threads = ("stays", JobQueue.GROUP, ModelWorker.GROUP)
    await pilot.pause()  # what was asked for just now has begun
    await until(pilot, lambda: all(worker.is_finished or worker.group in threads for worker in app.workers))
    await pilot.pause()


async def until(pilot: Pilot[None], true: Callable[[], bool]) -> None:
    """Wait until something is so; fails after `PATIENCE`, and says what the window showed by then."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() >= end:
            shown = f"the focus is on {pilot.app.focused}, and the window shows\n{screen_text(pilot.app)}"
            pytest.fail(f"it never came to pass; {shown}")
        await pilot.pause(0.02)
    await pilot.pause()


def hold_jobs(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let every job wait after its first progress until the event is set, however fast the machine is."""
    go_on, add_job = threading.Event(), JobQueue.add_job

    def add_held(queue: JobQueue, kind: str, title: str, make_events: Any, on_end: Any = None) -> Any:
        def held(reg: Registry) -> Iterator[Event]:
            with closing(make_events(reg)) as events:
                for event in events:
                    yield event
                    if isinstance(event, JobProgress):
                        go_on.wait(PATIENCE)

        return add_job(queue, kind, title, held, on_end)

    monkeypatch.setattr(JobQueue, "add_job", add_held)
    return go_on


def screen_text(app: App[Any]) -> str:
    """What is on the screen, a line a row, without colours and trailing blanks."""
    drawing = ElementTree.fromstring(app.export_screenshot(simplify=True))
    rows: dict[int, list[tuple[int, str]]] = {}
    for node in drawing.iter("{http://www.w3.org/2000/svg}text"):
        place = re.search(r"-line-(\d+)\)", node.get("clip-path", ""))
        if place is not None:
            words = "".join(node.itertext()).replace("\xa0", " ").rstrip("\n")
            rows.setdefault(int(place[1]), []).append((round(float(node.get("x", 0)) / CELL), words))
    return "\n".join(_line(rows[row]) for row in sorted(rows))


def _line(runs: list[tuple[int, str]]) -> str:
    """Runs of text, each at its column, as one line."""
    shown = ""
    for column, words in sorted(runs):
        shown += " " * (column - cell_len(shown) if words else 0) + words
    return shown.rstrip()


def notices(app: MtaApp) -> list[str]:
    """What the window tells from now on in its corner, which tests do not draw."""
    told: list[str] = []
    app.notify = lambda message, **how: told.append(message)  # type: ignore[method-assign]
    return told


def settle_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time zone and the language of dates are the same on every machine."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    time.tzset()
