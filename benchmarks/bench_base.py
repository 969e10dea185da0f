"""How fast a base trains, adapts users and decodes on this machine, with the product's own code on random texts.

A shape of the catalog is measured with random weights, so nothing is downloaded: speed and memory do not depend on the
weights' values. Each measurement is an endless generator that yields the amount of work done in each step.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import harness
from benchmarks.random_base import make_random_base
from mta_cli.engine.backends import backend_of
from mta_cli.engine.generation.generate import generate
from mta_cli.engine.generation.request import GenerationRequest, SamplingParams
from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.methods.anchor_weights import MAX_USERS_PER_BATCH
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.methods.personalize import MTA, build_models
from mta_cli.engine.model.load import LoadedBase, fresh_activation_cache
from mta_cli.engine.scoring.prefix_cache_scoring import device_batch_tokens
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.options import BankOptions
from mta_cli.pipeline.models.bases import HUB_BASES, HubBase

USERS, SECONDS = 16, 5.0  # users in one decoding batch, and seconds for each of four measurements
ROW_TOKENS, ANSWER_TOKENS = 128, 16  # tokens of a training row, and of its answer
GROUP_USERS = 8  # users who train together
ADAPT_SHOTS = 5  # shots of each adapted user
PROFILE_WIDTH = 384  # the default embedder's width
BATCH_CONTEXT = 1024  # tokens of each conversation of a batch; their cache is allocated in advance
ENDLESS = 10**6  # steps of a training that stops when time is up

Pieces = Generator[int, None, None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Throughput:
    """An amount of work and its seconds."""

    done: int
    seconds: float

    @property
    def rate(self) -> float:
        """The amount per second."""
        return self.done / self.seconds


def measure_base(shape: HubBase, device: str, dtype: str, seconds: float = SECONDS, users: int = USERS) -> Row:
    """The speeds of a random base of `shape`, and the peak memory."""
    base = make_random_base(shape, device=device, dtype=dtype)
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
    one, many = decode_tokens(base, 0), decode_batch_tokens(base, users, 0)
    # decoding first: the copies of the weights that it makes are dropped before training
    row = {
        "base": shape.name,
        "parameters, M": round(shape.parameters / 1e6),
        "device": str(base.device),
        "dtype": str(base.dtype)[6:],
        "decoder": backend_of(base).name,
        "decoding, tokens/s": measure(one, seconds, warm_up=2).rate,
        f"decoding {users} users, tokens/s": measure(many, seconds, warm_up=2).rate,
    }
    base.invalidate_caches()
    row["adapting, users/s"] = measure_adapting(base, seconds, 0).rate
    row["training, tokens/s"] = measure(train_tokens(base, device_batch_tokens(base.device), 0), seconds).rate
    on_gpu = base.device.type == "cuda"  # on a GPU, only the tensors' peak is known
    peak = torch.cuda.max_memory_allocated(base.device) if on_gpu else harness.peak_bytes()
    return {**row, "memory, GB": peak / 1e9}


def measure(pieces: Pieces, seconds: float, *, warm_up: int = 1) -> Throughput:
    """The speed of `pieces` over at least `seconds`, without the first `warm_up` pieces."""
    found = Throughput(0, 1.0)
    with closing(pieces):
        for _ in itertools.islice(pieces, warm_up):
            pass
        begin, done = time.perf_counter(), 0
        for piece in pieces:
            done += piece
            found = Throughput(done, time.perf_counter() - begin)
            if found.seconds >= seconds:
                break
    return found


def train_tokens(base: LoadedBase, tokens: int, seed: int) -> Pieces:
    """Yields the tokens of each step in which `GROUP_USERS` users train LoRAs of the default bank, in all layers.

    A step has about `tokens` tokens.
    """
    options = BankOptions()
    start = init_lora_weights(base.model, options.targets, "all", options.rank, options.alpha, seed)
    rows = max(1, tokens // (GROUP_USERS * ROW_TOKENS))
    schedule = Schedule(ENDLESS, rows, options.learning_rate)
    texts = _random_rows(base, GROUP_USERS * rows, seed)
    members = [GroupMember(start, texts[i * rows : (i + 1) * rows], schedule, seed) for i in range(GROUP_USERS)]
    trainer = Trainer(base, members)
    for steps in trainer.train_steps():
        assert not trainer.failed, trainer.failed
        yield sum(step.tokens for step in steps.values())


def measure_adapting(base: LoadedBase, seconds: float, seed: int) -> Throughput:
    """The speed of adapting users by the method `mta` from a few shots each, above a bank of the default size.

    Groups of 1, 2, 4, … users are adapted for about `seconds`; the fastest group counts.
    """
    # 1. a bank of random anchors and profiles, which is as fast as a real one
    bank, shots = BankOptions(), ADAPT_SHOTS
    anchors = [random_lora(base, seed + i) for i in range(bank.anchor_count)]
    generator = torch.Generator().manual_seed(seed)
    profiles = torch.nn.functional.normalize(torch.randn(bank.anchor_count, PROFILE_WIDTH, generator=generator), dim=-1)
    context = MethodContext(base, BUILTIN_TASKS["free"], anchors, profiles, seed)
    size, numbers, begin = 1, itertools.count(), time.perf_counter()
    best: Throughput | None = None
    while best is None or time.perf_counter() - begin < seconds:
        # 2. new users for every group, so that no cached state helps
        users = []
        for number in itertools.islice(numbers, size):
            rows = tuple(_random_rows(base, shots, seed + number))
            users.append(UserShots(number, ("",) * shots, ("",) * shots, rows, profiles[number % bank.anchor_count]))
        # 3. evidence, fusion and stacks by the product's own code
        started = time.perf_counter()
        with fresh_activation_cache(base):
            models = build_models(MTA, context, users, {})
        context.cache.clear()
        assert not any(model.failed for model in models)
        found = Throughput(size, time.perf_counter() - started)
        best = found if best is None else max(best, found, key=lambda one: one.rate)
        size = min(2 * size, MAX_USERS_PER_BATCH)
    return best


def decode_tokens(base: LoadedBase, seed: int) -> Pieces:
    """Yields 1 per generated token of one user. The LoRAs are merged into the weights first, so they add no cost."""
    endless = replace(base, end_ids=())
    most = base.window - ROW_TOKENS
    prompt = _random_tokens(base, ROW_TOKENS, seed)
    params = SamplingParams(most, stop_at_repetition=False)
    for _ in generate(endless, [GenerationRequest(prompt)], params):
        yield 1


def decode_batch_tokens(base: LoadedBase, users: int, seed: int) -> Pieces:
    """Yields the tokens of each step of a batch of `users` different users, each with a LoRA like an anchor's."""
    requests = [
        GenerationRequest(_random_tokens(base, ROW_TOKENS, seed + user), (random_lora(base, seed + user),))
        for user in range(users)
    ]
    params = SamplingParams(min(base.window, BATCH_CONTEXT) - ROW_TOKENS, stop_at_repetition=False)
    for number, _ in enumerate(generate(replace(base, end_ids=()), requests, params), 1):
        if number % users == 0:
            yield users


def random_lora(base: LoadedBase, seed: int) -> LoraWeights:
    """A LoRA like the default bank's, with a small random ΔW."""
    options = BankOptions()
    start = init_lora_weights(base.model, options.targets, options.placement, options.rank, options.alpha, seed)
    generator = torch.Generator().manual_seed(seed)
    factors = {path: (a, 1e-3 * torch.randn(b.shape, generator=generator)) for path, (a, b) in start.factors.items()}
    return replace(start, factors=factors)


def _random_rows(base: LoadedBase, count: int, seed: int) -> list[TrainingRow]:
    tokens = _random_tokens(base, count * ROW_TOKENS, seed)
    return [
        TrainingRow(tuple(tokens[i * ROW_TOKENS : (i + 1) * ROW_TOKENS]), ROW_TOKENS - ANSWER_TOKENS)
        for i in range(count)
    ]


def _random_tokens(base: LoadedBase, count: int, seed: int) -> list[int]:
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
    tokens: list[int] = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tokens


def main() -> None:
    """Measure the shape, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(HUB_BASES), default=harness.MODEL)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="about how long each of four measurements takes")
    parser.add_argument("--users", type=int, default=USERS, help="users whose answers share a batch")
    chosen = parser.parse_args()
    shape = HUB_BASES[chosen.shape]
    row = measure_base(shape, chosen.device, chosen.dtype, chosen.seconds, chosen.users)
    harness.report("base", [row], seconds=chosen.seconds)


if __name__ == "__main__":
    main()
