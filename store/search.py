"""From anybody's words to a full-text query that holds no syntax of theirs. Knows no database."""

import unicodedata
from collections.abc import Iterator

MAX_TERMS = 64
"""Most distinct words of a text that a search uses; its first ones."""

_READ = 20_000


def safe_query(user_id: int, task: str, text: str) -> str | None:
    """An FTS5 query for any of the words of `text` in the inputs of one user's items of a task; None without words."""
    terms = dict.fromkeys(_words(text))
    chosen = list(terms)[:MAX_TERMS]
    if not chosen:
        return None
    anyone = " OR ".join(f'"{term}"' for term in chosen)
    return f'scope : "{user_id}x{task.encode().hex()}" AND input : ({anyone})'


def _words(text: str) -> Iterator[str]:
    """Runs of letters, marks and digits, in lower case; a quote or any other sign can be in none of them."""
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in text[:_READ])
    return iter("".join(kept).lower().split())
