"""Where an answer ends because it repeats itself, as small models do when they take the likeliest token each time.

Tokens that may be a repetition are held back. So what was shown is never taken back, and a streamed answer is the whole
one in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

FinishReason = Literal["end", "length", "repetition", "stop"]
"""Why a text ended: by the model, at the most tokens, at a repetition, or at a stop text."""

MAX_BLOCK = 64  # tokens of a block whose repetition is looked for
MIN_TIMES, MIN_TOKENS = 3, 32  # a block that is said so often, in so many tokens in all, is a repetition
SENTENCE_ENDS = tuple(".!?…。！？")
SENTENCE_END_TOKENS = 4  # an end with what may follow it is in so many
CLOSING = "\"'”’»)*_ \n"  # what may follow the end of a sentence


def count_new_tokens(tokens: Sequence[int]) -> tuple[int, int]:
    """How many of `tokens` do not repeat what is right before them, and the length of the repeated block.

    The rest, at the end, says the block again, once or more often and perhaps in part. The length is 0 while that is
    no repetition yet: the block is said less than `MIN_TIMES` times, or in less than `MIN_TOKENS` tokens.
    """
    longest = 0
    for period in range(1, min(MAX_BLOCK, len(tokens) - 1) + 1):
        again = 0  # tokens at the end that are the same as `period` tokens before
        while again + period < len(tokens) and tokens[-1 - again] == tokens[-1 - again - period]:
            again += 1
        if period + again >= max(MIN_TIMES * period, MIN_TOKENS):
            return len(tokens) - again, period
        longest = max(longest, again)
    return len(tokens) - longest, 0


class RepetitionFilter:
    """Holds back tokens that may be a repetition, and ends an answer that repeats itself: a block is said once.

    `tokens` are all that were added; after a repetition, those that are kept. One that is not `active` shows all.
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
            del self.tokens[self._sentence_end(new, block) :]
            return self.flush(), True
        return self._show_up_to(new), False

    def flush(self) -> list[int]:
        """What is still held back."""
        return self._show_up_to(len(self.tokens))

    def _show_up_to(self, end: int) -> list[int]:
        shown, self._shown = self.tokens[self._shown : end], max(self._shown, end)
        return shown

    def _sentence_end(self, new: int, block: int) -> int:
        """Where to cut: after the first sentence that ends within a block from the last new token on, else there.

        A block may begin anywhere in a loop: `Yes! I know! I know!` repeats `! I know`.
        """
        for place in range(new, new + block):
            last = self.tokens[max(0, place - SENTENCE_END_TOKENS) : place]
            text = self._tokenizer.decode(last, skip_special_tokens=True)
            if text.rstrip(CLOSING).endswith(SENTENCE_ENDS):
                return place
        return new
