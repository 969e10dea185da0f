"""Joining LoRA factors of several blocks rank by rank, at nearly the memory's speed.

The layers of a transformer are alike, so their factors lie at even distances in a block, and one operation serves a
whole run of them. Knows blocks and shares; neither what the parts are nor whose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mta_cli.engine.lora.adapter_file import BlockLayout, FactorBlock, FactorOffsets
from mta_cli.errors import IntegrityFault

CHUNK_ELEMENTS = 2**18  # numbers that are joined at a time: they stay in the processor's own cache


class RunSource(NamedTuple):
    """Where a run's factors lie in block `part`: the first module's `A` and `B`, and numbers from each to the next."""

    block_index: int
    rank: int
    a_offset: int
    b_offset: int
    stride: int


@dataclass(frozen=True)
class ModuleRun:
    """Modules that one operation serves: `count` of one shape, which lie at even distances in every part.

    Joined, their `A [count, rank, inputs]` starts at number `a`, their `B [count, outputs, rank]` at number `b`.
    """

    count: int
    inputs: int
    outputs: int
    rank: int
    a_offset: int
    b_offset: int
    sources: tuple[RunSource, ...]


def concatenate_ranks(blocks: Sequence[FactorBlock], shares: Sequence[float]) -> FactorBlock:
    """One float32 block with `B A = Σ share · B_i A_i` for every module: ranks concatenated, `A_i` scaled by its share.

    Raises IntegrityFault when a module has different shapes in two of the blocks.
    """
    widest = blocks[0].layout.dtype
    for block in blocks:
        widest = torch.promote_types(widest, block.layout.dtype)
    blocks = [block.to(widest) for block in blocks]
    runs, layout = _plan_runs(tuple(block.layout for block in blocks))
    numbers = torch.from_numpy(
        np.empty(layout.num_elements, dtype=np.float32)
    )  # numpy asks for large pages, torch does not
    scratch = torch.empty(
        max(min(run.count, _modules_per_chunk(run)) * run.outputs * run.rank for run in runs), dtype=widest
    )
    for run in runs:
        _concatenate_a(run, blocks, shares, numbers[run.a_offset : run.b_offset])
        _concatenate_b(run, blocks, scratch, numbers[run.b_offset : run.b_offset + run.count * run.outputs * run.rank])
    return FactorBlock(numbers, layout)


def _concatenate_a(run: ModuleRun, blocks: Sequence[FactorBlock], shares: Sequence[float], out: Tensor) -> None:
    target = out.view(run.count, run.rank, run.inputs)
    row = 0
    for part, rank, start, _, step in run.sources:
        a = blocks[part].numbers[start:].as_strided((run.count, rank, run.inputs), (step, run.inputs, 1))
        rows = target[:, row : row + rank].copy_(a)
        if shares[part] != 1.0:
            rows.mul_(shares[part])
        row += rank


def _concatenate_b(run: ModuleRun, blocks: Sequence[FactorBlock], scratch: Tensor, out: Tensor) -> None:
    """Rows of `rank` numbers are too short for torch's loops: they move uncast, as wide units, and are cast after."""
    size = scratch.dtype.itemsize
    unit = np.dtype((np.void, math.gcd(*(source.rank for source in run.sources)) * size))
    target, wide = out.view(run.count, -1), run.outputs * run.rank
    for first in range(0, run.count, _modules_per_chunk(run)):
        count = min(_modules_per_chunk(run), run.count - first)
        joined = scratch[: count * wide]
        units = joined.view(torch.uint8).numpy().view(unit).reshape(count, run.outputs, -1)
        column = 0
        for part, rank, _, start, step in run.sources:
            width = rank * size // unit.itemsize
            b: np.ndarray[Any, Any] = np.ndarray(
                (count, run.outputs, width),
                unit,
                blocks[part].numbers.view(torch.uint8).numpy(),
                (start + first * step) * size,
                (step * size, rank * size, unit.itemsize),
            )
            units[:, :, column : column + width] = b
            column += width
        target[first : first + count].copy_(joined.view(count, -1))


def _modules_per_chunk(run: ModuleRun) -> int:
    return max(1, CHUNK_ELEMENTS // (run.outputs * run.rank))


@lru_cache(maxsize=32)
def _plan_runs(layouts: tuple[BlockLayout, ...]) -> tuple[tuple[ModuleRun, ...], BlockLayout]:
    """The runs in which blocks of these layouts are joined, and the joined block's layout."""
    alike: dict[object, list[dict[int, FactorOffsets]]] = {}
    paths = dict.fromkeys(path for layout in layouts for path in layout.offsets_by_path)
    for path in paths:
        found = {i: layout.offsets_by_path[path] for i, layout in enumerate(layouts) if path in layout.offsets_by_path}
        if len({(place.inputs, place.outputs) for place in found.values()}) > 1:
            raise IntegrityFault(f"{path} has different shapes in adapters that are to be merged")
        shape = tuple((i, *place[1:4]) for i, place in found.items())
        alike.setdefault((path.rsplit(".", 1)[-1], shape), []).append(found)
    runs: list[ModuleRun] = []
    places: dict[str, FactorOffsets] = {}
    end = 0
    for modules in (run for group in alike.values() for run in _split_by_stride(group)):
        run = _run(modules, end)
        runs.append(run)
        for i, path in enumerate(next(iter(found.values())).path for found in modules):
            a, b = run.a_offset + i * run.rank * run.inputs, run.b_offset + i * run.outputs * run.rank
            places[path] = FactorOffsets(path, run.rank, run.inputs, run.outputs, a, b)
        end = run.b_offset + run.count * run.outputs * run.rank
    return tuple(runs), BlockLayout(torch.float32, end, tuple(places[path] for path in paths))


def _split_by_stride(group: Sequence[dict[int, FactorOffsets]]) -> Iterator[list[dict[int, FactorOffsets]]]:
    """Neighbours of `group` together for as long as they lie at even distances in every part."""
    run = [group[0]]
    for modules in group[1:]:
        gaps = _strides(run[-1], modules)
        if gaps is None or (len(run) > 1 and gaps != _strides(run[0], run[1])):
            yield run
            run = []
        run.append(modules)
    yield run


def _strides(before: dict[int, FactorOffsets], after: dict[int, FactorOffsets]) -> list[int] | None:
    """Numbers from one module's factors to the next one's, by part; None when A's and B's differ or go backwards."""
    gaps = [(after[i].a_offset - before[i].a_offset, after[i].b_offset - before[i].b_offset) for i in before]
    return [a for a, _ in gaps] if all(a == b > 0 for a, b in gaps) else None


def _run(modules: Sequence[dict[int, FactorOffsets]], start: int) -> ModuleRun:
    first = modules[0]
    gaps = (_strides(first, modules[1]) if len(modules) > 1 else None) or [0] * len(first)
    sources = tuple(
        RunSource(i, place.rank, place.a_offset, place.b_offset, gap)
        for (i, place), gap in zip(first.items(), gaps, strict=True)
    )
    rank = sum(place.rank for place in first.values())
    shape = next(iter(first.values()))
    return ModuleRun(
        len(modules), shape.inputs, shape.outputs, rank, start, start + len(modules) * rank * shape.inputs, sources
    )
