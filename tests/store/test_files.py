"""Files: whole or not there, named by content, verified when read; whatever fails leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from subprocess import PIPE
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.errors import BadInput, IntegrityFault, MtaError
from store import files as module
from store.files import AdapterFiles, atomic_write, hold_temporary, remove_leftover_temporaries, sha256
from store.held_files import HeldFile

_T = TypeVar("_T")


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles(tmp_path)


def everything(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_written_under_its_digest_and_read_back(files: AdapterFiles, tmp_path: Path) -> None:
    digest, size = files.write(b"weights")
    assert (digest, size) == (sha256(b"weights"), 7)
    assert everything(tmp_path) == [tmp_path / "adapters" / digest[:2] / f"{digest}.safetensors"]
    assert files.read(digest) == b"weights"
    files.verify(digest)


def test_folders_are_for_their_owner_alone(files: AdapterFiles, tmp_path: Path) -> None:
    files.write(b"weights")
    files.write_checkpoint("job", b"step 1")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}


def test_same_content_is_written_once(files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, _ = files.write(b"weights")
    monkeypatch.setattr(module, "atomic_write", lambda *_: pytest.fail("written again"))
    assert files.write(b"weights")[0] == digest


def test_a_damaged_file_is_replaced_by_writing_its_content_again(files: AdapterFiles) -> None:
    digest, _ = files.write(b"weights")
    files.path(digest).write_bytes(b"wei")
    files.write(b"weights")
    assert files.read(digest) == b"weights"


@pytest.mark.parametrize("damage", [b"", b"weight", b"weightz", b"weights\0"])
def test_damage_is_found_when_read(files: AdapterFiles, damage: bytes) -> None:
    digest, _ = files.write(b"weights")
    files.path(digest).write_bytes(damage)
    with pytest.raises(IntegrityFault, match=digest) as caught:
        files.read(digest)
    assert caught.value.hint


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64), st.data())
def test_any_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    files = AdapterFiles(tmp_path_factory.mktemp("flip"))
    digest, _ = files.write(content)
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    flipped = bytearray(content)
    flipped[position // 8] ^= 1 << position % 8
    files.path(digest).write_bytes(flipped)
    with pytest.raises(IntegrityFault):
        files.verify(digest)


def test_a_missing_file_is_named(files: AdapterFiles) -> None:
    with pytest.raises(IntegrityFault, match="is gone"):
        files.read("a" * 64)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 64 + "/x"])
def test_only_a_digest_makes_a_path(files: AdapterFiles, digest: str) -> None:
    with pytest.raises(IntegrityFault):
        files.path(digest)


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def short_then_full() -> Callable[[int, bytes], int]:
    """A disk that takes some of the bytes, then no more."""
    write, calls = os.write, []

    def partly(descriptor: int, content: bytes) -> int:
        calls.append(content)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, bytes(content)[:3])

    return partly


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_no_failure_leaves_a_file(
    files: AdapterFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    if call in ("replace", "rename"):
        monkeypatch.setattr(Path, "replace", failing(code))
    else:
        monkeypatch.setattr(os, call, failing(code))
    with pytest.raises(BadInput if code != errno.EIO else IntegrityFault) as caught:
        files.write(b"weights")
    monkeypatch.undo()
    assert caught.value.hint
    assert os.strerror(code) in caught.value.message
    assert everything(tmp_path) == []


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(
    files: AdapterFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", short_then_full())
    with pytest.raises(BadInput, match="disk is full"):
        files.write(b"weights")
    monkeypatch.undo()
    assert everything(tmp_path) == []
    assert files.write(b"weights")[1] == 7  # and it works once there is room


def test_short_writes_are_completed(files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:2]))
    digest, _ = files.write(b"weights")
    monkeypatch.undo()
    assert files.read(digest) == b"weights"


def test_content_is_durable_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        seen.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def named(self: Path, target: Path) -> Path:
        seen.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    atomic_write(tmp_path / "x", b"content")
    assert seen == ["file", "name", "folder"]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "x", b"old")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x", b"new")
    assert [(path.name, path.read_bytes()) for path in everything(tmp_path)] == [("x", b"old")]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("in the way")
    with pytest.raises(MtaError, match="cannot be written"):
        atomic_write(tmp_path / "x" / "y", b"content")


def test_orphans_are_files_without_a_row(files: AdapterFiles, tmp_path: Path) -> None:
    known, lost = files.write(b"one")[0], files.write(b"two")[0]
    assert files.find_orphans({known}) == [files.path(lost)]
    files.remove_old_orphans({known})
    assert files.path(lost).exists(), "another process may be about to record it"
    os.utime(files.path(lost), (0, 0))
    files.remove_old_orphans({known})
    assert [path.name for path in everything(tmp_path)] == [f"{known}.safetensors"]


def test_orphans_are_sought_in_one_set(files: AdapterFiles) -> None:
    made: list[object] = []

    class Known(set[str]):
        def __or__(self, other: AbstractSet[_T]) -> set[str | _T]:
            made.append(other)
            return set(self) | set(other)

    digests = [files.write(content)[0] for content in (b"one", b"two", b"three")]
    assert files.find_orphans(Known(digests)) == [] and len(made) == 1


def test_temporary_files_of_the_dead_go_and_of_the_living_stay(files: AdapterFiles, tmp_path: Path) -> None:
    """Also where the dead had this process's number, as the first process of a container has."""
    held = []
    for folder in ("adapters/ab", "partial", "."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / f".mta-{os.getpid()}-0123456789abcdef.tmp").write_bytes(b"half")
        held.append(HeldFile.create(tmp_path / folder / ".mta-0123456789abcdef.tmp"))
    (tmp_path / "partial" / ".mine.tmp").write_bytes(b"not ours")
    claim = tmp_path / "adapters" / "ab" / f".mta-00-{'ab' * 32}.tmp"
    claim.touch()
    for _ in range(2):
        assert files.remove_abandoned_temporaries() == [("ab" * 32, claim)]
        assert len(everything(tmp_path)) == 5
    for one in held:
        one.close()
    files.remove_abandoned_temporaries()
    assert len(everything(tmp_path)) == 2


def test_a_claim_is_seen_by_other_processes_for_as_long_as_its_own_lives(tmp_path: Path) -> None:
    """And by other threads of the same process, which have descriptors of their own."""
    files, digest = AdapterFiles(tmp_path), "ab" * 32
    script = f"""
from pathlib import Path
from store.files import AdapterFiles
AdapterFiles(Path({str(tmp_path)!r})).claim_digest({digest!r})
print("claimed", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "claimed\n"
        assert files.find_abandoned_temporaries() == []
        other.kill()
    assert len(files.find_abandoned_temporaries()) == 1


def test_a_checkpoint_in_use_by_a_killed_process_goes(tmp_path: Path) -> None:
    files = AdapterFiles(tmp_path)
    files.write_checkpoint("job", b"words")
    script = f"""
import os
from pathlib import Path
from store.files import AdapterFiles
with AdapterFiles(Path({str(tmp_path)!r})).consume_checkpoint("job"):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert len(everything(tmp_path)) == 1
    assert files.remove_abandoned_temporaries() == [] and everything(tmp_path) == []


def test_a_checkpoint_replaces_the_earlier_one(files: AdapterFiles, tmp_path: Path) -> None:
    assert files.read_checkpoint("job") is None
    files.write_checkpoint("job", b"step 1")
    files.write_checkpoint("job", b"step 2")
    files.write_checkpoint("../other job", b"step 9")
    assert files.read_checkpoint("job") == b"step 2"
    assert len(everything(tmp_path / "partial")) == 2
    files.remove_checkpoint("job")
    files.remove_checkpoint("job")
    assert files.read_checkpoint("job") is None
    assert files.read_checkpoint("../other job") == b"step 9"
    files.remove_all_checkpoints()
    assert everything(tmp_path) == []


def test_a_damaged_checkpoint_is_none_and_goes(files: AdapterFiles, tmp_path: Path) -> None:
    files.write_checkpoint("job", b"step 1")
    everything(tmp_path)[0].write_bytes(b"step")
    assert files.read_checkpoint("job") is None
    assert everything(tmp_path) == []


def test_of_two_checkpoints_the_newest_intact_one_counts(
    files: AdapterFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_checkpoint("job", b"step 1")
    with monkeypatch.context() as stopped:  # a crash after the new one is written and before the old one goes
        stopped.setattr(AdapterFiles, "_checkpoint_paths", lambda *_: [])
        files.write_checkpoint("job", b"step 2")
    old, new = sorted(everything(tmp_path), key=lambda path: path.read_bytes())
    os.utime(old, (1, 1))
    assert files.read_checkpoint("job") == b"step 2"
    new.write_bytes(b"damaged")
    assert files.read_checkpoint("job") == b"step 1"


def test_a_failed_checkpoint_keeps_the_earlier_one(files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_checkpoint("job", b"step 1")
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    with pytest.raises(BadInput):
        files.write_checkpoint("job", b"step 2")
    assert files.read_checkpoint("job") == b"step 1"


def test_a_checkpoint_is_spent_with_what_comes_of_it(files: AdapterFiles, tmp_path: Path) -> None:
    files.write_checkpoint("job", b"step 1")
    with pytest.raises(RuntimeError), files.consume_checkpoint("job"):
        assert files.read_checkpoint("job") is None
        assert [path.suffix for path in everything(tmp_path)] == [".tmp"]
        raise RuntimeError("the disk is full")
    assert files.read_checkpoint("job") == b"step 1"
    with files.consume_checkpoint("job"):
        pass
    assert everything(tmp_path) == []
    files.write_checkpoint("job", b"step 1")
    with pytest.raises(IntegrityFault), files.consume_checkpoint("job"):
        raise IntegrityFault("the person is gone")
    assert everything(tmp_path) == []


def test_a_checkpoint_that_cannot_be_set_aside_stays(files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_checkpoint("job", b"step 1")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", failing(errno.EIO))
        with pytest.raises(IntegrityFault, match="could not be written"), files.consume_checkpoint("job"):
            pytest.fail("it went on")
    assert files.read_checkpoint("job") == b"step 1"


@pytest.mark.parametrize("act", [AdapterFiles.remove_all_checkpoints, lambda files: files.remove_checkpoint("job")])
def test_a_checkpoint_that_cannot_be_removed_is_told(
    files: AdapterFiles, monkeypatch: pytest.MonkeyPatch, act: Callable[[AdapterFiles], None]
) -> None:
    files.write_checkpoint("job", b"step 1")
    monkeypatch.setattr(Path, "unlink", failing(errno.EIO))
    with pytest.raises(IntegrityFault, match="could not be removed"):
        act(files)


def test_a_folder_is_swept_of_what_the_dead_left(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", b"content")
    for left in (f".mta-{os.getpid()}-0123456789abcdef.tmp", ".mta-0123456789abcdef.tmp"):
        (tmp_path / left).write_bytes(b"half")
    (tmp_path / ".mta-0123456789abcdef.tmp-journal").write_bytes(b"of a killed copy by SQLite")
    with hold_temporary(tmp_path) as held:
        journal = tmp_path / f"{held.name}-journal"
        journal.touch()
        remove_leftover_temporaries(tmp_path)
        assert sorted(everything(tmp_path)) == sorted([held, journal, tmp_path / "x"])


def test_an_opened_store_is_swept_of_a_killed_copys_journal(files: AdapterFiles) -> None:
    files.write_checkpoint("job", b"step 1")
    for left in (".mta-0123456789abcdef.tmp", ".mta-0123456789abcdef.tmp-journal"):
        (files.checkpoint_folder / left).write_bytes(b"of a killed copy by SQLite")
    files.remove_abandoned_temporaries()
    assert [path.suffix for path in files.checkpoint_folder.iterdir()] == [".safetensors"]
