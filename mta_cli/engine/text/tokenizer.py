"""A tokenizer for prompts. Only a chat template's text can become control tokens, never a user's text.

Wraps any Hugging Face tokenizer, byte-level or sentencepiece-like, fast or slow.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from mta_cli.engine.model.checkpoint_files import load_errors_as_bad_input

TEXT_CACHE_SIZE = 16_384  # truncated texts that are cached
MAX_CHARACTERS_PER_TOKEN = 48  # a text is cut to this length per token of its budget before tokenising


class PromptTokenizer:
    """Encodes texts with a base's tokenizer.

    Control tokens are the special tokens, and the added tokens that occur in `template`, a chat template's own texts.
    """

    def __init__(self, tokenizer: Any, template: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = {int(number): token for number, token in tokenizer.added_tokens_decoder.items()}
        special = {number for number, token in added.items() if token.special}
        spoken = {number for text in template for number in self.encode_template(text)}
        self.controls = frozenset(special | set(tokenizer.all_special_ids) | spoken.intersection(added))
        names = tokenizer.convert_ids_to_tokens(sorted(self.controls))
        texts = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")  # tries the longest names first
        self.truncate_text = lru_cache(TEXT_CACHE_SIZE)(self._truncate_text)

    def encode_template(self, text: str) -> list[int]:
        """Ids of a template's own text, including control tokens."""
        return self._ids(text, split=False)

    def encode_user_text(self, text: str) -> list[int]:
        """Ids of a user's text; a control token's name is encoded as plain letters."""
        ids = self._ids(text, split=True)
        if self.controls.isdisjoint(ids):
            return ids
        # the tokenizer found a control token: split its name after the first character, and encode the parts separately
        matches = self._control_pattern.finditer(text)
        cuts = [0, *(cut for typed in matches for cut in (typed.start(), typed.start() + 1, typed.end())), len(text)]
        parts = [text[start:end] for start, end in pairwise(cuts)]
        encoded = {part: self._ids(part, split=True) for part in set(parts)}
        return [number for part in parts for number in encoded[part]]

    def count_control_tokens(self, ids: Iterable[int]) -> int:
        """How many of `ids` are control tokens."""
        return sum(token in self.controls for token in ids)

    def encode_exactly(self, text: str) -> list[int]:
        """Ids that decode to exactly `text`, if the tokenizer has such ids; otherwise those of `encode_user_text`.

        Some tokenizers drop a leading space, because they take it for a word boundary. For them, one more is added.
        """
        first = self.encode_user_text(text)
        if self.decode_ids(first) == text:
            return first
        second = self.encode_user_text(f" {text}")
        return second if self.decode_ids(second) == text else first

    def decode_ids(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def leading_special_ids(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text, such as a beginning-of-sequence token."""
        bare, whole = self.encode_template("a"), self.tokenizer.encode("a", add_special_tokens=True)
        for place in range(len(whole) - len(bare) + 1):
            if bare and whole[place : place + len(bare)] == bare:
                return tuple(whole[:place])
        return ()

    def _truncate_text(self, text: str, budget: int) -> str:
        """The longest prefix of `text` of at most `budget` tokens, without a broken character or a trailing space."""
        budget = max(0, budget)
        kept = text[: budget * MAX_CHARACTERS_PER_TOKEN]
        while len(ids := self.encode_user_text(kept)) > budget:
            kept = kept[: self._end_of_token(kept, ids, budget)].rstrip()
        return kept if len(kept) == len(text) else kept.rstrip()

    def _end_of_token(self, text: str, ids: Sequence[int], budget: int) -> int:
        """The position in `text` at which token number `budget` ends, always before the end of the text."""
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
            )
            if list(encoded["input_ids"]) == list(ids):
                return int(min(encoded["offset_mapping"][budget][0], len(text) - 1))
        # This tokenizer has no offsets: find the longest prefix that fits by bisection.
        fits = bisect_left(
            range(1, len(text)), True, key=lambda length: len(self.encode_user_text(text[:length])) > budget
        )
        return min(fits, len(text) - 1)

    def _ids(self, text: str, *, split: bool) -> list[int]:
        if not text:
            return []
        with load_errors_as_bad_input("The tokenizer of this base failed", "Check the base's tokenizer files."):
            return list(
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split, verbose=False)
            )
