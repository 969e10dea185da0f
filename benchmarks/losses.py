"""The loss of any model on rows, measured for every side by the same simple code.

It is in nats per labelled token, and runs transformers' whole model: slow, but independent of the measured code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.text.prompts import TrainingRow

CHUNK = 8  # rows that run at once


def mean_loss(model: Any, rows: Sequence[TrainingRow], parts: Sequence[LoraWeights] = ()) -> float:
    """Mean negative log-likelihood of the labelled tokens of `rows` under `model`, with `parts` added where they act.

    `model` is any causal language model of transformers, or PEFT's; it computes in its own dtype, the parts in float32.
    """
    total, count = 0.0, 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        with _added(model, parts, chunk):
            loss, labelled = _summed(model, chunk)
        total, count = total + loss, count + labelled
    return total / count


def _summed(model: Any, rows: Sequence[TrainingRow]) -> tuple[float, int]:
    import torch

    ids, row, col = _padded(rows)
    with torch.inference_mode():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits.cpu()[row, col - 1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[row, col], reduction="sum")
    return float(loss), len(row)


def _padded(rows: Sequence[TrainingRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids `[rows, length]`, padded on the right, and the places `(row, col)` of labelled tokens, each `[labelled]`."""
    import torch

    length = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([[*row.input_ids, *[0] * (length - len(row.input_ids))] for row in rows])
    where = [(i, col) for i, row in enumerate(rows) for col in range(row.answer_start, len(row.input_ids))]
    row, col = torch.tensor(where).T
    return ids, row, col


@contextmanager
def _added(model: Any, parts: Sequence[LoraWeights], rows: Sequence[TrainingRow]) -> Iterator[None]:
    """`model` with each part's ΔW·x added behind its linear layers, at the positions of `rows` where the part acts."""
    handles = []
    try:
        for part in parts:
            starts = [part.placement.first_position(row.answer_start) for row in rows]
            for path in part.factors:
                hook = partial(_add, part=part, path=path, starts=starts)
                handles.append(model.get_submodule(path).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(module: Any, inputs: tuple[Tensor], output: Tensor, part: LoraWeights, path: str, starts: list[int]) -> Tensor:
    import torch

    a, b = (factor.to(output.device, torch.float32) for factor in part.factors[path])
    places = torch.arange(output.shape[1], device=output.device)
    acts = places >= torch.tensor(starts, device=output.device)[:, None]  # [rows, time]
    added = part.scale * (inputs[0].float() @ a.T @ b.T) * acts[..., None]
    return (output.float() + added).to(output.dtype)
