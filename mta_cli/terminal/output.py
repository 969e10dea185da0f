"""The only writer to the terminal: results on standard output; progress, notes and errors on standard error.

All output passes `clean_text`, so text from users, models, files and errors cannot move the cursor, set colours or
reorder other text. Knows nothing of commands, jobs or the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli import events as ev
from mta_cli.errors import Interrupted, MtaError, system_reason, words_to_text
from mta_cli.terminal.tables import TableLayout, format_cell, key_value_grid, number_columns, table
from mta_cli.text.formatting import error_lines, event_text, format_age
from mta_cli.text.printable import clean_line, clean_text, to_json, to_jsonable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mta_cli.terminal.progress import ProgressView

T = TypeVar("T")
Render = Callable[[Any], "RenderableType"]

PAGE_ROWS = 500
"""Rows of a long result that are printed at once."""


def text(value: str, *, style: str = "") -> RenderableType:
    """Plain, cleaned text that keeps its line breaks."""
    from rich.text import Text

    return Text(clean_text(value), style=style, overflow="fold")


def group(*parts: RenderableType) -> RenderableType:
    """The renderables one below the other."""
    from rich.console import Group

    return Group(*parts)


def format_loss(loss: float | None) -> str:
    """A loss with three decimals; a dash for None."""
    return "–" if loss is None else f"{loss:.3f}"


class StdoutClosed(Exception):
    """Raised when the reader of standard output has closed it, as in `mta user list | head -1`."""


def prepare_streams() -> None:
    """Replace closed standard streams, and let output escape characters that the terminal's encoding lacks."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the calling process (`mta user list >&-`)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Flush standard output. Ignores errors: a reader may close the pipe, and a full disk was reported before."""
    try:
        sys.stdout.flush()
    except OSError:
        redirect_to_null("stdout")


def redirect_to_null(name: str) -> None:
    """Redirect `stdout` or `stderr` to the null device, so that later writes and the last flush do not fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())
    except (OSError, ValueError):
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


class Output:
    """Writes the output of one command. `json`: the result is one document; `quiet`: no notes and no progress.

    `verbosity` is the number of -v flags.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbosity: int = 0) -> None:
        self.json = json
        self.quiet = quiet
        self.verbosity = verbosity
        self._consoles: dict[bool, Console] = {}
        self._column: str | None = None
        self._open_line = False
        self._view: ProgressView | None = None

    def console(self, *, stderr: bool) -> Console:
        """The Rich console of standard error (`stderr`) or standard output: cleans all text, ignores markup."""
        if stderr not in self._consoles:
            from mta_cli.terminal.progress import make_console

            # A closed stderr does not stop the command; a closed stdout does.
            on_broken_pipe = partial(redirect_to_null, "stderr") if stderr else self._raise_stdout_closed
            self._consoles[stderr] = make_console(stderr=stderr, on_broken_pipe=on_broken_pipe)
        return self._consoles[stderr]

    def print_result(self, value: Any, render: Render | None = None) -> None:
        """Print the command's result on standard output: as JSON, or rendered by `render`."""
        if self.json:
            self.write_stdout(to_json(value) + "\n")
            return
        self.end_line()
        self._print_renderable((render or _render_default)(value))

    def print_rows(self, columns: Sequence[str], rows: Iterable[T], cells: Callable[[T], Sequence[object]]) -> None:
        """Print rows on standard output, a page at a time: as a JSON array, or as a table of `cells`."""
        source = iter(rows)
        pages = iter(lambda: list(itertools.islice(source, PAGE_ROWS)), [])
        if self.json:
            self._print_json_pages(pages)
        else:
            self._print_table_pages(columns, ([cells(row) for row in page] for page in pages))

    def _print_json_pages(self, pages: Iterable[list[Any]]) -> None:
        separator = "["
        for page in pages:
            self.write_stdout(separator + to_json(page)[1:-2])
            separator = ","
        self.write_stdout("[]\n" if separator == "[" else "\n]\n")

    def _print_table_pages(self, columns: Sequence[str], pages: Iterator[list[Sequence[object]]]) -> None:
        self.end_line()
        first = next(pages, [])
        layout = TableLayout(columns, number_columns(first))
        narrow = False
        for number, page in enumerate(itertools.chain([first], pages)):
            shown = [[format_cell(value) for value in row] for row in page]
            layout.fit(shown)
            if number == 0:
                narrow = layout.width > self.console(stderr=False).width
            if number == 0 and not narrow:
                self._print_renderable(text(layout.line(columns), style="bold"))
                self.write_stdout(f"{layout.rule}\n")
            draw = layout.vertical if narrow else layout.line
            self.write_stdout("".join(f"{draw(row)}\n" for row in shown))

    def write_stdout(self, raw: str) -> None:
        """Write cleaned text to standard output immediately, without styling."""
        with self._guard_stdout():
            sys.stdout.write(clean_text(raw))
            sys.stdout.flush()

    def note(self, message: str) -> None:
        """Print a line of information on standard error; nothing with --quiet."""
        if not self.quiet:
            self._print_stderr(message)

    def suggest(self, *steps: tuple[str, str]) -> None:
        """Suggest next commands with their meanings on standard error; nothing with --json or --quiet."""
        longest = max(len(command) for command, _ in steps)
        for number, (command, meaning) in enumerate(steps):
            if not self.json:
                self.note(f"{'      ' if number else 'Next: '}{command:<{longest}}   {meaning}")

    def age(self, moment: str | None) -> str | None:
        """The age of an ISO time, such as `2 h ago`; with --verbose the time itself."""
        return moment if self.verbosity else format_age(moment, datetime.now(UTC))

    def warn(self, message: str) -> None:
        """Print a warning on standard error, even with --quiet."""
        self._print_stderr(f"warning: {message}", style="yellow")

    def error(self, error: BaseException) -> None:
        """Print an error on standard error: its message, faults and hint; with -vv also the traceback."""
        message, *faults = error_lines(error)
        self._print_stderr(f"{'error' if isinstance(error, MtaError) else 'unexpected'}: {message}", style="red")
        for fault in faults:
            self._print_stderr(fault)
        if isinstance(error, MtaError):
            if error.hint:
                self._print_stderr(f"hint: {words_to_text(error.hint)}")
        elif self.verbosity < 2:
            self._print_stderr("hint: run the command again as `mta -vv …` to see the traceback")
        if self.verbosity >= 2:
            self._print_stderr("".join(traceback.format_exception(error)), style="dim")

    def print_help(self, page: str) -> None:
        """Print a help page on standard error, for a command line without a command."""
        sys.stderr.write(clean_text(page).rstrip("\n") + "\n")

    def read_answer(self, question: str) -> str | None:
        """Ask `question` on standard error and return the typed or piped line; None at end of input."""
        self.end_line()
        if self._view is not None:  # during a job, stop its progress bar first
            self._view.stop()
        sys.stderr.write(clean_line(question) + " ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            sys.stderr.write("\n")
        return line.strip() if line else None

    def run_job(self, events: Iterator[ev.Event], *, dry_run: bool = False, resumes: bool = False) -> Any:
        """Run a job and show its events; returns `JobResult.result`.

        With `dry_run` the plan itself is printed (a table, or the JSON document `{job, plan, …}`), so the caller prints
        nothing more. Ctrl-C closes the generator and raises `Interrupted`; with `resumes`, its hint is to run the
        command again.
        """
        from mta_cli.terminal.progress import ProgressView

        result: Any = None
        planned: list[ev.JobPlan] = []
        view = self._view = ProgressView(self.console(stderr=True), shown=not self.quiet)
        try:
            for event in events:
                if isinstance(event, ev.JobResult):
                    result = event.result
                elif isinstance(event, ev.JobPlan):
                    planned.append(event)
                    self._show_plan(event, dry_run)
                else:
                    self._show_event(event, view)
        except KeyboardInterrupt:
            view.stop()
            if (close := getattr(events, "close", None)) is not None:
                close()
            again = "run the same command again: it continues from what is stored" if resumes else None
            raise Interrupted("interrupted", hint=again) from None
        finally:
            view.stop()
            self.end_line()
        return self._dry_run_document(planned, result) if dry_run else result

    def run_job_and_print(
        self,
        events: Iterator[ev.Event],
        render: Render | None = None,
        *,
        dry_run: bool = False,
        resumes: bool = False,
    ) -> Any:
        """`run_job`, then print the result; a dry run prints its plan instead."""
        result = self.run_job(events, dry_run=dry_run, resumes=resumes)
        if not dry_run:
            self.print_result(result, render)
        return result

    def end_line(self) -> None:
        """Finish a line of streamed text, if one is open."""
        if self._open_line:
            self._open_line = False
            self.write_stdout("\n")
        self._column = None

    def _print_renderable(self, shown: RenderableType) -> None:
        from rich.text import Text

        console = self.console(stderr=False)
        if console.is_terminal:
            console.print(shown)
            return
        # In a pipe, texts are not wrapped and trailing spaces are removed.
        with self._guard_stdout(), console.capture() as captured:
            console.print(shown, soft_wrap=isinstance(shown, str | Text))
        self.write_stdout("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))

    def _show_event(self, event: ev.Event, view: ProgressView) -> None:
        if isinstance(event, ev.JobStarted):
            view.start_job(event)
        elif isinstance(event, ev.JobProgress):
            view.show_progress(event)
        elif isinstance(event, ev.TextChunk):
            view.stop()
            self._show_text_chunk(event)
        elif isinstance(event, ev.Note) and event.warning:
            self.warn(event.text)
        elif isinstance(event, ev.Note) and event.detail and not self.verbosity:
            return
        elif (said := event_text(event)) is not None:
            (self.warn if isinstance(event, ev.UnitFailed) else self.note)(said)

    def _show_text_chunk(self, event: ev.TextChunk) -> None:
        if self.json or not event.text:
            return
        if event.column and event.column != self._column:
            if self._open_line:
                self.write_stdout("\n\n")
            self.write_stdout(f"{clean_line(event.column)}:\n")
            self._column = event.column
        self.write_stdout(event.text)
        self._open_line = not event.text.endswith("\n")

    def _show_plan(self, event: ev.JobPlan, dry_run: bool) -> None:
        rows = [(line.name, line.value, line.origin) for line in event.lines]
        if dry_run and not self.json:
            self._print_renderable(table(("plan of " + event.job, "value", "from"), rows))
        elif not dry_run and self.verbosity:
            self.console(stderr=True).print(table(("plan of " + event.job, "value", "from"), rows))

    def _dry_run_document(self, planned: Sequence[ev.JobPlan], result: Any) -> Any:
        document: dict[str, Any] = dict(result) if isinstance(result, Mapping) else {}
        document["job"] = planned[0].job if planned else document.get("job")
        document["plan"] = [dataclasses.asdict(line) for event in planned for line in event.lines]
        if self.json:
            self.print_result(document)
        return document

    def _print_stderr(self, message: str, style: str = "") -> None:
        from rich.text import Text

        self.end_line()
        # Continuation lines are indented, so that text from data cannot forge a line that starts with `error:`.
        shown = clean_text(message).rstrip("\n").replace("\n", "\n  ")
        self.console(stderr=True).print(Text(shown, style=style), soft_wrap=True)

    @contextlib.contextmanager
    def _guard_stdout(self) -> Iterator[None]:
        """A write error on standard output ends the command: silently if the reader closed it, else with a message."""
        try:
            yield
        except BrokenPipeError:
            self._raise_stdout_closed()
        except OSError as error:
            redirect_to_null("stdout")
            raise MtaError(f"standard output cannot be written: {system_reason(error)}") from None

    def _raise_stdout_closed(self) -> None:
        redirect_to_null("stdout")
        raise StdoutClosed


def _render_default(value: Any) -> RenderableType:
    value = to_jsonable(value)
    if not isinstance(value, Mapping):
        return text(str(value))
    return key_value_grid((key, _value_as_text(inner)) for key, inner in value.items())


def _value_as_text(value: Any) -> object:
    """A value of a record as words: `mode adapted, bank taste`; `none` for an empty list."""
    if isinstance(value, list):
        return "; ".join(str(_value_as_text(inner)) for inner in value) or "none"
    if isinstance(value, Mapping):
        return (
            ", ".join(f"{key} {_value_as_text(inner)}" for key, inner in value.items() if inner is not None) or "none"
        )
    return value
