"""The choice of an answer's next token: temperature, nucleus, penalties, forbidden tokens, and log-probabilities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mta_cli.engine.generation.generate import sample_token


class TokenConstraint(Protocol):
    """What an answer may say, token by token."""

    def allowed(self) -> Tensor:
        """The tokens that may follow, bool [vocabulary] or longer."""
        ...

    def take(self, token: int) -> None:
        """A token that was chosen."""
        ...


@dataclass(frozen=True)
class SampledToken:
    """A token, its log-probability before temperature and penalties (nats), and the likeliest tokens with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class TokenSampler:
    """One answer's choices. Temperature 0 is greedy; `seed` draws the tokens.

    The penalties are OpenAI's: from a token's logit comes off `presence_penalty` where it stands in the answer, and
    `frequency_penalty` for each time. `top_logprobs` None computes no log-probabilities.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    constraint: TokenConstraint | None = None
    _counts: Counter[int] = field(default_factory=Counter)
    _random: torch.Generator | None = None

    def choose(self, logits: Tensor) -> SampledToken:
        """The next token from `logits` [vocabulary]. Raises IntegrityFault where they are not finite."""
        if self._random is None:
            self._random = torch.Generator().manual_seed(self.seed)
        token = sample_token(self._adjusted(logits), self.temperature, self.top_p, self._random)
        self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.take(token)
        if self.top_logprobs is None:
            return SampledToken(token)
        logs = torch.log_softmax(logits.float(), -1)
        values, tokens = logs.topk(self.top_logprobs)
        return SampledToken(token, float(logs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))

    def _adjusted(self, logits: Tensor) -> Tensor:
        if self._counts and (self.presence_penalty or self.frequency_penalty):
            tokens = torch.tensor(list(self._counts), device=logits.device)
            times = torch.tensor(list(self._counts.values()), device=logits.device, dtype=torch.float32)
            logits = logits.float().index_add(0, tokens, -(self.presence_penalty + self.frequency_penalty * times))
        if self.constraint is not None:
            allowed = self.constraint.allowed()[: len(logits)]
            logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        return logits
