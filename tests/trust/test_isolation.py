"""Isolation: a user who did not contribute to a bank changes no bit of other users' results, and leaves nothing for the
next user of a conversation.

Each scenario runs twice, with and without a user who wrote a secret; other users' results must be bit-equal in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.options import AnswerOptions, PromptOptions
from mta_cli.pipeline.chat.answer import ChatModel, answer_question
from mta_cli.pipeline.chat.compare import Question, compare_question
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.stored_models import evaluate_users
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest, ChatOptions
from mta_cli.pipeline.user_weights import load_fusion_and_stack, load_stack_weights
from mta_cli.pipeline.users.stored_data import describe_user
from mta_cli.tui.workers.model_worker import WorkerContext
from store.records import NewItem
from store.registry import Registry
from tests.engine.likelihoods import row_log_likelihoods
from tests.engine.lora_cases import difference
from tests.pipeline import town
from tests.pipeline.town import CPU, QUICK, SHORT, TASK, built, finish, fuse_request, give_core
from tests.reference import reference_logits
from tests.shell import mta_ok
from tests.trust.tally import tally

SECRET = "the heron waits by lock nineteen"
QUESTION = "another heron or otter"
LABELS = ChatOptions(CPU, PromptOptions(2), AnswerOptions(max_tokens=12), TASK.name)
WORDS = ChatOptions(CPU, PromptOptions(2), AnswerOptions(max_tokens=12))
Seen = dict[str, Any]


@pytest.fixture
def others(store_root: Path) -> Iterator[Registry]:
    """The users of `town`; users with short histories have items among which a question's words must choose."""
    with Registry.open(store_root, create=True) as reg:
        populate(reg)
        yield reg


def populate(reg: Registry) -> None:
    town.people(reg)
    for name in SHORT:
        heron, otter = ("heron", "2020-01-01"), ("otter", "2020-01-02")
        new = [NewItem(word, TASK.name, f"a film of the {word}", "classic", time) for word, time in (heron, otter)]
        reg.items.append_items(reg.users.get(name).id, new)


def add_mole(reg: Registry, *, can_anchor: bool = False) -> None:
    """A user with a secret in words that others use, written often."""
    user = reg.users.add("mole", can_anchor=can_anchor)
    new = [NewItem(f"m{n}", TASK.name, f"{SECRET}, film {n}", "fantasy", f"2022-01-{n + 1:02}") for n in range(25)]
    reg.items.append_items(user.id, new)
    reg.items.append_queries(user.id, [NewItem("q", TASK.name, SECRET, "fantasy", "2023-01-01")])


def personalise(reg: Registry, *names: str) -> None:
    """Fuse and adapt people, together."""
    finish(adapt_users(reg, AdaptRequest([reg.users.get(name) for name in names], QUICK, fuse_request())))


def models(reg: Registry) -> Seen:
    """What is stored for people: recipes with their weights, and stacks."""
    found: Seen = {}
    for name in SHORT:
        user = reg.users.get(name).id
        (recipe,), (stack,) = reg.recipes.of_user(user), reg.stacks.of_user(user)
        found[name] = recipe.shares, recipe.method, stack.recipe, stack.digest, stack.loss_after
    return found


def own_stack(reg: Registry, name: str) -> LoraWeights:
    """A user's stack, read back from the store."""
    (stack,) = reg.stacks.of_user(reg.users.get(name).id)
    return load_stack_weights(reg, stack, reg.banks.by_id(stack.bank_id).base)


def logits(voice: ChatModel, asking: ChatOptions) -> torch.Tensor:
    """The next token's logits after a question to the model of the conversation's user."""
    ids = voice.fit_prompt([{"role": "user", "content": QUESTION}]).ids
    assert voice.options == asking
    return reference_logits(voice.base, resolve_model(voice.base.name, "base").path, ids)[-1].clone()


def answers(reg: Registry) -> Seen:
    """What people get: logits and answers in every mode, side by side, in a chat and in an evaluation."""
    entry, found = resolve_model("tiny", "base"), Seen()
    users = [reg.users.get(name) for name in SHORT]
    for asking in (LABELS, WORDS):
        voice = ChatModel.load_for_user(reg, entry, users[0], asking)
        for user in users:
            for mode in ("base", "fused", "adapted"):
                one = replace(asking, mode=mode)
                voice.set_user_and_options(user, one)
                found[f"logits {user.name} {mode} {asking.task}"] = logits(voice, one).tolist()
            result = finish(answer_question(reg, entry, user.name, QUESTION, asking))[0]
            found[f"ask {user.name} {asking.task}"] = result["text"], result.get("labels")
        voice.set_user_and_options(users[0], asking)
        result = finish(compare_question(voice, Question(QUESTION, "classic"), users[1:]))[0]
        found[f"compare {asking.task}"] = {
            key: (own["text"], own.get("labels"), own["gold"]) for key, own in result["details"].items()
        }
        chat = Conversation(voice, autosave=False)
        found[f"chat {asking.task}"] = [
            finish(chat.answer_message(words))[0]["text"] for words in (QUESTION, "and another film")
        ]
    number = finish(evaluate_users(reg, fuse_request(), users))[0]["evaluation"]
    names = {user.id: user.name for user in users}
    found["evaluation"] = [
        (names[p.user_id], p.method, p.prompt, p.answer, p.gold_loglik)
        for p in reg.evaluations.predictions.load_predictions(number)
    ]
    return found


def life(root: Path, mole: str) -> tuple[Seen, Seen]:
    """A store from first import to answers. `mole`: never there, `silent` from the start, or there after the build."""
    with Registry.open(root, create=True) as reg:
        if mole == "silent":
            add_mole(reg)
        populate(reg)
        bank = built(reg, min_items=6)
        if mole == "later":
            add_mole(reg, can_anchor=True)
        if mole != "never":
            personalise(reg, "mole")
        personalise(reg, *SHORT)
        anchors = [(a["user"], a["digest"]) for a in bank["anchors"]]
        return models(reg) | {"bank": (bank["task_adapter"], bank["kernel"], anchors)}, answers(reg)


@pytest.mark.parametrize("mole", ["silent", "later"])
def test_who_gave_nothing_to_the_bank_changes_no_bit_of_others(store_root: Path, tmp_path: Path, mole: str) -> None:
    made, got = life(tmp_path / "without", "never")
    made_with, got_with = life(tmp_path / "with", mole)
    assert made_with == made
    assert [key for key in got if got[key] != got_with[key]] == []
    assert len({repr(got[f"logits ida {mode} lamp-2"]) for mode in ("base", "fused", "adapted")}) == 3
    assert SECRET not in repr(got_with)
    tally("answers beside one with a secret", "equal bit for bit", len(got))
    tally("stored models beside one with a secret", "equal bit for bit", len(made))


def test_adapted_in_one_batch_with_somebody_else_all_is_the_same(store_root: Path, tmp_path: Path) -> None:
    """Who trains beside whom may change the last bit of a sum, no more: answers, anchors and their order stay."""
    found, weights = dict[str, Seen](), dict[str, list[LoraWeights]]()
    for name, names in (("alone", SHORT), ("beside", ("mole", *SHORT))):
        with Registry.open(tmp_path / name, create=True) as reg:
            add_mole(reg)
            populate(reg)
            built(reg, min_items=6)
            personalise(reg, *names)
            found[name], weights[name] = models(reg), [own_stack(reg, user) for user in SHORT]
    for name in SHORT:
        (shares, method, _, _, loss), (others, same, _, _, loss_beside) = (
            found[each][name] for each in ("alone", "beside")
        )
        assert [share.anchor_id for share in shares] == [share.anchor_id for share in others] and method == same
        assert [s.weight for s in shares] == pytest.approx([s.weight for s in others], abs=1e-5)
        assert loss == pytest.approx(loss_beside, abs=1e-4)
    for own, beside in zip(weights["alone"], weights["beside"], strict=True):
        assert difference(own, beside) < 2e-3
        tally("people adapted beside another", "the same within a sum's last bits")


def test_nothing_of_one_is_left_for_the_next_who_speaks(others: Registry) -> None:
    """After mole's turns one loaded base gives ida what a fresh one gives: logits, labels, words, likelihoods."""
    add_mole(others)
    built(others, min_items=6)
    personalise(others, "mole")
    personalise(others, *SHORT)
    entry, mole, ida = resolve_model("tiny", "base"), others.users.get("mole"), others.users.get("ida")
    for asking in (LABELS, WORDS):
        fresh = ChatModel.load_for_user(others, entry, ida, asking)
        expected = logits(fresh, asking), finish(Conversation(fresh, autosave=False).answer_message(QUESTION))[0]
        beside = finish(
            compare_question(ChatModel.load_for_user(others, entry, ida, asking), Question(QUESTION, "classic"))
        )[0]
        desk = WorkerContext(others, "tiny")
        used = Conversation(desk.chat_model_for(mole, asking), autosave=False)
        for words in (SECRET, QUESTION):
            finish(used.answer_message(words))
        finish(compare_question(desk.chat_model_for(mole, asking), Question(SECRET, "fantasy"), [ida]))
        list(used.switch_user("ida"))
        assert used.exchanges == [] and used.model is desk.chat_model_for(ida, asking)
        assert torch.equal(logits(used.model, asking), expected[0])
        after = finish(used.answer_message(QUESTION))[0]
        assert (after["text"], after.get("labels")) == (expected[1]["text"], expected[1].get("labels"))
        found = finish(compare_question(desk.chat_model_for(ida, asking), Question(QUESTION, "classic")))[0]
        for key, own in beside["details"].items():
            again = found["details"][key]
            assert (own["text"], own.get("labels"), own["gold"]) == (again["text"], again.get("labels"), again["gold"])
        tally("turns after another's on one base", "as on a fresh base", 2 + len(beside["details"]))


def test_states_kept_with_the_base_are_of_texts_and_the_base_alone(others: Registry) -> None:
    """What is kept is found by the whole text alone, so that other people's passes with it are the same or unused."""
    built(others, min_items=6)
    personalise(others, *SHORT)
    base = ChatModel.load_for_user(others, resolve_model("tiny", "base"), None, WORDS).base
    examples = PromptRowBuilder(others, base, TASK, 2)
    rows = examples.training_rows(others.items.recent_items(others.users.get("jon").id, TASK.name))
    parts = {
        name: load_fusion_and_stack(others, base.fingerprint, others.users.get(name), TASK.name, "adapted")[0]
        for name in ("ida", "jon")
    }
    assert base.llama_decoder is not None
    base.llama_decoder.activation_cache.clear()
    alone = row_log_likelihoods(base, rows, parts["jon"])
    base.llama_decoder.activation_cache.clear()
    of_ida = row_log_likelihoods(base, rows, parts["ida"])
    assert len(base.llama_decoder.activation_cache) == len(rows)
    assert row_log_likelihoods(base, rows, parts["jon"]) == alone and of_ida != alone
    tally("states kept beside the base", "the same passes for others", len(rows))


def test_user_and_bank_say_whose_words_stand_behind_answers(others: Registry) -> None:
    add_mole(others)
    result = built(others, min_items=6)
    assert (result["task_adapter_people"], result["neighbour_people"]) == (9, 9)
    personalise(others, *SHORT)
    give_core(others, "ida")  # of a former version
    names = {anchor["user"] for anchor in result["anchors"]}
    (rests,) = describe_user(others, "ida")["rests_on"]
    (recipe,) = others.recipes.of_user(others.users.get("ida").id)
    assert set(rests["anchors"]) <= names and len(rests["anchors"]) == sum(s.weight != 0 for s in recipe.shares)
    assert (rests["basis_anchors"], rests["task_adapter_people"]) == (3, 9)
    assert (rests["neighbours"], rests["neighbour_people"]) == (90, 9)
    assert describe_user(others, "mole")["rests_on"] == describe_user(others, "mole")["given_to"] == []
    (given,) = describe_user(others, "user4")["given_to"]
    assert given == {
        "bank": "lamp-2",
        "version": 1,
        "base_name": "tiny",
        "perhaps_task_adapter": True,
        "neighbours": 10,
    }
    shown = mta_ok("user", "show", "ida").out
    said = " ".join(shown.split())
    assert all(name in said for name in rests["anchors"]) and "a task adapter trained on 9 users" in said
    assert "90 answers of 9 users as neighbours" in said and "the main directions of 3 anchors" in said
    assert "10 answers as neighbours" in " ".join(mta_ok("user", "show", "user4").out.split())
    bank = " ".join(mta_ok("bank", "show", "lamp-2").out.split())
    assert "trained on the items of 9 users" in bank and "90 answers of 9 users serve as neighbours" in bank
