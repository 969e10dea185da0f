"""`mta serve` with open streams of different users, beside `generate` and PEFT's `set_adapter` for one after another.

Both sides have the same random LoRAs, prompts and number of tokens. Ours is a process of its own that is asked over the
loopback address; theirs is called in this process, without HTTP, which is to its advantage.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import harness, personal
from tests.bench import rival_answers as rival

OURS, THEIRS = "mta serve", "PEFT set_adapter, one by one, no HTTP"
TASK, SHOWN = "free", 3
THEIR_MOST = 4  # answers of theirs that are timed; its rate does not depend on how many wait


@dataclass(frozen=True)
class Stream:
    """One answer: seconds to its first token, the gaps between its pieces, and how many tokens it has."""

    first: float
    gaps: tuple[float, ...]
    tokens: int


def make_store(root: Path, count: int) -> tuple[list[str], Any]:
    """A store in which every user has a stack of their own; returns their names and the LoRAs."""
    from mta_cli.pipeline.data.tasks import find_task
    from store.records import Adapter, ModelRecord, Stack
    from store.registry import Registry

    base, entry = harness.load(), harness.base_entry()
    weights, names = personal.adapters(base.model, count), [f"user{n}" for n in range(count)]
    with Registry.open(root, create=True) as reg:
        find_task(reg, TASK)
        reg.models.save_model(ModelRecord(entry.fingerprint, entry.name, "base"))
        bank = reg.banks.get_or_create_bank(
            name="bench", key="k", task=TASK, base=entry.fingerprint, embedder="e", seed=0, config={}
        )
        reg.banks.mark_bank_ready(bank.id, 1, 1.0)
        for name, own in zip(names, weights, strict=True):
            header = {"kind": "stack", "base": entry.fingerprint, "rank": own.rank, "alpha": own.scale * own.rank}
            digest, size = reg.files.write(own.cast_for_storage().to_bytes(header))
            rest = {"task_adapter": None, "targets": "all-linear", "dtype": "float16", "seed": 0, "data_hash": ""}
            adapter = Adapter(digest=digest, placement=str(own.placement), bytes=size, **header, **rest)
            user = reg.users.add(name)
            with reg.transaction():
                reg.adapters.add_adapter(adapter)
                reg.stacks.save_stack(Stack(user.id, TASK, bank.id, digest, 5, 1, 1.0, 1.0, (), size))
    return names, weights


@contextmanager
def server(root: Path, batch: int) -> Iterator[str]:
    """A running server; its address."""
    command = [sys.executable, "-m", "mta_cli", "--store", str(root), "serve", "--port", "0"]
    command += ["--max-batch", str(batch), "--streams", "10000", "--history-items", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def ask_all(url: str, users: Sequence[str], texts: Sequence[str], tokens: int) -> tuple[float, list[Stream]]:
    """All answers at once, and how long that took."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(user: str, text: str) -> Stream:
            body = {
                "model": user,
                "messages": [{"role": "user", "content": text}],
                "stream": True,
                "max_tokens": tokens,
                "stream_options": {"include_usage": True},
            }
            began, times, counted = time.perf_counter(), list[float](), 0
            async with client.stream("POST", "/chat/completions", json=body) as answered:
                answered.raise_for_status()
                async for line in answered.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    piece = json.loads(line[6:])
                    counted = piece.get("usage", {}).get("completion_tokens", counted)
                    if piece["choices"] and piece["choices"][0]["delta"].get("content"):
                        times.append(time.perf_counter())
            gaps = tuple(b - a for a, b in itertools.pairwise(times))
            return Stream((times[0] if times else time.perf_counter()) - began, gaps, counted)

        began = time.perf_counter()
        found = await asyncio.gather(*(one(user, text) for user, text in zip(users, texts, strict=True)))
        return time.perf_counter() - began, found


def row(streams: int, runs: Sequence[tuple[float, Sequence[Stream]]]) -> dict[str, Any]:
    """The medians over runs for one number of streams."""
    seconds = statistics.median(run[0] for run in runs)
    tokens = statistics.median(sum(one.tokens for one in run[1]) for run in runs)
    gaps = sorted(gap for run in runs for one in run[1] for gap in one.gaps) or [0.0]
    firsts = [one.first for run in runs for one in run[1]]
    return {
        "streams": streams,
        "side": OURS,
        "tokens/s": tokens / seconds,
        "first token s": statistics.median(firsts),
        "gap ms": 1000 * statistics.median(gaps),
        "gap p99 ms": 1000 * gaps[int(0.99 * (len(gaps) - 1))],
        "tokens": int(tokens),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,4,16,64")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    counts = [int(number) for number in asked.streams.split(",")]
    most = max(counts)
    people = harness.people(most, 8)
    texts = [person.queries[0].input for person in people]
    with tempfile.TemporaryDirectory() as folder:
        names, weights = make_store(Path(folder) / "store", most)
        rows = []
        with server(Path(folder) / "store", most) as url:
            asyncio.run(ask_all(url, names, texts, 4))  # every model is in memory
            for count in counts:
                runs = [
                    asyncio.run(ask_all(url, names[:count], texts[:count], asked.tokens)) for _ in range(asked.repeats)
                ]
                rows.append(row(count, runs))
        entry = harness.base_entry()
        own = personal.folders(weights[:THEIR_MOST], entry, Path(folder) / "peft")
        model = rival.with_adapters(entry.path, own, "bfloat16")
        prompts = [_prompt(text) for text in texts[:THEIR_MOST]]
        timed = harness.interleave(
            {THEIRS: lambda: rival.answer_each(model, prompts, asked.tokens, users=list(own)).ids}, asked.repeats
        )[THEIRS]
        seconds, tokens = harness.median_seconds(timed), sum(len(ids) for ids in timed[-1].value)
    theirs = tokens / seconds
    for count, one in zip(counts, list(rows), strict=True):
        one["times theirs"] = one["tokens/s"] / theirs
        wait = (count + 1) / 2 * seconds / len(prompts)  # the median answer waits for half of the others
        rows.append({"streams": count, "side": THEIRS, "tokens/s": theirs, "answer s": wait, "times theirs": 1.0})
    harness.report("serve", rows, load=os.getloadavg()[0])


def _prompt(text: str) -> list[int]:
    from mta_cli.engine.text.prompts import PromptBuilder
    from mta_cli.engine.text.tasks import BUILTIN_TASKS

    base = harness.load()
    return PromptBuilder(base.tokenizer, BUILTIN_TASKS[TASK], base.end_ids).chat_ids(
        [{"role": "user", "content": text}]
    )


if __name__ == "__main__":
    main()
