"""Numbers that go wrong and histories of every size: a defined result that is told, and nothing broken is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.training.session import divergence_reason
from mta_cli.errors import BadInput, Flag, MtaError
from mta_cli.events import Event, UnitFailed
from mta_cli.options import WEIGHT_METHODS, AdaptOptions, MemoryOptions
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.requests import AdaptRequest
from mta_cli.pipeline.user_weights import most_personal_mode
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import QUICK, SHORT, bank_request, built, finish, fuse_request, notes, people
from tests.trust.tally import tally

TASK = "lamp-2"
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def reg(store_root: Path) -> Iterator[Registry]:
    """A town of nine who may be anchors and three who have little."""
    with Registry.open(store_root, create=True) as registry:
        people(registry)
        yield registry


def require_sound(reg: Registry) -> None:
    """Every adapter of the store holds finite numbers, and no more than training could make; nothing is amiss."""
    tally("adapters looked at afterwards", "finite, of a size that training makes", len(reg.adapters.all()))
    for adapter in reg.adapters.all():
        weights = LoraWeights.from_file(reg.adapters.verified_path(adapter.digest))
        assert all(bool(torch.isfinite(factor).all()) for pair in weights.factors.values() for factor in pair)
        assert weights.norm() < 1e4
    assert reg.check_integrity() == []


def history(reg: Registry, name: str, *texts: str, tag: str = "comedy") -> None:
    """A new person who answered `tag` to each of `texts`."""
    user = reg.users.add(name)
    reg.items.append_items(user.id, [NewItem(f"i{n}", TASK, text, tag) for n, text in enumerate(texts)])


def adapt(reg: Registry, *names: str, options: AdaptOptions = QUICK) -> tuple[Any, list[Event]]:
    """Adapt a user; returns the documents and every event."""
    return finish(adapt_users(reg, AdaptRequest([reg.users.get(name) for name in names], options, fuse_request())))


RATES = [("learning_rate", 1e9), ("task_learning_rate", 1e9), ("learning_rate", NAN)]


@pytest.mark.parametrize(("where", "rate"), RATES)
def test_a_bank_whose_training_explodes_is_not_ready(reg: Registry, where: str, rate: float) -> None:
    with pytest.raises(BadInput, match=r"loss|finite") as caught:
        list(build_bank(reg, bank_request(**{where: rate})))
    assert caught.value.hint == "lower the learning rate"
    assert [bank.status for bank in reg.banks.all()] == ["building"]
    assert all(anchor.digest is None for bank in reg.banks.all() for anchor in reg.banks.anchors(bank.id))
    assert [run.status for run in reg.runs.of_bank(reg.banks.all()[0].id)] == ["failed"]
    require_sound(reg)
    tally("rates of 1e9, NaN and infinity", "refused with words, nothing ready")
    assert built(reg)["version"] == 2 and reg.banks.get(TASK).status == "ready"


def test_a_stack_whose_training_explodes_leaves_the_fusion(reg: Registry) -> None:
    built(reg)
    alone = replace(fuse_request(), memory=MemoryOptions(memory="habit"))  # neighbours know all of these answers
    ida = reg.users.get("ida")
    for count, rate in enumerate((1e9, NAN, INFINITY), 1):
        seen: list[Event] = []
        with pytest.raises(BadInput, match="No user could be adapted") as caught:
            for event in adapt_users(reg, AdaptRequest([ida], replace(QUICK, learning_rate=rate), alone)):
                seen.append(event)
        assert caught.value.hint == ("run it again with a lower ", Flag("learning_rate"))
        assert [event.label for event in seen if isinstance(event, UnitFailed)] == ["ida"]
        assert [run.status for run in reg.runs.of_user(ida.id)] == ["failed"] * count
        assert reg.stacks.of_user(ida.id) == []
        tally("rates of 1e9, NaN and infinity", "refused with words, the fusion stays")
        assert most_personal_mode(reg, ida, TASK, bank_request().base.fingerprint) == "fused"
    require_sound(reg)


def test_one_whose_numbers_do_not_fit_leaves_the_others_alone(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step makes a number that float16 cannot hold: that person fails, their company is stored."""
    from mta_cli.engine.training.trainer import Trainer

    built(reg)
    plain = Trainer.train_steps

    def steps(self: Trainer) -> Iterator[Any]:
        yield from plain(self)
        self._group.trainable[0][1].fill_(1e6)

    monkeypatch.setattr(Trainer, "train_steps", steps)
    documents, seen = adapt(reg, *SHORT)
    assert [document["user"] for document in documents] == ["ida", "kim"]
    assert [(event.label, "finite" in event.message) for event in seen if isinstance(event, UnitFailed)] == [
        ("jon", True)
    ]
    tally("weights that float16 cannot hold", "that person named, their company stored")
    require_sound(reg)


@pytest.mark.parametrize(
    ("before", "after", "is_broken"),
    [
        (2.0, 1.0, False),
        (2.0, 3.9, False),
        (2.0, 4.1, True),
        (0.01, 0.9, False),
        (0.01, 1.1, True),
        (2.0, NAN, True),
        (2.0, INFINITY, True),
        (None, 1.0, False),
        (2.0, None, False),
    ],
)
def test_what_counts_as_exploded(before: float | None, after: float | None, is_broken: bool) -> None:
    assert (divergence_reason(before, after) is not None) is is_broken


def test_nobody_without_a_history_is_adapted(reg: Registry) -> None:
    built(reg)
    reg.users.add("new")
    fused, _ = finish(fuse_user(reg, reg.users.get("new"), fuse_request()))
    (document,), seen = adapt(reg, "new")
    assert fused["anchors"] == [] and document["steps"] == 0 and document["stack_bytes"] == 0
    assert any("no history" in note for note in notes(seen))
    assert reg.stacks.of_user(reg.users.get("new").id) == []
    tally("empty histories", "the task adapter, and told so")
    require_sound(reg)


def test_histories_of_one_item_of_any_length(reg: Registry) -> None:
    """One token to a hundred thousand (the tiny base's tokens are bytes), as question and as answer."""
    texts = ("x", "\u200b", " x", "\n", "x" * 100_000, "word " * 20_000)
    for n, text in enumerate(texts):
        history(reg, f"odd{n}", text, tag=text)
    built(reg, min_items=1)
    documents, _ = adapt(reg, *(f"odd{n}" for n in range(len(texts))))
    for document in documents:
        assert document["shots"] == 1 and document["loss_before"] > 0 and document["loss_after"] > 0
        tally("histories of one item, 1 to 100,000 tokens", "adapted to finite numbers")
    require_sound(reg)


def test_a_history_that_says_one_thing_a_thousand_times(reg: Registry) -> None:
    history(reg, "parrot", *["the same film"] * 1000)
    assert len(built(reg)["anchors"]) == 3
    (document,), _ = adapt(reg, "parrot")
    assert document["shots"] == AdaptOptions().shots
    assert 0.0 <= document["loss_after"] < max(document["loss_before"], 1e-3)
    tally("histories that say one thing 1,000 times", "adapted, the loss lower or next to nothing")
    require_sound(reg)


def test_people_who_are_all_the_same_have_one_anchor(store_root: Path) -> None:
    with Registry.open(store_root, create=True) as reg:
        for n in range(6):
            history(reg, f"twin{n}", *[f"film {k}" for k in range(8)])
        document, seen = finish(build_bank(reg, bank_request()))
        assert len(document["anchors"]) == 1
        assert any("Only 1 of 3 anchors were chosen: some users have the same profile" in note for note in notes(seen))
        result, _ = finish(fuse_user(reg, reg.users.get("twin5"), fuse_request()))
        assert len(result["anchors"]) <= 1 and all(0 <= share["weight"] <= 1 for share in result["anchors"])
        tally("banks of people who are all the same", "one anchor, and told so")
        require_sound(reg)


def test_weights_stay_numbers_whatever_the_history(reg: Registry) -> None:
    built(reg)
    for name, texts in (("one", ["x"]), ("long", ["y" * 20_000] * 3), ("same", ["z"] * 50)):
        history(reg, name, *texts)
        for weights in WEIGHT_METHODS:
            result, _ = finish(fuse_user(reg, reg.users.get(name), fuse_request(weights=weights)))
            found = [share["weight"] for share in result["anchors"]]
            assert all(weight == weight and abs(weight) < 100 for weight in found)
            assert sum(found) <= 1 + 1e-6
            tally("recipes of odd histories", "finite weights")
    require_sound(reg)


@pytest.mark.parametrize("bad", [NAN, INFINITY])
def test_an_embedder_that_gives_no_numbers_is_named(reg: Registry, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.retrieval.embed import Embedder

    monkeypatch.setattr(Embedder, "_forward", lambda self, pieces: torch.full((len(pieces), 32), bad))
    with pytest.raises(MtaError, match="embedder is damaged"):
        list(build_bank(reg, bank_request()))
    assert reg.adapters.all() == []
    tally("embedders that give NaN or infinity", "named, nothing stored")
    require_sound(reg)
