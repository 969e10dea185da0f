"""What is kept of a core: bytes that give it back, and bytes that are refused."""

from __future__ import annotations

import struct

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.lora_xs import LoraXsCore, TrainableCores, pack_core, truncate_basis, unpack_core
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import IntegrityFault
from tests.engine.lora.test_lora_xs import CPU, basis_of, equal, trained
from tests.engine.lora_cases import difference, random_lora, random_rows


def test_numbers_are_kept_as_little_endian_float16() -> None:
    assert pack_core(torch.tensor([1.0, -2.0, 0.1])) == struct.pack("<3e", 1.0, -2.0, 0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e5])
def test_numbers_that_float16_cannot_hold_are_not_kept(base: LoadedBase, value: float) -> None:
    group = TrainableCores(LoraXsCore(basis_of(base)), 2, CPU)
    group.numbers[1, 4] = value
    for keep in (group.packed_core, group.stored_weights):
        keep(0)
        with pytest.raises(IntegrityFault, match="not finite"):
            keep(1)
    with pytest.raises(IntegrityFault, match="not finite"):
        pack_core(torch.tensor([0.0, value]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kept_bytes_give_the_part_back_on_the_whole_basis(base: LoadedBase, rank: int) -> None:
    basis = basis_of(base).cast_for_storage()  # as a bank has it
    trainer = trained(base, LoraXsCore(truncate_basis(basis, rank)), [random_rows([20, 17])], 3, 0.2, [()])
    packed = trainer.packed_core(0)
    assert packed is not None and len(packed) == 2 * rank**2 * len(basis.factors)
    assert equal(unpack_core(basis, packed), trainer.stored_weights(0))
    assert 0 < difference(trainer.stored_weights(0), trainer.weights(0)) < 1e-3


def holds(basis: LoraWeights, packed: bytes) -> bool:
    """Whether the bytes are taken for a core."""
    try:
        return unpack_core(basis, packed).norm() == 0.0
    except IntegrityFault:
        return False


def test_only_bytes_of_a_square_for_each_module_are_a_core(base: LoadedBase) -> None:
    """Seven modules, two bytes a number: squares of 1, 2 and 3; not of 4, which the basis has no directions for."""
    basis = basis_of(base)
    assert len(basis.factors) == 7
    assert {size for size in range(2 * 7 * 5**2 + 2) if holds(basis, bytes(size))} == {14, 56, 126}


@pytest.mark.parametrize("size", [0, 13, 15, 16, 28, 57, 224])
def test_bytes_of_another_length_are_refused(base: LoadedBase, size: int) -> None:
    with pytest.raises(IntegrityFault, match=f"{size} bytes are no core on a basis of rank 3") as caught:
        unpack_core(basis_of(base), bytes(size))
    assert caught.value.hint == "adapt the user again"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 27])
def test_bytes_of_a_number_that_is_not_finite_are_refused(base: LoadedBase, value: float, place: int) -> None:
    numbers = [0.5] * 28
    numbers[place] = value
    with pytest.raises(IntegrityFault, match="not finite"):
        unpack_core(basis_of(base), struct.pack("<28e", *numbers))


def test_what_is_no_core_is_refused(base: LoadedBase) -> None:
    basis = basis_of(base)
    for packed in (random_lora(base.model, 1).to_bytes({}), b"\xff" * 56, b'{"rank": 2}'):
        with pytest.raises(IntegrityFault):
            unpack_core(basis, packed)
    for packed in (b"", bytes(2), bytes(14)):
        with pytest.raises(IntegrityFault, match="rank 0"):
            unpack_core(LoraWeights({}, 1.0, basis.placement), packed)
