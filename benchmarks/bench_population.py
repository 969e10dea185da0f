"""`python -m benchmarks.bench_population --store DIR`: one server, a thousand users, and a cache for few of them.

The users are copies of the adapted ones in DIR, each with a LoRA of their own, in a copy of that store. Requests come
for users drawn by Zipf's law, for a while, from clients that each wait for their answer. Then it asks new users, one at
a time and twice each. The first answer's extra time is the cost of serving a user for the first time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks import harness
from benchmarks.soak_serve import Server

EXPONENT = 1.0  # of Zipf's law
NEW_USERS = 20  # asked at the end, who were never asked before
MAX_TOKENS = 16


def populate(root: Path, count: int, seed: int) -> list[str]:
    """Add `count` users, each with an adapted user's recipe and a changed stack; returns the names of their models."""
    from dataclasses import replace

    import torch

    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.pipeline.user_weights import load_weights
    from store.registry import Registry

    draw = torch.Generator().manual_seed(seed)
    with Registry.open(root) as reg:
        known = [
            (user, stack)
            for user in map(reg.users.get, reg.users.names())
            for task, _, _ in reg.users.tasks_of_user(user.id)
            for bank in reg.banks.all()
            if (stack := reg.stacks.get(user.id, task, bank.id)) is not None and stack.numbers is None
        ]
        if not known:
            raise SystemExit("The store has no user with a LoRA as stack. First: mta user adapt")
        models = []
        for number, (model, stack) in zip(range(count), itertools.cycle(known), strict=False):
            row = reg.adapters.get(stack.digest)
            kept = load_weights(reg, row.digest, row.base)
            factors = {
                path: (a, b * (1 + 0.2 * torch.randn(b.shape, generator=draw, dtype=torch.float32)).to(b.dtype))
                for path, (a, b) in kept.factors.items()
            }
            header = {"kind": "stack", "base": row.base, "task_adapter": row.task_adapter}
            own, _ = reg.adapters.write_file(LoraWeights(factors, kept.scale, kept.placement).to_bytes(header))
            recipe = reg.recipes.get(model.id, stack.task, stack.bank_id)
            assert recipe is not None
            user = reg.users.add(f"reader {number}")
            models.append(f"{user.name}/{stack.task}")
            with reg.transaction():
                reg.recipes.save_recipe(replace(recipe, user_id=user.id))
                reg.adapters.add_adapter(replace(row, digest=own))
                reg.stacks.save_stack(replace(stack, user_id=user.id, digest=own))
    return models


def client(url: str, models: list[str], weights: list[float], ends: float, seed: int, taken: list[Any]) -> None:
    """Ask for one user after another until the time is over."""
    draw = random.Random(seed)
    with httpx.Client(timeout=300) as http:
        while time.monotonic() < ends:
            (model,) = draw.choices(models, weights)
            began = time.perf_counter()
            answered = http.post(f"{url}/chat/completions", json=question(model, draw.randrange(10**6)))
            taken.append((model, answered.status_code, time.perf_counter() - began))


def question(model: str, number: int) -> dict[str, Any]:
    """A request whose question is new for each `number`."""
    text = f"Note {number}: the lift is out of order again, and the shop round the corner has closed."
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS}


def metrics_of(server: Server) -> dict[str, float]:
    """The server's numbers by name."""
    lines = httpx.get(f"{server.url[:-3]}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def first_and_again(server: Server, models: list[str]) -> tuple[list[float], list[float]]:
    """Seconds of each model's first answer and of its second."""
    times = list[list[float]]()
    for number, model in enumerate(models):
        pair = []
        for turn in range(2):
            began = time.perf_counter()
            body = question(model, 10**6 * (turn + 1) + number) | {"max_tokens": 1}
            httpx.post(f"{server.url}/chat/completions", json=body, timeout=60).raise_for_status()
            pair.append(time.perf_counter() - began)
        times.append(pair)
    return [one[0] for one in times], [one[1] for one in times]


def main() -> None:
    """Run and report; fails if a request failed, or if memory grew by 5 % or more in the second half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--cache", type=int, default=64, help="megabytes, half of them for models")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        shutil.copytree(asked.store, root)
        models = populate(root, asked.users, 0)
        server = Server(str(root), "--cache", str(asked.cache), "--streams", "1000")
        fresh, often = models[:NEW_USERS], models[NEW_USERS:]
        weights = [1 / (rank + 1) ** EXPONENT for rank in range(len(often))]
        taken, states = list[Any](), [server.state()]
        ends = time.monotonic() + asked.seconds
        threads = [
            threading.Thread(target=client, args=(server.url, often, weights, ends, seed, taken))
            for seed in range(asked.clients)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < ends:
            time.sleep(min(asked.seconds / 12, max(0.1, ends - time.monotonic())))
            states.append(server.state())
        for thread in threads:
            thread.join()
        numbers = metrics_of(server)
        first, again = first_and_again(server, fresh)
        server.process.terminate()
        assert server.process.wait(60) == 0
    seconds = sorted(took for _, _, took in taken)
    hits, misses = numbers["mta_model_hits"], numbers["mta_model_misses"]
    row = {
        "users": asked.users,
        "asked": len({model for model, _, _ in taken}),
        "answers": len(taken),
        "not answered": sum(status != 200 for _, status, _ in taken),
        "answers/s": len(taken) / asked.seconds,
        "tokens/s": states[-1]["tokens"] / asked.seconds,
        "median s": statistics.median(seconds),
        "p99 s": seconds[int(0.99 * (len(seconds) - 1))],
        "models in memory": numbers["mta_models"],
        "found in memory": hits / (hits + misses),
        "MB begin": states[0]["MB"],
        "MB half-way": states[len(states) // 2]["MB"],
        "MB end": states[-1]["MB"],
    }
    new = {
        "first ms": 1000 * statistics.median(first),
        "again ms": 1000 * statistics.median(again),
        "a model MB": numbers["mta_model_bytes"] / numbers["mta_models"] / 2**20,
    }
    statuses = Counter(status for _, status, _ in taken)
    memory = [round(state["MB"]) for state in states]
    harness.report("population", [row], new_user=new, memory_mb=memory, statuses=dict(statuses), cache_mb=asked.cache)
    print(json.dumps(new))
    assert set(statuses) == {200} and states[-1]["MB"] < 1.05 * states[len(states) // 2]["MB"]


if __name__ == "__main__":
    main()
