"""The lines of the Home screen's lists: jobs, conversations, users' gains, next steps."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.text import Text

from mta_cli.pipeline.overview import JobRecord, UserGain
from mta_cli.text.formatting import format_age
from mta_cli.tui.text import format_signed, line_text
from mta_cli.tui.widgets.job_row import STATE_MARKS, STATE_STYLES, progress_bar, progress_line
from mta_cli.tui.workers.job_queue import Job
from store.tables.chats import RecentChat

RECORD_MARKS = {"running": "↗", "interrupted": "↻", "done": "✓", "failed": "✗"}
RECORD_STYLES = {"failed": "red", "interrupted": "bold", "running": "bold"}
USER_CELLS, AGE_CELLS = 16, 11
MIN_NAME_CELLS, MAX_NAME_CELLS = 24, 48
MIN_BAR_CELLS = 8


def job_record_line(record: JobRecord, width: int, now: datetime) -> Text:
    """The line of a job recorded in the store: title, result and age."""
    name = f"{RECORD_MARKS.get(record.status, '·')} {record.kind} {record.subject}"
    said = record.outcome or record.error or ("" if record.status == "done" else record.status)
    age = line_text(format_age(record.ended or record.started, now) or "", "dim")
    return _columns(line_text(name, RECORD_STYLES.get(record.status, "")), line_text(said), age, width)


def window_job_line(job: Job, width: int, now: datetime) -> Text:
    """The line of a job of this window: title, and progress or result."""
    name = line_text(f"{STATE_MARKS[job.state]} {job.kind} {job.title}", STATE_STYLES.get(job.state, ""))
    if job.finished:
        fault = next((text for text in reversed(job.log) if text.startswith("error: ")), "")
        ended = datetime.fromtimestamp(job.ended_at, UTC).isoformat() if job.ended_at is not None else ""
        said, age = line_text(fault or job.state), line_text(format_age(ended, now) or "", "dim")
        return _columns(name, said, age, width)
    if job.state == "waiting":
        return _columns(name, line_text("waiting", "dim"), Text(), width)
    rest = progress_line(job.progress) or "starting"
    bar = progress_bar(job.progress.done, job.progress.total, 12)
    return _columns(name, line_text(" ".join(part for part in (bar, rest) if part)), Text(), width)


def chat_line(chat: RecentChat, width: int, now: datetime) -> Text:
    """The line of a conversation: user, first words and age."""
    age = line_text(format_age(chat.answered, now) or "", "dim")
    return _columns(line_text(chat.user, "bold"), line_text(chat.title), age, width, USER_CELLS)


def gain_line(gain: UserGain, largest: float, width: int) -> Text:
    """The line of a user's gain: values before and after, and a bar if there is room."""
    colour = "green" if gain.gain > 0 else "red" if gain.gain < 0 else "dim"
    change = line_text(format_signed(gain.gain), colour)
    numbers = line_text(f"{gain.before:.3f} → {gain.after:.3f}", "dim")
    left = width - change.cell_len - numbers.cell_len - 4
    name = line_text(gain.user, "bold")
    cells = left - USER_CELLS - 1
    bar = Text()
    if cells >= MIN_BAR_CELLS and largest > 0:
        bar = Text("  " + "━" * round(min(abs(gain.gain) / largest, 1.0) * (cells - 1)), colour)
        left = USER_CELLS
    name.truncate(max(left, 4), overflow="ellipsis", pad=True)
    return Text.assemble(name, "  ", numbers, "  ", change, bar, no_wrap=True)


def action_line(title: str, about: str, width: int) -> Text:
    """The line of a next step: title and purpose."""
    return _columns(line_text(f"▸ {title}", "bold"), line_text(about, "dim"), Text(), width)


def _columns(name: Text, words: Text, age: Text, width: int, name_cells: int = 0) -> Text:
    """A line of three columns: name, text, and age at the right edge.

    With `name_cells` 0, the name's width depends on the line's.
    """
    edge = AGE_CELLS if age.plain else 0
    name_cells = name_cells or min(max(MIN_NAME_CELLS, width // 3), MAX_NAME_CELLS)
    name, words = name.copy(), words.copy()
    name.truncate(name_cells, overflow="ellipsis", pad=True)
    words.truncate(max(width - name_cells - edge - 2, 1), overflow="ellipsis", pad=True)
    age.truncate(edge, overflow="ellipsis")
    return Text.assemble(name, " ", words, " ", " " * (edge - age.cell_len), age, no_wrap=True)
