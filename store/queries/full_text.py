"""Builds full-text queries from plain texts, and ranks the matches. Accesses no database."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

MAX_QUERY_TERMS = 64
"""A search uses at most this many distinct words of the text, the first ones."""

_MAX_TEXT_CHARS = 20_000
_TERM_COUNTS_CACHE_SIZE = 1_024  # texts whose word counts are cached
_ASCII_WORD_PATTERN = re.compile("[a-z0-9]+")
_BM25_K1, _BM25_B = 1.2, 0.75  # parameters of Okapi BM25, with FTS5's values


def fts5_query(user_id: int, task: str, text: str) -> str | None:
    """An FTS5 query for one user's items of a task whose input has any word of `text`; None if `text` has no words."""
    terms = dict.fromkeys(_words(text))
    chosen = list(terms)[:MAX_QUERY_TERMS]
    if not chosen:
        return None
    any_term = " OR ".join(f'"{term}"' for term in chosen)
    return f'scope : "{user_id}x{task.encode().hex()}" AND input : ({any_term})'


def rank_bm25(text: str, found: Sequence[tuple[int, str]], searched: int) -> list[int]:
    """The item ids of `found`, pairs of id and input, sorted by Okapi BM25 for `text`, best first; ties by id.

    The mean length is taken over `found`; `searched` is how many inputs of the user were searched. Term frequencies
    come from this user's texts alone. FTS5's `bm25()` is not used: it counts all users' texts, so one user's items
    would change another user's prompts.
    """
    terms = list(dict.fromkeys(_unaccented_words(text)))[:MAX_QUERY_TERMS]
    counts = {item_id: _term_counts(item_input) for item_id, item_input in found}
    lengths = {item_id: sum(count.values()) for item_id, count in counts.items()}
    mean = sum(lengths.values()) / max(1, len(lengths)) or 1.0
    holders = {term: sum(term in count for count in counts.values()) for term in terms}
    rare = {term: math.log(1.0 + (searched - n + 0.5) / (n + 0.5)) for term, n in holders.items()}

    def score(item_id: int) -> float:
        count, damped = counts[item_id], _BM25_K1 * (1.0 - _BM25_B + _BM25_B * lengths[item_id] / mean)
        return sum(rare[term] * count[term] / (count[term] + damped) for term in terms if term in count)

    return sorted(counts, key=lambda item_id: (-score(item_id), item_id))


def drop_kept_texts() -> None:
    """Clear the cache of word counts, whose keys are users' texts."""
    _term_counts.cache_clear()


@lru_cache(_TERM_COUNTS_CACHE_SIZE)
def _term_counts(text: str) -> Counter[str]:
    return Counter(_unaccented_words(text))


def _unaccented_words(text: str) -> Iterator[str]:
    head = text[:_MAX_TEXT_CHARS]
    if head.isascii():
        return _words(head)
    plain = unicodedata.normalize("NFKD", head)
    return _words("".join(char for char in plain if not unicodedata.combining(char)))


def _words(text: str) -> Iterator[str]:
    """Runs of letters, marks and digits in lower case; quotes and other punctuation separate words."""
    head = text[:_MAX_TEXT_CHARS]
    if head.isascii():  # the pattern is four times as fast as the loop below
        return iter(_ASCII_WORD_PATTERN.findall(head.lower()))
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in head)
    return iter("".join(kept).lower().split())
