"""Turns an answer's tokens into text while they are generated: only whole characters, up to the first stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"  # what a tokenizer shows for an incomplete character


class StreamingDetokenizer:
    """Turns token ids into text piece by piece, never splitting a character that spans several tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # the text of the ids before this index has been returned
        # decoding starts at this earlier id, because some tokenizers decode the first token differently
        self._context = 0

    def add_token(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._text(self._context, len(self._ids))
        return "" if text.endswith(REPLACEMENT) else self._take_new_text(text)

    def flush(self) -> str:
        """The text that is still held back, with U+FFFD for bytes that did not become a character."""
        return self._take_new_text(self._text(self._context, len(self._ids)))

    def _take_new_text(self, text: str) -> str:
        piece = text[len(self._text(self._context, self._shown)) :]
        self._context, self._shown = self._shown, len(self._ids)
        return piece

    def _text(self, start: int, end: int) -> str:
        decoded = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)


class StopFilter:
    """Holds back text that may be the beginning of a stop text, and cuts the answer at the first stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [stop for stop in stops if stop], ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop text was found. Drops the stop text and all after it."""
        self._held += text
        met = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if met:
            shown, self._held = self._held[: min(met)], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """The text that is still held back."""
        shown, self._held = self._held, ""
        return shown


class AnswerText:
    """An answer's text while its tokens are generated, up to the first stop text."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._detokenizer, self._filter = StreamingDetokenizer(tokenizer), StopFilter(stops)
        self.stopped = False

    def add_token(self, token: int) -> str:
        """The text that may be shown after the next token."""
        return self._add(self._detokenizer.add_token(token))

    def flush(self) -> str:
        """The text that is still held back at the end of the answer."""
        shown = self._add(self._detokenizer.flush())
        return shown if self.stopped else shown + self._filter.flush()

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        shown, self.stopped = self._filter.add(text)
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
