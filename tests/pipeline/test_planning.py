"""Estimates: from what was measured here before, else from one matrix product."""

from dataclasses import replace

import pytest

from mta_cli.engine.kept import KEEP
from mta_cli.pipeline import planning
from mta_cli.pipeline.models import resolve
from mta_cli.pipeline.planning import cost_lines, estimate, known_rate, matrix_rate
from store.registry import Registry
from tests.pipeline.town import CPU, built


def test_the_first_estimate_is_a_guess_and_later_ones_are_measured(peopled: Registry) -> None:
    base = resolve("tiny", "base")
    assert known_rate(peopled, base.fingerprint, "float32") is None
    assert cost_lines(peopled, base, CPU, 1000, 100)[-1].origin == "a matrix product"
    built(peopled)
    made = peopled.adapters.all()
    rate = known_rate(peopled, base.fingerprint, "float32")
    assert rate == pytest.approx(sum(a.tokens for a in made) / sum(a.seconds for a in made))
    assert cost_lines(peopled, base, CPU, 1000, 100)[-1].origin == "earlier trainings"
    assert known_rate(peopled, base.fingerprint, "bfloat16") is None
    assert known_rate(peopled, "sha256:other", "float32") is None


def test_time_is_tokens_by_rate_and_memory_grows_with_the_step() -> None:
    cost = estimate(1_000_000, 5000, 100, 50.0, "float32")
    assert cost.seconds == 100.0
    assert estimate(1_000_000, 5000, 1000, 50.0, "float32").gigabytes > cost.gigabytes
    assert estimate(10_000_000, 5000, 100, 50.0, "bfloat16").gigabytes > cost.gigabytes


def test_what_is_kept_counts_up_to_its_limit() -> None:
    few, many, endless = (estimate(10**8, tokens, 100, 50.0, "bfloat16").gigabytes for tokens in (10, 10**5, 10**9))
    assert few < many < endless == pytest.approx(few + KEEP / 1e9, rel=1e-3)


def test_devices_share_what_trains_in_groups(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "known_rate", lambda *_: 1.0)
    base, two = resolve("tiny", "base"), replace(CPU, device="cpu,cpu")
    for machine, alone, seconds in ((CPU, 40, 100), (two, 40, 70), (two, 0, 50)):
        lines = {line.name: line.value for line in cost_lines(peopled, base, machine, 100, 10, alone)}
        assert lines["time"] == f"about {seconds} s" and lines["tokens"] == "at most 100"
        assert ("each device" in lines["memory"]) == (machine is two)


def test_minutes_for_what_takes_long(peopled: Registry) -> None:
    line = cost_lines(peopled, replace(resolve("tiny", "base"), detail={"parameters": 10**11}), CPU, 10**7, 100)[-1]
    assert line.value.endswith("min") and matrix_rate("cpu", "float32") > 1e6
