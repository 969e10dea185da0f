"""Label priors of people: from their own answers, against those of the people whom a bank is made of."""

import math
from dataclasses import replace

import pytest

from mta_cli.engine.labels import habit, label_rates
from mta_cli.options import AnswerOptions
from mta_cli.pipeline.habits import label_prior
from mta_cli.pipeline.models import resolve
from store.models import NewItem
from store.registry import Registry
from tests.pipeline.town import TASK, built

OPTIONS = AnswerOptions(prior_weight=0.5, prior_strength=8.0)


def test_a_persons_answers_stand_against_those_of_the_bank(peopled: Registry) -> None:
    built(peopled)
    base, ida = resolve("tiny", "base").fingerprint, peopled.users.get("ida")
    makers = [user for user, count in peopled.users.with_items(TASK.name) if count >= 5]
    given = [item.output for user in makers for item in peopled.items.recent(user.id, TASK.name)]
    rates = label_rates(given, TASK.labels)
    bank = peopled.banks.latest(TASK.name, base)
    assert bank is not None and bank.config["label_rates"] == pytest.approx(rates)
    own = [item.output for item in peopled.items.recent(ida.id, TASK.name)]
    found = label_prior(peopled, ida, TASK, base, "adapted", OPTIONS)
    assert found == pytest.approx([0.5 * value for value in habit(own, TASK.labels, rates, 8.0)])
    assert found == label_prior(peopled, ida, TASK, base, "fused", OPTIONS)
    assert found.index(max(found)) == TASK.labels.index(own[0]) and max(found) > 0 > min(found)


def test_there_is_none_where_nothing_is_known_or_wanted(peopled: Registry) -> None:
    base, ida = resolve("tiny", "base").fingerprint, peopled.users.get("ida")
    assert label_prior(peopled, ida, TASK, base, "adapted", OPTIONS) == (), "no bank"
    built(peopled)
    assert label_prior(peopled, ida, TASK, base, "base", OPTIONS) == ()
    assert label_prior(peopled, None, TASK, base, "adapted", OPTIONS) == ()
    assert label_prior(peopled, ida, TASK, base, "adapted", replace(OPTIONS, prior_weight=0.0)) == ()
    assert label_prior(peopled, ida, replace(TASK, labels=()), base, "adapted", OPTIONS) == ()
    assert label_prior(peopled, ida, replace(TASK, labels=("a", "b")), base, "adapted", OPTIONS) == ()
    assert label_prior(peopled, ida, TASK, "another base", "adapted", OPTIONS) == ()


def test_who_has_answered_nothing_adds_nothing(peopled: Registry) -> None:
    built(peopled)
    new = peopled.users.add("new")
    base = resolve("tiny", "base").fingerprint
    assert label_prior(peopled, new, TASK, base, "fused", OPTIONS) == (0.0,) * 15
    peopled.items.append(new.id, [NewItem("x", TASK.name, "a film", "no tag of the list")])
    assert all(math.isclose(value, 0.0) for value in label_prior(peopled, new, TASK, base, "fused", OPTIONS))
