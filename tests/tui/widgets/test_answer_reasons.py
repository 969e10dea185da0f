"""Reasons of an answer as lines: labels with both probabilities, votes, history, and how words were chosen."""

from __future__ import annotations

from typing import Any

import pytest

from mta_cli.tui.widgets.answer_reasons import describe_decoding, reason_lines

SAMPLED = {
    "by": "sampling",
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.0,
    "repetition_penalty": 1.1,
    "max_tokens": 256,
    "seed": 3,
}


def reasons(**more: Any) -> dict[str, Any]:
    """What the pipeline says of an answer in words."""
    source = {"mode": "adapted", "bank": "b", "version": 2, "anchors": ["ann", "bo"]}
    known = {"user": "ida", "task": "taste", "source": source, "question": "a film", "answer": "go"}
    made_of = ["the base model", "the common model", "the user's own stack"]
    return {
        **known,
        "step": "adapted",
        "made_of": made_of,
        "chosen_among": [],
        "history": [],
        "decoding": {"by": "likeliest label"},
        **more,
    }


def label(name: str, before: float, after: float, own: int = 0, votes: float | None = None) -> dict[str, Any]:
    return {"label": name, "model": before, "with_memory": after, "own_answers": own, "votes": votes}


def lines(**more: Any) -> list[str]:
    return "\n".join(line.plain for line in reason_lines(reasons(**more))).split("\n")


def test_labels_show_both_probabilities_own_answers_and_votes() -> None:
    shown = lines(
        labels=[label("go", 0.19, 0.6, 3, 0.25), label("stay at home", 0.81, 0.4, 12, 0.75)],
        memory="neighbours",
        neighbours=[{"user": "osk", "input": "a ship", "label": "go", "share": 0.034}],
        neighbour_count=431,
    )
    assert shown[0] == "adapted: the base model + the common model + the user's own stack"
    assert shown[1] == "adapted · task taste · bank b v2 · anchors ann, bo"
    assert "Labels: the model alone → with label memory" in shown
    assert "▸ go             19 % →  60 %  ███████▎        3 own   25 % of votes" in shown
    assert "· stay at home   81 % →  40 %  ████▊          12 own   75 % of votes" in shown
    assert "The 1 nearest of 431 neighbours, each with its share of all votes" in shown
    assert " 3.4 %  osk: a ship → go" in shown


def test_without_memory_a_label_has_one_probability() -> None:
    shown = lines(labels=[label("go", 0.5, 0.5), label("stay", 0.5, 0.5)], memory=None)
    assert "Labels: the model alone, no label memory" in shown
    assert any(line.rstrip() == "▸ go     50 %  ██████" for line in shown) and not any(
        "  0 own" in line for line in shown
    )


def test_a_task_that_was_chosen_says_among_which() -> None:
    said = "Of mails, taste, the items of taste are nearest to the first message."
    assert said in lines(chosen_among=["mails", "taste"]) and said not in lines()


def test_history_is_listed_or_said_to_be_missing() -> None:
    assert "No history in the prompt" in lines()
    shown = lines(history=[{"input": "a\x1b[2J\nb", "output": "[red]c"}])
    assert "1 history item in the prompt" in shown and "a[2J b → [red]c" in shown


@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        ({"by": "median label"}, "the median label, without sampling"),
        (
            SAMPLED,
            "sampled · temperature 0.7 · top-p 0.9 · min-p 0 · seed 3 · repetition penalty 1.1 · at most 256 tokens",
        ),
        (
            {**SAMPLED, "by": "likeliest token", "temperature": 0.0},
            "always the likeliest token · repetition penalty 1.1 · at most 256 tokens",
        ),
    ],
)
def test_it_is_told_how_words_were_chosen(decoding: dict[str, Any], words: str) -> None:
    assert describe_decoding(decoding) == words
