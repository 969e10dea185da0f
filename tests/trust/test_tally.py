"""The table of what was injected: counted by tests, in one process or several, and told as it happened."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.trust.tally import KINDS, Kind, summed, table

ROOT = Path(__file__).parents[2]
FILES = {
    "tests/trust/test_kills.py": """
from tests.trust.tally import tally

def test_one():
    for _ in range(1200):
        tally("kills", "sound")

def test_another():
    tally("kills", "sound", 34)
    tally("kills", "lost", 0)
    tally("kills in a write", "sound and [mended]")

def test_a_failing_one():
    tally("kills", "lost")
    assert False
""",
    "tests/trust/test_faults.py": "def test_nothing_counted():\n    pass\n",
    "tests/other/test_more.py": "from tests.trust.tally import tally\n\ndef test_elsewhere():\n    tally('x', 'y')\n",
}


def run(place: Path, *arguments: str) -> str:
    """What pytest says of `FILES`, with the plugin and no other settings."""
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    plugins = ["-p", "tests.trust.tally", "-p", "xdist"]
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", ".", *plugins, *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False).stdout


def told(out: str) -> list[list[str]]:
    """The lines of the table, as words."""
    assert out.count("what was injected") == 1, out
    lines = out.split("what was injected")[1].splitlines()[1:]
    end = next(place for place, line in enumerate(lines) if line.startswith("===="))
    return [line.split() for line in lines[:end] if line]


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_what_tests_count_stands_in_one_table(tmp_path: Path, workers: tuple[str, ...]) -> None:
    found = told(run(tmp_path, *workers))
    assert ["crash", "3,", "1", "failed", "kills", "1,235", "1,234", "sound;", "1", "lost"] in found
    assert ["kills", "in", "a", "write", "1", "sound", "and", "[mended]"] in found
    assert ["fault", "1", "–"] in found and not any("y" in line for line in found)
    assert [line[0] for line in found].count("crash") == 1


def test_without_a_count_there_is_no_table(tmp_path: Path) -> None:
    assert "what was injected" not in run(tmp_path, "tests/trust/test_faults.py", "tests/other")


def test_lines_are_short_however_much_is_told() -> None:
    kinds = {name: Kind(1234, 99) for name in KINDS}
    kinds["hostile input"].harms = {"something done " * 4: Counter({f"came out {n}": 10**6 for n in range(20)})}
    lines = table(kinds).splitlines()
    assert max(map(len, lines)) < 100 and len(lines) > len(KINDS) + 4
    assert table(kinds).count("1,000,000") == 20


class Report:
    """As pytest-xdist hands one over: properties are lists."""

    def __init__(self, name: str, when: str, failed: bool = False) -> None:
        self.nodeid, self.when, self.failed = f"tests/trust/test_{name}.py::test_it", when, failed
        self.user_properties = [["other", 1], ["tally", [["kills", "sound", 2]]]]


def test_a_test_counts_once_and_a_broken_fixture_is_a_failure() -> None:
    reports = [Report("kills", when) for when in ("setup", "call", "teardown")]
    found = summed([*reports, Report("faults", "setup", failed=True), Report("none", "call")])
    assert found["crash"] == Kind(1, 0, {"kills": Counter(sound=2)})
    assert found["fault"] == Kind(1, 1, {})
    assert list(found) == ["crash", "fault"]


def test_every_file_has_a_kind_and_runs_in_the_nightly() -> None:
    files = [file for files in KINDS.values() for file in files]
    here = {f"tests/trust/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    assert here - set(files) == {"tests/trust/test_tally.py"}
    (named,) = [part for part in (ROOT / "Makefile").read_text().split("\n\n") if "TRUST   =" in part]
    for file in files:
        assert (ROOT / file).exists(), file
        assert file.startswith("tests/trust/") or file in named, file
