"""Errors carry commands and flags as values, and each surface words them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mta_cli.commands.shared.context import GlobalFlags
from mta_cli.errors import BadInput, Command, Flag, Words, did_you_mean, worded


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("free some space", "free some space"),
        (Flag("dtype", "bfloat16"), "--dtype bfloat16"),
        (Flag("can_anchor"), "--can-anchor"),
        (Flag("top_k", 3), "--top-k 3"),
        (Flag("time", ""), "--time ''"),
        (Command("init"), "mta init"),
        (Command("bank rm", "my bank", bank_version=2), "mta bank rm 'my bank' --bank-version 2"),
        (Command("bank build", t="films", refresh=True, base=None), "mta bank build -t films --refresh"),
        (("use ", (Flag("rank", 4), ", or "), Command("doctor")), "use --rank 4, or mta doctor"),
    ],
)
def test_the_words_of_the_command_line(words: Words, told: str) -> None:
    assert worded(words) == told
    assert str(BadInput(words)) == told


def test_a_command_is_equal_by_its_value() -> None:
    assert Command("bank build", task="films") == Command("bank build", task="films")
    assert Command("bank build", task="films") != Command("bank build", task="books")
    assert hash(Command("user add", "bryn")) == hash(Command("user add", "bryn"))


def test_an_error_keeps_its_values_on_the_way_to_another_process() -> None:
    hint = (Command("bank rm", "films", bank_version=2), ", or ", Flag("rank", 4))
    error = pickle.loads(pickle.dumps(BadInput((Flag("rank", 8), " is too much"), hint=hint, faults=("a",))))
    assert str(error) == "--rank 8 is too much" and error.hint == hint and error.faults == ("a",)


def test_the_store_that_was_given_is_named_in_commands_on_it() -> None:
    given = GlobalFlags(store=Path("a store"))
    assert given.word(("first ", Command("bank list"))) == "first mta --store 'a store' bank list"
    assert given.word((Command("snapshot", "TO"), ", ", Flag("task"))) == "mta snapshot TO, --task"
    assert GlobalFlags().word(Command("bank list")) == "mta bank list"


def test_what_was_meant_else_the_other_words() -> None:
    assert did_you_mean(["films"], Command("task list")) == "did you mean films?"
    assert did_you_mean([], Command("task list")) == Command("task list")
