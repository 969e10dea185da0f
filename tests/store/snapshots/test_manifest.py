"""Manifests: signed, verified, and nothing in them believed."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, IntegrityFault, NotFound
from store.schema import SCHEMA_VERSION
from store.snapshots.manifest import (
    SnapshotManifest,
    decode_manifest,
    encode_manifest,
    encode_unfinished_list,
    hash_name,
    listed_digests,
    read_key,
)
from tests.store.snapshots.conftest import KEY, OTHER_KEY

REGISTRY, ADAPTER = "a" * 64, "b" * 64
MANIFEST = SnapshotManifest(
    "2026-01-01T00:00:00+00:00", "1", SCHEMA_VERSION, ["é"], False, {"users": 2}, REGISTRY, {REGISTRY: 5, ADAPTER: 7}
)


def changed(content: bytes, **values: Any) -> bytes:
    return json.dumps(json.loads(content) | values).encode()


@pytest.mark.parametrize("key", [KEY, None])
def test_a_manifest_is_read_as_it_was_written(key: bytes | None) -> None:
    found = decode_manifest(encode_manifest(MANIFEST, key), key, "here")
    assert found.content == MANIFEST
    assert (found.is_signed, found.is_verified) == (key is not None, key is not None)
    assert (MANIFEST.adapters, MANIFEST.total_bytes) == ({ADAPTER}, 12)


def test_a_signed_manifest_is_read_without_the_key_and_says_so() -> None:
    found = decode_manifest(encode_manifest(MANIFEST, KEY), None, "here")
    assert (found.is_signed, found.is_verified) == (True, False)


@pytest.mark.parametrize(
    "content",
    [
        encode_manifest(MANIFEST, OTHER_KEY),
        changed(encode_manifest(MANIFEST, KEY), created="2027"),
        changed(encode_manifest(MANIFEST, KEY), sizes={REGISTRY: 5}),
        changed(encode_manifest(MANIFEST, KEY), signature={"algorithm": "none", "value": ""}),
        changed(encode_manifest(MANIFEST, KEY), signature={"algorithm": "hmac-sha256", "value": "é"}),
        changed(encode_manifest(MANIFEST, KEY), signature=None),
        encode_manifest(MANIFEST, None),
    ],
)
def test_what_is_not_signed_with_the_key_is_refused(content: bytes) -> None:
    with pytest.raises(IntegrityFault):
        decode_manifest(content, KEY, "here")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"words",
        b"[" * 100_000,
        b"\xff\xfe",
        *(
            changed(encode_manifest(MANIFEST, None), **values)
            for values in (
                {"format": "mta backup"},
                {"version": 2},
                {"schema": SCHEMA_VERSION + 1},
                {"schema": "12"},
                {"sizes": {}},
                {"sizes": {REGISTRY: -1}},
                {"sizes": {REGISTRY: 1.5}},
                {"sizes": {REGISTRY: True}},
                {"sizes": {REGISTRY: 5, "../../etc/passwd": 7}},
                {"sizes": {REGISTRY: 5, "B" * 64: 7}},
                {"sizes": [REGISTRY]},
                {"registry": ADAPTER[:-1]},
                {"registry": ["a"]},
                {"counts": {"users": "many"}},
                {"created": 7},
                {"tasks": [7]},
                {"hashed_names": "no"},
                {"more": 1},
            )
        ),
    ],
)
def test_a_malformed_manifest_is_one_clear_fault(content: bytes) -> None:
    with pytest.raises(IntegrityFault) as caught:
        decode_manifest(content, None, "here")
    assert "here" in caught.value.message and caught.value.hint and "\n" not in str(caught.value)
    assert len(caught.value.message) < 300


def test_another_programs_file_is_told_from_a_manifest() -> None:
    assert listed_digests(encode_manifest(MANIFEST, None)) == set(MANIFEST.sizes)
    assert listed_digests(b'{"format": "mta snapshot", "version": 9, "sizes": {"a": 1}}') == {"a"}
    assert listed_digests(encode_unfinished_list(["b", "a"])) == {"a", "b"}
    others = (b"", b"[]", b'{"name": "app"}', b'{"format": "mta snapshot", "sizes": 5}', b"\xff", b"[" * 100_000)
    assert not any(map(listed_digests, others))


def test_a_name_is_hashed_as_the_documentation_says() -> None:
    expected = hmac.new(KEY, "user:zoë".encode(), "sha256").hexdigest()
    assert hash_name(KEY, "zoë") == hash_name(KEY, "zoe\u0308") == expected != hash_name(OTHER_KEY, "zoë")


def test_a_key_is_a_file_of_enough_bytes(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(NotFound, match="no key file"):
        read_key(file)
    file.write_bytes(b"x" * 15 + b"\n")
    with pytest.raises(BadInput, match="16 to"):
        read_key(file)
    file.write_bytes(b"x" * 5000)
    with pytest.raises(BadInput, match="16 to"):
        read_key(file)
    file.write_bytes(KEY + b"\r\n")
    assert read_key(file) == KEY
    with pytest.raises(BadInput, match="cannot be read"):
        read_key(tmp_path)
