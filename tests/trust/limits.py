"""Runs a piece of Python in a separate process with little memory and time, and reports its outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trust.tally import tally

ROOT = Path(__file__).parents[2]
_BEFORE = """
import resource, sys
def bounded(megabytes, seconds):
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
from mta_cli.errors import MtaError
def attempt(label, act):
    try:
        act()
        print("taken", label, flush=True)
    except MtaError as error:
        print("refused", label, type(error).__name__, ascii(str(error)), flush=True)
"""


@dataclass(frozen=True)
class Bounded:
    """How the process ended, what it printed by label, and what it said besides."""

    code: int
    said: dict[str, str]
    err: str

    def count(self, harm: str) -> None:
        """Tally every attempt: how many were refused in words, how many were let through."""
        for said in self.said.values():
            tally(harm, "refused in words" if said.startswith("refused") else "let through, to no harm")


def run_bounded(source: str, *, megabytes: int, seconds: int) -> Bounded:
    """Run `source`, which calls `attempt(label, function)`, in at most so much address space and computing time.

    What is imported before the source is not counted for more than it is: the limits hold from the first line on.
    """
    if sys.platform == "win32":
        pytest.skip("this system has no such limits")
    code = f"{_BEFORE}\nbounded({megabytes}, {seconds})\n{source}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    ran = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    lines = (line.split(" ", 2) for line in ran.stdout.splitlines() if line.startswith(("taken ", "refused ")))
    said = {label: f"{what} {''.join(rest)}".strip() for what, label, *rest in lines}
    return Bounded(ran.returncode, said, ran.stderr)
