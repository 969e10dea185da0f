"""A snapshot's manifest: the digest and size of every file, signed by HMAC-SHA256 with a key that all machines share.

A manifest is untrusted input: it has no paths, only digests, and paths are made from these.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, NotFound, system_reason
from mta_cli.plain_file import refuse_special_file
from store.columns import dump_json
from store.schema import SCHEMA_VERSION

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256 * 2**20
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096

_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Bytes = Annotated[int, msgspec.Meta(ge=0)]


class SnapshotManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of a snapshot.

    `created` is ISO 8601. `tasks` is None if the snapshot has all tasks. `counts` is the number of rows by table.
    `registry` is the digest of the database; `sizes` are the bytes, by digest, of the database and of every adapter.
    """

    created: str
    program: str
    schema: int
    tasks: list[str] | None
    hashed_names: bool
    counts: dict[str, int]
    registry: str
    sizes: dict[_Digest, _Bytes]

    @property
    def adapters(self) -> set[str]:
        """The digests of the adapters."""
        return set(self.sizes) - {self.registry}

    @property
    def time(self) -> datetime:
        """When the snapshot was made, in UTC."""
        return datetime.fromisoformat(self.created).astimezone(UTC)

    @property
    def total_bytes(self) -> int:
        """The size of all files of the snapshot."""
        return sum(self.sizes.values())


class _Signature(msgspec.Struct):
    algorithm: Literal["hmac-sha256"]
    value: str


class _Kind(msgspec.Struct):
    format: Literal["mta snapshot"]


class _Listing(_Kind):
    """A snapshot's manifest of any version, or the list of files of an unfinished snapshot."""

    sizes: dict[str, Any]


class _Head(_Kind):
    """The fields that a manifest of every version has."""

    version: int
    schema: int
    signature: _Signature | None


@dataclass(frozen=True)
class ReadManifest:
    """A decoded manifest: its content, whether it is signed, and whether a key verified the signature."""

    content: SnapshotManifest
    is_signed: bool
    is_verified: bool


def read_key(path: Path) -> bytes:
    """The key in a file, without trailing line ends. Raises NotFound, and BadInput if it is too short or too long."""
    try:
        refuse_special_file(path.expanduser())
        with path.expanduser().open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1).rstrip(b"\r\n")
    except FileNotFoundError as error:
        hint = f"make a key: openssl rand -hex 32 > {path}"
        raise NotFound(f"There is no key file {path}.", hint=hint) from error
    except OSError as error:
        raise BadInput(
            f"The key file {path} cannot be read: {system_reason(error)}.", hint="check its path and its permissions"
        ) from error
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise BadInput(
            f"The content of {path} is not a key: a key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES:,} bytes.",
            hint=f"make a key: openssl rand -hex 32 > {path}",
        )
    return key


def hash_name(key: bytes, name: str) -> str:
    """The user's name in a snapshot with hashed names: HMAC-SHA256 of `user:NAME` in NFC, hexadecimal."""
    return hmac.new(key, b"user:" + unicodedata.normalize("NFC", name).encode(), hashlib.sha256).hexdigest()


def encode_manifest(manifest: SnapshotManifest, key: bytes | None) -> bytes:
    """The content of a manifest's file; without a key it is not signed."""
    document = {"format": "mta snapshot", "version": FORMAT_VERSION, **msgspec.to_builtins(manifest)}
    signature = None if key is None else {"algorithm": "hmac-sha256", "value": _sign(document, key)}
    return json.dumps({**document, "signature": signature}, indent=1).encode()


def encode_unfinished_list(digests: Iterable[str]) -> bytes:
    """The content of the file that lists the digests of an unfinished snapshot; `listed_digests` reads it."""
    return json.dumps({"format": "mta snapshot", "sizes": dict.fromkeys(digests)}).encode()


def listed_digests(content: bytes) -> set[str] | None:
    """The digests in a manifest of any version or in an unfinished list; None for a file of another program."""
    try:
        return set(msgspec.json.decode(content, type=_Listing).sizes)
    except (ValueError, RecursionError):
        return None


def decode_manifest(content: bytes, key: bytes | None, address: str) -> ReadManifest:
    """The manifest in the content of a snapshot's file, verified if there is a key. `address` is named in errors.

    Raises IntegrityFault if it is malformed, of another version or schema, or not signed with the key.
    """
    try:
        head = msgspec.json.decode(content, type=_Head)
        if (head.version, head.schema) != (FORMAT_VERSION, SCHEMA_VERSION):
            raise IntegrityFault(
                f"The snapshot at {address} has format {head.version} and schema {head.schema}; this mta reads format "
                f"{FORMAT_VERSION} and schema {SCHEMA_VERSION}.",
                hint="use the same version of mta here and on the machine that makes the snapshot",
            )
        document = json.loads(content)
        del document["signature"]
        if key is not None:
            _verify(document, head.signature, key, address)
        del document["format"], document["version"]
        manifest = msgspec.convert(document, SnapshotManifest)
        _ = manifest.time
    except (ValueError, OverflowError, RecursionError) as error:
        raise _damaged(address, "its manifest cannot be read") from error
    if manifest.registry not in manifest.sizes:
        raise _damaged(address, "its manifest names no database")
    return ReadManifest(manifest, head.signature is not None, key is not None)


def encode_copy_manifest(found: ReadManifest, content: bytes) -> bytes:
    """The content of the manifest's file in a pulled copy, which also records whether a key verified the signature."""
    document = json.loads(content)
    if found.is_signed:
        document["signature"]["verified"] = found.is_verified
    return json.dumps(document, indent=1).encode()


def was_verified(remembered: bytes) -> bool:
    """Whether a key verified the manifest that a copy was pulled with; `remembered` is the content of its file."""
    try:
        return json.loads(remembered)["signature"]["verified"] is True
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def is_signed_with(remembered: bytes, key: bytes) -> bool:
    """Whether a copy's manifest was signed with this key; `remembered`, the content of its file, was verified."""
    document = json.loads(remembered)
    signature = document.pop("signature")
    return hmac.compare_digest(str(signature["value"]), _sign(document, key))


def _sign(document: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, dump_json(document).encode(), hashlib.sha256).hexdigest()


def _verify(document: dict[str, Any], signature: _Signature | None, key: bytes, address: str) -> None:
    if signature is None:
        raise IntegrityFault(
            f"The snapshot at {address} is not signed.",
            hint=("sign it with ", Command("snapshot", key="FILE"), ", or leave out ", Flag("key"), " to pull it"),
        )
    if not hmac.compare_digest(signature.value.encode(), _sign(document, key).encode()):
        raise IntegrityFault(
            f"The snapshot at {address} is not signed with this key, or its manifest was changed.",
            hint=("use the key that ", Command("snapshot"), " was given; nothing was changed here"),
        )


def _damaged(address: str, why: str) -> IntegrityFault:
    return IntegrityFault(
        f"The snapshot at {address} is damaged: {why}.", hint=(Command("snapshot", "TO"), " writes it again")
    )
