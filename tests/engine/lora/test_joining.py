"""Joining blocks: the plain sum of products, in as few runs as the layouts allow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.lora import joining
from mta_cli.engine.lora.adapter_file import FactorBlock
from mta_cli.engine.lora.joining import concatenate_ranks
from mta_cli.errors import IntegrityFault

SHAPES = {"q_proj": (6, 8), "k_proj": (6, 4), "up_proj": (6, 10)}  # inputs, outputs
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def part(
    layers: list[int], modules: list[str], rank: int, dtype: torch.dtype = torch.float16, seed: int = 0
) -> FactorBlock:
    """Random factors of `modules` in `layers`, in the order that files have."""
    generator = torch.Generator().manual_seed(seed)
    paths = sorted(f"model.layers.{layer}.{module}" for layer in layers for module in modules)
    factors: Factors = {}
    for path in paths:
        inputs, outputs = SHAPES[path.rsplit(".", 1)[-1]]
        a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
        factors[path] = (a.to(dtype), b.to(dtype))
    return FactorBlock.from_factors(factors)


def plainly(blocks: list[FactorBlock], shares: list[float]) -> Factors:
    """What `join` must give, by torch's own concatenation, module by module."""
    joined: Factors = {}
    for path in dict.fromkeys(path for block in blocks for path in block):
        found = [(*block[path], share) for block, share in zip(blocks, shares, strict=True) if path in block]
        a = torch.cat([a.float() * share for a, _, share in found])
        joined[path] = (a, torch.cat([b.float() for _, b, _ in found], dim=1))
    return joined


def check(blocks: list[FactorBlock], shares: list[float]) -> None:
    joined, expected = concatenate_ranks(blocks, shares), plainly(blocks, shares)
    assert list(joined) == list(expected)
    for path, pair in expected.items():
        for ours, theirs in zip(joined[path], pair, strict=True):
            assert ours.dtype == torch.float32 and torch.equal(ours, theirs), path


PARTS = st.tuples(
    st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True),
    st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=3, unique=True),
    st.integers(1, 9),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)


@settings(deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=4), st.integers(1, 2000))
def test_joining_equals_the_plain_concatenation(
    parts: list[tuple[list[int], list[str], int, torch.dtype]], chunk: int
) -> None:
    blocks = [part(*each, seed=i) for i, each in enumerate(parts)]
    plain, joining.CHUNK_ELEMENTS = joining.CHUNK_ELEMENTS, chunk
    try:
        check(blocks, [0.5, -0.25, 1.0, 3.0][: len(blocks)])
    finally:
        joining.CHUNK_ELEMENTS = plain


def test_the_factors_of_all_layers_are_one_run_for_each_module() -> None:
    layers = list(range(10, 30))  # as many digits each, so that files have them in this order
    blocks = [part(layers, list(SHAPES), rank, seed=rank) for rank in (8, 8, 2)]
    check(blocks, [0.5, 0.25, 0.25])
    runs, _ = joining._plan_runs(tuple(block.layout for block in blocks))
    assert sorted(run.count for run in runs) == [20, 20, 20]


def test_a_part_in_the_upper_layers_splits_runs_where_it_begins() -> None:
    whole, upper = part(list(range(10, 22)), list(SHAPES), 4), part(list(range(18, 22)), list(SHAPES), 2, seed=1)
    check([whole, upper], [1.0, 0.5])
    runs, _ = joining._plan_runs((whole.layout, upper.layout))
    assert sorted((run.count, run.rank) for run in runs) == [(4, 6)] * 3 + [(8, 4)] * 3


def test_modules_without_order_are_joined_one_by_one() -> None:
    factors = {f"layers.{i}.up_proj": (torch.randn(2, 3), torch.randn(4, 2)) for i in (1, 5, 2)}
    odd = FactorBlock.from_factors({"x.q_proj": (torch.randn(1, 2), torch.randn(2, 1)), **factors})
    even = FactorBlock.from_factors(dict(reversed(factors.items())))
    check([odd, even], [1.0, 2.0])


def test_parts_of_different_bases_are_refused() -> None:
    one, other = (FactorBlock.from_factors({"layers.0.up_proj": (torch.ones(2, n), torch.ones(4, 2))}) for n in (3, 5))
    with pytest.raises(IntegrityFault, match=r"layers\.0\.up_proj"):
        concatenate_ranks([one, other], [1.0, 1.0])


def test_the_parts_stay_as_they_are() -> None:
    blocks = [part([1, 2], ["q_proj"], 3, dtype, seed=4) for dtype in (torch.float16, torch.float32)]
    before = [block.numbers.clone() for block in blocks]
    concatenate_ranks(blocks, [2.0, 3.0])
    assert all(torch.equal(block.numbers, old) for block, old in zip(blocks, before, strict=True))
