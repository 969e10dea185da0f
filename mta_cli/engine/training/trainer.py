"""Training many people's LoRAs or cores at once. Knows tensors and token rows; nothing of users, files or terminals.

The loss of a person's step is the mean negative log-likelihood of the labelled tokens of their batch, or of the right
choices where rows are choices (nats per token, or per choice).
In every step each person who has steps left takes one, on rows of their own; rows of all of them, sorted by length,
fill passes of at most `budget` tokens. Factors, gradients, moments, clipping and learning rates are each person's own,
so the company changes nothing but the last bits. Same seed, machine, threads and company: same bytes, also when
training stopped and went on from `state()`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.batched import TrainableLoras
from mta_cli.engine.lora.lora_xs import LoraXsCore, TrainableCores
from mta_cli.engine.scoring.backends import TokenBudget, make_scoring_backend, plan_batches
from mta_cli.engine.scoring.label_examples import (
    TrainingExample,
    build_prompt_tree,
    count_loss_terms,
    example_losses,
    prompt_answer_row,
)
from mta_cli.engine.scoring.log_likelihood import prune_examples

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase

MAX_GRAD_NORM = 1.0
WARMUP_RATIO = 0.1
BATCHES_PER_BUCKET = 8
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's, as PyTorch and PEFT's trainers have them


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: `steps` optimiser steps of `batch_size` rows, linear warm-up, cosine decay."""

    steps: int
    batch_size: int
    learning_rate: float

    @classmethod
    def from_epochs(cls, rows: int, epochs: int, batch_size: int, learning_rate: float) -> Schedule:
        """Enough steps to see every one of `rows` rows `epochs` times."""
        return cls(epochs * math.ceil(rows / batch_size), batch_size, learning_rate)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear over the first tenth, then half a cosine towards zero."""
        warmup = max(1, math.ceil(WARMUP_RATIO * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class TrainStep:
    """One optimiser step: its 1-based number, mean loss (nats per labelled token or choice), tokens of prompts and
    answers, seconds taken.
    """

    step: int
    loss: float
    tokens: int
    seconds: float


def epoch_batches(rows: Sequence[TrainingExample], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of one epoch's batches: shuffled, then grouped by length within buckets of a few batches."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), size * BATCHES_PER_BUCKET):
        bucket = sorted(
            order[start : start + size * BATCHES_PER_BUCKET], key=lambda i: len(prompt_answer_row(rows[i]).input_ids)
        )
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    shuffled: list[int] = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]


@dataclass(frozen=True)
class GroupMember:
    """One person of a group: where their LoRA or core begins, their rows, schedule, and frozen parts underneath."""

    initial_weights: LoraWeights | LoraXsCore
    examples: Sequence[TrainingExample]
    schedule: Schedule
    seed: int
    frozen_loras: tuple[LoraWeights, ...] = ()


@dataclass(frozen=True)
class _Due:
    """A row that a member's step needs: whose it is, and its number among the rows of all."""

    member: int
    row: int


class Trainer:
    """Trains what `members` begin with on top of `base`: LoRAs of the same modules, rank, scale and placement, or cores
    that are all the same.

    `budget` is how many tokens, padding counted, run at once; None: as many as pay on this device. It is halved where
    memory runs out. `frozen_a`: every A stays as it started, so that B alone has to be kept where the start can be made
    again. Labels that next to nothing speaks for before the training do not run. `failed` says by member why one could
    not go on.
    """

    def __init__(
        self, base: LoadedBase, members: Sequence[GroupMember], *, budget: int | None = None, frozen_a: bool = False
    ) -> None:
        self.base, self.members = base, members
        self.budget = TokenBudget(base, budget)
        self.completed_steps: list[list[TrainStep]] = [[] for _ in members]
        self.failed: dict[int, str] = {}
        self._group = _make_trainables(members, base.device, frozen_a)
        self._moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self._group.trainable]
        taught = [(one.examples, one.frozen_loras) for one in members]
        rows = [row for own in prune_examples(base, taught, [self._group.placement]) for row in own]
        owners = [i for i, member in enumerate(members) for _ in member.examples]
        self._first = [owners.index(i) if member.examples else 0 for i, member in enumerate(members)]
        self._rows = rows
        self._lengths = [len(prompt_answer_row(row).input_ids) for row in rows]
        self._loss_term_counts = [count_loss_terms(row) for row in rows]
        under = [member.frozen_loras for member in members]
        self._backend = make_scoring_backend(
            base, [build_prompt_tree(row) for row in rows], self._group.placement, under=under, people=owners
        )
        self._batches: list[tuple[int, list[list[int]]]] = [(-1, []) for _ in members]

    def train_steps(self) -> Iterator[dict[int, TrainStep]]:
        """Train until every member's schedule is done; each item holds the step of every member who took one.

        A member whose loss is no number stops there and is named in `failed`. BadInput when one row alone does not fit.
        """
        while active := [i for i in range(len(self.members)) if self._has_steps_left(i)]:
            yield self._step(active)

    def _has_steps_left(self, member: int) -> bool:
        return member not in self.failed and len(self.completed_steps[member]) < self.members[member].schedule.steps

    def weights(self, member: int) -> LoraWeights:
        """A member's ΔW as trained so far, float32 on the CPU."""
        return self._group.user_weights(member)

    def stored_weights(self, member: int) -> LoraWeights:
        """A member's ΔW as the store gives it back. Raises IntegrityFault when a number is not finite there."""
        return self._group.stored_weights(member)

    def packed_core(self, member: int) -> bytes | None:
        """A member's numbers as they are kept, where they have a core."""
        return self._group.packed_core(member) if isinstance(self._group, TrainableCores) else None

    def _step(self, active: Sequence[int]) -> dict[int, TrainStep]:
        started = time.perf_counter()
        due = [_Due(i, self._first[i] + row) for i in active for row in self._batch(i)]
        labels = dict.fromkeys(active, 0)
        for one in due:
            labels[one.member] += self._loss_term_counts[one.row]
        losses = self._backward(due, labels)
        for i in active:
            norm = self._clip(i)
            if not math.isfinite(losses[i]) or not math.isfinite(norm):
                self.failed[i] = (
                    f"loss {losses[i]:.3g} and gradient norm {norm:.3g} in step {len(self.completed_steps[i]) + 1}"
                )
        moved = [i for i in active if i not in self.failed]
        if moved:
            self._adam_step(moved)
        for grad in self._group.grads:
            grad.zero_()
        tokens = {i: sum(self._lengths[one.row] for one in due if one.member == i) for i in active}
        share = (time.perf_counter() - started) / sum(tokens.values())
        made = {i: TrainStep(len(self.completed_steps[i]) + 1, losses[i], tokens[i], share * tokens[i]) for i in moved}
        for i, step in made.items():
            self.completed_steps[i].append(step)
        return made

    def _batch(self, member: int) -> list[int]:
        """Row numbers of a member's next step, from 0 for their first row."""
        own, step = self.members[member], len(self.completed_steps[member])
        size = own.schedule.batch_size
        epoch, place = divmod(step, math.ceil(len(own.examples) / size))
        if self._batches[member][0] != epoch:
            self._batches[member] = (epoch, epoch_batches(own.examples, size, own.seed, epoch))
        return self._batches[member][1][place]

    def _backward(self, due: Sequence[_Due], labels: dict[int, int]) -> dict[int, float]:
        """Gather the gradients of each member's mean loss; returns those losses."""
        totals = torch.zeros(len(self.members), device=self.base.device)
        rows, owners = [one.row for one in due], [one.member for one in due]
        batches = [[due[i] for i in batch] for batch in plan_batches(self._backend, rows, owners, self.budget.tokens)]
        self.budget.run_batches(batches, lambda batch: self._forward_backward(batch, labels, totals))
        self._group.add_penalty_grad()
        found: list[float] = totals.tolist()
        return {i: found[i] for i in labels}

    def _forward_backward(self, batch: Sequence[_Due], labels: dict[int, int], totals: Tensor) -> None:
        owners = [one.member for one in batch]
        leaves = self._group.params_for_rows(owners, self._backend.dtype)
        rows = [one.row for one in batch]
        found, row = example_losses(self._backend.score_rows(rows, leaves.factors()), [self._rows[i] for i in rows])
        share = torch.tensor([1.0 / labels[i] for i in owners], device=found.device)[row]
        (found * share).sum().backward()  # type: ignore[no-untyped-call]
        leaves.accumulate_grads()
        totals.index_add_(0, torch.tensor(owners, device=found.device)[row], (found * share).detach())

    @torch.no_grad()
    def _clip(self, member: int) -> float:
        """Scale a member's gradients to a norm of at most `CLIP`; returns the norm before."""
        own = [grad[member] for grad in self._group.grads]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in own]))
        torch._foreach_mul_(own, (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0))
        return float(norm)

    @torch.no_grad()
    def _adam_step(self, active: Sequence[int]) -> None:
        """One step of Adam (arXiv 1412.6980) for every active member, with their own rate and step number."""
        device = self.base.device
        rates = [self.members[i].schedule.learning_rate_at(len(self.completed_steps[i])) for i in active]
        counts = [len(self.completed_steps[i]) + 1 for i in active]
        first = torch.tensor([rate / (1 - BETA_1**n) for rate, n in zip(rates, counts, strict=True)], device=device)
        second = torch.tensor([(1 - BETA_2**n) ** 0.5 for n in counts], device=device)
        everyone = len(active) == len(self.members)
        index = slice(None) if everyone else torch.tensor(active, device=device)
        for value, grad, (mean, square) in zip(self._group.trainable, self._group.grads, self._moments, strict=True):
            g, m, v = grad[index], mean[index], square[index]
            m.lerp_(g, 1 - BETA_1)
            v.mul_(BETA_2).addcmul_(g, g, value=1 - BETA_2)
            each = (-1, *[1] * (value.dim() - 1))
            change = first.view(each) * m / (v.sqrt().div_(second.view(each)).add_(EPSILON))
            value[index] -= change
            if not everyone:
                mean[index], square[index] = m, v

    def save_state(self) -> bytes:
        """Everything that is needed to go on later with the same result, as safetensors."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self._tensors().items()}
        taken = [[[s.step, s.loss, s.tokens, s.seconds] for s in steps] for steps in self.completed_steps]
        return save_tensors(tensors, metadata={"taken": json.dumps([taken, list(self.failed.items())])})

    @torch.no_grad()
    def load_state(self, state: bytes) -> None:
        """Go on from `state`. Raises ValueError or KeyError when it is another training's; nothing changes then."""
        tensors, own = load_tensors(state), self._tensors()
        taken, failed = json.loads(_metadata(state)["taken"])
        if {key: t.shape for key, t in tensors.items()} != {key: t.shape for key, t in own.items()}:
            raise ValueError("the checkpoint is of another training")
        for key, tensor in own.items():
            tensor.copy_(tensors[key])
        self.completed_steps = [[TrainStep(*values) for values in steps] for steps in taken]
        self.failed = {int(member): str(message) for member, message in failed}

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor
            for i, (value, moments) in enumerate(zip(self._group.trainable, self._moments, strict=True))
            for name, tensor in zip(("value", "exp_avg", "exp_avg_sq"), (value, *moments), strict=True)
        }


def _make_trainables(
    members: Sequence[GroupMember], device: torch.device, frozen_a: bool
) -> TrainableLoras | TrainableCores:
    """What the members train, stacked. ValueError when they are not of one kind."""
    starts = [member.initial_weights for member in members]
    first, loras = starts[0], [start for start in starts if isinstance(start, LoraWeights)]
    if isinstance(first, LoraXsCore) and all(start is first for start in starts):
        return TrainableCores(first, len(members), device)
    if len(loras) < len(starts):
        raise ValueError("a group trains LoRAs, or one and the same core for everybody")
    return TrainableLoras(loras, device, frozen_a=frozen_a)


def _metadata(state: bytes) -> dict[str, str]:
    length = int.from_bytes(state[:8], "little")
    metadata: dict[str, str] = json.loads(state[8 : 8 + length]).get("__metadata__", {})
    return metadata
