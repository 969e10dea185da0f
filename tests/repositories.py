"""Small git repositories, made by the `git` program with fixed authors and dates."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not there")

ADA, BOB = ("Ada Gray", "ada@example.org"), ("Bob Hill", "bob@example.org")


class Repository:
    """A repository with a work tree. Each commit is a day after the one before it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.day = folder, 0
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str, author: tuple[str, str] = ADA, stdin: bytes = b"", date: str = "") -> str:
        """Run git as `author`, without the machine's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        when = date or f"2025-01-01T00:00:00+01:00 + {self.day} days"
        name, address = author
        own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(self.folder)}
        who = {f"GIT_{role}_{part}": text for role in ("AUTHOR", "COMMITTER") for part, text in
               (("NAME", name), ("EMAIL", address), ("DATE", when))}  # fmt: skip
        done = subprocess.run(
            ["git", *words], cwd=self.folder, env=kept | own | who, input=stdin, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def commit(
        self, message: str | bytes, author: tuple[str, str] = ADA, date: str = "", **files: str | bytes | None
    ) -> str:
        """Write files (`a__b_py` is `a/b.py`; None removes one) and commit them; without files, `notes.txt` grows."""
        self.day += 1
        for key, content in (files or {"notes_txt": self.read("notes.txt") + f"line {self.day}\n"}).items():
            path = self.folder / _file_name(key)
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "-A")
        words = message.encode() if isinstance(message, str) else message
        when = date or f"2025-{1 + self.day // 28:02}-{1 + self.day % 28:02}T10:00:00+01:00"
        self.git(
            "commit", "-q", "--allow-empty", "--allow-empty-message", "-F", "-", author=author, stdin=words, date=when
        )
        return self.git("rev-parse", "HEAD")

    def commits(self, count: int, author: tuple[str, str] = ADA, said: str = "change") -> None:
        """Make some commits of one author."""
        for number in range(count):
            self.commit(f"{said} {number} of {author[0]}", author)

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def _file_name(key: str) -> str:
    folder, _, name = key.rpartition("__")
    stem, _, ending = name.rpartition("_")
    return f"{folder}/{stem}.{ending}" if folder else f"{stem}.{ending}"
