"""The staged change of a work tree as a question, in the form that imports use."""

from __future__ import annotations

from pathlib import Path

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.git.changes import DIFF_FLAGS, read_changes
from mta_cli.pipeline.data.git.program import Git


def staged_question(folder: Path) -> str:
    """The question about the staged changes of the work tree that contains `folder`.

    In a git hook, it is about the changes that are being committed. Raises `BadInput` if nothing is staged or there is
    no work tree, and the errors of `Git`.
    """
    git = Git(folder, in_hook=True)
    if git.is_bare:
        raise BadInput(f"{git.name} is a bare repository, so nothing can be staged in it")
    # an empty tree's id, which depends on the repository's hash function
    before = "HEAD" if git.has_commits else git.read_text("hash-object", "-t", "tree", "--stdin")
    with git.stream("diff-index", "--cached", *DIFF_FLAGS, before, "--") as out:
        _, change = next(read_changes(out, 0))
        for _ in out:  # git exits only after all its output is read
            pass
    if not change.question:
        raise BadInput("nothing is staged, so there is nothing to ask about", hint="stage your changes: git add FILE")
    return change.question
