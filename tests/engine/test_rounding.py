"""Few bits: bytes come back as they went, sizes are exact, and errors stay within half a step."""

from __future__ import annotations

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights, Placement
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.rounding import LEVELS, pack, rounded, unpack
from mta_cli.errors import BadInput, IntegrityFault
from tests.engine.lora_cases import random_lora

WHERE = Placement(1, 1, 8)


def odd(seed: int = 0) -> LoraWeights:
    """Modules of different shapes with an odd number of numbers, and rows of very different size."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for path, rank, wide, out in (("x", 1, 5, 4), ("y", 3, 7, 5), ("z", 2, 3, 3)):
        sizes = 10.0 ** torch.randint(-3, 2, (rank,), generator=generator)
        a = torch.randn(rank, wide, generator=generator) * sizes[:, None]
        factors[path] = (a, torch.randn(out, rank, generator=generator))
    return LoraWeights(factors, 2.0, WHERE)


@pytest.mark.parametrize(("bits", "size"), [(16, 2 * 57), (8, 57 + 2 * 12), (4, 29 + 2 * 12)])
def test_the_size_is_that_of_the_numbers_and_their_scales(bits: int, size: int) -> None:
    """57 numbers in 12 directions; two numbers of four bits share a byte."""
    weights = odd()
    assert weights.num_parameters == 57
    assert len(pack(weights, bits)) == size == rounded(weights, bits)[1]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_bytes_come_back_as_they_went(bits: int) -> None:
    packed = pack(odd(), bits)
    found = unpack(packed, odd(seed=1), bits)
    assert pack(found, bits) == packed
    assert (found.scale, found.placement, list(found.factors)) == (2.0, WHERE, ["x", "y", "z"])
    again = rounded(odd(), bits)[0]
    for path, pair in found.factors.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pair, again.factors[path], strict=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_no_number_is_off_by_more_than_half_a_step_of_its_direction(bits: int) -> None:
    weights = odd()
    found = rounded(weights, bits)[0]
    for path, (a, b) in weights.factors.items():
        for ours, theirs in ((found.factors[path][0], a), (found.factors[path][1].T, b.T)):
            largest = theirs.abs().amax(1, keepdim=True)
            assert bool(((ours - theirs).abs() <= largest * (0.501 / LEVELS[bits] + 2**-11)).all())
            assert float((ours - theirs).abs().max()) > 0


def test_sixteen_bits_are_float16() -> None:
    weights = odd()
    for path, pair in rounded(weights, 16)[0].factors.items():
        stored = weights.cast_for_storage().factors[path]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pair, stored, strict=True))


def test_more_bits_are_nearer(base: LoadedBase) -> None:
    weights = random_lora(base.model, 3)
    off = []
    for bits in (16, 8, 4):
        found = rounded(weights, bits)[0]
        off.append(
            sum(
                float((found.delta_weight(path) - weights.delta_weight(path)).square().sum())
                for path in weights.factors
            )
        )
    relative = [error**0.5 / weights.norm() for error in off]
    assert relative[0] < 1e-3 and relative[0] < relative[1] < 0.01 < relative[2] < 0.2


def test_zeros_stay_zeros() -> None:
    weights = LoraWeights({"x": (torch.zeros(2, 3), torch.zeros(5, 2)), "y": odd().factors["y"]}, 1.0, WHERE)
    for bits in (8, 4):
        found = rounded(weights, bits)[0].factors["x"]
        assert not any(half.any() for half in found)


def test_no_modules_take_no_bytes() -> None:
    empty = LoraWeights({}, 1.0, WHERE)
    assert all(rounded(empty, bits) == (empty, 0) for bits in (16, 8, 4))


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(BadInput, match="5 bits"):
        pack(odd(), 5)
    with pytest.raises(BadInput, match="3 bits"):
        unpack(b"", odd(), 3)
    with pytest.raises(IntegrityFault, match="80 bytes"):
        unpack(pack(odd(), 8)[:-1], odd(), 8)
    for wrong in (float("nan"), float("inf"), 1e6):
        broken = odd()
        broken.factors["x"][0][0, 1] = wrong
        for bits in (16, 8, 4):
            with pytest.raises(IntegrityFault, match="finite"):
                pack(broken, bits)
