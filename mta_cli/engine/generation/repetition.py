"""Stops answers that repeat themselves, as small models do in greedy decoding.

Tokens that may be a repetition are held back, so that shown text never has to be withdrawn, and a streamed answer is
the same as one that is returned whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

FinishReason = Literal["end", "length", "repetition", "stop"]
"""The reason for the end of an answer: the model's end token, the token limit, a repetition, or a stop text."""

MAX_BLOCK = 64  # the longest block, in tokens, whose repetition is found
MIN_TIMES, MIN_TOKENS = 3, 32  # a repetition has at least so many occurrences of a block, and so many tokens in all
MIN_TOKENS_AT_LIMIT = 12  # in place of MIN_TOKENS, when an answer reaches its token limit
SENTENCE_ENDS = tuple(".!?…。！？")
SENTENCE_END_TOKENS = 4  # a sentence's end is looked for in this many tokens, including closing characters
CLOSING = "\"'”’»)*_ \n"  # characters that may follow the end of a sentence


def count_new_tokens(tokens: Sequence[int], min_tokens: int = MIN_TOKENS) -> tuple[int, int]:
    """The number of `tokens` before a repetition at their end, and the length of the repeated block.

    The number includes the block's first occurrence; the tokens after it repeat the block, the last time perhaps in
    part. If no block occurs `MIN_TIMES` times and covers `min_tokens` tokens, the length is 0, and the number is that
    of the tokens before any shorter repetition at the end.
    """
    longest = 0
    for period in range(1, min(MAX_BLOCK, len(tokens) - 1) + 1):
        again = 0  # tokens at the end that equal the tokens `period` places before
        while again + period < len(tokens) and tokens[-1 - again] == tokens[-1 - again - period]:
            again += 1
        if period + again >= max(MIN_TIMES * period, min_tokens):
            return len(tokens) - again, period
        longest = max(longest, again)
    return len(tokens) - longest, 0


class RepetitionFilter:
    """Holds back tokens that may be a repetition, and ends an answer that repeats itself; the block is kept once.

    `tokens` are all added tokens; after a repetition, only the kept ones. If not `active`, it shows everything.
    """

    def __init__(self, tokenizer: Any, *, active: bool = True) -> None:
        self._tokenizer, self._active = tokenizer, active
        self._shown = 0
        self.tokens: list[int] = []

    def add(self, token: int) -> tuple[list[int], bool]:
        """The tokens that may be shown now, and whether the answer repeats itself and has ended."""
        self.tokens.append(token)
        if not self._active:
            return self.flush(), False
        new, block = count_new_tokens(self.tokens)
        if block:
            self._keep_once(new, block)
            return self.flush(), True
        return self._show_up_to(new), False

    def end_at_limit(self) -> bool:
        """Cut a repetition at the end of an answer that reached its token limit; returns whether there was one.

        Here `MIN_TOKENS_AT_LIMIT` tokens are enough. A repeated block is not cut if it is a single token or has no
        letter, because it may be part of a number. Afterwards, `flush` returns the remaining tokens.
        """
        new, block = count_new_tokens(self.tokens, MIN_TOKENS_AT_LIMIT) if self._active else (0, 0)
        if block < 2 or not any(map(str.isalpha, self._tokenizer.decode(self.tokens[-block:]))):
            return False
        self._keep_once(new, block)
        return True

    def flush(self) -> list[int]:
        """The tokens that are still held back."""
        return self._show_up_to(len(self.tokens))

    def _show_up_to(self, end: int) -> list[int]:
        shown, self._shown = self.tokens[self._shown : end], max(self._shown, end)
        return shown

    def _keep_once(self, new: int, block: int) -> None:
        """Keep the first `new` tokens, and up to one `block` more if that reaches the end of a sentence.

        A block may begin anywhere in a loop: `Yes! I know! I know!` repeats `! I know`.
        """
        for place in range(new, new + block):
            last = self.tokens[max(0, place - SENTENCE_END_TOKENS) : place]
            text = self._tokenizer.decode(last, skip_special_tokens=True)
            if text.rstrip(CLOSING).endswith(SENTENCE_ENDS):
                new = place
                break
        del self.tokens[new:]
