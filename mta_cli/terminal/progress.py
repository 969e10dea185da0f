"""Shows a running job's progress on standard error: a bar in a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mta_cli.events import JobProgress, JobStarted
from mta_cli.text.formatting import RateMeter, format_clock, format_rate
from mta_cli.text.printable import clean_line, clean_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG_INTERVAL_SECONDS = 10.0
NARROW_TERMINAL_COLUMNS = 115  # columns that the job's name, a long bar and the rate in steps need
PIPE_COLUMNS = 200  # a table in a pipe is read by a program or a pager, so it is not wrapped at 80


class CleanConsole(Console):
    """A Rich console that removes control characters from all texts; only its own styling codes remain."""

    handle_broken_pipe: Callable[[], None]

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of `renderable`, cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(clean_text(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Called by Rich when the reader has closed the stream; calls `handle_broken_pipe`."""
        self.handle_broken_pipe()


def make_console(*, stderr: bool, on_broken_pipe: Callable[[], None]) -> CleanConsole:
    """A console without markup, emoji codes or highlighting; wide if the stream is not a terminal."""
    console = CleanConsole(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.handle_broken_pipe = on_broken_pipe
    return console


class ProgressView:
    """Shows a job's progress with rates, loss and time left: a bar in a terminal, else a line every ten seconds."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console = console
        self._shown = shown
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = JobStarted("")
        self._meter = RateMeter(None, 0.0)
        self._spoken = 0.0

    def start_job(self, event: JobStarted) -> None:
        """Start a job or a new part of it."""
        self.stop()
        self._started, self._spoken = event, time.monotonic()
        self._meter = RateMeter(event.total, self._spoken)
        if self._shown and self._console.is_terminal:
            self._bar = _make_bar(self._console, 8 if self._is_narrow() else 24)
            self._task = self._bar.add_task(event.job, total=event.total, about="", left="")
            self._bar.start()

    def show_progress(self, event: JobProgress) -> None:
        """Show how far the job is after a step."""
        now = time.monotonic()
        self._meter.add_step(event, now)
        left = self._meter.seconds_left
        about, left_text = self._loss_and_rates(event), "" if left is None else f"ETA {format_clock(left)}"
        if self._bar is not None and self._task is not None:
            label = self._description(event)
            self._bar.update(self._task, completed=event.done, description=label, about=about, left=left_text)
        elif self._shown and now - self._spoken >= LOG_INTERVAL_SECONDS:
            self._spoken = now
            total = "" if self._started.total is None else f"/{self._started.total}"
            shown = " · ".join(part for part in (f"{event.done}{total} {self._started.unit}", about, left_text) if part)
            self._console.print(f"{self._description(event)}: {shown}", soft_wrap=True)

    def stop(self) -> None:
        """Stop the bar and leave its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _description(self, event: JobProgress) -> str:
        if self._bar is not None and self._is_narrow():
            return _fit_title(event.label or self._started.job, 20)
        return _fit_title(" · ".join(part for part in (self._started.job, event.label) if part), 60)

    def _is_narrow(self) -> bool:
        return self._console.width < NARROW_TERMINAL_COLUMNS

    def _loss_and_rates(self, event: JobProgress) -> str:
        parts = [f"loss {event.loss:.3f}"] if event.loss is not None else []
        tokens, units = self._meter.tokens_per_second, self._meter.units_per_second
        if tokens is not None:
            parts.append(f"{format_rate(tokens)} tokens/s")
        if units is not None and not (parts and self._bar is not None and self._is_narrow()):
            parts.append(f"{format_rate(units)} {self._started.unit}/s")
        return " · ".join(parts)


def _fit_title(title: str, width: int) -> str:
    """The title in at most `width` characters: without the part after its last colon if too long, then cut."""
    shown = clean_line(title)
    if len(shown) > width:
        shown = shown.rpartition(": ")[0] or shown
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def _make_bar(console: Console, width: int) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=width),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=console,
    )
