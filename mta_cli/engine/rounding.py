"""A person's LoRA in few bits: 8 or 4 for each number, with one scale for each direction; 16 is float16.

The bytes hold numbers alone: which modules there are, their shapes, scale and placement are the same for everybody and
come from `like`. Knows neither files nor people.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Factors, LoraWeights
from mta_cli.errors import BadInput, IntegrityFault

LEVELS = {8: 127, 4: 7}  # whole numbers on either side of zero
ZERO = 8  # what a zero is in four bits
LEAST = 1e-30  # divides what is all zeros


def rounded(weights: LoraWeights, bits: int) -> tuple[LoraWeights, int]:
    """The weights as `pack` keeps them, and in how many bytes. Raises as `pack`."""
    packed = pack(weights, bits)
    return unpack(packed, weights, bits), len(packed)


def pack(weights: LoraWeights, bits: int) -> bytes:
    """The numbers in `bits` bits each: the largest magnitude of every direction in float16, then shares of it.

    A direction is a row of A or a column of B. Its share `x / largest` is rounded to one of 127 or 7 steps on either
    side of zero. BadInput unless bits are 16, 8 or 4; IntegrityFault when a number is not finite in float16.
    """
    _require_known(bits)
    rows = list(_directions(weights))
    flat = torch.cat([row.reshape(-1) for row in rows]) if rows else torch.zeros(0)
    if not bool(torch.isfinite(flat.half()).all()):
        raise IntegrityFault("the weights hold numbers that are not finite", hint="lower the learning rate")
    if bits == 16:
        return _bytes(flat.half())
    largest = [row.abs().amax(1).half() for row in rows]
    shares = [_shares(row, top, LEVELS[bits]).reshape(-1) for row, top in zip(rows, largest, strict=True)]
    whole = torch.cat(shares) if shares else torch.zeros(0, dtype=torch.int8)
    return b"".join(map(_bytes, largest)) + _bytes(_nibbles(whole) if bits == 4 else whole)


def unpack(packed: bytes, like: LoraWeights, bits: int) -> LoraWeights:
    """What `pack` kept of weights that have the modules and shapes of `like`. IntegrityFault when it is of others."""
    _require_known(bits)
    shapes = [(half.shape[0], half.shape[1]) for half in _directions(like)]
    count, scales = sum(rank * width for rank, width in shapes), sum(rank for rank, _ in shapes)
    size = 2 * count if bits == 16 else 2 * scales + (count * bits + 7) // 8
    if len(packed) != size:
        raise IntegrityFault(f"{len(packed):,} bytes are no weights of {size:,} bytes", hint="mta doctor")
    if bits == 16:
        return _woven(_numbers(packed, torch.float16), shapes, like)
    largest, body = _numbers(packed[: 2 * scales], torch.float16).float(), packed[2 * scales :]
    whole = _from_nibbles(_numbers(body, torch.uint8))[:count] if bits == 4 else _numbers(body, torch.int8)
    widths = torch.tensor([width for rank, width in shapes for _ in range(rank)], dtype=torch.long)
    return _woven(whole.float() * torch.repeat_interleave(largest / LEVELS[bits], widths), shapes, like)


def _require_known(bits: int) -> None:
    if bits != 16 and bits not in LEVELS:
        raise BadInput(f"weights cannot be kept in {bits} bits", hint="16, 8 or 4")


def _directions(weights: LoraWeights) -> Iterator[Tensor]:
    """Of every module A `[rank, in]` and B turned over, `[rank, out]`, float32 on the CPU."""
    for a, b in weights.factors.values():
        yield a.detach().cpu().float()
        yield b.detach().cpu().float().T


def _shares(rows: Tensor, largest: Tensor, levels: int) -> Tensor:
    """Each number of `rows` [rank, width] in steps of its row's `largest` [rank] / `levels`, int8."""
    steps = (largest.float() / levels).clamp_min(LEAST)
    return (rows / steps[:, None]).round_().clamp_(-levels, levels).to(torch.int8)


def _nibbles(whole: Tensor) -> Tensor:
    """Numbers from −7 to 7 [n], two a byte, the first in the lower four bits; uint8 [⌈n / 2⌉]."""
    even = torch.nn.functional.pad(whole, (0, len(whole) % 2)).add(ZERO).to(torch.uint8).view(-1, 2)
    return even[:, 0] | (even[:, 1] << 4)


def _from_nibbles(packed: Tensor) -> Tensor:
    """The numbers [2 n] of `packed` [n]."""
    return torch.stack([packed & 15, packed >> 4], 1).reshape(-1).to(torch.int8).sub_(ZERO)


def _woven(flat: Tensor, shapes: list[tuple[int, int]], like: LoraWeights) -> LoraWeights:
    """The factors whose directions stand one after another in `flat`."""
    pieces = torch.split(flat, [rank * width for rank, width in shapes])
    halves = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    factors: Factors = {path: (halves[2 * i], halves[2 * i + 1].T.contiguous()) for i, path in enumerate(like.factors)}
    return LoraWeights(factors, like.scale, like.placement)


def _bytes(numbers: Tensor) -> bytes:
    return numbers.contiguous().numpy().tobytes()


def _numbers(packed: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(packed), dtype=dtype) if packed else torch.zeros(0, dtype=dtype)
