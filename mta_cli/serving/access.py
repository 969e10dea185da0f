"""Access control: keys, or a check of the `Host` header if no keys are needed."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mta_cli.pipeline.users.serve_keys import Key, KeyFile
from mta_cli.serving.errors import ApiError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# The most requests that may wait for the slow hash of one key. Only keys made by earlier versions have a slow hash, by
# scrypt.
MAX_CHECKS = 16
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(:[0-9]{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Checks who may send requests to one server. `read_keys` reads the file of keys.

    Requests need a key if this file exists, even if it holds no keys, or if `host` is not a loopback address. Otherwise
    every program on this machine may send requests.
    """

    def __init__(self, host: str, read_keys: Callable[[], KeyFile]) -> None:
        self._host, self._read_keys = host, read_keys
        self.keys = read_keys()
        self._needs_key = self.keys.is_there or not is_loopback(host)
        self._check_thread, self._checks = ThreadPoolExecutor(1, thread_name_prefix="keys"), Counter[str]()

    def reread(self) -> None:
        """Read the file of keys again. If requests needed a key before, they still do, even if the file is gone."""
        found = self._read_keys()
        found.verified = self.keys.verified
        self.keys = found
        self._needs_key = self._needs_key or self.keys.is_there

    def refuse_foreign_host(self, header: str | None) -> None:
        """Raises ApiError if no key is needed and the `Host` header names another host.

        This stops DNS rebinding: a web page whose host name is made to resolve to this machine.
        """
        # the header is `host`, `host:port` or `[address]:port`
        match = _HOST.fullmatch((header or "").strip().lower())
        name = match[1].strip("[]") if match else ""
        if not self._needs_key and name not in (*LOOPBACK_NAMES, self._host):
            raise ApiError(403, "The Host header does not name this machine: use localhost.", code="forbidden_host")

    async def find_key(self, header: str | None) -> Key | None:
        """The key of an `Authorization` header; None if no key is needed. Raises ApiError if it is missing or wrong."""
        if not self._needs_key:
            return None
        scheme, _, token = (header or "").partition(" ")
        key = await self._find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise ApiError(401, "The key is missing or wrong: send Authorization: Bearer KEY.", code="invalid_api_key")
        return key

    async def _find(self, token: str) -> Key | None:
        """The stored key that `token` matches; None if there is none. A slow hash is computed in a thread.

        Raises ApiError if `MAX_CHECKS` requests with the same key already wait for its slow hash.
        """
        if (slow := self.keys.slow_key(token)) is None:
            return self.keys.find(token)
        if self._checks[slow] >= MAX_CHECKS:
            raise ApiError(
                429,
                f"{MAX_CHECKS} requests already wait for the check of this key: try again later.",
                code="too_many_keys",
            )
        self._checks[slow] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._check_thread, self.keys.find, token)
        finally:
            self._checks[slow] -= 1
