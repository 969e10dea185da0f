"""Finished evaluations, wherever they are kept: what each found, and each method's answers added up by person."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.pipeline.evaluation.outcome import judge_again
from mta_cli.pipeline.tasks import find_task

if TYPE_CHECKING:
    from mta_cli.engine.tallies import Tally
    from store.registry import Registry


@dataclass(frozen=True)
class Measured:
    """`id` is the evaluation's number in the store, or its file's digest; `name` is what a person calls it by.

    `kept`: in the store, whose people `tally` knows by their numbers there.
    """

    id: int | str
    name: str
    result: dict[str, Any]
    tally: "Callable[[str], Tally]"
    kept: bool = True


def finished(reg: "Registry", number: int) -> Measured:
    """The evaluation of this number. Raises NotFound for one that is not there or has no result yet."""
    found = reg.evaluations.get(number)
    if found.status != "done" or "costs" not in found.result:
        raise NotFound(
            f"Evaluation {number} has no result yet.", hint="mta eval run with the options it was begun with"
        )

    def tally(method: str) -> "Tally":
        return judge_again(reg, find_task(reg, found.task), found, method).tally

    return Measured(number, f"evaluation {number}", found.result, tally)
