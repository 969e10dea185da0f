"""Jobs as text: bars and rates."""

from __future__ import annotations

import pytest

from mta_cli.errors import BadInput
from mta_cli.events import Event, JobProgress, JobStarted, Note, UnitFailed
from mta_cli.pipeline.maintenance.resume import UnfinishedJob
from mta_cli.tui.widgets.job_row import (
    interrupted_job_header,
    interrupted_job_list_entry,
    job_header,
    job_list_entry,
    progress_bar,
    progress_line,
)
from mta_cli.tui.workers.job_queue import Job, ProgressState

HOSTILE = "a\x1b]0;owned\x07[red]b[/]\u202e\nc"


def job(*events: Event, state: str = "running", title: str = "films") -> Job:
    made = Job(1, "bank build", title, lambda reg: iter(()))
    made.state, made.started_at = state, 1000.0  # type: ignore[assignment]
    for event in events:
        made.apply_event(event)
    return made


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 8, "────"),
        (1, 8, "╸───"),
        (2, 8, "━───"),
        (7, 8, "━━━╸"),
        (8, 8, "━━━━"),
        (9, 8, "━━━━"),
        (-1, 8, "────"),
        (3, None, ""),
        (0, 0, ""),
    ],
)
def test_a_bar_fills_by_half_cells(done: int, total: int | None, shown: str) -> None:
    assert progress_bar(done, total, 4) == shown


def test_rates_say_only_what_is_known() -> None:
    assert progress_line(ProgressState()) == ""
    assert progress_line(ProgressState(3, None, "items")) == "3 items"
    assert (
        progress_line(ProgressState(1200, 4000, "steps", "", [], 512.4, 65))
        == "1,200/4,000 steps · 512 tokens/s · ETA 0:01:05"
    )


def test_a_running_job_shows_how_far_it_is_within_the_width() -> None:
    one = job(JobStarted("x", 10), JobProgress("", 5, 2.0))
    first, second = job_list_entry(one, 40).plain.split("\n")
    assert first == "▶ bank build · films" and "5/10 steps" in second and "━" in second
    for width in (10, 20, 40, 79):
        assert all(len(row) <= width for row in job_list_entry(one, width).plain.split("\n"))


def test_a_failed_job_shows_why_in_the_list() -> None:
    one = job(state="failed")
    one.finish("failed", BadInput("no such file", hint="look again"))
    assert "error: no such file" in job_list_entry(one, 60).plain


def test_the_head_says_state_bar_and_rates() -> None:
    one = job(JobStarted("x", 4), JobProgress("anchor 1", 2, 3.0, 10), JobProgress("anchor 1", 3, 1.0, 10))
    rows = job_header(one, 60, 1065.0).plain.split("\n")
    assert rows[0].endswith("running for 0:01:05") and "3/4 steps" in rows[2] and "anchor 1" in rows[2]
    one.state, one.ended_at = "stopped", 1070.0
    assert "stopped after 0:01:10" in job_header(one, 60, 9999.0).plain


def test_a_job_that_is_done_has_a_full_bar_also_where_steps_were_done_before() -> None:
    one = job(JobStarted("x", 20), JobProgress("", 10))
    one.finish("done")
    assert "━" * 40 in job_header(one, 60, 1001.0).plain and "20/20 steps" in job_header(one, 60, 1001.0).plain
    one = job(JobStarted("x", 20), JobProgress("", 10))
    one.finish("stopped")
    assert "10/20 steps" in job_header(one, 60, 1001.0).plain


def test_nothing_from_data_reaches_the_screen_uncleaned() -> None:
    one = job(
        JobStarted(HOSTILE, 4), JobProgress(HOSTILE, 1), Note(HOSTILE), UnitFailed(HOSTILE, HOSTILE), title=HOSTILE
    )
    left = UnfinishedJob("user adapt", HOSTILE, HOSTILE, 1, HOSTILE, HOSTILE)
    for shown in (
        job_list_entry(one, 70),
        job_header(one, 70, 1001.0),
        interrupted_job_list_entry(left, 70),
        interrupted_job_header(left),
    ):
        assert not {"\x1b", "\x07", "\u202e"} & set(shown.plain) and "[red]" in shown.plain
        assert all(not span.style or "red" not in str(span.style) for span in shown.spans)
