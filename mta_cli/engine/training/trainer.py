"""Trains the LoRAs of many users at once.

The loss of a user's step is the mean negative log-likelihood of their batch: nats per answer token, or per label where
examples are labels. In every step, each user with steps left takes one on their own examples. The examples of all
users, sorted by length, fill passes of at most `budget` tokens. Factors, gradients, moments, clipping and learning
rates are separate for each user, so other users change only the last bits of a result. The same seed, machine,
threads and group give the same bytes, also after resuming from `save_state()`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mta_cli.engine.backends import backend_of
from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.batched import TrainableLoras
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.label_examples import (
    TrainingExample,
    build_prompt_tree,
    count_loss_terms,
    example_losses,
    prompt_answer_row,
)
from mta_cli.engine.scoring.log_likelihood import prune_examples
from mta_cli.engine.scoring.token_budget import TokenBudget
from mta_cli.engine.scoring.tree_scorers import plan_batches

MAX_GRAD_NORM = 1.0
WARMUP_RATIO = 0.1
BATCHES_PER_BUCKET = 8
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # the defaults of Adam in PyTorch


@dataclass(frozen=True)
class Schedule:
    """`steps` optimiser steps of `batch_size` examples, with linear warm-up and cosine decay of the learning rate."""

    steps: int
    batch_size: int
    learning_rate: float

    @classmethod
    def from_epochs(cls, rows: int, epochs: int, batch_size: int, learning_rate: float) -> Schedule:
        """`epochs` passes over `rows` examples; the last step of each pass may have fewer rows."""
        return cls(epochs * math.ceil(rows / batch_size), batch_size, learning_rate)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear over the first tenth, then half a cosine towards zero."""
        warmup = max(1, math.ceil(WARMUP_RATIO * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class TrainStep:
    """One optimiser step: its 1-based number, mean loss (nats per answer token or label), tokens and seconds."""

    step: int
    loss: float
    tokens: int
    seconds: float


def epoch_batches(rows: Sequence[TrainingExample], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the examples `rows` in one epoch's batches: shuffled, then sorted by length within buckets of a few
    batches.
    """
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
    """One user of a group: the initial LoRA, examples, schedule, seed, and the frozen LoRAs below the new one."""

    initial_weights: LoraWeights
    examples: Sequence[TrainingExample]
    schedule: Schedule
    seed: int
    frozen_loras: tuple[LoraWeights, ...] = ()


@dataclass(frozen=True)
class _DueExample:
    """An example that a member's step needs: the member, and the example's number among those of all members."""

    member: int
    example: int


class Trainer:
    """Trains the members' LoRAs on `base`. All have the same modules, rank, scale and placement.

    `budget` is the number of tokens in a pass, including padding; None chooses as many as keep the device busy. It is
    halved when memory runs out, down to one row, which then uses gradient checkpointing. Labels of very low probability
    before the training are left out. `failed` maps members to the reason why their training stopped early.
    """

    def __init__(self, base: LoadedBase, members: Sequence[GroupMember], *, budget: int | None = None) -> None:
        self.base, self.members = base, members
        self.budget = TokenBudget(base, budget)
        self.completed_steps: list[list[TrainStep]] = [[] for _ in members]
        self.failed: dict[int, str] = {}
        self._group = TrainableLoras([member.initial_weights for member in members], base.device)
        self._moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self._group.trainable]
        cases = [(member.examples, member.frozen_loras) for member in members]
        self._examples = [one for own in prune_examples(base, cases, [self._group.placement]) for one in own]
        owners = [i for i, member in enumerate(members) for _ in member.examples]
        self._first = [owners.index(i) if member.examples else 0 for i, member in enumerate(members)]
        self._lengths = [len(prompt_answer_row(one).input_ids) for one in self._examples]
        self._loss_term_counts = [count_loss_terms(one) for one in self._examples]
        self._scorer = backend_of(base).tree_scorer(
            [build_prompt_tree(one) for one in self._examples],
            self._group.placement,
            frozen_loras=[member.frozen_loras for member in members],
            tree_users=owners,
        )
        self._batches: list[tuple[int, list[list[int]]]] = [(-1, []) for _ in members]  # epoch, and its batches

    def train_steps(self) -> Iterator[dict[int, TrainStep]]:
        """Train until every member's schedule is done; yields each step as a TrainStep by member.

        A member whose loss or gradient is not finite stops and is named in `failed`. Raises BadInput when one example
        alone does not fit into memory.
        """
        while active := [i for i in range(len(self.members)) if self._has_steps_left(i)]:
            yield self._step(active)

    def _has_steps_left(self, member: int) -> bool:
        return member not in self.failed and len(self.completed_steps[member]) < self.members[member].schedule.steps

    def weights(self, member: int) -> LoraWeights:
        """A member's ΔW as trained so far, float32 on the CPU."""
        return self._group.user_weights(member)

    def stored_weights(self, member: int) -> LoraWeights:
        """A member's ΔW rounded as in the store. Raises IntegrityFault if a number is not finite."""
        return self._group.stored_weights(member)

    def _step(self, active: Sequence[int]) -> dict[int, TrainStep]:
        started = time.perf_counter()
        # 1. each member's batch, and the number of terms in its mean loss
        due = [_DueExample(i, self._first[i] + n) for i in active for n in self._batch(i)]
        terms = dict.fromkeys(active, 0)
        for one in due:
            terms[one.member] += self._loss_term_counts[one.example]
        # 2. the gradients of all members, in shared passes
        losses = self._backward(due, terms)
        # 3. gradient clipping by member; a member with a loss or norm that is not finite has failed
        for i in active:
            norm = self._clip(i)
            if not math.isfinite(losses[i]) or not math.isfinite(norm):
                self.failed[i] = (
                    f"loss {losses[i]:.3g} and gradient norm {norm:.3g} in step {len(self.completed_steps[i]) + 1}"
                )
        # 4. one step of Adam for the other members
        moved = [i for i in active if i not in self.failed]
        if moved:
            self._adam_step(moved)
        for grad in self._group.grads:
            grad.zero_()
        # 5. record the step; its seconds are divided in proportion to tokens
        tokens = {i: sum(self._lengths[one.example] for one in due if one.member == i) for i in active}
        share = (time.perf_counter() - started) / sum(tokens.values())
        steps = {i: TrainStep(len(self.completed_steps[i]) + 1, losses[i], tokens[i], share * tokens[i]) for i in moved}
        for i, step in steps.items():
            self.completed_steps[i].append(step)
        return steps

    def _batch(self, member: int) -> list[int]:
        """The indices of the member's own examples for its next step."""
        own, step = self.members[member], len(self.completed_steps[member])
        size = own.schedule.batch_size
        epoch, batch = divmod(step, math.ceil(len(own.examples) / size))
        if self._batches[member][0] != epoch:
            self._batches[member] = (epoch, epoch_batches(own.examples, size, own.seed, epoch))
        return self._batches[member][1][batch]

    def _backward(self, due: Sequence[_DueExample], terms: dict[int, int]) -> dict[int, float]:
        """Accumulate the gradients of each member's mean loss over its `terms` loss terms; returns the losses."""
        totals = torch.zeros(len(self.members), device=self.base.device)
        numbers, owners = [one.example for one in due], [one.member for one in due]
        plan = plan_batches(self._scorer, numbers, owners, self.budget.tokens)
        batches = [[due[i] for i in batch] for batch in plan]
        run = partial(self._forward_backward, terms=terms, totals=totals)
        run_recomputing = partial(run, recomputes=True) if self._scorer.can_recompute else None
        self.budget.run_batches(batches, run, run_recomputing)
        losses: list[float] = totals.tolist()
        return {i: losses[i] for i in terms}

    def _forward_backward(
        self, batch: Sequence[_DueExample], terms: dict[int, int], totals: Tensor, recomputes: bool = False
    ) -> None:
        """With `recomputes`, and for a row longer than the base's limit of a pass, layers are recomputed in the
        backward pass.
        """
        limit = self.base.limits.batch_tokens
        if limit is not None:
            recomputes |= max(self._scorer.tokens_per_pass(one.example) for one in batch) > limit
        with self._scorer.recomputing_layers(recomputes):
            owners, numbers = [one.member for one in batch], [one.example for one in batch]
            # 1. factors of the batch's rows, as leaf tensors
            params = self._group.params_for_rows(owners, self._scorer.dtype)
            # 2. losses, and the batch row of each  [loss terms]
            scores = self._scorer.score_rows(numbers, params.factors())
            losses, row = example_losses(scores, [self._examples[i] for i in numbers])
            # 3. weight each loss by its share of its member's mean, and run the backward pass
            share = torch.tensor([1.0 / terms[i] for i in owners], device=losses.device)[row]
            (losses * share).sum().backward()  # type: ignore[no-untyped-call]
            # 4. add gradients and losses to their members
            params.accumulate_grads()
            totals.index_add_(0, torch.tensor(owners, device=losses.device)[row], (losses * share).detach())

    @torch.no_grad()
    def _clip(self, member: int) -> float:
        """Scale a member's gradients to a norm of at most `MAX_GRAD_NORM`; returns the norm before scaling."""
        grads = [grad[member] for grad in self._group.grads]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
        factor = (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor)
        return float(norm)

    @torch.no_grad()
    def _adam_step(self, active: Sequence[int]) -> None:
        """One step of Adam (arXiv 1412.6980) for every active member, with their own rate and step number."""
        device = self.base.device
        # 1. each member's step size with the bias corrections of its own step number  [active]
        rates = [self.members[i].schedule.learning_rate_at(len(self.completed_steps[i])) for i in active]
        counts = [len(self.completed_steps[i]) + 1 for i in active]
        first = torch.tensor([rate / (1 - BETA_1**n) for rate, n in zip(rates, counts, strict=True)], device=device)
        second = torch.tensor([(1 - BETA_2**n) ** 0.5 for n in counts], device=device)
        # 2. for each stacked parameter [members, …], the rows of the active members
        all_active = len(active) == len(self.members)
        index = slice(None) if all_active else torch.tensor(active, device=device)
        for value, grad, (mean, square) in zip(self._group.trainable, self._group.grads, self._moments, strict=True):
            g, m, v = grad[index], mean[index], square[index]
            m.lerp_(g, 1 - BETA_1)
            v.mul_(BETA_2).addcmul_(g, g, value=1 - BETA_2)
            by_member = (-1, *[1] * (value.dim() - 1))
            change = first.view(by_member) * m / (v.sqrt().div_(second.view(by_member)).add_(EPSILON))
            value[index] -= change
            if not all_active:
                mean[index], square[index] = m, v

    def save_state(self) -> bytes:
        """The complete state of the training, as bytes of a safetensors file."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self._tensors().items()}
        taken = [[[s.step, s.loss, s.tokens, s.seconds] for s in steps] for steps in self.completed_steps]
        return save_tensors(tensors, metadata={"taken": json.dumps([taken, list(self.failed.items())])})

    @torch.no_grad()
    def load_state(self, state: bytes) -> None:
        """Continue from a saved `state`. For another training's state, raises ValueError or KeyError and changes
        nothing.
        """
        tensors, current = load_tensors(state), self._tensors()
        header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
        taken, failed = json.loads(header["__metadata__"]["taken"])
        if {key: t.shape for key, t in tensors.items()} != {key: t.shape for key, t in current.items()}:
            raise ValueError("the checkpoint belongs to another training")
        for key, tensor in current.items():
            tensor.copy_(tensors[key])
        self.completed_steps = [[TrainStep(*values) for values in steps] for steps in taken]
        self.failed = {int(member): str(message) for member, message in failed}

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor
            for i, (value, moments) in enumerate(zip(self._group.trainable, self._moments, strict=True))
            for name, tensor in zip(("value", "exp_avg", "exp_avg_sq"), (value, *moments), strict=True)
        }
