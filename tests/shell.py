"""Runs `mta` command lines inside the test's process, through the same error boundary as the console script."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from mta_cli.app import run_command_line


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


def mta(*arguments: object, stdin: str | bytes = b"") -> Ran:
    """Run `mta ARGUMENTS` with `stdin` piped in."""
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")),
    ):
        code = run_command_line([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def mta_ok(*arguments: object, stdin: str | bytes = b"") -> Ran:
    """Run `mta ARGUMENTS`, which must succeed."""
    ran = mta(*arguments, stdin=stdin)
    assert ran.code == 0, ran.err
    return ran
