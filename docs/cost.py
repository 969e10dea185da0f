# ruff: noqa: E501
"""Makes cost.md: what many users cost, from stated inputs and this repository's measurements. Knows no job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mta_cli.engine.methods.stacks import stack_schedule
from mta_cli.options import AdaptOptions, FuseOptions

RESULTS = Path(__file__).parent / "results"
UPPER = 1 / 3  # the share of the layers that personal parts act in
STEPS, SHOTS, LATE_TOKENS = 10, 5, 8
CPU_FLOPS = 0.65 * 410e9  # a second: what training reaches of a bare product on two cores (performance.md)
GPU_FLOPS = 0.35 * 989e12  # assumed: 35 % of an H100's dense bfloat16
ANSWER_SHARE = 0.5  # assumed: decoding in batches reaches half as much of a GPU as training
GPU_DOLLARS, DISK_DOLLARS = 2.50, 0.10  # assumed: an hour of a GPU, a month of a GB
REGISTRY_BYTES, STACK_BYTES, PROFILE_BYTES, ITEM_BYTES, ITEMS = 1_526, 82_000, 1_536, 600, 20
WHOLE_PASSES = stack_schedule(ITEMS, AdaptOptions(), labels=False).steps // ITEMS
ANSWERS, ANSWER_TOKENS = 100, 600  # assumed: a month's answers of a user, each with its prompt
BASES = {"SmolLM2 135M": 134.5e6, "a base of 8B": 8.03e9}


@dataclass(frozen=True)
class Shape:
    """The tokens of a user's shots: of a row with its answer, and of the answer."""

    row: float
    answer: float
    anchors: int = 4

    def flop(self, parameters: float, placement: str, shots: int = SHOTS, passes: int = STEPS) -> float:
        """Operations to adapt a user: all rows once, evidence of the anchors, and passes over the rows."""
        tokens = shots * self.row
        acting = tokens if placement == "upper" else shots * (LATE_TOKENS + self.answer)
        first, evidence = 2 * tokens, 2 * UPPER * acting * self.anchors
        steps = passes * 4 * UPPER * acting  # forward, and back to the activations; the factors themselves are small
        return parameters * (first + evidence + steps)

    def whole_history_ratio(self, placement: str) -> float:
        """How many times the operations of five shots a history of `ITEMS` items takes."""
        return self.flop(1, placement, ITEMS, WHOLE_PASSES) / self.flop(1, placement)


def page() -> str:
    """The text of cost.md."""
    adapt = _bench("adapt-taste")
    shape = Shape(adapt["tokens"]["row"], adapt["tokens"]["answer"])
    measured = {row["side"].removeprefix("mta, "): row["seconds a user"] for row in adapt["rows"][:2]}
    small, large = BASES.values()
    checks = [
        f"| `{place}` | {shape.flop(small, place) / CPU_FLOPS:.2f} | {measured[place]:.2f} |" for place in measured
    ]
    gpu_seconds = shape.flop(large, "late") / GPU_FLOPS
    machines = {
        "two cores, SmolLM2 135M": measured["late"],
        "8 GPUs, a base of 8B": gpu_seconds / 8,
        "64 GPUs, a base of 8B": gpu_seconds / 64,
    }
    rows = [
        f"| {name} | {' | '.join(_duration(users * seconds) for users in (1e3, 1e5, 1e6))} |"
        for name, seconds in machines.items()
    ]
    kept = REGISTRY_BYTES + STACK_BYTES + PROFILE_BYTES + ITEM_BYTES * ITEMS
    answering = ANSWERS * ANSWER_TOKENS * 2 * large / (GPU_FLOPS * ANSWER_SHARE)
    retrieval = {row["top 8 of"]: row["ms"] for row in _bench("retrieval")["rows"] if row["side"] == "ours"}
    merge = _bench("merge")["rows"][0]["ms"]
    store = {row["command"]: row["s"] for row in _bench("large-store")["rows"]}
    items = 200_000 / next(seconds for name, seconds in store.items() if "200,000" in name)
    evidence = Shape(shape.row, shape.answer, FuseOptions().candidates).flop(1, "late") / shape.flop(1, "late")
    return f"""<!-- Made by `make docs` from docs/cost.py; do not edit. -->
# What many users cost

A model of cost: its inputs are measured here, or assumed and called so. Nothing of it has run on a GPU.

## Adapting a user

A token costs two operations a parameter forward and two back to the activations. Five shots of {shape.row:.0f} tokens, {shape.answer:.1f} of them the answer, are read once; evidence of four anchors and ten steps run in the upper third of the layers, under `late` at the last {LATE_TOKENS} prompt tokens and the answer. That is {shape.flop(1, "late"):,.0f} operations a parameter (`late`) and {shape.flop(1, "upper"):,.0f} (`upper`). At the {CPU_FLOPS / 1e9:.0f} GFLOP/s that training reaches on two cores:

| SmolLM2 135M, two cores | predicted, s a user | measured, with a LoRA stack |
|---|---:|---:|
{chr(10).join(checks)}

A whole history of {ITEMS} items, which is what `mta user adapt` takes without `--shots 5`, is learned in {WHOLE_PASSES} passes; these five shots were read {STEPS} times: {shape.whole_history_ratio("late"):.1f} times the operations (`late`), or {shape.whole_history_ratio("upper"):.1f} times (`upper`). All times below are for five shots and a bank of four anchors.

`python -m benchmarks.bench_base --shape NAME`, in a checkout, measures on your own machine what this model assumes: `adapting, users/s`, for `upper`, 16 anchors and rows of 128 tokens ([bases](bases.md#on-your-machine)).

So the model may be carried over. On a GPU that reaches {GPU_FLOPS / 1e12:.0f} TFLOP/s (assumed: 35 % of an H100's 989) a base of 8B takes {1000 * gpu_seconds:.0f} ms a user, `late`.

| time to adapt all users, `late` | 10³ users | 10⁵ | 10⁶ |
|---|---:|---:|---:|
{chr(10).join(rows)}

## What is kept

| a user | bytes | 10⁶ users |
|---|---:|---:|
| a LoRA of rank 2 on q and v of the upper third, a file | {STACK_BYTES:,} | {STACK_BYTES / 1e3:.0f} GB |
| recipe, as rows of the registry | {REGISTRY_BYTES:,} | {REGISTRY_BYTES / 1e3:.1f} GB |
| profile | {PROFILE_BYTES:,} | {PROFILE_BYTES / 1e3:.1f} GB |
| {ITEMS} items of {ITEM_BYTES} bytes with their index (assumed) | {ITEM_BYTES * ITEMS:,} | {ITEM_BYTES * ITEMS / 1e3:.0f} GB |

A serving node needs the first two lines, and for label tasks each item's label and, of consenting users, its embedding of 768 bytes ([snapshots](scale.md#a-store-for-every-serving-node)).

## A user and a month

Assumed: {GPU_DOLLARS:.2f} $ an hour of a GPU, {DISK_DOLLARS:.2f} $ a GB and month, one adaptation and {ANSWERS} answers of {ANSWER_TOKENS} tokens (prompt included) by a base of 8B, decoded at half of training's rate.

| | GPU seconds | $ |
|---|---:|---:|
| adapting once | {gpu_seconds:.3f} | {gpu_seconds * GPU_DOLLARS / 3600:.6f} |
| keeping {kept:,} bytes | – | {kept / 1e9 * DISK_DOLLARS:.6f} |
| answering | {answering:.2f} | {answering * GPU_DOLLARS / 3600:.4f} |

Being personal costs about {100 * (gpu_seconds * GPU_DOLLARS / 3600 + kept / 1e9 * DISK_DOLLARS) / (answering * GPU_DOLLARS / 3600):.0f} % of answering.

## What saturates first

1. **The driver's one store.** It takes {items:,.0f} items a second, so {ITEMS * 1_000_000:,} items take {_duration(ITEMS * 1e6 / items)}. Results of workers are a LoRA of {STACK_BYTES / 1e3:.0f} kB each and are written beside it.
2. **Making models of users who come for the first time.** A merge of four anchors of SmolLM2 takes {merge:.0f} ms of a core; a base of 8B has some hundred times as many numbers in an adapter, so about a second. What was made is cached ([the server](serve.md), [vLLM](scale.md#serving-by-vllm)).
3. **Evidence, in large banks.** It is computed for the {FuseOptions().candidates} nearest anchors at most (`fuse.candidates`), which make adapting {evidence:.1f} times as long as four do. Weights by similarity do not need it: the 8 nearest of a million profiles take {retrieval["1,000,000"]:.0f} ms, of 100,000 {retrieval["100,000"]:.0f} ms.

**Nightly.** Only users with new items need `mta user adapt` again; name them. Forgetting reaches a serving node with the next snapshot and pull, so their interval is the longest time that a removed user is still answered there.
"""


def _bench(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((RESULTS / f"bench-{name}.json").read_text())
    return found


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
