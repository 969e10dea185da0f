"""Label priors of users: from their own answers, relative to the answers of the bank's users."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from mta_cli.engine.memory.knn import MixtureWeights, NeighbourIndex, NeighbourLabelPrior
from mta_cli.engine.memory.label_prior import LabelPrior, label_rates, user_label_prior
from mta_cli.engine.text.tasks import Task
from mta_cli.options import MemoryOptions
from mta_cli.pipeline.memory.bank_memory import BankMemory
from mta_cli.pipeline.memory.knn import MIXTURE_WEIGHTS_KEY, load_neighbours
from mta_cli.pipeline.models.installed import resolve_model
from store.records import NewItem, User
from store.registry import Registry
from tests.pipeline.town import TASK, built

ALONE = MemoryOptions("habit", prior_weight=0.5, prior_strength=8.0)
FILM = "a film about a lighthouse"


def memory(reg: Registry, task: Task = TASK, base: str | None = None) -> BankMemory:
    bank = reg.banks.latest_ready_bank(task.name, base or resolve_model("tiny", "base").fingerprint)
    return BankMemory(reg, task, bank)


def prior_for(
    reg: Registry, user: User | None, mode: str = "adapted", options: MemoryOptions = ALONE, **which: Any
) -> LabelPrior | None:
    return memory(reg, **which).prior_for(user, mode, options)


def said(prior: LabelPrior | None, text: str = FILM) -> list[float]:
    assert prior is not None
    return list(prior(text))


def test_a_persons_answers_stand_against_those_of_the_bank(banked: Registry) -> None:
    base, ida = resolve_model("tiny", "base").fingerprint, banked.users.get("ida")
    makers = [user for user, count in banked.users.users_with_items(TASK.name) if count >= 5]
    given = [item.output for user in makers for item in banked.items.recent_items(user.id, TASK.name)]
    rates = label_rates(given, TASK.labels)
    bank = banked.banks.latest_ready_bank(TASK.name, base)
    assert bank is not None and bank.config["label_rates"] == pytest.approx(rates)
    own = [item.output for item in banked.items.recent_items(ida.id, TASK.name)]
    found = said(prior_for(banked, ida))
    assert found == pytest.approx([0.5 * value for value in user_label_prior(own, TASK.labels, rates, 8.0)])
    assert found == said(prior_for(banked, ida, "fused"))
    assert found.index(max(found)) == TASK.labels.index(own[0]) and max(found) > 0 > min(found)


def test_neighbours_speak_with_the_habit_where_the_bank_keeps_them(banked: Registry) -> None:
    base, ida = resolve_model("tiny", "base").fingerprint, banked.users.get("ida")
    bank = banked.banks.latest_ready_bank(TASK.name, base)
    assert bank is not None and bank.kernel is not None
    thrice = MemoryOptions(neighbour_weight=3.0)
    shared = memory(banked)
    prior = shared.prior_for(ida, "adapted", thrice)
    known = load_neighbours(banked, bank, TASK)
    assert known is not None
    own = [item.output for item in banked.items.recent_items(ida.id, TASK.name)]
    whole = user_label_prior(own, TASK.labels, known.rates.tolist(), 8.0)
    asked = banked.neighbours.consenting_neighbours(bank.id)[0]
    text = next(item.input for item in banked.items.recent_items(asked.user_id, TASK.name) if item.id == asked.item_id)
    weights = bank.config[MIXTURE_WEIGHTS_KEY]
    without = [
        3.0 * weights["memory"] * (bank.kernel["habit"] * value + math.log(rate))
        for value, rate in zip(whole, known.rates.tolist(), strict=True)
    ]
    votes = [value - extra for value, extra in zip(said(prior, text), without, strict=True)]
    if bank.kernel["votes"]:
        assert votes != pytest.approx([0.0] * len(votes)) and said(prior, text) != pytest.approx(said(prior, FILM))
    assert shared.missing_embedder_note(thrice) is None and shared.prior_for(ida, "base", thrice) is None


def test_without_the_embedder_the_habit_speaks_alone_and_that_is_said(
    banked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ida = banked.users.get("ida")
    monkeypatch.setattr("mta_cli.pipeline.models.installed.list_models", list)
    both, lacking = replace(ALONE, memory="neighbours"), memory(banked)
    assert "tiny-embedder is not installed" in str(lacking.missing_embedder_note(both))
    fallback, habit = lacking.prior_for(ida, "adapted", both), prior_for(banked, ida)
    assert fallback is not None and habit is not None and fallback(FILM, "1900") == habit(FILM, "1900") != habit(FILM)
    assert lacking.missing_embedder_note(ALONE) is None, "nobody asked for neighbours"


def test_there_is_none_where_nothing_is_known_or_wanted(peopled: Registry) -> None:
    ida = peopled.users.get("ida")
    assert prior_for(peopled, ida) is None, "no bank"
    built(peopled)
    assert prior_for(peopled, ida, "base") is None
    assert prior_for(peopled, None) is None
    assert prior_for(peopled, ida, options=replace(ALONE, prior_weight=0.0)) is None
    assert prior_for(peopled, ida, options=MemoryOptions("off")) is None
    assert prior_for(peopled, ida, task=replace(TASK, labels=())) is None
    assert prior_for(peopled, ida, task=replace(TASK, labels=("a", "b"))) is None
    assert prior_for(peopled, ida, base="another base") is None


def test_who_has_answered_nothing_adds_nothing(banked: Registry) -> None:
    new = banked.users.add("new")
    assert said(prior_for(banked, new, "fused")) == [0.0] * 15
    banked.items.append_items(new.id, [NewItem("x", TASK.name, "a film", "no tag of the list")])
    assert said(prior_for(banked, new, "fused")) == pytest.approx([0.0] * 15)


def test_a_leave_one_out_prior_knows_neither_the_answer_nor_the_users_own_items(banked: Registry) -> None:
    """Of a user whose items are the bank's too, neither the label prior nor their own neighbours give it away."""
    shared, options = memory(banked), MemoryOptions()
    user = banked.users.get("user0")
    items = banked.items.recent_items(user.id, TASK.name)
    bank = banked.banks.latest_ready_bank(TASK.name, resolve_model("tiny", "base").fingerprint)
    assert bank is not None
    known, now = load_neighbours(banked, bank, TASK), shared.prior_for(user, "adapted", options)
    assert known is not None and user.id in known.item_users and isinstance(now, NeighbourLabelPrior)
    for item in items:
        others = [each.output for each in items if each is not item]
        prior = shared.label_memory.leave_one_out_prior(others, user.id, options)
        assert prior is not None and user.id not in prior.neighbours.item_users
        assert prior.answers == tuple(others) and sorted(now.answers) == sorted([*others, item.output])
        assert prior.model_weight == now.model_weight and prior.kernel == now.kernel
    told = shared.neighbour_settings(options)
    fitted = asdict(MixtureWeights.from_parts(**bank.config[MIXTURE_WEIGHTS_KEY]))
    assert told["weights"] == {**fitted, "factor": options.neighbour_weight}


def test_an_askers_own_items_are_no_neighbours(banked: Registry) -> None:
    """Neither in an answer nor in what explains it: their answers count in their label prior alone."""
    shared, options, user = memory(banked), MemoryOptions(), banked.users.get("user0")
    (item, *_) = banked.items.recent_items(user.id, TASK.name)
    prior = shared.prior_for(user, "adapted", options)
    assert isinstance(prior, NeighbourLabelPrior)
    prior = replace(prior, kernel=replace(prior.kernel, votes=1.0, linear=1.0))
    others = replace(prior, neighbours=prior.neighbours.without_user(user.id), asker=None)
    assert said(prior, item.input) == pytest.approx(said(others, item.input), rel=1e-5)
    assert said(prior, item.input) != pytest.approx(said(replace(prior, asker=None), item.input))
    told = shared.votes_on(user, item.input, options, 1000)
    assert told is not None and user.name not in {vote.user for vote in told.strongest}
    assert len(told.strongest) == told.count == len(others.neighbours.labels)


def test_no_leave_one_out_prior_where_no_neighbours_count(peopled: Registry) -> None:
    none = memory(peopled).label_memory.leave_one_out_prior((), 1, MemoryOptions())
    assert none is None, "no bank"
    built(peopled)
    shared = memory(peopled)
    assert shared.label_memory.leave_one_out_prior((), 1, ALONE) is None and shared.neighbour_settings(ALONE) == {}
    texts = memory(peopled, task=replace(TASK, labels=()))
    assert texts.label_memory.leave_one_out_prior((), 1, MemoryOptions()) is None


def test_neighbours_never_look_ahead(banked: Registry) -> None:
    """What other users do after the question changes nothing, unless that is asked for."""
    ida, shared = banked.users.get("ida"), memory(banked)
    prior = shared.prior_for(ida, "adapted", MemoryOptions())
    assert isinstance(prior, NeighbourLabelPrior) and len(set(prior.neighbours.times)) > 1
    times = prior.neighbours.times
    middle = times[len(times) // 2]
    past = [n for n, time in enumerate(times) if time <= middle]
    index = prior.neighbours
    labels = [TASK.labels[index.labels[n]] for n in past]
    alone = NeighbourIndex(
        index.vectors[past], index.labels[past], index.item_users[past], np.array(label_rates(labels, TASK.labels))
    )
    assert prior(FILM, middle) == pytest.approx(replace(prior, neighbours=alone)(FILM))
    assert prior(FILM, middle) != pytest.approx(prior(FILM))
    assert prior(FILM, "9999") == prior(FILM) == replace(prior, look_ahead=True)(FILM, middle)
    assert len(prior.neighbours.until("1900").labels) == times.count("")
