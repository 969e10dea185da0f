"""Turns a diff of git into a question: the changed files and some changed lines.

Imports and questions about staged changes use the same functions, so that questions look like the training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mta_cli.pipeline.data.git.program import FIELD_BYTES
from mta_cli.text.formatting import shorten

DIFF_FLAGS = (
    "-p",
    "-r",
    "-U0",
    "-M",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--inter-hunk-context=0",
    "--submodule=short",
)
"""Flags of git's plumbing commands, for diffs that `read_changes` can parse."""
MAX_FILES, MAX_LINES = 3, 4
PATH_CHARACTERS, LINE_CHARACTERS = 80, 100
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_WORD = re.compile(r"\w")


@dataclass
class _File:
    """A changed file; `notes` say whether it is new, deleted, renamed or binary."""

    path: str
    notes: list[str] = field(default_factory=list)
    removed: int = 0
    added: int = 0

    def __str__(self) -> str:
        counts = [f"+{self.added}"] * (self.added > 0) + [f"-{self.removed}"] * (self.removed > 0)
        return " ".join([_cut_path(self.path), *self.notes, *counts])


@dataclass
class Change:
    """The changes of a commit: the number of files, and the first files and lines, however large the diff is."""

    files: list[_File] = field(default_factory=list)
    file_count: int = 0
    removed_lines: list[str] = field(default_factory=list)
    added_lines: list[str] = field(default_factory=list)

    @property
    def question(self) -> str:
        """The question: a line of files, then removed and added lines, half of each if there are enough.

        Empty if no file is changed.
        """
        named, more = ", ".join(map(str, self.files)), self.file_count - len(self.files)
        removed = self.removed_lines[: max(MAX_LINES // 2, MAX_LINES - len(self.added_lines))]
        added = self.added_lines[: MAX_LINES - len(removed)]
        files = f"{named} and {more:,} more" if more else named
        return "\n".join([files, *(f"- {line}" for line in removed), *(f"+ {line}" for line in added)]).strip()

    def begin_file(self, line: bytes) -> _File:
        """Add the file of a line `diff --git a/PATH b/PATH`; for renames, later lines repeat the paths."""
        both = line.removeprefix(b"diff --git ").rstrip(b"\n")
        file = _File(_decode(both[: len(both) // 2]).strip('"').removeprefix("a/"))
        self.file_count += 1
        if self.file_count <= MAX_FILES:
            self.files.append(file)
        return file

    def add_line(self, line: bytes) -> None:
        """Keep a line of a hunk if it contains a word, is new, and there are fewer than `MAX_LINES`."""
        kept = self.added_lines if line.startswith(b"+") else self.removed_lines
        if len(kept) == MAX_LINES:
            return
        content = _decode(line[1 : 1 + 4 * LINE_CHARACTERS])  # a character has at most 4 bytes
        text = shorten("".join(char if char.isprintable() else " " for char in content), LINE_CHARACTERS)
        if _WORD.search(text) and text not in kept:
            kept.append(text)


def read_changes(lines: Iterable[bytes], fields: int) -> Iterator[tuple[list[bytes], Change]]:
    """Yields the header fields (separated by NULs) and the change of each commit in git's output.

    With `fields` 0 the output is one diff without a header.
    """
    waiting = iter(lines)
    header: list[bytes] = []
    change, file, in_hunk = Change(), _File(""), False
    for line in waiting:
        if line.startswith((b"+", b"-")):  # changed lines, or the two lines with a file's names
            if in_hunk:
                change.add_line(line)
        elif line.startswith(b"\0"):
            if header:
                yield header, change
            header, change = _read_header(line, waiting, fields), Change()
        elif line.startswith(b"diff --git "):
            file, in_hunk = change.begin_file(line), False
        elif hunk := _HUNK.match(line):
            removed, added = (1 if count is None else int(count) for count in hunk.groups())
            file.removed += removed
            file.added += added
            in_hunk = True
        elif line.startswith(b"new file mode "):
            file.notes.append("new")
        elif line.startswith(b"deleted file mode "):
            file.notes.append("deleted")
        elif line.startswith(b"rename from "):
            file.notes.append(f"from {_cut_path(_path(line, b'rename from '))}")
        elif line.startswith(b"rename to "):
            file.path = _path(line, b"rename to ")
        elif line.startswith(b"Binary files "):
            file.notes.append("binary")
    if header or not fields:
        yield header, change


def _read_header(line: bytes, following: Iterator[bytes], fields: int) -> list[bytes]:
    """The fields of a header, which begins with NUL and has one after each field. Long ones are cut."""
    content, ends = line, line.count(b"\0")
    while ends <= fields and (line := next(following, b"")):
        ends += line.count(b"\0")
        content = content[:FIELD_BYTES] + (line if len(content) < FIELD_BYTES else b"")
    return content.split(b"\0")[1 : fields + 1]


def _path(line: bytes, before: bytes) -> str:
    return _decode(line.removeprefix(before).rstrip(b"\n")).strip('"')


def _decode(content: bytes) -> str:
    return content.decode(errors="replace")


def _cut_path(path: str) -> str:
    plain = "".join(char if char.isprintable() else "?" for char in path)
    return plain if len(plain) <= PATH_CHARACTERS else "…" + plain[1 - PATH_CHARACTERS :]
