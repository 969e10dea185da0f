"""Places: a folder and a bucket behave alike, links are refused, errors are one line."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mta_cli.errors import BadInput, MtaError, NotFound, UsageError
from store.snapshots.place import SnapshotPlace

DIGEST = "ab" + "c" * 62


@pytest.fixture
def memory() -> Iterator[str]:
    """The address of an empty bucket in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://bucket/fleet"
    files.store.clear()


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> SnapshotPlace:
    """A place where nothing is yet."""
    return SnapshotPlace(str(tmp_path / "new" / "fleet") if request.param == "folder" else memory)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to write."""
    path = tmp_path / "source"
    path.write_bytes(b"content")
    return path


def test_what_is_written_is_there(place: SnapshotPlace, source: Path) -> None:
    assert place.read_manifest(100) is None and place.object_sizes() == {}
    place.write_object(DIGEST, source)
    place.write_manifest(source)
    assert place.object_sizes() == {DIGEST: 7} and b"".join(place.read_object(DIGEST)) == b"content"
    source.write_bytes(b"longer content")
    place.write_object(DIGEST, source)
    place.write_manifest(source)
    assert place.object_sizes() == {DIGEST: 14} and place.read_manifest(100) == b"longer content"
    place.remove_object(DIGEST)
    place.remove_object(DIGEST)
    assert place.object_sizes() == {}
    with pytest.raises(NotFound, match="missing"):
        list(place.read_object(DIGEST))
    with pytest.raises(BadInput, match="more than 10 bytes"):
        place.read_manifest(10)


def test_a_folder_is_for_its_owner_alone_and_keeps_no_half_file(tmp_path: Path, source: Path) -> None:
    place = SnapshotPlace(str(tmp_path / "fleet"))
    place.write_object(DIGEST, source)
    written = tmp_path / "fleet" / "objects" / "ab" / DIGEST
    assert written.stat().st_mode & 0o777 == 0o600 and written.parent.stat().st_mode & 0o777 == 0o700
    source.unlink()
    with pytest.raises(MtaError):
        place.write_object(DIGEST, source)
    assert written.read_bytes() == b"content"
    (tmp_path / "fleet" / ".mta-00ff.tmp").touch()
    place.remove_leftovers()
    assert [path.name for path in (tmp_path / "fleet").iterdir()] == ["objects"]


def test_only_objects_count_as_objects(tmp_path: Path, source: Path) -> None:
    place = SnapshotPlace(str(tmp_path / "fleet"))
    place.write_object(DIGEST, source)
    for name in (f"objects/{DIGEST}", f"objects/00/{DIGEST}", "objects/ab/notes.txt", f"other/ab/{DIGEST}"):
        path = tmp_path / "fleet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert place.object_sizes() == {DIGEST: 7}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = tmp_path / "fleet" / "manifest.json"
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(BadInput, match="link or not a file") as caught:
        SnapshotPlace(str(path.parent)).read_manifest(100)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without_s3fs(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("s3fs"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_s3fs)
    with pytest.raises(UsageError, match=r"s3:// need .* not installed: s3fs") as caught:
        SnapshotPlace("s3://bucket/path")
    assert caught.value.hint == "pip install s3fs"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="not the address of a snapshot"):
        SnapshotPlace("nowhere://bucket/path")


def test_an_error_of_a_bucket_is_one_line(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SnapshotPlace(memory)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials\nand a long explanation")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refuse)
    with pytest.raises(BadInput, match=r"memory://bucket/fleet cannot be read: no credentials\.") as caught:
        place.read_manifest(100)
    assert "\n" not in str(caught.value) and "credentials" in (caught.value.hint or "")
