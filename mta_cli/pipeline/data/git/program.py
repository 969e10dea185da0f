"""Runs the `git` program to read a repository, without running any hook, filter or diff program of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, BinaryIO, cast

from mta_cli.errors import BadInput, NotFound
from mta_cli.pipeline.data.formats.parse_results import format_value

LARGEST_DIFFED_FILE = "8m"
"""Files above this size are named but not diffed, like binary files, which limits the length of lines."""
_SAFE_SETTINGS = (
    "core.fsmonitor=false",  # a program
    f"core.hooksPath={os.devnull}",
    "core.quotePath=false",
    f"core.bigFileThreshold={LARGEST_DIFFED_FILE}",
    f"diff.orderFile={os.devnull}",
    "log.showSignature=false",  # runs gpg
)
_ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",  # a partial clone would fetch what it lacks
    "GIT_OPTIONAL_LOCKS": "0",
}
_NEVER_PASSED = ("GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS", "GIT_PAGER", "GIT_TRACE", "LANGUAGE")
_PLACES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)
_SHOWN_CHARACTERS = 200
FIELD_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16


def is_repository(path: Path) -> bool:
    """Whether a folder is the top folder of a git repository, with or without a work tree. Does not run git."""
    try:
        return (path / ".git").exists() or (
            (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir()
        )
    except OSError:
        return False


class Git:
    """A repository, read by the `git` program.

    With `in_hook`, variables such as `GIT_INDEX_FILE`, by which git tells its hooks what is committed, are used. Raises
    NotFound without the program or the folder, and `BadInput` if the folder is not in a repository.
    """

    def __init__(self, folder: Path, *, in_hook: bool = False) -> None:
        self.folder = folder
        program = shutil.which("git")
        if program is None:
            raise NotFound("The program git was not found.", hint="install git, and check that its folder is in PATH")
        if not folder.exists():
            raise NotFound(f"There is no folder {self._shown}")
        if not folder.is_dir():
            raise BadInput(f"{self._shown} is a file, not a git repository", hint="give the repository's folder")
        self._command = [program, *(word for setting in _SAFE_SETTINGS for word in ("-c", setting)), "--no-pager"]
        self._environment = _environment(os.environ, in_hook=in_hook)
        self.is_bare = self.read_text("rev-parse", "--is-bare-repository") == "true"
        self.is_shallow = self.read_text("rev-parse", "--is-shallow-repository") == "true"

    @cached_property
    def name(self) -> str:
        """The name of the repository's folder, for messages and as a group."""
        if self.is_bare:
            return Path(self.read_text("rev-parse", "--absolute-git-dir")).name.removesuffix(".git") or "repository"
        return Path(self.read_text("rev-parse", "--show-toplevel")).name or "repository"

    @property
    def has_commits(self) -> bool:
        """Whether the current branch has a commit."""
        try:
            return bool(self.read_text("rev-parse", "-q", "--verify", "HEAD^{commit}"))
        except BadInput:
            return False

    def read_text(self, *words: str) -> str:
        """The stripped output of a git command. Raises `BadInput` if git fails."""
        with self.stream(*words) as out:
            return out.read().decode(errors="replace").strip()

    @contextmanager
    def stream(self, *words: str, stdin: IO[bytes] | None = None) -> Iterator[BinaryIO]:
        """The standard output of a git command as a stream. Raises `BadInput` with git's error message if git fails."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*self._command, *words],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.PIPE,
                stderr=said,
            )
            out = cast(BinaryIO, process.stdout)
            try:
                yield out
            except BaseException:
                process.kill()
                raise
            finally:
                out.close()
                code = process.wait()
            if code != 0:
                said.seek(0)
                raise self._failure(said.read(_PIECE_BYTES).decode(errors="replace"))

    @property
    def _shown(self) -> str:
        return format_value(str(self.folder), _SHOWN_CHARACTERS)

    def _failure(self, said: str) -> BadInput:
        lines = [line for line in said.splitlines() if line.strip()] or ["git failed without a message"]
        first = next((line for line in lines if line.startswith("fatal: ")), lines[0]).removeprefix("fatal: ")
        hint = None
        if "dubious ownership" in first:
            hint = "if you trust this folder, run `git config --global --add safe.directory FOLDER`"
        elif first.startswith("not a git repository"):
            return BadInput(f"{self._shown} is not a git repository", hint="give the folder that has .git in it")
        return BadInput(f"git cannot read {self._shown}: {_plain(first)}", hint=hint)


def split_fields(stream: BinaryIO) -> Iterator[bytes]:
    """The fields of a stream, each with a NUL at its end, cut after `FIELD_BYTES`."""
    rest = b""
    while piece := stream.read(_PIECE_BYTES):
        *fields, rest = (rest + piece).split(b"\0")
        yield from (field[:FIELD_BYTES] for field in fields)
        rest = rest[:FIELD_BYTES]
    if rest:
        yield rest


def _environment(given: Mapping[str, str], *, in_hook: bool) -> dict[str, str]:
    """The environment for git. Without `in_hook`, variables that point to another repository are left out."""
    dropped = _NEVER_PASSED if in_hook else (*_NEVER_PASSED, *_PLACES)
    return {name: value for name, value in given.items() if name not in dropped} | _ENVIRONMENT


def _plain(line: str) -> str:
    """A line of git's output, shortened, with unprintable characters replaced."""
    return "".join(char if char.isprintable() else "?" for char in line)[: 2 * _SHOWN_CHARACTERS]
