"""A hub on this machine for huggingface_hub's own client: one repository that is a folder, with faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub holds and how it fails; `asked` are the requests: method, path and the Range header."""

    folder: Path
    repository: str = "org/tiny"
    commit: str = COMMIT
    extra_files: tuple[str, ...] = ()  # listed only
    wrong_file: str = ""  # sent with its last byte changed
    cut_file: str = ""  # the first answer ends after `cut_at` bytes
    cut_at: int = 0
    refuse_files: int = 0  # the status of every file
    refuse_listing: int = 0  # the status of the listing
    error_code: str = "GatedRepo"  # what the hub says of both
    silent: bool = False  # it takes requests and never answers
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)  # bytes by file

    def digest(self, file: str) -> str:
        """The SHA-256 that the hub announces for a file."""
        return hashlib.sha256((self.folder / file).read_bytes()).hexdigest()

    def listing(self) -> dict[str, Any]:
        """The answer of `/api/models/ORG/NAME`, with the metadata of files."""
        siblings: list[dict[str, Any]] = [{"rfilename": name, "size": 10} for name in self.extra_files]
        for path in sorted(self.folder.iterdir()):
            one: dict[str, Any] = {"rfilename": path.name, "size": path.stat().st_size, "blobId": "0" * 40}
            if path.suffix == ".safetensors":
                one["lfs"] = {"sha256": self.digest(path.name), "size": path.stat().st_size, "pointerSize": 134}
            siblings.append(one)
        return {
            "id": self.repository,
            "sha": self.commit,
            "siblings": siblings,
            "cardData": {"license": "mit"},
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def tree(self) -> list[dict[str, Any]]:
        """The answer of `/api/models/ORG/NAME/tree/REVISION`."""
        entries = []
        for sibling in self.listing()["siblings"]:
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": "0" * 40}
            if "lfs" in sibling:
                entry["lfs"] = {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 134}
            entries.append(entry)
        return entries


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        while hub.silent:
            time.sleep(0.05)
        models = f"/api/models/{hub.repository}"
        file = re.fullmatch(rf"/{hub.repository}/resolve/([^/]+)/(.+)", path)
        if path in (models, f"{models}/revision/main", f"{models}/revision/{hub.commit}"):
            self._send_json(hub.refuse_listing, hub.listing())
        elif path.startswith(f"{models}/tree/"):
            self._send_json(hub.refuse_listing, hub.tree())
        elif path.startswith(f"{models}/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif file is None:
            self._refuse(404, "RepoNotFound")
        elif hub.refuse_files:
            self._refuse(hub.refuse_files, hub.error_code)
        else:
            self._send_file(file[2])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, refused: int, content: Any) -> None:
        if refused:
            self._refuse(refused, self.hub.error_code)
            return
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, name: str) -> None:
        hub, body = self.hub, (self.hub.folder / name).read_bytes()
        whole, digest = len(body), hub.digest(name)
        if name == hub.wrong_file:
            body = body[:-1] + bytes([body[-1] ^ 1])
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("X-Linked-ETag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(whole))
        self.send_header("Content-Length", str(whole - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        self.end_headers()
        if self.command == "HEAD":
            return
        last = whole
        if name == hub.cut_file and first == 0:
            last, self.close_connection = hub.cut_at, True
        self.wfile.write(body[first:last])
        hub.sent[name] = hub.sent.get(name, 0) + last - first


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """`hub` at an address of this machine, `hub.url`, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.silent = False
        server.shutdown()
        server.server_close()
        thread.join()
