"""Random personal adapters for both sides of a benchmark, ours and PEFT's, and the minimum cost of answering with them.

The factors are random and small, so that the base still generates text; neither seconds nor bytes depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rivals import peft_folder

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.llama import LlamaDecoder
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.pipeline.models.manifest import ModelEntry

RANK, ALPHA, SPREAD = 8, 16.0, 0.02
PLACEMENT = "upper"
Answer = Sequence[int]


def adapters(model: Any, count: int) -> list[LoraWeights]:
    """A LoRA for each of `count` users: rank 8 on all linear layers of the upper third, as a meta-LoRA of ours is."""
    import torch

    from mta_cli.engine.lora.adapter import init_lora_weights

    made = []
    for seed in range(count):
        fresh = init_lora_weights(model, "all-linear", PLACEMENT, RANK, ALPHA, seed)
        generator = torch.Generator().manual_seed(seed)
        factors = {
            path: (a, SPREAD * torch.randn(b.shape, generator=generator)) for path, (a, b) in fresh.factors.items()
        }
        made.append(replace(fresh, factors=factors))
    return made


def folders(weights: Sequence[LoraWeights], entry: ModelEntry, root: Path) -> dict[str, Path]:
    """The same weights as folders that PEFT loads, by user."""
    return {f"user{number}": peft_folder(own, entry, root / str(number)) for number, own in enumerate(weights)}


def endless(base: LoadedBase) -> LoadedBase:
    """The same base without end tokens."""
    return replace(base, end_ids=())


def fresh(base: LoadedBase) -> None:
    """Drop everything that earlier runs computed from the weights, so that each run computes it again."""
    from mta_cli.engine.lora.adapter import AdapterMerger

    AdapterMerger(base).set_adapter(None)


def alike(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """The share of equal tokens by position, over the answers that both have."""
    pairs = [(a, b) for mine, other in zip(ours, theirs, strict=False) for a, b in zip(mine, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def weight_bytes(plain: LlamaDecoder, layers: float | None = None, head: float | None = None) -> float:
    """Bytes that one token must read: every projection and the head once.

    `layers` and `head` are the bytes of one weight in the layers and in the head; by default as in the base.
    """
    own = plain.dtype.itemsize
    sizes = [(joint.weight.numel(), head if joint is plain.head else layers) for joint in plain.all_projections()]
    return sum(numbers * (own if size is None else size) for numbers, size in sizes)


def reading(plain: LlamaDecoder, tokens: int) -> int:
    """The multiplications and additions for passing `tokens` prompt tokens through all layers, without the head."""
    inner = sum(joint.weight.numel() for layer in plain.layers for joint in layer.projections.values())
    return 2 * inner * tokens


def facts(base: LoadedBase, **more: Any) -> Mapping[str, Any]:
    """The facts on adapters in every report of these benchmarks."""
    return {"dtype": str(base.dtype)[6:], "rank": RANK, "placement": PLACEMENT, "targets": "all-linear", **more}
