"""Counts injected faults and their outcomes over all tests, and prints them as a table at the end.

A test calls `tally` after each injected fault and check of its outcome. Counts are sent with the test's report, so that
workers of pytest-xdist are included. Without a count there is no table.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

KINDS = {
    "crash": ("tests/trust/test_kills.py",),
    "fault": ("tests/trust/test_faults.py",),
    "concurrency": ("tests/trust/test_together.py",),
    "drawn trial": ("tests/trust/test_trials.py",),
    "damage": ("tests/trust/test_corruption.py",),
    "repair": ("tests/trust/test_repair.py",),
    "hostile input": (
        "tests/trust/test_hostile_files.py",
        "tests/trust/test_hostile_models.py",
        "tests/trust/test_hostile_words.py",
    ),
    "fuzz": ("tests/trust/test_fuzz.py",),
    "terminal": ("tests/trust/test_terminal.py", "tests/tui/test_terminal.py"),
    "isolation": ("tests/trust/test_isolation.py",),
    "consent": ("tests/pipeline/users/test_consent.py",),
    "forgetting": ("tests/commands/test_traces.py", "tests/store/test_erase.py"),
    "poison": ("tests/trust/test_poison.py",),
    "numbers": ("tests/trust/test_numbers.py",),
    "membership": ("tests/trust/test_membership.py",),
}
"""The files of each kind of test; `make trust` runs all of them."""

PROPERTY = "tally"
WIDTH, HARM = 98, 42  # columns of the table, and the most of one that is not its last
_counts: Counter[tuple[str, str]] = Counter()  # of the test that is running: (harm, outcome)


def tally(harm: str, outcome: str, times: int = 1) -> None:
    """Count that `harm` was done so many times and came out so; zero times says that this was looked for."""
    _counts[harm, outcome] += times


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a test counted goes with its report, also when it fails."""
    _counts.clear()
    try:
        return (yield)
    finally:
        item.user_properties.append((PROPERTY, [[*key, times] for key, times in _counts.items()]))


@dataclass
class Kind:
    """What the tests of a kind came to: how many ran and failed, and by harm how often it came out how."""

    tests: int = 0
    failed: int = 0
    harms: dict[str, Counter[str]] = field(default_factory=dict)


def summed(reports: Iterable[Any]) -> dict[str, Kind]:
    """The reports of tests by kind, in the order of `KINDS`; empty where nothing was counted."""
    found = {kind: Kind() for kind in KINDS}
    kind_of = {file: kind for kind, files in KINDS.items() for file in files}
    for report in reports:
        kind = found.get(kind_of.get(report.nodeid.split("::")[0], ""))
        if kind is None or not (report.when == "call" or report.failed):
            continue
        kind.tests += 1
        kind.failed += report.failed
        counted = [counts for name, counts in report.user_properties if name == PROPERTY and report.when == "call"]
        for harm, outcome, times in (one for counts in counted for one in counts):
            kind.harms.setdefault(harm, Counter())[outcome] += times
    if not any(kind.harms for kind in found.values()):
        return {}
    return {name: kind for name, kind in found.items() if kind.tests}


def came_out(outcomes: Counter[str]) -> str:
    """How often it came out how, the most frequent first; without the number where it always came out so."""
    if len(outcomes) == 1:
        return next(iter(outcomes))
    return "; ".join(f"{times:,} {said}" for said, times in outcomes.most_common())


def table(kinds: dict[str, Kind]) -> str:
    """A line for each harm of each kind: how often it was done, and how often it came out how."""
    rows = [("kind", "tests", "injected", "times", "came out")]
    for name, kind in kinds.items():
        tests = f"{kind.tests:,}" + (f", {kind.failed:,} failed" if kind.failed else "")
        for place, (harm, outcomes) in enumerate(sorted(kind.harms.items()) or [("–", Counter[str]())]):
            times = f"{outcomes.total():,}" if outcomes else ""
            rows.append((*((name, tests) if place == 0 else ("", "")), harm, times, came_out(outcomes)))
    widths = [min(HARM, max(map(len, column))) for column in zip(*rows, strict=True)][:-1]
    widths.append(WIDTH - sum(widths) - 2 * len(widths))
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head, width, is_number in zip(rows[0], widths, (False, True, False, True, False), strict=True):
        made.add_column(head, width=width, justify="right" if is_number else "left")
    for row in rows[1:]:
        made.add_row(*row)
    with io.StringIO() as shown:
        Console(file=shown, width=2 * WIDTH, color_system=None, markup=False, highlight=False).print(made)
        return "\n".join(line.rstrip() for line in shown.getvalue().splitlines())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, where something was counted."""
    every: Sequence[Any] = [one for reports in terminalreporter.stats.values() for one in reports]
    kinds = summed(one for one in every if isinstance(one, pytest.TestReport))
    if kinds:
        terminalreporter.section("what was injected", sep="=")
        terminalreporter.write_line(table(kinds))
