"""Sampling of the next token: temperature, top-p, penalties, constraints, and log-probabilities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mta_cli.errors import Command, Flag, IntegrityFault

MIN_TEMPERATURE = 1e-9  # below it, logits divided by the temperature would overflow, so decoding is greedy


class TokenConstraint(Protocol):
    """A grammar that restricts an answer token by token."""

    def allowed(self) -> Tensor:
        """The tokens that may follow, bool [vocabulary] or longer."""
        ...

    def take(self, token: int) -> None:
        """Advance by the chosen token."""
        ...


@dataclass(frozen=True)
class SampledToken:
    """A token, its log-probability before temperature and penalties (nats), and the likeliest tokens with their
    log-probabilities.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class TokenSampler:
    """The sampler of one answer. Temperature 0 is greedy; `seed` seeds the draws.

    `min_p` leaves out tokens with less than this share of the largest probability, after the temperature. As in
    OpenAI's interface, `presence_penalty` is subtracted from the logit of every token that occurs in the answer, and
    `frequency_penalty` once for each occurrence. `repetition_penalty` is CTRL's (arXiv 1909.05858), for tokens of the
    answer: positive logits are divided by it, negative ones multiplied. `top_logprobs` is the number of likeliest
    tokens to return with their log-probabilities; with None, no log-probabilities are computed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    constraint: TokenConstraint | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    _counts: Counter[int] = field(default_factory=Counter)
    _random: torch.Generator | None = None

    @property
    def takes_likeliest(self) -> bool:
        """Whether the sampler always takes the argmax of the unchanged logits."""
        changed = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return self.temperature <= 0 and not changed and self.constraint is None and self.top_logprobs is None

    def choose(self, logits: Tensor) -> SampledToken:
        """The next token from `logits` [vocabulary]. Raises IntegrityFault if they are not finite."""
        if self._random is None:
            self._random = torch.Generator().manual_seed(self.seed)
        token = sample_token(self._adjusted(logits), self.temperature, self.top_p, self._random, self.min_p)
        self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.take(token)
        if self.top_logprobs is None:
            return SampledToken(token)
        logs = torch.log_softmax(logits.float(), -1)
        values, tokens = logs.topk(self.top_logprobs)
        return SampledToken(token, float(logs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))

    def _adjusted(self, logits: Tensor) -> Tensor:
        if self._counts and (self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1):
            tokens = torch.tensor(list(self._counts), device=logits.device)
            times = torch.tensor(list(self._counts.values()), device=logits.device, dtype=torch.float32)
            logits = logits.float()
            said = logits[tokens]
            said = torch.where(said > 0, said / self.repetition_penalty, said * self.repetition_penalty)
            said = said - (self.presence_penalty + self.frequency_penalty * times)
            logits = logits.index_copy(0, tokens, said)
        if self.constraint is not None:
            allowed = self.constraint.allowed()[: len(logits)]
            logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        return logits


def require_finite_logits(logits: Tensor) -> None:
    """Raises IntegrityFault if a row of `logits` [..., vocabulary] has NaN or no finite maximum."""
    if not bool(torch.isfinite(logits.amax(-1)).all()):  # the maximum is NaN if any number is NaN
        raise IntegrityFault(
            "The model gave no usable numbers (NaN or infinite logits).",
            hint=("try ", Flag("dtype", "float32"), "; ", Command("doctor"), " checks whether an adapter is damaged"),
        )


def sample_token(logits: Tensor, temperature: float, top_p: float, random: torch.Generator, min_p: float = 0.0) -> int:
    """One token id from `logits` [vocabulary]. Draws on the CPU, so that a seed gives the same draw on every device."""
    require_finite_logits(logits)
    if temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    if min_p > 0:
        probabilities[probabilities < min_p * probabilities.max()] = 0
        probabilities /= probabilities.sum()
    if top_p < 1:
        ordered, tokens = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
        ordered[before >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(0, tokens, ordered)
    return int(torch.multinomial(probabilities, 1, generator=random))
