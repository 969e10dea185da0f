"""What a running job looks like on standard error: a bar in a terminal, a line now and then in a log. Part of `output`.

Knows neither results nor standard output; only `output` uses it.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mta_cli.events import Started, Step
from mta_cli.printable import clean, clean_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG_SECONDS = 10.0
PIPE_WIDTH = 200  # a table in a pipe is read by a program or a pager: do not fold it at 80


class CleanConsole(Console):
    """A console that strips control characters from every piece of text on its way out; only its own codes remain."""

    broken: Callable[[], None]

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of `renderable`, cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """The reader is gone: leave quietly, by the owner's way."""
        self.broken()


def make_console(*, stderr: bool, on_broken_pipe: Callable[[], None]) -> CleanConsole:
    """A console without markup, emoji codes or highlighting; wide where the stream is no terminal."""
    console = CleanConsole(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.broken = on_broken_pipe
    return console


class ProgressView:
    """Shows `Started` and `Step`: in a terminal bar, rate, loss and time left; elsewhere a line every few seconds."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console = console
        self._shown = shown
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = Started("")
        self._since = self._spoken = 0.0
        self._first = 0
        self._tokens = 0

    def start(self, event: Started) -> None:
        """A job, or a new part of it, begins."""
        self.stop()
        self._started, self._tokens, self._first = event, 0, -1
        self._since = self._spoken = time.monotonic()
        if self._shown and self._console.is_terminal:
            self._bar = _make_bar(self._console)
            self._task = self._bar.add_task(event.job, total=event.total, about="")
            self._bar.start()

    def step(self, event: Step) -> None:
        """One more unit is done."""
        if self._first < 0:  # a resumed job begins in the middle; what was done before says nothing about the rate
            self._first = event.done - 1
        self._tokens += event.tokens
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=event.done, about=self._about(event), description=self._description(event)
            )
        elif self._shown and time.monotonic() - self._spoken >= LOG_SECONDS:
            self._spoken = time.monotonic()
            total = "" if self._started.total is None else f"/{self._started.total}"
            line = f"{self._description(event)}: {event.done}{total} {self._started.unit} {self._about(event)}"
            self._console.print(line.rstrip(), soft_wrap=True)

    def stop(self) -> None:
        """Leave the last state of the bar standing and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _description(self, event: Step) -> str:
        parts = [part for part in (self._started.job, event.label) if part]
        return clean_line(" · ".join(parts))[:60]

    def _about(self, event: Step) -> str:
        elapsed = max(time.monotonic() - self._since, 1e-6)
        parts = [f"{rate(max(event.done - self._first, 0) / elapsed)} {self._started.unit}/s"]
        if self._tokens:
            parts.append(f"{rate(self._tokens / elapsed)} tokens/s")
        if event.loss is not None:
            parts.append(f"loss {event.loss:.3f}")
        return " · ".join(parts)


def rate(per_second: float) -> str:
    """A rate in three figures or so."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _make_bar(console: Console) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}", markup=False),
        TimeRemainingColumn(),
        console=console,
    )
