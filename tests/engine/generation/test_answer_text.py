"""An answer's text up to the first stop text, whichever way its tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mta_cli.engine.generation.answer_text import AnswerText


class Pieces:
    """A tokenizer whose tokens are these texts."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, ids: Sequence[int], **_: object) -> str:
        """The texts of these tokens."""
        return "".join(self.pieces[token] for token in ids)


def said(pieces: Sequence[str], *stops: str) -> tuple[list[str], bool]:
    """What is shown after each token and at the end, and whether a stop text was met."""
    text = AnswerText(Pieces(*pieces), stops)
    shown = []
    for token in range(len(pieces)):
        shown.append(text.add_token(token))
        if text.stopped:
            return shown, True
    return [*shown, text.flush()], text.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stopped"),
    [
        (["one", " two"], (), ["one", " two", ""], False),
        (["one\n", "\ntwo"], ("\n\n",), ["one", ""], True),
        (["one\n", "two"], ("\n\n",), ["one", "\ntwo", ""], False),
        (["a STO", "x STOP b"], ("STOP",), ["a ", "STOx "], True),
        (["ends in ST"], ("STOP",), ["ends in ", "ST"], False),
        (["b then a"], ("a", "b"), [""], True),
    ],
)
def test_stop_texts(pieces: list[str], stops: tuple[str, ...], shown: list[str], stopped: bool) -> None:
    assert said(pieces, *stops) == (shown, stopped)


def test_nothing_comes_after_a_stop_text() -> None:
    text = AnswerText(Pieces("one.", " two"), ["."])
    assert (text.add_token(0), text.stopped) == ("one", True)
    assert (text.add_token(1), text.flush()) == ("", "")
