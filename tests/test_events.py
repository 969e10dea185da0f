"""A job inside a job: what it says goes on, but for its plan and its end, and its result comes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobResult, JobStarted, Note, forward_events


def through(events: Iterable[Event]) -> tuple[list[Event], Any]:
    job, seen = forward_events(events), []
    while True:
        try:
            seen.append(next(job))
        except StopIteration as end:
            return seen, end.value


def test_its_plan_and_its_end_are_kept_back() -> None:
    inner = [JobStarted("bank", 2), JobProgress("a", 1), Note("n"), ArtifactSaved("bank", "b")]
    assert through([JobPlan("bank", ()), *inner, JobResult({"bank": "b"})]) == (inner, {"bank": "b"})


def test_a_job_without_a_result() -> None:
    assert through([]) == ([], None)


def test_what_it_raises_goes_on() -> None:
    def failing() -> Iterable[Event]:
        yield Note("so far")
        raise InterruptedError

    job = forward_events(failing())
    assert next(job) == Note("so far")
    with pytest.raises(InterruptedError):
        next(job)
