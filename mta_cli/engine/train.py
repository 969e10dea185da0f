"""Training LoRAs and scoring rows. Knows tensors and token rows; nothing of users, files or progress bars.

The loss is the mean negative log-likelihood of the labelled tokens of a step (nats per token), and logits are computed
at those positions only. Rows are padded on the right: attention is causal, so padding changes nothing before it.
Same seed, same machine, same number of threads: same bytes, also when training stopped and went on from `state()`.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mta_cli.engine.base import head_logits
from mta_cli.engine.lora import Factors, LoraWeights, attached

if TYPE_CHECKING:
    from mta_cli.engine.base import LoadedBase
    from mta_cli.engine.prompts import Row

CLIP = 1.0
WARMUP = 0.1
BUCKET = 8


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: `steps` optimiser steps of `batch_size` rows, linear warm-up, cosine decay."""

    steps: int
    batch_size: int
    learning_rate: float

    @classmethod
    def epochs(cls, rows: int, epochs: int, batch_size: int, learning_rate: float) -> "Schedule":
        """Enough steps to see every one of `rows` rows `epochs` times."""
        return cls(epochs * math.ceil(rows / batch_size), batch_size, learning_rate)

    def rate(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear over the first tenth, then half a cosine towards zero."""
        warmup = max(1, math.ceil(WARMUP * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class TrainStep:
    """One optimiser step: its 1-based number, mean loss (nats per labelled token), tokens that ran, seconds taken."""

    step: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Batch:
    """Rows as tensors: `input_ids [rows, length]`; logits at `(row, col)` predict `labels`; all three `[labelled]`."""

    input_ids: Tensor
    row: Tensor
    col: Tensor
    labels: Tensor
    tokens: int


def collate(rows: Sequence["Row"], device: torch.device) -> Batch:
    """Pad rows on the right and list where each labelled token is predicted."""
    length = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    row_index, col_index, labels = [], [], []
    for i, row in enumerate(rows):
        ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
        for position in range(max(row.answer_start, 1), len(row.input_ids)):
            row_index.append(i)
            col_index.append(position - 1)
            labels.append(row.input_ids[position])
    where = torch.tensor([row_index, col_index, labels], dtype=torch.long, device=device)  # [3, labelled]
    return Batch(ids.to(device), where[0], where[1], where[2], sum(len(row.input_ids) for row in rows))


def epoch_batches(rows: Sequence["Row"], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of one epoch's batches: shuffled, then grouped by length within buckets of a few batches."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=lambda i: len(rows[i].input_ids))
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    shuffled: list[int] = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]


def label_losses(base: "LoadedBase", batch: Batch) -> Tensor:
    """Negative log-likelihood of each labelled token, float32 `[labelled]`."""
    logits = head_logits(base, batch.input_ids, None, batch.row, batch.col)  # [labelled, vocab]
    return torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")


@torch.inference_mode()
def score(base: "LoadedBase", rows: Sequence["Row"], batch_size: int = 16) -> list[tuple[float, int]]:
    """Of each row: the log-likelihood of its labelled tokens (nats, summed) and how many there are."""
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], base.device)
        losses = label_losses(base, batch)
        sums = torch.zeros(len(chosen), device=base.device).index_add_(0, batch.row, losses).tolist()
        for i, total in zip(chosen, sums, strict=True):
            results[i] = (-total, len(rows[i].input_ids) - max(rows[i].answer_start, 1))
    return results


def mean_loss(base: "LoadedBase", rows: Sequence["Row"]) -> float:
    """Mean negative log-likelihood per labelled token over all rows (nats)."""
    scored = score(base, rows)
    return -sum(value for value, _ in scored) / max(1, sum(count for _, count in scored))


class Trainer:
    """Trains one LoRA on top of whatever is folded into the base. A context manager: the base comes back on exit."""

    def __init__(
        self, base: "LoadedBase", weights: LoraWeights, rows: Sequence["Row"], schedule: Schedule, seed: int
    ) -> None:
        self.base, self.rows, self.schedule, self.seed = base, rows, schedule, seed
        self.taken: list[TrainStep] = []
        self._scale, self._placement = weights.scale, weights.placement
        self._exit = ExitStack()
        self._layers = self._exit.enter_context(attached(base.model, weights))
        self._parameters = [p for layer in self._layers.values() for p in (layer.a, layer.b)]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=schedule.learning_rate, weight_decay=0.0)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def steps(self) -> Iterator[TrainStep]:
        """Train, one optimiser step per item, from where `state` left off. FloatingPointError: loss is no number."""
        per_epoch = math.ceil(len(self.rows) / self.schedule.batch_size)
        batches: list[list[int]] = []
        for step in range(len(self.taken), self.schedule.steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not batches:
                batches = epoch_batches(self.rows, self.schedule.batch_size, self.seed, epoch)
            self.taken.append(self._step(step, [self.rows[i] for i in batches[place]]))
            yield self.taken[-1]

    def _step(self, step: int, rows: Sequence["Row"]) -> TrainStep:
        started = time.perf_counter()
        batch = collate(rows, self.base.device)
        loss = label_losses(self.base, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        if not bool(torch.isfinite(loss.detach()) & torch.isfinite(norm)):
            raise FloatingPointError(f"loss {loss.item():.3g} and gradient norm {norm.item():.3g} in step {step + 1}")
        self._optimizer.param_groups[0]["lr"] = self.schedule.rate(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return TrainStep(step + 1, float(loss.detach()), batch.tokens, time.perf_counter() - started)

    def weights(self) -> LoraWeights:
        """The LoRA as trained so far, float32 on the CPU."""
        factors: Factors = {
            path: (layer.a.detach().cpu().clone(), layer.b.detach().cpu().clone())
            for path, layer in self._layers.items()
        }
        return LoraWeights(factors, self._scale, self._placement)

    def state(self) -> bytes:
        """Everything needed to go on later with the same result: factors, moments and the step, as safetensors."""
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self._parameters):
            moments = self._optimizer.state.get(parameter, {})
            tensors[f"{i}.value"] = parameter.detach()
            for name in ("exp_avg", "exp_avg_sq"):
                if name in moments:
                    tensors[f"{i}.{name}"] = moments[name]
        taken = json.dumps([[s.step, s.loss, s.tokens, s.seconds] for s in self.taken])
        return save_tensors({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata={"taken": taken})

    @torch.no_grad()
    def resume(self, state: bytes) -> None:
        """Go on from `state`. Raises ValueError or KeyError when it is of another training; nothing changes then."""
        tensors = load_tensors(state)
        taken = [TrainStep(*values) for values in json.loads(_metadata(state)["taken"])]
        names = ("value", "exp_avg", "exp_avg_sq") if taken else ("value",)
        found = [[tensors[f"{i}.{name}"] for name in names] for i in range(len(self._parameters))]
        if any(t.shape != p.shape for ts, p in zip(found, self._parameters, strict=True) for t in ts):
            raise ValueError("the checkpoint is of another training")
        for parameter, (value, *moments) in zip(self._parameters, found, strict=True):
            parameter.copy_(value)
            if moments:
                first, second = (moment.to(parameter.device) for moment in moments)
                step = torch.tensor(float(len(taken)))
                self._optimizer.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        self.taken = taken


def _metadata(state: bytes) -> dict[str, str]:
    length = int.from_bytes(state[:8], "little")
    metadata: dict[str, str] = json.loads(state[8 : 8 + length]).get("__metadata__", {})
    return metadata


def learn_weights(
    base: "LoadedBase",
    anchors: Sequence[LoraWeights],
    prior: Sequence[float],
    rows: Sequence["Row"],
    *,
    steps: int = 20,
    learning_rate: float = 0.02,
    pull: float = 1.0,
) -> list[float]:
    """Scalar weights of `anchors` that fit `rows`: gradient on mean loss + `pull` × squared distance from `prior`.

    The base must hold everything below the anchors (the task adapter) already.
    """
    from mta_cli.engine.fusion import merge

    joined = merge([(anchor, 1.0) for anchor in anchors])
    if joined is None:
        return list(prior)
    gate = torch.tensor(list(prior), dtype=torch.float32, device=base.device, requires_grad=True)
    centre = gate.detach().clone()
    optimizer = torch.optim.Adam([gate], lr=learning_rate)
    batch = collate(rows, base.device)
    with attached(base.model, joined) as layers:
        for path, layer in layers.items():
            layer.a.requires_grad_(False)
            layer.b.requires_grad_(False)
            ranks = [anchor.factors[path][0].shape[0] if path in anchor.factors else 0 for anchor in anchors]
            layer.gate = gate
            layer.owner = torch.repeat_interleave(torch.arange(len(anchors)), torch.tensor(ranks)).to(base.device)
        for _ in range(steps):
            loss = label_losses(base, batch).mean() + pull * (gate - centre).square().sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    values: list[float] = gate.detach().cpu().tolist()
    return values
