"""Why an answer is as it is: the numbers are those that decided, the items those that were shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mta_cli.engine.text.tasks import MOVIE_TAGS
from mta_cli.errors import BadInput
from mta_cli.options import AnswerOptions, MemoryOptions
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.pipeline.memory.knn import load_embedder
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.personalize.fuse import fuse_user
from store.registry import Registry
from tests.pipeline.town import bank_request, finish, fuse_request
from tests.pipeline.world import World, asking

QUESTION = "film 7 about a ship"


@pytest.fixture
def fused(banked: Registry) -> Iterator[Registry]:
    """A bank with neighbours, and ida with a recipe of it."""
    finish(fuse_user(banked, banked.users.get("ida"), fuse_request()))
    yield banked


def explained(reg: Registry, text: str = QUESTION, **how: Any) -> tuple[dict[str, Any], Conversation]:
    """The reasons of ida's answer, and the conversation."""
    model = ChatModel.load_for_user(reg, bank_request().base, reg.users.get("ida"), asking(task="lamp-2", **how))
    talk = Conversation(model, autosave=False)
    list(talk.answer_message(text))
    return talk.explain_last(), talk


def softmax(logs: dict[str, float]) -> list[float]:
    """Probabilities of the labels."""
    values = np.exp(np.array(list(logs.values())) - max(logs.values()))
    return (values / values.sum()).tolist()  # type: ignore[no-any-return]


def test_labels_are_told_with_and_without_memory(fused: Registry) -> None:
    why, talk = explained(fused)
    assert talk._last_answered is not None
    with_memory = talk._last_answered.generation.label_logliks
    bare, other = explained(fused, memory=MemoryOptions(memory="off"))
    assert other._last_answered is not None
    alone = other._last_answered.generation.label_logliks
    assert [one["label"] for one in why["labels"]] == list(MOVIE_TAGS)
    assert [one["with_memory"] for one in why["labels"]] == pytest.approx(softmax(with_memory))
    assert [one["model"] for one in why["labels"]] == pytest.approx(softmax(alone), abs=1e-5)
    assert why["memory"] == "neighbours" and bare["memory"] is None and "neighbours" not in bare
    assert [one["model"] for one in bare["labels"]] == [one["with_memory"] for one in bare["labels"]]
    own = {one["label"]: one["own_answers"] for one in why["labels"]}
    (answer,) = {item.output for item in fused.items.recent_items(fused.users.get("ida").id, "lamp-2")}
    assert {label: count for label, count in own.items() if count} == {answer: 3}
    assert why["decoding"] == {"by": "likeliest label"} and why["answer"] == max(
        with_memory, key=with_memory.__getitem__
    )


def test_neighbours_have_the_weights_that_they_voted_with(fused: Registry) -> None:
    why, _ = explained(fused)
    bank = fused.banks.latest_ready_bank("lamp-2")
    assert bank is not None and bank.kernel is not None
    embed = load_embedder(resolve_model("tiny-embedder", "embedder"), "cpu").embed
    items = [item for n in range(9) for item in fused.items.recent_items(fused.users.get(f"user{n}").id, "lamp-2")]
    votes = np.exp(bank.kernel["sharpness"] * (embed([item.input for item in items]) @ embed([QUESTION])[0] - 1.0))
    assert why["neighbour_count"] == len(items) == 90
    shares = sorted((votes / (votes.sum() + 0.1)).tolist(), reverse=True)
    assert [one["share"] for one in why["neighbours"]] == pytest.approx(shares[:5], rel=1e-2)
    for one in why["neighbours"]:
        stored = fused.items.recent_items(fused.users.get(one["user"]).id, "lamp-2")
        assert (one["input"], one["label"]) in [(item.input, item.output) for item in stored]
    assert why["neighbours"][0]["input"] == QUESTION
    by_label = {one["label"]: one["votes"] for one in why["labels"]}
    assert sum(by_label.values()) == pytest.approx(1.0)
    wanted = sum(vote for item, vote in zip(items, votes, strict=True) if item.output == "comedy") / votes.sum()
    assert by_label["comedy"] == pytest.approx(wanted, abs=0.01)


def test_own_answers_alone_are_told_as_such(fused: Registry) -> None:
    why, _ = explained(fused, memory=MemoryOptions(memory="habit"))
    assert why["memory"] == "habit" and "neighbours" not in why
    assert {one["votes"] for one in why["labels"]} == {None}


def test_a_base_has_no_memory(fused: Registry) -> None:
    why, _ = explained(fused, mode="base")
    assert why["memory"] is None and why["source"]["mode"] == "base"
    assert why["step"] == "base+examples" and why["made_of"] == ["the base model", "2 own examples in the prompt"]
    assert {one["own_answers"] for one in why["labels"]} == {0}


@pytest.mark.parametrize(
    ("how", "step", "made_of"),
    [
        ({"mode": "base", "history_items": 0}, "base", ["the base model"]),
        (
            {"mode": "common", "history_items": 1},
            "common+memory",
            ["the base model", "1 own example in the prompt", "the common model", "label memory"],
        ),
        (
            {"history_items": 0, "memory": MemoryOptions(memory="off")},
            "fused",
            ["the base model", "the common model", "the user's anchors"],
        ),
    ],
)
def test_an_answer_names_its_step_and_what_it_is_made_of(
    fused: Registry, how: dict[str, Any], step: str, made_of: list[str]
) -> None:
    why, _ = explained(fused, **how)
    assert (why["step"], why["made_of"]) == (step, made_of)


def test_the_history_is_what_the_prompt_showed(fused: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    why, talk = explained(fused, history_items=2)
    shown = talk.model.fit_prompt([{"role": "user", "content": QUESTION}]).shown
    assert why["history"] == [{"input": item.input, "output": item.output} for item in shown] and len(shown) == 2
    fit = ChatModel.fit_prompt

    def leave_one_out(self: ChatModel, messages: Any) -> Any:
        prompt = fit(self, messages)
        return replace(prompt, shown=prompt.shown[:1])

    monkeypatch.setattr(ChatModel, "fit_prompt", leave_one_out)
    assert len(explained(fused, history_items=2)[0]["history"]) == 1


def test_a_conversation_tells_how_its_words_were_chosen(world: World) -> None:
    drawn = AnswerOptions(max_tokens=12, temperature=0.7, top_p=0.9)
    model = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking(answer=drawn))
    talk = Conversation(model, autosave=False)
    with pytest.raises(BadInput, match="no answer in this conversation"):
        talk.explain_last()
    for text in ("hello", "and now?"):
        list(talk.answer_message(text))
    why = talk.explain_last()
    assert why["question"] == "and now?" and why["answer"] == talk.exchanges[-1].answer and "labels" not in why
    assert why["decoding"] == {
        "by": "sampling",
        "temperature": 0.7,
        "top_p": 0.9,
        "min_p": 0.0,
        "repetition_penalty": 1.1,
        "max_tokens": 12,
        "seed": 0,
    }
    assert why["user"] == "alice" and why["source"]["mode"] == "adapted" and len(why["history"]) == 2
    assert why["step"] == "adapted" and why["made_of"] == [
        "the base model",
        "2 own examples in the prompt",
        "the common model",
        "the user's anchors",
        "the user's own stack",
    ]
