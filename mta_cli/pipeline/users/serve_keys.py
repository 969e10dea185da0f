"""API keys of the server and the users whose models each may ask. The file stores only hashes of keys and names.

A key is `mta-ID-SECRET`. Its secret has 256 random bits, so SHA-256 with the key's salt hides it; earlier versions
hashed it by scrypt (RFC 7914). A user's name is hashed by SHA-256 with the file's salt.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from mta_cli.errors import BadInput, Command, IntegrityFault, NotFound, system_reason
from mta_cli.plain_file import refuse_special_file
from store.files import atomic_write
from store.process_lock import job_lock

FILE_NAME = "serve-keys.json"
FILE_LOCK = "keys of the server"  # held by a process that changes the file in the store
MAX_FILE_BYTES = 16 * 2**20
EVERYBODY = "*"  # in place of the hashes of names in a key: all users
_KEY_PATTERN = re.compile(r"mta-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_LABEL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_FAST = "sha256:"  # the prefix of a key's hash, unless an earlier version made the key


class Key(msgspec.Struct, frozen=True):
    """A key of the server as stored. `users` are hashes of names, or only `*` for all users."""

    id: str
    label: str
    salt: str
    hash: str
    users: tuple[str, ...]


class _Content(msgspec.Struct):
    format: Literal["mta-keys-1"]
    salt: str
    keys: list[Key]


class KeyFile:
    """The keys of a file at the time of reading."""

    def __init__(self, salt: str, keys: Iterable[Key] = (), *, is_there: bool = True) -> None:
        self.is_there = is_there
        self._salt, self._keys = salt, {key.id: key for key in keys}
        self.verified: dict[str, str] = {}  # of keys that were found: the SHA-256 hash by the scrypt hash

    @classmethod
    def read(cls, path: Path) -> KeyFile:
        """Read the keys in a file; a missing file has none. Raises IntegrityFault if it is not a file of keys."""
        try:
            refuse_special_file(path)
            with path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return cls(secrets.token_hex(16), is_there=False)
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {system_reason(error)}") from error
        try:
            found = msgspec.json.decode(text, type=_Content)
            return cls(found.salt, found.keys)
        except ValueError as error:
            raise IntegrityFault(
                f"{path} is not a file of keys.",
                hint=("move it away, then make new keys with ", Command("serve key add", "LABEL", users="USERS")),
            ) from error

    def write(self, path: Path) -> None:
        """Replace the file, readable by its owner alone. Raises the errors of `atomic_write`."""
        content = msgspec.json.encode(_Content("mta-keys-1", self._salt, self.keys))
        atomic_write(path, msgspec.json.format(content, indent=1))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> list[Key]:
        """All keys, oldest first."""
        return list(self._keys.values())

    def add(self, label: str, users: Sequence[str] | None) -> str:
        """Make a key for the models of these users (None for all) and return it. Only its hash is stored."""
        if not _LABEL_PATTERN.fullmatch(label):
            raise BadInput(
                f"{label!r:.60} cannot be the name of a key.",
                hint="Use letters, digits, `.`, `_` and `-`, 40 characters at most.",
            )
        if any(key.label == label for key in self._keys.values()):
            raise BadInput(
                f"There is already a key named {label}.",
                hint=("choose another name, or first remove that key with ", Command("serve key rm", label)),
            )
        number, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
        named = (EVERYBODY,) if users is None else tuple(sorted(self.name_hash(name) for name in users))
        self._keys[number] = Key(number, label, salt, _hash(secret, salt), named)
        return f"mta-{number}-{secret}"

    def remove(self, label: str) -> None:
        """Remove the key of this name. Raises NotFound if there is none."""
        found = next((key for key in self._keys.values() if key.label == label), None)
        if found is None:
            raise NotFound(f"There is no key named {label!r:.60}.", hint=Command("serve key list"))
        del self._keys[found.id]

    def drop_users(self, names: Iterable[str]) -> bool:
        """Remove these users from all keys; returns whether any key had one. A key without users opens no model."""
        gone = set(map(self.name_hash, names))
        left = {
            number: msgspec.structs.replace(key, users=tuple(user for user in key.users if user not in gone))
            for number, key in self._keys.items()
        }
        changed, self._keys = left != self._keys, left
        return changed

    def find(self, token: str) -> Key | None:
        """The key of `token`; None if it is wrong. The first search for a key of an earlier version takes long."""
        key, secret = self._parse(token)
        if key is None:
            return None
        fast, known = _hash(secret, key.salt), self.verified.get(key.hash, key.hash)
        if not known.startswith(_FAST) and hmac.compare_digest(known, _scrypt(secret, key.salt)):
            self.verified[key.hash] = known = fast
        return key if hmac.compare_digest(known, fast) else None

    def slow_key(self, token: str) -> str | None:
        """The id of the key of `token` if `find` would take long for it; otherwise None."""
        key, _ = self._parse(token)
        return None if key is None or self.verified.get(key.hash, key.hash).startswith(_FAST) else key.id

    def _parse(self, token: str) -> tuple[Key | None, str]:
        """The key that the token names, and the secret to compare."""
        match = _KEY_PATTERN.fullmatch(token)
        return (self._keys.get(match[1]), match[2]) if match else (None, "")

    def allows(self, key: Key, name: str) -> bool:
        """Whether the key may ask the models of the user of this name."""
        return key.users == (EVERYBODY,) or self.name_hash(name) in key.users

    def name_hash(self, name: str) -> str:
        """The stored hash of a user's name."""
        text = unicodedata.normalize("NFC", name)  # the store's form of names
        return hashlib.sha256(f"{self._salt}\0{text}".encode()).hexdigest()


def drop_from_keys(root: Path, names: Iterable[str]) -> Callable[[], None]:
    """Remove these names from all keys of the store `root`, so that a later user of such a name is not accessible.

    Returns a function that undoes it unless the file has changed since. Both raise StoreBusy while another process
    changes the file, and the errors of `KeyFile.read` and `KeyFile.write`.
    """
    path = root / FILE_NAME
    if not path.exists():
        return lambda: None
    with job_lock(root, FILE_LOCK, timeout=10):
        keys, before = KeyFile.read(path), path.read_bytes()
        if keys.drop_users(names):
            keys.write(path)
        after = path.read_bytes()

    def put_back() -> None:
        with job_lock(root, FILE_LOCK, timeout=10):
            if path.exists() and path.read_bytes() == after:
                atomic_write(path, before)

    return put_back


def _hash(secret: str, salt: str) -> str:
    return _FAST + hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _scrypt(secret: str, salt: str) -> str:
    return hashlib.scrypt(secret.encode(), salt=salt.encode(), n=2**14, r=8, p=1, dklen=32).hex()
