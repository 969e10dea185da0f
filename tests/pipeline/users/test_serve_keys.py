"""The file of the server's keys: its contents, and the users that each key opens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mta_cli.errors import BadInput, IntegrityFault, NotFound
from mta_cli.pipeline.users.serve_keys import KeyFile, _scrypt


def test_the_file_has_neither_keys_nor_names(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    secret = keys.add("phone", ["alice"])
    keys.write(path)
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    assert secret.split("-", 2)[2] not in path.read_text() and "alice" not in path.read_text()
    again = KeyFile.read(path)
    (key,) = again.keys
    assert again.find(secret) == key and again.allows(key, "alice") and not again.allows(key, "bob")
    for wrong in ("", "mta-", secret[:-1], secret[:-1] + "!", "x" * 100_000, "mta-00000000-" + "a" * 43):
        assert again.find(wrong) is None
    again.remove("phone")
    again.write(path)
    assert KeyFile.read(path).find(secret) is None
    with pytest.raises(NotFound, match="phone"):
        again.remove("phone")


def of_an_earlier_version(keys: KeyFile) -> None:
    """Make the first key one whose secret is hashed by scrypt, as earlier versions made them."""
    key, secret = keys.keys[0], "a" * 43
    keys._keys[key.id] = msgspec.structs.replace(key, hash=_scrypt(secret, key.salt))


def test_a_key_of_an_earlier_version_is_hashed_slowly_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    keys.add("one", ["alice"])
    of_an_earlier_version(keys)
    keys.write(path)
    keys = KeyFile.read(path)
    (key,) = keys.keys
    right, wrong = f"mta-{key.id}-" + "a" * 43, f"mta-{key.id}-" + "b" * 43
    assert keys.slow_key(right) == keys.slow_key(wrong) == key.id
    assert keys.find(wrong) is None and keys.slow_key(right) == key.id
    assert keys.find(right) == key and keys.allows(key, "alice")
    assert keys.slow_key(right) is keys.slow_key(wrong) is None, "from here on both are told apart at once"
    assert keys.find(right) == key and keys.find(wrong) is None
    again = KeyFile.read(path)
    again.verified = keys.verified
    assert again.slow_key(right) is None and again.find(right) == key and again.find(wrong) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', '{"format": "mta-keys-1", "salt": 1}'])
def test_another_file_is_no_file_of_keys(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(IntegrityFault, match="not a file of keys"):
        KeyFile.read(path)
    with pytest.raises(BadInput):
        KeyFile.read(tmp_path)


def test_a_name_is_one_name_however_it_is_typed(tmp_path: Path) -> None:
    keys = KeyFile.read(tmp_path / "keys.json")
    keys.add("one", ["E\u0301lodie"])
    assert keys.allows(keys.keys[0], "\u00c9lodie")


def test_names_of_keys(tmp_path: Path) -> None:
    keys = KeyFile.read(tmp_path / "keys.json")
    keys.add("a", None)
    for label in ("a", "", "b c", "../x", "x" * 41):
        with pytest.raises(BadInput):
            keys.add(label, None)


def test_a_key_without_users_opens_no_user(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    keys.add("one", ["carol"])
    keys.add("two", ["carol", "alice"])
    keys.add("all", None)
    assert keys.drop_users(["carol"]) and not keys.drop_users(["carol"])
    keys.write(path)
    again = KeyFile.read(path)
    opened = [[name for name in ("alice", "carol", "*", "") if again.allows(key, name)] for key in again.keys]
    assert opened == [[], ["alice"], ["alice", "carol", "*", ""]]
    assert again.name_hash("carol") not in path.read_text()
