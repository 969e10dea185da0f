"""Text about jobs for the Jobs screen: the entry of a job in the list, and the header of the selected one."""

from __future__ import annotations

from dataclasses import replace

from rich.text import Text

from mta_cli.pipeline.maintenance.resume import UnfinishedJob
from mta_cli.text.formatting import format_clock
from mta_cli.tui.text import line_text
from mta_cli.tui.workers.job_queue import Job, ProgressState

STATE_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "failed": "✗", "stopped": "■"}
RESUME_HINT = "r resumes it with the same options · x discards it"
STATE_STYLES = {"running": "bold", "failed": "red", "waiting": "dim"}


def progress_bar(done: int, total: int | None, width: int) -> str:
    """A bar of `width` cells for `done` of `total`, drawn in half cells; empty if the total is unknown."""
    if not total or width < 1:
        return ""
    halves = round(2 * width * min(max(done / total, 0.0), 1.0))
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width, "─")


def progress_line(progress: ProgressState) -> str:
    """Units done, tokens per second, and the time left, if known."""
    total = "" if progress.total is None else f"/{progress.total:,}"
    parts = [f"{progress.done:,}{total} {progress.unit}"] if progress.done or progress.total else []
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"ETA {format_clock(progress.seconds_left)}")
    return " · ".join(parts)


def job_list_entry(job: Job, width: int) -> Text:
    """The list entry of a job of this window: its title, and below it its progress."""
    title = line_text(f"{STATE_MARKS[job.state]} {job.kind} · {job.title}", STATE_STYLES.get(job.state, ""))
    return _list_entry(title, _job_status_line(job, width - 2), "dim" if job.finished else "", width)


def interrupted_job_list_entry(one: UnfinishedJob, width: int) -> Text:
    """The list entry of an interrupted job: its title, and below it how far it got."""
    why = f" · {one.error}" if one.error and one.error != "stopped" else ""
    title = line_text(f"↻ {one.kind} · {one.title}", "bold")
    return _list_entry(title, f"interrupted: {one.detail}{why}", "dim", width)


def other_process_list_entry(what: str, width: int) -> Text:
    """The list entry of a job of another process."""
    return _list_entry(line_text(f"↗ {what}", "bold"), "in another process", "dim", width)


def _list_entry(title: Text, below: str, style: str, width: int) -> Text:
    rows = (_truncate_text(title, width), Text("  "), _truncate_text(line_text(below, style), width - 2))
    return Text.assemble(rows[0], "\n", *rows[1:])


def other_process_header(what: str) -> Text:
    """The header of a job of another process, which only that process can stop; empty if there is none."""
    if not what:
        return Text()
    return Text("\n").join(
        [
            line_text(f"↗ {what}", "bold"),
            line_text("It runs in another process. Only that process shows its progress and can stop it."),
        ]
    )


def job_header(job: Job, width: int, now: float, *, resumable: bool = False) -> Text:
    """The header of a job of this window in at most four rows: title, state, progress, and the keys to resume it."""
    state: str = job.state
    if job.started_at is not None:
        state += (
            f" for {format_clock(now - job.started_at)}"
            if not job.finished
            else f" after {format_clock((job.ended_at or now) - job.started_at)}"
        )
    rows = [line_text(f"{STATE_MARKS[job.state]} {job.kind} · {job.title} — {state}", "bold")]
    progress = job.progress
    if shown := progress_bar(progress.done, progress.total, min(40, width)):
        rows.append(Text(shown))
    if said := " · ".join(part for part in (progress_line(progress), progress.label) if part):
        rows.append(line_text(said))
    if resumable:
        rows.append(line_text(RESUME_HINT))
    return Text("\n").join(_truncate_text(row, width) for row in rows)


def interrupted_job_header(one: UnfinishedJob) -> Text:
    """The header of an interrupted job: title, when it ended, its error, and the keys to resume or discard it."""
    rows = [
        line_text(f"↻ {one.kind} · {one.title}", "bold"),
        line_text(f"interrupted {one.ended_at.replace('T', ' ').removesuffix('+00:00')} UTC · {one.detail}"),
        *([line_text(f"error: {one.error}")] if one.error else []),
        line_text(RESUME_HINT),
    ]
    return Text("\n").join(rows)


def _job_status_line(job: Job, width: int) -> str:
    if job.state == "running":
        rest = progress_line(replace(job.progress, tokens_per_second=None))
        shown = progress_bar(job.progress.done, job.progress.total, width - len(rest) - 1)
        return " ".join(part for part in (shown, rest) if part) or "starting"
    if job.state == "waiting":
        return "waiting"
    took = format_clock((job.ended_at or 0.0) - job.started_at) if job.started_at is not None else ""
    if job.state == "done":
        return f"done after {took}"
    fault = next((text for text in reversed(job.log) if text.startswith("error: ")), "")
    return fault or (f"{job.state} after {took}" if took else job.state)


def _truncate_text(text: Text, width: int) -> Text:
    shown = text.copy()
    shown.truncate(max(width, 1), overflow="ellipsis")
    return shown
