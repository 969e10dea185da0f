"""A snapshot's manifest: the digest and size of every file, signed by HMAC-SHA256 with a key that all machines share.

A manifest is untrusted input: it has no paths, only digests, and paths are made from these.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, NotFound, system_reason
from store.columns import dump_json
from store.schema import SCHEMA_VERSION

FORMAT_NAME, FORMAT_VERSION = "mta snapshot", 1
ALGORITHM = "hmac-sha256"
MAX_MANIFEST_BYTES = 256 * 2**20
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SnapshotManifest:
    """The contents of a snapshot.

    `created` is ISO 8601, `tasks` None for all, `counts` rows by table. `registry` is the digest of the registry;
    `sizes` are bytes by digest, of the registry and of every adapter.
    """

    created: str
    program: str
    schema: int
    tasks: list[str] | None
    hashed_names: bool
    counts: dict[str, int]
    registry: str
    sizes: dict[str, int] = field(repr=False)

    @property
    def adapters(self) -> set[str]:
        """The digests of the adapters."""
        return set(self.sizes) - {self.registry}

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class ReadManifest:
    """A manifest that was read: its content, whether it is signed, and whether the signature was verified with a
    key.
    """

    content: SnapshotManifest
    is_signed: bool
    is_verified: bool


def read_key(path: Path) -> bytes:
    """The key in a file, without trailing line ends. Raises NotFound, and BadInput if the content is not a key."""
    try:
        with path.expanduser().open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1).rstrip(b"\r\n")
    except FileNotFoundError as error:
        raise NotFound(f"There is no key file {path}.", hint=f"make one: openssl rand -hex 32 > {path}") from error
    except OSError as error:
        raise BadInput(f"The key file {path} cannot be read: {system_reason(error)}.") from error
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise BadInput(
            f"{path} is not a key: a key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES:,} bytes.",
            hint="openssl rand -hex 32 makes one",
        )
    return key


def hash_name(key: bytes, name: str) -> str:
    """A user's name in a snapshot with hashed names: HMAC-SHA256 of `user:NAME`, hexadecimal."""
    return hmac.new(key, b"user:" + unicodedata.normalize("NFC", name).encode(), hashlib.sha256).hexdigest()


def write_manifest(manifest: SnapshotManifest, key: bytes | None) -> bytes:
    """The manifest's file; without a key it is not signed."""
    document = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(manifest)}
    signature = None if key is None else {"algorithm": ALGORITHM, "value": _sign(document, key)}
    return json.dumps({**document, "signature": signature}, indent=1).encode()


def is_manifest(content: bytes) -> bool:
    """Whether the content is a snapshot's manifest, of any version."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT_NAME


def read_manifest(content: bytes, key: bytes | None, address: str) -> ReadManifest:
    """The manifest from the content of its file, verified if there is a key. `address` is for messages.

    Raises IntegrityFault if it is malformed, of another version or schema, or not signed with the key.
    """
    try:
        document = json.loads(content)
        signature = document.pop("signature")
        if key is not None:
            _verify(document, signature, key, address)
        return ReadManifest(_parse(document, address), signature is not None, key is not None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(address, "its manifest is none") from error


def _sign(document: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, dump_json(document).encode(), hashlib.sha256).hexdigest()


def _verify(document: dict[str, Any], signature: Any, key: bytes, address: str) -> None:
    if signature is None:
        raise IntegrityFault(
            f"The snapshot at {address} is not signed.",
            hint=("sign it with ", Command("snapshot", key="FILE"), ", or pull it unsigned without ", Flag("key")),
        )
    if signature["algorithm"] != ALGORITHM or not hmac.compare_digest(str(signature["value"]), _sign(document, key)):
        raise IntegrityFault(
            f"The snapshot at {address} is not signed with this key, or its manifest was changed.",
            hint=("use the key file that ", Command("snapshot"), " was given; nothing was changed here"),
        )


def _parse(document: dict[str, Any], address: str) -> SnapshotManifest:
    """Raises TypeError, ValueError, KeyError or AttributeError for malformed values."""
    if document.pop("format") != FORMAT_NAME:
        raise ValueError
    version, schema = document.pop("version"), document["schema"]
    if (version, schema) != (FORMAT_VERSION, SCHEMA_VERSION):
        raise IntegrityFault(
            f"The snapshot at {address} has format {version!r:.20} and schema {schema!r:.20}; this mta reads format "
            f"{FORMAT_VERSION} and schema {SCHEMA_VERSION}.",
            hint="use the same version of mta here and where the snapshot is made",
        )
    manifest = SnapshotManifest(**document)
    for digest, size in manifest.sizes.items():
        if not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise _damaged(address, f"{digest[:80]!r} is not a digest with a size")
    texts = (manifest.created, manifest.program, *(manifest.tasks or ()), *manifest.counts)
    if not all(type(text) is str for text in texts) or not all(type(n) is int for n in manifest.counts.values()):
        raise TypeError
    if manifest.registry not in manifest.sizes or type(manifest.hashed_names) is not bool:
        raise _damaged(address, "it has no registry")
    return manifest


def _damaged(address: str, why: str) -> IntegrityFault:
    return IntegrityFault(
        f"{address} is damaged or no snapshot: {why}.", hint=(Command("snapshot", "TO"), " makes one anew")
    )
