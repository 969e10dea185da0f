"""Runs a command up to the job that it would start, and keeps what the job is given."""

from __future__ import annotations

from typing import Any

import pytest

from mta_cli.errors import MtaError
from tests.shell import mta

JOBS = {
    "bank build": "mta_cli.pipeline.bank.build.build_bank",
    "user fuse": "mta_cli.pipeline.personalize.fuse.fuse_user",
    "user adapt": "mta_cli.pipeline.personalize.adapt.adapt_users",
    "user export": "mta_cli.pipeline.personalize.export.export_user",
    "ask": "mta_cli.pipeline.chat.answer.answer_question",
    "compare": "mta_cli.pipeline.chat.compare.compare_user_models",
    "chat": "mta_cli.pipeline.chat.answer.ChatModel.load_for_user",
    "eval run": "mta_cli.lab.evaluation.run.run_evaluation",
    "eval tune": "mta_cli.lab.evaluation.run.tune_evaluation",
    "serve": "mta_cli.serving.run.Service",
    "demo": "mta_cli.pipeline.demo.run_demo",
}
"""The job of every command that has options, by the command's name."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Captured(MtaError):
    """Raised in place of the job."""


def capture(monkeypatch: pytest.MonkeyPatch, command: str) -> list[Call]:
    """The list that gets the arguments of each call of the command's job, without the registry."""
    calls: list[Call] = []

    def job(registry: object, *arguments: Any, **more: Any) -> None:
        calls.append((arguments, more))
        raise Captured("captured")

    monkeypatch.setattr(JOBS[command], job)
    return calls


def job_call(monkeypatch: pytest.MonkeyPatch, command: str, *words: object) -> Call:
    """What the job of `mta COMMAND WORDS` is given."""
    calls = capture(monkeypatch, command)
    ran = mta(*command.split(), *words)
    assert len(calls) == 1 and "captured" in ran.err, ran.err
    return calls[0]
