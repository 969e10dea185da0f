"""Cores of former versions: what their bytes mean, and which bytes are refused."""

from __future__ import annotations

import struct

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.cores import unpack_core
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import IntegrityFault, words_to_text
from tests.engine.lora_cases import random_lora


def basis_of(base: LoadedBase) -> LoraWeights:
    """Factors of rank 3 for seven modules."""
    return random_lora(base.model, 0, rank=3, placement="upper").cast_for_storage()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_matrix_stands_between_the_first_directions_of_each_module(base: LoadedBase, rank: int) -> None:
    """`s · B_f C A_f`; the first directions have the norm of all."""
    basis = basis_of(base)
    numbers = torch.randn(7, rank, rank, generator=torch.Generator().manual_seed(1)).half()
    core = unpack_core(basis, numbers.numpy().astype("<f2").tobytes())
    kept = {path: (a[:rank].float(), b[:, :rank].float()) for path, (a, b) in basis.factors.items()}
    scale = basis.scale * basis.norm() / LoraWeights(kept, basis.scale, basis.placement).norm()
    assert (core.rank, core.scale, core.placement) == (rank, 1.0, basis.placement)
    for (path, (a, b)), own in zip(kept.items(), numbers.float(), strict=True):
        torch.testing.assert_close(core.delta_weight(path), scale * (b @ own @ a))


@pytest.mark.parametrize("size", [0, 13, 15, 16, 28, 57, 224])
def test_only_bytes_of_a_square_for_each_module_are_a_core(base: LoadedBase, size: int) -> None:
    """Seven modules, two bytes a number: 14, 56 and 126 bytes are squares of 1, 2 and 3; 224, of 4, is too wide."""
    with pytest.raises(IntegrityFault, match=f"damaged: {size} bytes are not one square matrix") as caught:
        unpack_core(basis_of(base), bytes(size))
    assert caught.value.hint is not None and words_to_text(caught.value.hint) == "train it again: mta user adapt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(base: LoadedBase, value: float) -> None:
    with pytest.raises(IntegrityFault, match="not finite"):
        unpack_core(basis_of(base), struct.pack("<28e", *[0.5] * 27, value))


def test_directions_of_nothing_are_refused(base: LoadedBase) -> None:
    basis = basis_of(base)
    factors = {path: (a, torch.zeros_like(b)) for path, (a, b) in basis.factors.items()}
    with pytest.raises(IntegrityFault, match="all zero"):
        unpack_core(LoraWeights(factors, basis.scale, basis.placement), bytes(56))
    with pytest.raises(IntegrityFault, match="not one square matrix"):
        unpack_core(LoraWeights({}, 1.0, basis.placement), bytes(14))
