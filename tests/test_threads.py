"""How long threads wait: chosen from how busy the cores are, and never over what the user has set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mta_cli.threads import (
    POLICY,
    SPINS,
    SPINS_BESIDE_OTHERS,
    VARIABLE,
    CpuTimes,
    choose_spins,
    describe_thread_spinning,
    prepare_threads,
)

START = CpuTimes(clock=10.0, own=1.0, everyone=500.0)


@pytest.mark.parametrize(
    ("own", "everyone", "spins"),
    [
        (0.1, 0.1, SPINS),  # no other process
        (0.1, 0.14, SPINS),  # others have 0.4 of a core
        (0.1, 0.2, SPINS_BESIDE_OTHERS),  # one busy process
        (0.0, 0.2, SPINS_BESIDE_OTHERS),  # two
        (0.1, 0.0, SPINS),  # the system counts in hundredths: ours may be ahead
    ],
)
def test_spins_follow_the_others(own: float, everyone: float, spins: int) -> None:
    now = CpuTimes(START.clock + 0.1, START.own + own, START.everyone + everyone)
    assert choose_spins(START, now, 2) == spins
    assert choose_spins(START, now, 1) == choose_spins(None, now, 2) == choose_spins(START, START, 2) == SPINS


def test_the_systems_counters_are_read(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  {ticks} {ticks} {ticks} 900 900 {ticks} {ticks} {ticks} 70 70\ncpu0 1 1 1 1\n")
    found = CpuTimes.read(stat)
    assert found is not None and found.everyone == 6.0  # guests are in the first two columns already
    stat.write_text("nothing of use\n")
    assert CpuTimes.read(stat) is None and CpuTimes.read(tmp_path / "missing") is None


@pytest.mark.parametrize(("variable", "value"), [(POLICY, "passive"), (VARIABLE, "77")])
def test_the_users_own_setting_stays(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (POLICY, VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    prepare_threads(START)
    assert [name for name in (POLICY, VARIABLE) if name in os.environ] == [variable] and os.environ[variable] == value
    assert value in describe_thread_spinning()


def test_doctor_says_what_was_chosen(tmp_path: Path) -> None:
    free = {key: value for key, value in os.environ.items() if key not in (POLICY, VARIABLE)}
    line = [sys.executable, "-m", "mta_cli", "doctor"]
    ran = subprocess.run(line, env={**free, "MTA_STORE": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert f"spin {SPINS} times" in ran.stdout or f"spin {SPINS_BESIDE_OTHERS} times" in ran.stdout, ran
