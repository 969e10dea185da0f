"""A person's label prior: what their own answers say of the next one, before it is read. Renders and trains nothing."""

from typing import TYPE_CHECKING

from mta_cli.options import AnswerOptions
from store.models import Bank, User

if TYPE_CHECKING:
    from mta_cli.engine.tasks import Task
    from store.registry import Registry

RECENT = 200  # of a person's answers count
RATES = "label_rates"
PERSONAL = ("fused", "adapted")


def label_prior(
    reg: "Registry", user: User | None, task: "Task", base: str, mode: str, options: AnswerOptions
) -> tuple[float, ...]:
    """What is added to each label's log-likelihood in a personal `mode` (nats); nothing where nothing is known.

    The person's rates stand against those of the people whom the task's current bank for `base` (a fingerprint) is
    made of.
    """
    from mta_cli.engine.labels import habit

    if user is None or mode not in PERSONAL or not task.labels or options.prior_weight == 0.0:
        return ()
    bank = reg.banks.latest(task.name, base)
    rates = rates_of(bank) if bank is not None else ()
    if len(rates) != len(task.labels):  # the bank is of another form of the task, or older than its rates
        return ()
    given = [item.output for item in reg.items.recent(user.id, task.name, RECENT)]
    return tuple(options.prior_weight * value for value in habit(given, task.labels, rates, options.prior_strength))


def rates_of(bank: Bank) -> tuple[float, ...]:
    """How often the people whom a bank is made of give each label; nothing where it does not know."""
    return tuple(bank.config.get(RATES, ()))
