"""Runs a server in a thread, and asks it by plain HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from mta_cli.options import ServeOptions
from mta_cli.pipeline.requests import ChatOptions
from store.registry import Registry
from tests.pipeline.world import World, asking, make_world


@dataclass
class Running:
    """A running server; `url` ends in `/v1`."""

    url: str
    service: Any
    access: Any
    jobs: Any
    root: Path
    stop: Callable[[], None]
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **settings: Any) -> httpx.Response:
        """GET a path behind `/v1`."""
        return httpx.get(self.url + path, headers=self.headers | settings.pop("headers", {}), timeout=60, **settings)

    def post(self, path: str, body: Any, **settings: Any) -> httpx.Response:
        """POST a JSON body to a path behind `/v1`."""
        headers = {"content-type": "application/json"} | self.headers | settings.pop("headers", {})
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return httpx.post(self.url + path, content=content, headers=headers, timeout=60, **settings)

    def chat(self, model: str, text: str, **parameters: Any) -> dict[str, Any]:
        """One answer, which must come."""
        answered = self.post("/chat/completions", ask(model, text, **parameters))
        assert answered.status_code == 200, answered.text
        found: dict[str, Any] = answered.json()
        return found

    def text(self, model: str, text: str, **parameters: Any) -> str:
        """The text of one answer."""
        return str(self.chat(model, text, **parameters)["choices"][0]["message"]["content"])

    def stream(self, body: dict[str, Any], path: str = "/chat/completions") -> list[dict[str, Any]]:
        """The pieces of a stream, which must end as it should."""
        return list(self.pieces(body, path))

    def pieces(self, body: dict[str, Any], path: str = "/chat/completions") -> Iterator[dict[str, Any]]:
        """The pieces of a stream as they come."""
        with httpx.stream(
            "POST", self.url + path, json={**body, "stream": True}, headers=self.headers, timeout=60
        ) as got:
            assert got.status_code == 200, got.read()
            assert got.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in got.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        yield from (json.loads(line.removeprefix("data: ")) for line in lines[:-1])

    def wait_until_idle(self) -> None:
        """Return when nothing is answered; an answer leaves its row just after its end was told."""
        scheduler = self.service._engine
        for _ in range(200):
            if not scheduler._rows and scheduler._reading is None and not scheduler._waiting:
                return
            threading.Event().wait(0.05)
        raise AssertionError("rows are still there")

    @contextmanager
    def full_queue(self) -> Iterator[None]:
        """The scheduler is blocked, and the queue is full."""
        go_on, scheduler = threading.Event(), self.service._engine
        threading.Thread(target=scheduler._call, args=(go_on.wait,), daemon=True).start()
        body = ask("base", "Hi", n=scheduler._max_waiting, max_tokens=1)
        waiting = threading.Thread(target=self.post, args=("/chat/completions", body))
        waiting.start()
        while len(scheduler._waiting) < scheduler._max_waiting:
            threading.Event().wait(0.01)
        try:
            yield
        finally:
            go_on.set()
            waiting.join()

    def open_store(self) -> Registry:
        """The store, for a look at what the server has written."""
        return Registry.open(self.root)


class Process:
    """A server of its own process, ready to answer."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "mta_cli", "serve", "--port", "0", "--dtype", "float32", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), self.process.communicate()[1]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit code and what was said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


def ask(model: str, text: str, **parameters: Any) -> dict[str, Any]:
    """The body of a chat with one message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **parameters}


def run_server(
    root: Path,
    *,
    task: str = "free",
    stacks: str = "upper",
    chat: ChatOptions | None = None,
    options: ServeOptions | None = None,
    keys: Path | None = None,
    write: bool = False,
    prepare: Callable[[World], None] = lambda world: None,
    host: str = "127.0.0.1",
) -> Running:
    """A server on the world of `task`, ready to answer. `prepare` may change the store first."""
    from mta_cli.pipeline.models.installed import resolve_model
    from mta_cli.pipeline.users.serve_keys import KeyFile
    from mta_cli.serving.access import Access
    from mta_cli.serving.jobs import AdaptJobs
    from mta_cli.serving.server import listen, web_server
    from mta_cli.serving.service import Service

    if not (root / "registry.db").exists():
        world = make_world(root, task, stacks)
        prepare(world)
        world.reg.close()
    service = Service(
        lambda: Registry.open(root),
        resolve_model("tiny", "base"),
        chat or asking(),
        options or ServeOptions(),
        "tiny-embedder",
    )
    access = Access(host, lambda: KeyFile.read(keys or root / "serve-keys.json"))
    jobs = AdaptJobs(root, ["--device", "cpu", "--dtype", "float32"]) if write else None
    bound, ready, loops = listen("127.0.0.1", 0), threading.Event(), list[asyncio.AbstractEventLoop]()
    web = web_server(service, access, jobs)
    failed: list[BaseException] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        try:
            await service.start()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            ready.set()
        await web._serve([bound])
        await service.stop(1.0)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(60)
    if failed:
        raise failed[0]
    url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"

    def stop() -> None:
        web.should_exit = True
        thread.join(30)
        if jobs is not None:
            jobs.stop()
        assert not thread.is_alive()

    for _ in range(500):
        try:
            httpx.get(f"{url[:-3]}/health")
            break
        except httpx.ConnectError:
            threading.Event().wait(0.01)
    return Running(url, service, access, jobs, root, stop)
