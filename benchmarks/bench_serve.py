"""`mta serve` with streams of different users, compared with llama.cpp's server, PEFT one by one, and our batch without
a server.

All sides have the same random LoRAs, prompts and number of tokens. The servers are separate processes, called over the
loopback address; PEFT (`generate` after `set_adapter`) and the batch are called in this process without HTTP, which
favours them. llama.cpp's side is left out without the package `xllamacpp`.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness, llamacpp, personal
from benchmarks import rival_answers as rival

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights

OURS, THEIRS, BATCH = "mta serve", "PEFT set_adapter, one by one, no HTTP", "mta, one batch, no HTTP"
TASK = "free"
THEIR_MOST = 4  # timed answers of PEFT, whose rate does not depend on the number of waiting requests


@dataclass(frozen=True)
class Stream:
    """One answer: seconds to its first token, the gaps between its pieces, and how many tokens it has."""

    first: float
    gaps: tuple[float, ...]
    tokens: int


def make_store(root: Path, count: int) -> tuple[list[str], Any]:
    """A store in which every user has a stack; returns the users' names and the LoRAs."""
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
    """Inside the block, `mta serve` runs; yields its address."""
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


async def ask_all(url: str, bodies: Sequence[dict[str, Any]], tokens: int) -> tuple[float, list[Stream]]:
    """Request all answers at once; returns them and the seconds."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(given: dict[str, Any]) -> Stream:
            body = {**given, "stream": True, "temperature": 0, "max_tokens": tokens}
            body["stream_options"] = {"include_usage": True}
            began, times, counted = time.perf_counter(), list[float](), 0
            async with client.stream("POST", "/chat/completions", json=body) as answered:
                answered.raise_for_status()
                async for line in answered.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    piece = json.loads(line[6:])
                    counted = (piece.get("usage") or {}).get("completion_tokens", counted)
                    if piece["choices"] and piece["choices"][0]["delta"].get("content"):
                        times.append(time.perf_counter())
            gaps = tuple(b - a for a, b in itertools.pairwise(times))
            return Stream((times[0] if times else time.perf_counter()) - began, gaps, counted)

        began = time.perf_counter()
        found = await asyncio.gather(*map(one, bodies))
        return time.perf_counter() - began, found


def row(streams: int, side: str, runs: Sequence[tuple[float, Sequence[Stream]]]) -> dict[str, Any]:
    """The medians over runs for one number of streams."""
    gaps = sorted(gap for run in runs for one in run[1] for gap in one.gaps) or [0.0]
    firsts = [one.first for run in runs for one in run[1]]
    return {
        "streams": streams,
        "side": side,
        "tokens/s": statistics.median(sum(one.tokens for one in run[1]) / run[0] for run in runs),
        "first token s": statistics.median(firsts),
        "gap ms": 1000 * statistics.median(gaps),
        "gap p99 ms": 1000 * gaps[int(0.99 * (len(gaps) - 1))],
        "tokens": int(statistics.median(sum(one.tokens for one in run[1]) for run in runs)),
    }


def body(text: str, **more: Any) -> dict[str, Any]:
    """A request with one message."""
    return {"model": "base", "messages": [{"role": "user", "content": text}], **more}


def in_one_batch(weights: Sequence[LoraWeights], texts: Sequence[str], tokens: int) -> Callable[[], list[list[int]]]:
    """The same answers by one call of the engine, all started together, without a server."""
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams

    base, prompts, people = harness.load(), [_prompt(text) for text in texts], [(own,) for own in weights]
    return lambda: generate_answers(base, prompts, people, range(len(people)), SamplingParams(tokens))


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,4,16,64")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--formats", default="bf16,q8_0", help="number formats of llama.cpp's weights")
    asked = parser.parse_args()
    counts = [int(number) for number in asked.streams.split(",")]
    most = max(counts)
    people = harness.people(most, 8, queries=asked.repeats + 1)
    # Every run asks new questions, because a server caches the beginnings of conversations.
    texts = [[person.queries[run % len(person.queries)].input for person in people] for run in range(asked.repeats + 1)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root, entry = Path(folder), harness.base_entry()
        names, weights = make_store(root / "store", most)
        with server(root / "store", most) as url:
            asyncio.run(ask_all(url, [body(text, model=name) for name, text in zip(names, texts[-1], strict=True)], 4))
            for count in counts:
                runs = []
                for run in range(asked.repeats):
                    bodies = [
                        body(f"{count}. {text}", model=name)
                        for name, text in zip(names[:count], texts[run], strict=False)
                    ]
                    runs.append(asyncio.run(ask_all(url, bodies, asked.tokens)))
                rows.append(row(count, OURS, runs))
        if llamacpp.is_there():
            adapters = llamacpp.write_adapters(root, entry.path, weights)
            for number_format in asked.formats.split(","):
                llamacpp.write_base(root / "base.gguf", entry.path, number_format)
                for count in counts:
                    rows.append(llamacpp_row(root / "base.gguf", number_format, adapters[:count], texts[0], asked))
        sides = {f"{BATCH}/{n}": in_one_batch(weights[:n], texts[0][:n], asked.tokens) for n in counts if n > 1}
        own = personal.folders(weights[:THEIR_MOST], entry, root / "peft")
        model = rival.with_adapters(entry.path, own, "bfloat16")
        prompts = [_prompt(text) for text in texts[0][:THEIR_MOST]]
        sides[THEIRS] = lambda: rival.answer_each(model, prompts, asked.tokens, users=list(own)).ids
        timed = harness.interleave(sides, asked.repeats)
    rates = {name: sum(map(len, runs[-1].value)) / harness.median_seconds(runs) for name, runs in timed.items()}
    rows += [{"streams": n, "side": BATCH, "tokens/s": rates[f"{BATCH}/{n}"]} for n in counts if n > 1]
    for count in counts:
        # on average half of the others come first
        wait = (count + 1) / 2 * harness.median_seconds(timed[THEIRS]) / len(prompts)
        rows.append({"streams": count, "side": THEIRS, "tokens/s": rates[THEIRS], "first token s": wait})
    for one in rows:
        one["times PEFT"] = one["tokens/s"] / rates[THEIRS]
    harness.report("serve", rows, load=os.getloadavg()[0])


def llamacpp_row(
    base: Path, number_format: str, adapters: Sequence[Path], texts: Sequence[str], asked: argparse.Namespace
) -> dict[str, Any]:
    """llama.cpp's server at as many streams as there are adapters, one run; the first answer is not counted."""
    count = len(adapters)
    bodies = [body(f"{count}. {text}", **llamacpp.adapter_of(n, count)) for n, text in enumerate(texts[:count])]
    with llamacpp.server(base, adapters, count, torch_threads()) as url:
        asyncio.run(ask_all(url, bodies[:1], 4))
        return row(count, f"llama.cpp's server, {number_format}", [asyncio.run(ask_all(url, bodies, asked.tokens))])


def torch_threads() -> int:
    """The number of threads, as for the other sides."""
    import torch

    return torch.get_num_threads()


def _prompt(text: str) -> list[int]:
    from mta_cli.engine.text.prompts import PromptBuilder
    from mta_cli.engine.text.tasks import BUILTIN_TASKS

    base = harness.load()
    return PromptBuilder(base.tokenizer, BUILTIN_TASKS[TASK], base.end_ids).chat_ids(
        [{"role": "user", "content": text}]
    )


if __name__ == "__main__":
    main()
