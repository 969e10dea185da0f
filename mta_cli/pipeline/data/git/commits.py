"""Turns a repository's commits into rows of what an author changed and the message they wrote."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mta_cli.errors import BadInput, Flag
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.timestamps import normalise_time
from mta_cli.pipeline.data.git.authors import Authors, is_bot
from mta_cli.pipeline.data.git.changes import DIFF_FLAGS, read_changes
from mta_cli.pipeline.data.git.program import Git, split_fields
from mta_cli.pipeline.data.git.selection import CommitSelection
from mta_cli.text.formatting import pluralise

_FIELDS = ("%H", "%P", "%aN", "%aE", "%aI", "%B")
_FLAGS = ("--no-color", "--encoding=UTF-8", "--no-show-signature")
_PULL_REQUEST = re.compile(r"\s*\((?:#|!|gh-)\d+\)$", re.IGNORECASE)
_TRAILER = re.compile(r"(?:(?:[a-z]+-)*[a-z]+-by|change-id|cc|git-svn-id)\s*:", re.IGNORECASE)
MERGES, BOTS, REVERTS, UNTITLED, EDGES, TWICE, OLD, ELSEWHERE, UNCHANGED, NAMELESS = (
    "merges",
    "commits of bots",
    "reverts",
    "commits without a message",
    "first commits of a shallow clone, whose changes are unknown",
    "commits that occur twice",
    "commits before the date",
    "commits that change nothing in these paths",
    "commits without a changed file",
    "commits without a usable name",
)


def read_commits(folder: Path, selection: CommitSelection, findings: ParseFindings) -> Iterator[RawRow]:
    """A row for each selected commit of the current branch, the oldest first; the others are counted by reason.

    The findings get the repository's name as the group of its users. Raises `BadInput` if no commit is selected, and
    the errors of `Git`.
    """
    git = Git(folder)
    if not git.has_commits:
        raise BadInput(f"{git.name} has no commits yet")
    with tempfile.TemporaryFile() as chosen:
        authors = _choose_commits(git, selection, findings, chosen)
        chosen.seek(0)
        # Messages are read a second time here, so that memory does not hold all of them.
        flags = ("--stdin", "--root", "--always", *_FLAGS, *DIFF_FLAGS)
        with git.stream("diff-tree", *flags, f"--format=%x00{'%x00'.join(_FIELDS)}%x00", stdin=chosen) as out:
            for number, (values, change) in enumerate(read_changes(out, len(_FIELDS)), 1):
                _, _, name, address, time, message = (value.decode(errors="replace") for value in values)
                user = authors.user_of((name, address))
                if user is None or not (question := change.question):
                    findings.skip_counts[UNCHANGED] += 1
                    continue
                findings.groups[user] = git.name
                answer = _whole_message(message) if selection.body else _title(message)
                row = {"user": user, "input": question, "output": answer, "time": time, "id": commit_key(time, message)}
                yield SourceLocation(git.name, number), row


def commit_key(time: str, message: str) -> str:
    """The item id of a commit. It does not change when the commit is rebased or cherry-picked."""
    return f"commit-{hashlib.sha256(f'{time} {_title(message)}'.encode()).hexdigest()[:24]}"


def _choose_commits(git: Git, selection: CommitSelection, findings: ParseFindings, chosen: IO[bytes]) -> Authors:
    """Write the ids of the selected commits, a line each; returns all authors. Reads messages and no diffs."""
    skipped, authors = findings.skip_counts, Authors()
    inside = _commits_in_paths(git, selection.paths) if selection.paths else None
    found: list[tuple[bytes, int, str]] = []
    # 1. each commit's author, and whether the commit is used
    for commit, parents, name, address, time, message in _all_commits(git):
        if " " in parents:
            skipped[MERGES] += 1
        elif name == "%aN":  # git prints this for an author line that it cannot parse
            skipped[NAMELESS] += 1
        elif is_bot(name, address):
            skipped[BOTS] += 1
        else:
            author = authors.add((name, address), commit)
            is_edge = git.is_shallow and not parents
            reason = EDGES if is_edge else _skip_reason(_title(message), time, selection)
            if not reason and inside is not None and commit not in inside:
                reason = ELSEWHERE
            if reason:
                skipped[reason] += 1
            else:
                found.append((bytes.fromhex(commit), author, commit_key(time, message)))
    # 2. the user of each commit; joining identities needs all commits
    authors.join(pseudonyms=selection.pseudonyms)
    whose: list[tuple[bytes, str]] = []
    seen = set[tuple[str, str]]()
    for commit_id, author, key in found:
        user = authors.user(author)
        if user is None or (user, key) in seen:
            skipped[NAMELESS if user is None else TWICE] += 1
        else:
            seen.add((user, key))
            whose.append((commit_id, user))
    # 3. users with enough commits
    counts = Counter(user for _, user in whose)
    few = {user: count for user, count in counts.items() if count < selection.least}
    if len(few) == len(counts):
        raise _no_commits_error(git, selection, counts)
    if few:
        skipped[f"commits of {pluralise(len(few), 'author')} with fewer than {selection.least:,}"] += sum(few.values())
    chosen.writelines(commit_id.hex().encode() + b"\n" for commit_id, user in whose if user not in few)
    return authors


def _all_commits(git: Git) -> Iterator[list[str]]:
    """The fields of every commit of the current branch, the oldest first. None of them can hold a NUL byte."""
    header = "--format=" + "%x00".join(_FIELDS)
    with git.stream("log", "-z", "--reverse", *_FLAGS, header, "HEAD", "--") as out:
        fields = split_fields(out)
        for first in fields:
            values = [first, *(next(fields, b"") for _ in _FIELDS[1:])]
            yield [value.decode(errors="replace") for value in values]


def _commits_in_paths(git: Git, paths: tuple[str, ...]) -> set[str]:
    """The ids of the commits that change files in `paths`."""
    with git.stream("log", *_FLAGS, "--format=%H", "HEAD", "--", *paths) as out:
        return {line.decode().strip() for line in out}


def _skip_reason(title: str, time: str, selection: CommitSelection) -> str:
    """The reason to leave out a commit by its title or time; empty if there is none."""
    if not title:
        return UNTITLED
    if title.startswith('Revert "'):
        return REVERTS
    return OLD if selection.first_time and _normal_time(time) < selection.first_time else ""


def _normal_time(time: str) -> str:
    try:
        return normalise_time(time)
    except ValueError:
        return ""


def _title(message: str) -> str:
    """The first line of a message, without the pull request number that hosting sites append."""
    first = next((line for line in message.splitlines() if line.strip()), "")
    plain = "".join(char if char.isprintable() else " " for char in first).strip()
    return "" if _TRAILER.match(plain) else _PULL_REQUEST.sub("", plain).strip()


def _whole_message(message: str) -> str:
    """A whole message, with its title as in `_title`, without trailers."""
    lines = [line.rstrip() for line in message.strip().splitlines()[1:] if not _TRAILER.match(line)]
    return "\n".join([_title(message), *lines]).strip()


def _no_commits_error(git: Git, selection: CommitSelection, counts: Counter[str]) -> BadInput:
    if not counts:
        return BadInput(
            f"{git.name} has no usable commit: merges, reverts and commits of bots are not used",
            hint=(
                "if you gave ",
                Flag("since"),
                " or ",
                Flag("paths"),
                ", give an earlier date or other paths",
            ),
        )
    most = max(counts.values())
    return BadInput(
        f"none of the {pluralise(len(counts), 'author')} of {git.name} has {selection.least:,} usable commits; "
        f"the largest number is {most:,}",
        hint=("lower the limit: ", Flag("least", most)),
    )
