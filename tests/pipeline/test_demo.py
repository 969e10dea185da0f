"""The demo's job: what it says of the anchors of its own sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.events import Event, JobResult, Note
from mta_cli.options import MachineOptions, ModelOptions
from mta_cli.pipeline import demo
from mta_cli.pipeline.anchors import SCREENING_KEY
from mta_cli.pipeline.bank.screening import screening_notes
from mta_cli.pipeline.bank.verify import bank_json
from mta_cli.pipeline.requests import DemoRequest
from store.registry import Registry
from tests.store import making


@pytest.fixture
def reg(store_root: Path) -> Iterator[Registry]:
    with Registry.open(store_root, create=True) as opened:
        yield opened


def test_a_refused_anchor_of_the_sample_is_told_without_alarm(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = making.bank(reg, [making.person(reg, name, "words") for name in ("ann", "zoe")], name="voice", task="voice")
    last = reg.banks.anchors(made.id)[-1].id
    finding = {"anchor": last, "gate": "probe", "value": 6.8, "bound": 5.7}
    reg.banks.record_anchor_screening(made.id, {**made.config, SCREENING_KEY: {"findings": [finding]}}, {last})

    def build(reg: Registry, request: object) -> Iterator[Event]:
        bank = reg.banks.by_id(made.id)
        yield from screening_notes(reg, bank)
        yield Note("the disk is nearly full", warning=True)
        yield JobResult(bank_json(reg, bank))

    class Request:
        base = type("Base", (), {"fingerprint": made.base})

    monkeypatch.setattr("mta_cli.pipeline.bank.build.build_bank", build)
    monkeypatch.setattr("mta_cli.pipeline.requests.bank_request", lambda *rest: Request)
    course, _ = demo.demo_tasks(full=False)
    options = demo._options(course, DemoRequest(ModelOptions(), MachineOptions(), full=False))
    told: list[Any] = [event for event in demo._build_demo_bank(reg, course, options) if isinstance(event, Note)]
    assert [note.text for note in told if note.warning] == ["the disk is nearly full"]
    (line,) = [note.text for note in told if "zoe" in note.text]
    assert "The sample is harmless" in line and not any("poison" in note.text for note in told)
