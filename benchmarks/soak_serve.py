"""`python -m benchmarks.soak_serve --store DIR`: a running server under clients that come, leave and are killed.

Prints memory, threads, open files and rows once a minute, and fails if an answer is lost or one of these grows.
`--remove USER` removes a user half-way. Only this changes the store; use a copy. `--half-sent N` keeps N requests open
whose headers never end, on a server that may open 1,024 files.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import Any

import httpx

STREAM = """
import httpx
headers = {{"content-type": "application/json"}}
with httpx.stream("POST", {url!r}, content={body!r}, headers=headers, timeout=60) as got:
    for line in got.iter_lines():
        print(line, flush=True)
"""
MOST_GROWTH = 1.05  # of memory, in the last third of the time


class Server:
    """The process that is watched."""

    def __init__(self, store: str, *more: str) -> None:
        command = [sys.executable, "-m", "mta_cli", "--store", store, "serve", "--port", "0", "--streams", "1000"]
        command += more
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def state(self) -> dict[str, float]:
        """Memory in MB, threads, open files, and the server's metrics."""
        folder = f"/proc/{self.process.pid}"
        with open(f"{folder}/status") as file:
            status = dict(line.split(":", 1) for line in file if ":" in line)
        lines = httpx.get(f"{self.url[:-3]}/metrics", timeout=60).text.splitlines()
        metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {
            "MB": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "files": len(os.listdir(f"{folder}/fd")),
            "rows": float(metrics["mta_batch_size"]),
            "waiting": float(metrics["mta_waiting"]),
            "tokens": float(metrics["mta_answer_tokens_total"]),
        }


def client(
    url: str, users: list[str], ends: float, seed: int, counts: Counter[str], seconds: dict[str, list[float]]
) -> None:
    """Send requests until the time is over: whole answers, streams, abandoned streams, and requests that time out."""
    draw = random.Random(seed)
    while time.monotonic() < ends:
        kind, user = draw.choice(("whole", "stream", "leave", "timeout")), draw.choice(users)
        body: dict[str, Any] = {
            "model": user,
            "messages": [{"role": "user", "content": "word " * draw.randrange(1, 200)}],
            "max_tokens": draw.randrange(1, 60),
            "temperature": draw.choice((0, 1)),
        }
        began = time.monotonic()
        try:
            if kind == "whole":
                answered = httpx.post(f"{url}/chat/completions", json=body, timeout=300)
                counts[f"whole {answered.status_code}"] += 1
            elif kind == "timeout":
                httpx.post(f"{url}/chat/completions", json=body, timeout=draw.uniform(0.05, 0.5))
            else:
                body["stream"] = True
                with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=300) as got:
                    lines = got.iter_lines()
                    pieces = list(itertools.islice(lines, 1))
                    seconds["first piece"].append(time.monotonic() - began)
                    pieces += itertools.islice(lines, 2 if kind == "leave" else None)
                ended = kind == "leave" or got.status_code != 200 or any("[DONE]" in line for line in pieces[-2:])
                counts[f"{kind} {got.status_code if ended else 'cut'}"] += 1
            if kind in ("whole", "stream"):
                seconds["answer"].append(time.monotonic() - began)
        except httpx.HTTPError as error:
            counts[f"{kind} {type(error).__name__}"] += 1


def killed_clients(url: str, users: list[str], ends: float) -> None:
    """Processes that ask for a stream and are killed in the middle of it."""
    while time.monotonic() < ends:
        body = json.dumps({"model": users[0], "messages": [{"role": "user", "content": "Hi"}], "stream": True})
        script = STREAM.format(url=f"{url}/chat/completions", body=body)
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
        time.sleep(1)


def half_sent_requests(url: str, count: int, ends: float, counts: Counter[str]) -> None:
    """Keep `count` requests open whose headers never end. Each is sent again when the server has closed it."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")

    async def send() -> None:
        while time.monotonic() < ends:
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nX-a: ")
                counts["half-sent"] += 1
                async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                    await reader.read()
                writer.close()
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(random.random())

    async def all_of_them() -> None:
        await asyncio.gather(*(send() for _ in range(count)))

    asyncio.run(all_of_them())


def ask_for_health(url: str, ends: float, counts: Counter[str], seconds: dict[str, list[float]]) -> None:
    """Request `/health` about four times a second."""
    while time.monotonic() < ends:
        began = time.monotonic()
        try:
            counts[f"health {httpx.get(f'{url[:-3]}/health', timeout=10).status_code}"] += 1
            seconds["health"].append(time.monotonic() - began)
        except httpx.HTTPError as error:
            counts[f"health {type(error).__name__}"] += 1
        time.sleep(0.25)


def percentiles(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Number, median and 99th percentile of each list."""
    found = {}
    for name, times in seconds.items():
        ordered = sorted(times)
        at = {name: ordered[int(part * (len(ordered) - 1))] for name, part in (("p50", 0.5), ("p99", 0.99))}
        found[name] = {"n": len(ordered), **{name: round(value, 3) for name, value in at.items()}}
    return found


def main() -> None:
    """Run and print; fails if an answer is lost, or if memory, threads or open files grow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--remove", default="")
    parser.add_argument("--half-sent", type=int, default=0)
    asked = parser.parse_args()
    server, counts, seconds = Server(asked.store), Counter[str](), defaultdict[str, list[float]](list)
    listed = [one["id"] for one in httpx.get(f"{server.url}/models", timeout=60).json()["data"]]
    users, ends = [name for name in listed if name != asked.remove], time.monotonic() + 60 * asked.minutes
    threads = [
        threading.Thread(target=client, args=(server.url, listed if n % 4 == 0 else users, ends, n, counts, seconds))
        for n in range(asked.clients)
    ]
    threads.append(threading.Thread(target=ask_for_health, args=(server.url, ends, counts, seconds)))
    if asked.half_sent:
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        given = (server.url, asked.half_sent, ends, counts)
        threads.append(threading.Thread(target=half_sent_requests, args=given))
    threads.append(threading.Thread(target=killed_clients, args=(server.url, users, ends)))
    for thread in threads:
        thread.start()
    states, removed = [server.state()], not asked.remove
    while time.monotonic() < ends:
        time.sleep(min(60.0, max(0.1, ends - time.monotonic())))
        states.append(server.state())
        print(json.dumps({**states[-1], "counts": dict(counts)}), flush=True)
        if not removed and len(states) > asked.minutes / 2:
            command = [sys.executable, "-m", "mta_cli", "--store", asked.store, "user", "rm", asked.remove, "--yes"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert "does not answer" not in done.stderr
            gone = httpx.post(
                f"{server.url}/chat/completions",
                json={"model": asked.remove, "messages": [{"role": "user", "content": "Hi"}]},
                timeout=60,
            )
            assert gone.status_code == 404
            removed = True
    for thread in threads:
        thread.join()
    time.sleep(1)
    last = server.state()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(60)
    told = {"first": states[0], "last": last, "counts": dict(counts), "seconds": percentiles(seconds), "exit": code}
    print(json.dumps(told))
    settled = states[2 * len(states) // 3]  # by then the caches are full
    assert code == 0 and last["rows"] == last["waiting"] == 0
    assert last["MB"] < MOST_GROWTH * settled["MB"] and last["threads"] <= settled["threads"] + 2
    assert last["files"] <= states[0]["files"] + 4, "a descriptor stays open"
    kinds = ("whole", "stream", "leave", "health")
    lost = [name for name in counts if name.split()[0] in kinds and not name.split()[1].isdigit()]
    assert not lost and not (any(" 5" in name for name in counts) and not asked.remove)


if __name__ == "__main__":
    main()
