"""Repetitions: loops of small models end and are said once; poems, lists, tables and code go through whole."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mta_cli.engine.generation.repetition import (
    MAX_BLOCK,
    MIN_TIMES,
    MIN_TOKENS,
    RepetitionFilter,
    count_new_tokens,
)


class Words:
    """A tokenizer whose tokens are the words of a text."""

    def __init__(self, text: str) -> None:
        self.words = list(dict.fromkeys(text.split(" ")))
        self.ids = [self.words.index(word) for word in text.split(" ")]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        """The words of these tokens."""
        return " ".join(self.words[token] for token in ids)


def filtered(text: str, *, at_limit: bool = False) -> tuple[str, bool]:
    """What is shown of a text that comes word by word, and whether it repeats itself."""
    tokenizer, shown = Words(text), list[int]()
    tokens = RepetitionFilter(tokenizer)
    for token in tokenizer.ids:
        new, repeats = tokens.add(token)
        shown += new
        if repeats:
            assert shown == tokens.tokens
            return tokenizer.decode(shown), True
    repeats = at_limit and tokens.end_at_limit()
    return tokenizer.decode(shown + tokens.flush()), repeats


GLAD = "I'm so glad that you are enjoying your long holiday!"
LOOPS = [
    (f"Hello there. {' '.join([GLAD] * 9)}", f"Hello there. {GLAD}"),
    (f"Good! {' '.join(['I know!'] * 40)}", "Good! I know!"),
    (" ".join(["broken", "/"] * 20), "broken /"),
    (" ".join(["no"] * 50), "no"),
    (f"A list: {'and so on, ' * 20}".strip(), "A list: and so on,"),
    (" ".join(["I am so glad.", "\n\n"] * 20), "I am so glad. \n\n"),
    (" ".join(["she said: I know.", '"', "\n"] * 20), 'she said: I know. " \n'),
]
POEM = """Row, row, row your boat gently down the stream, merrily, merrily, merrily, merrily, life is but a dream.
Row, row, row your boat gently down the stream, if you see a crocodile, don't forget to scream."""
WHOLE = [
    POEM,
    f"{POEM} {POEM}",  # a refrain
    " ".join(f"{n}. Take the egg and put it into the bowl." for n in range(1, 12)),
    " ".join(["|", "---"] * 12),  # the line below a table's head
    "[ " + "0 , " * 12 + "]",
    " ".join(f"for x{n} in rows : if x{n} : print ( x{n} ) else : pass" for n in range(8)),
    "We will , we will rock you . " * 3 + "Sing it !",
    "Happy birthday to you , " * 2 + "happy birthday dear Ann ,",
]


@pytest.mark.parametrize(("text", "kept"), LOOPS)
def test_a_loop_is_said_once(text: str, kept: str) -> None:
    assert filtered(text) == (kept, True)


@pytest.mark.parametrize("text", WHOLE)
def test_what_is_no_loop_is_whole(text: str) -> None:
    text = " ".join(text.split())
    assert filtered(text) == (text, False)


def test_the_bounds_are_those_that_are_said() -> None:
    block = list(range(100, 100 + MIN_TOKENS))
    assert count_new_tokens(block * MIN_TIMES) == (MIN_TOKENS, MIN_TOKENS)
    assert count_new_tokens((block * MIN_TIMES)[:-1])[1] == 0
    assert count_new_tokens([7] * MIN_TOKENS) == (1, 1) and count_new_tokens([7] * (MIN_TOKENS - 1))[1] == 0
    longest = list(range(MAX_BLOCK))
    assert count_new_tokens(longest * MIN_TIMES) == (MAX_BLOCK, MAX_BLOCK)
    assert count_new_tokens(list(range(MAX_BLOCK + 1)) * 9)[1] == 0
    assert count_new_tokens([]) == (0, 0) and count_new_tokens([1]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("My lamb : " + "bless you , " * 5 + "bless", "My lamb : bless you ,"),
        ("Hot ! " + "I know ! " * 4 + "I", "Hot ! I know !"),
        ("Yes " * 15, "Yes " * 15),
        ("It costs 1" + " , 0 0 0" * 5, "It costs 1" + " , 0 0 0" * 5),
        ("We will , we will rock you . " * 2, "We will , we will rock you . " * 2),
    ],
)
def test_at_the_token_limit_a_shorter_loop_is_said_once(text: str, kept: str) -> None:
    text, kept = " ".join(text.split()), " ".join(kept.split())
    assert filtered(text) == (text, False), "it is too short to end the answer earlier"
    assert filtered(text, at_limit=True) == (kept, kept != text)


def test_what_was_shown_is_never_taken_back() -> None:
    """Whatever comes: the pieces are the kept answer, in order, and only a repetition is held back."""
    for seed in range(200):
        draw = random.Random(seed)
        few = [draw.randrange(4) for _ in range(120)]
        ids = few if seed % 2 else few[:20] + few[20 : 20 + draw.randrange(1, 12)] * 40
        tokens, shown, repeats = RepetitionFilter(Words("a b. c d!")), list[int](), False
        for n, token in enumerate(ids):
            new, repeats = tokens.add(token)
            shown += new
            assert shown == (tokens.tokens if repeats else ids[: len(shown)])
            if repeats:
                assert ids[: len(shown)] == shown and len(shown) < n
                break
        else:
            cut = tokens.end_at_limit()
            assert cut == (shown + tokens.flush() != ids) and tokens.tokens == ids[: len(tokens.tokens)]
            assert shown == tokens.tokens[: len(shown)]
        assert repeats or seed % 2


def test_a_filter_that_is_off_shows_all() -> None:
    tokens = RepetitionFilter(Words("no"), active=False)
    assert [tokens.add(0) for _ in range(100)] == [([0], False)] * 100
