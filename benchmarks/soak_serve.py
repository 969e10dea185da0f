"""`python -m benchmarks.soak_serve --store DIR`: a running server under clients that come, leave and are killed.

Prints memory, threads, open files and rows once a minute, and fails if an answer is lost or one of these grows.
`--remove USER` removes a user half-way. Only this changes the store; use a copy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
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
        lines = httpx.get(f"{self.url[:-3]}/metrics").text.splitlines()
        metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {
            "MB": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "files": len(os.listdir(f"{folder}/fd")),
            "rows": float(metrics["mta_batch_size"]),
            "waiting": float(metrics["mta_waiting"]),
            "tokens": float(metrics["mta_answer_tokens_total"]),
        }


def client(url: str, users: list[str], ends: float, seed: int, counts: Counter[str]) -> None:
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
        try:
            if kind == "whole":
                answered = httpx.post(f"{url}/chat/completions", json=body, timeout=300)
                counts[f"whole {answered.status_code}"] += 1
            elif kind == "timeout":
                httpx.post(f"{url}/chat/completions", json=body, timeout=draw.uniform(0.05, 0.5))
            else:
                body["stream"] = True
                with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=300) as got:
                    pieces = list(itertools.islice(got.iter_lines(), 3 if kind == "leave" else None))
                ended = kind == "leave" or got.status_code != 200 or any("[DONE]" in line for line in pieces[-2:])
                counts[f"{kind} {got.status_code if ended else 'cut'}"] += 1
        except httpx.HTTPError as error:
            counts[type(error).__name__] += 1


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


def main() -> None:
    """Run, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--remove", default="")
    asked = parser.parse_args()
    server, counts = Server(asked.store), Counter[str]()
    listed = [one["id"] for one in httpx.get(f"{server.url}/models", timeout=60).json()["data"]]
    users, ends = [name for name in listed if name != asked.remove], time.monotonic() + 60 * asked.minutes
    threads = [
        threading.Thread(target=client, args=(server.url, listed if n % 4 == 0 else users, ends, n, counts))
        for n in range(asked.clients)
    ]
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
    print(json.dumps({"first": states[0], "last": last, "counts": dict(counts), "exit": code}))
    settled = states[2 * len(states) // 3]  # by then the caches are full
    assert code == 0 and last["rows"] == last["waiting"] == 0
    assert last["MB"] < MOST_GROWTH * settled["MB"] and last["threads"] <= settled["threads"] + 2
    assert last["files"] <= states[0]["files"] + 4, "a descriptor stays open"
    assert not [name for name in counts if "cut" in name or (" 5" in name and not asked.remove)]


if __name__ == "__main__":
    main()
