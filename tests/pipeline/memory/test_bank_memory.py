"""Label priors of people: from their own answers, against those of the people whom a bank is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mta_cli.pipeline.memory.label_prior import LabelPriors

from mta_cli.engine.memory.knn import NeighbourLabelPrior
from mta_cli.engine.memory.label_prior import LabelPrior, label_rates, user_label_prior
from mta_cli.engine.text.tasks import Task
from mta_cli.options import MemoryOptions
from mta_cli.pipeline.memory.knn import NEIGHBOUR_WEIGHT_KEY, load_neighbours
from mta_cli.pipeline.models.lookup import resolve_model
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import TASK, built

ALONE = MemoryOptions("habit", prior_weight=0.5, prior_strength=8.0)
FILM = "a film about a lighthouse"


def priors(reg: Registry, options: MemoryOptions = ALONE, task: Task = TASK, base: str | None = None) -> LabelPriors:
    return LabelPriors(reg, task, base or resolve_model("tiny", "base").fingerprint, options)


def said(prior: LabelPrior | None, text: str = FILM) -> list[float]:
    assert prior is not None
    return list(prior(text))


def test_a_persons_answers_stand_against_those_of_the_bank(peopled: Registry) -> None:
    built(peopled)
    base, ida = resolve_model("tiny", "base").fingerprint, peopled.users.get("ida")
    makers = [user for user, count in peopled.users.users_with_items(TASK.name) if count >= 5]
    given = [item.output for user in makers for item in peopled.items.recent_items(user.id, TASK.name)]
    rates = label_rates(given, TASK.labels)
    bank = peopled.banks.latest_ready_bank(TASK.name, base)
    assert bank is not None and bank.config["label_rates"] == pytest.approx(rates)
    own = [item.output for item in peopled.items.recent_items(ida.id, TASK.name)]
    found = said(priors(peopled).prior_for(ida, "adapted"))
    assert found == pytest.approx([0.5 * value for value in user_label_prior(own, TASK.labels, rates, 8.0)])
    assert found == said(priors(peopled).prior_for(ida, "fused"))
    assert found.index(max(found)) == TASK.labels.index(own[0]) and max(found) > 0 > min(found)


def test_neighbours_speak_with_the_habit_where_the_bank_keeps_them(peopled: Registry) -> None:
    built(peopled)
    base, ida = resolve_model("tiny", "base").fingerprint, peopled.users.get("ida")
    bank = peopled.banks.latest_ready_bank(TASK.name, base)
    assert bank is not None and bank.kernel is not None
    shared = priors(peopled, MemoryOptions(neighbour_weight=3.0))
    prior = shared.prior_for(ida, "adapted")
    known = load_neighbours(peopled, bank, TASK)
    assert known is not None
    own = [item.output for item in peopled.items.recent_items(ida.id, TASK.name)]
    whole = user_label_prior(own, TASK.labels, known.rates.tolist(), 8.0)
    asked = peopled.neighbours.consenting_neighbours(bank.id)[0]
    text = next(item.input for item in peopled.items.recent_items(asked.user_id, TASK.name) if item.id == asked.item_id)
    without = [
        0.5 * min(1.0, 3.0 * bank.config[NEIGHBOUR_WEIGHT_KEY]) * bank.kernel["habit"] * value for value in whole
    ]
    votes = [value - extra for value, extra in zip(said(prior, text), without, strict=True)]
    if bank.kernel["votes"]:
        assert votes != pytest.approx([0.0] * len(votes)) and said(prior, text) != pytest.approx(said(prior, FILM))
    assert shared.missing_embedder_note is None and shared.prior_for(ida, "base") is None


def test_without_the_embedder_the_habit_speaks_alone_and_that_is_said(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(peopled)
    ida = peopled.users.get("ida")
    monkeypatch.setattr("mta_cli.pipeline.models.lookup.list_models", list)
    lacking = priors(peopled, replace(ALONE, memory="neighbours", neighbour_weight=1.0))
    assert lacking.missing_embedder_note is not None and "tiny-embedder is not here" in lacking.missing_embedder_note
    assert said(lacking.prior_for(ida, "adapted")) == said(priors(peopled).prior_for(ida, "adapted"))
    assert priors(peopled).missing_embedder_note is None, "nobody asked for neighbours"


def test_there_is_none_where_nothing_is_known_or_wanted(peopled: Registry) -> None:
    ida = peopled.users.get("ida")
    assert priors(peopled).prior_for(ida, "adapted") is None, "no bank"
    built(peopled)
    assert priors(peopled).prior_for(ida, "base") is None
    assert priors(peopled).prior_for(None, "adapted") is None
    assert priors(peopled, replace(ALONE, prior_weight=0.0)).prior_for(ida, "adapted") is None
    assert priors(peopled, task=replace(TASK, labels=())).prior_for(ida, "adapted") is None
    assert priors(peopled, task=replace(TASK, labels=("a", "b"))).prior_for(ida, "adapted") is None
    assert priors(peopled, base="another base").prior_for(ida, "adapted") is None


def test_who_has_answered_nothing_adds_nothing(peopled: Registry) -> None:
    built(peopled)
    new = peopled.users.add("new")
    assert said(priors(peopled).prior_for(new, "fused")) == [0.0] * 15
    peopled.items.append_items(new.id, [NewItem("x", TASK.name, "a film", "no tag of the list")])
    assert said(priors(peopled).prior_for(new, "fused")) == pytest.approx([0.0] * 15)


def test_what_was_to_be_known_of_an_answer_is_without_it(peopled: Registry) -> None:
    """Of somebody whose items are the bank's too, neither their habit nor their own neighbours give it away."""
    built(peopled)
    shared = priors(peopled, MemoryOptions())
    user = peopled.users.get("user0")
    items = peopled.items.recent_items(user.id, TASK.name)
    found = shared.leave_one_out_priors(user, items)
    assert found is not None and len(found) == len(items)
    bank = peopled.banks.latest_ready_bank(TASK.name, resolve_model("tiny", "base").fingerprint)
    assert bank is not None
    known = load_neighbours(peopled, bank, TASK)
    assert known is not None and user.id in known.item_users
    for item, prior in zip(items, found, strict=True):
        assert user.id not in prior.neighbours.item_users
        others = [each.output for each in items if each is not item]
        assert prior.user_prior == pytest.approx(user_label_prior(others, TASK.labels, known.rates.tolist(), 8.0))
        now, place = shared.prior_for(user, "adapted"), TASK.labels.index(item.output)
        assert (
            isinstance(now, NeighbourLabelPrior)
            and prior.model_weight == now.model_weight
            and prior.kernel == now.kernel
        )
        assert prior.user_prior[place] < now.user_prior[place]
    assert (
        shared.neighbour_settings["weight"] == MemoryOptions().neighbour_weight
        and shared.neighbour_settings["beside"] == bank.config[NEIGHBOUR_WEIGHT_KEY]
    )


def test_nothing_stands_beside_answers_where_no_neighbours_count(peopled: Registry) -> None:
    ida = peopled.users.get("ida")
    items = peopled.items.recent_items(ida.id, TASK.name)
    assert priors(peopled, MemoryOptions()).leave_one_out_priors(ida, items) is None, "no bank"
    built(peopled)
    assert priors(peopled).leave_one_out_priors(ida, items) is None and priors(peopled).neighbour_settings == {}
    assert priors(peopled, MemoryOptions(), task=replace(TASK, labels=())).leave_one_out_priors(ida, items) is None
