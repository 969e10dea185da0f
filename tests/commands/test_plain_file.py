"""Pipes and devices that are named where a file is meant: one line, and no end of waiting."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mta_cli.plain_file import refuse_special_file
from store.registry import Registry
from tests.shell import mta


@pytest.mark.parametrize(
    "words",
    [
        ("data", "import", "pipe.jsonl"),
        ("data", "import", "pipe.zip"),
        ("data", "import", "pipe.mbox", "--me", "ann@example.org"),
        ("user", "add", "ann", "--history", "pipe.jsonl"),
        ("task", "add", "pipe.toml"),
        ("restore", "pipe.tar"),
        ("pull", "nowhere", "--key", "pipe"),
        ("snapshot", "there", "--key", "pipe"),
        ("serve", "key", "list", "--keys", "pipe"),
        ("eval", "show", "pipe.json"),
        ("quick", "pipe.jsonl"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_pipe_that_nobody_writes_is_refused(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "store"))
    Registry.open(tmp_path / "store", create=True).close()
    name = next(word for word in words if word.startswith("pipe"))
    os.mkfifo(name)
    ran = mta(*words)
    assert ran.code in (2, 3, 4) and len(ran.err.splitlines()) <= 2 and "unexpected" not in ran.err
    if words[0] not in ("eval", "quick"):  # they have words of their own
        assert "is a pipe, socket or device" in ran.err


def test_a_pipe_as_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "mta.toml")
    monkeypatch.setenv("MTA_CONFIG", str(tmp_path / "mta.toml"))
    ran = mta("config", "list")
    assert ran.code == 4 and "is a pipe, socket or device" in ran.err


def test_what_passes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing", Path("/dev/stdin"), Path("/dev/fd/0")):
        refuse_special_file(path)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        for path in (tmp_path / "door", Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(Exception, match="is a pipe, socket or device"):
                refuse_special_file(path)
