"""docs/tour.md shows what its commands print. They run in order in one store, on tiny models.

Up to the bank no model decides what is printed, so it is compared as it is. From there on its form is compared.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from mta_cli.app import run_command_line

TOUR = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "docs" / "tour.py")))
LABELS = ("go", "bring friends", "maybe", "skip", "complain")  # what the model decides of an answer
RULE = re.compile(r"\s*─+$")


def _run(line: str) -> tuple[int, str]:
    """Run a line of the page: `mta WORDS`, with or without a pipe into it, in this process; else in a shell."""
    match = re.fullmatch(r"(?:(.*) \| )?mta (.*)", line)
    if match is None:
        ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout + ran.stderr
    given = subprocess.run(["bash", "-c", match[1] or ":"], capture_output=True, check=True).stdout
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(given))),
    ):
        code = run_command_line(shlex.split(match[2]))
    return code, printed.getvalue()


def _form(text: str) -> list[str]:
    """Headings of tables without brackets, `row` for their rows, first words of other lines but answers; no repeats."""
    form, in_table = [""], False
    lines = [line for line in text.splitlines() if not line.startswith("--rank")]  # said of large exports alone
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        in_table = bool(RULE.match(line)) or (in_table and "  " in line)
        heading = re.sub(r"\s{2,}", " | ", re.sub(r" \(.*?\)", "", line.strip()))
        kind = heading if RULE.match(below) else "row" if in_table else "" if line in LABELS else line.split(" ")[0]
        form += [kind] if kind != form[-1] else []
    return form


@pytest.fixture
def folder(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = (tmp_path / "tour").resolve()
    place.mkdir()
    TOUR.prepare(place)
    monkeypatch.chdir(place)
    for name in ("MTA_STORE", "MTA_CONFIG"):
        monkeypatch.setenv(name, TOUR.environment(place)[name])
    return place


def test_the_commands_of_the_page_print_what_it_shows(folder: Path) -> None:
    page = TOUR.PAGE.read_text(encoding="utf-8")
    filled = TOUR.fill(page, _run, folder)
    shown, printed = ([pair for block in TOUR.blocks(text) for pair in block] for text in (page, filled))
    before_bank = next(n for n, (line, _) in enumerate(shown) if line.startswith("mta bank build"))
    assert printed[:before_bank] == shown[:before_bank]
    for (line, before), (_, now) in zip(shown[before_bank:], printed[before_bank:], strict=True):
        assert _form(now) == _form(before), f"$ {line}\n{now}"


def test_text_between_the_blocks_stays(tmp_path: Path) -> None:
    page = "# A\n\n```console\n$ one\nold\n$ two\n```\n\nb\n\n```\n$ three\n```\n"
    filled = TOUR.fill(page, lambda line: (0, f"{tmp_path}/{line}\n\n"), tmp_path)
    assert filled == "# A\n\n```console\n$ one\none\n$ two\ntwo\n```\n\nb\n\n```\n$ three\n```\n"


@pytest.mark.parametrize(("before", "code"), [("fine\n", 3), ("error: no\n", 0)])
def test_a_command_that_ends_in_another_way_is_no_output(tmp_path: Path, before: str, code: int) -> None:
    with pytest.raises(SystemExit, match="exit code"):
        TOUR.fill(f"```console\n$ mta\n{before}```\n", lambda _: (code, ""), tmp_path)


def test_long_output_is_cut_and_progress_left_out(tmp_path: Path) -> None:
    lines = [f"line {n} " for n in range(40)]
    text = "\n".join([*lines, "bank build · task adapter: 1/26 steps · loss 3.945 · 26.3 tokens/s"])
    kept = TOUR.shown(text, tmp_path).splitlines()
    assert kept == [*(f"line {n}" for n in range(TOUR.HEAD)), "…", *(f"line {n}" for n in range(40 - TOUR.TAIL, 40))]
