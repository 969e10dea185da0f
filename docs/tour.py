"""Runs the commands of tour.md in a fresh store and writes their output beneath them: `make docs-tour`.

A `console` block of the page has commands, each after `$ `, and what they print. It takes minutes, so `make docs`
leaves it out. Knows no job.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PAGE = Path(__file__).with_name("tour.md")
ROOT = PAGE.parent.parent
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.S | re.M)
PROGRESS = re.compile(r"^[a-z ]+ · (.*: )?\d+(/\d+)? \w+( · .*)?$")  # where a terminal has a bar
HEAD, TAIL = 7, 12  # lines that are left of long output
Run = Callable[[str], tuple[int, str]]


def blocks(page: str) -> list[list[tuple[str, str]]]:
    """The commands of each block, each with its output."""
    return [_pairs(match[0]) for match in BLOCK.finditer(page)]


def _pairs(block: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ (.*)\n", block, flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def fill(page: str, run: Run, folder: Path) -> str:
    """The page with new output. Raises SystemExit where a command fails that did not, or the other way round."""

    def output(line: str, before: str) -> str:
        code, text = run(line)
        if (code != 0) != before.startswith("error:"):
            raise SystemExit(f"$ {line}\n{text}\nexit code {code}")
        return shown(text, folder)

    return BLOCK.sub(lambda block: "".join(f"$ {line}\n{output(line, old)}" for line, old in _pairs(block[0])), page)


def shown(text: str, folder: Path) -> str:
    """Output as the page shows it: paths below `folder`, no progress, no empty lines at the ends, long ones cut."""
    text = text.replace(f"{folder}/", "").strip("\n")
    lines = [line.rstrip() for line in text.splitlines() if not PROGRESS.match(line)]
    if len(lines) > HEAD + TAIL + 1:
        lines[HEAD:-TAIL] = ["…"]
    return "".join(f"{line}\n" for line in lines)


def prepare(folder: Path) -> None:
    """Make `folder` look like a checkout, so that the page's paths lead to the sample."""
    (folder / "mta_cli").mkdir()
    (folder / "mta_cli" / "sample").symlink_to(ROOT / "mta_cli" / "sample")
    (folder / "settings.toml").touch()


def environment(folder: Path) -> dict[str, str]:
    """The variables under which the page's commands run: a store in `folder`, and no settings but its own."""
    own = {"MTA_STORE": str(folder / "store"), "MTA_CONFIG": str(folder / "settings.toml"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own}


def _run_in(folder: Path) -> Run:
    """Lines run by bash in `folder`, with `mta` as this environment has it; standard error is part of the output."""
    shell = f'mta() {{ "{sys.executable}" -m mta_cli "$@"; }}\n'

    def run(line: str) -> tuple[int, str]:
        print("$", line)
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", shell + line],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ran.returncode, ran.stdout

    return run


def main() -> None:
    """Write the page anew."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        prepare(folder)
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), _run_in(folder), folder), encoding="utf-8")


if __name__ == "__main__":
    main()
