"""Every method by name, in the order in which tables show them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from mta_cli.engine.methods import (
    fusion,
    majority,
    merge_then_adapt,
    mta_released,
    neighbours,
    oppu,
    per_pcs,
    plain,
    prime,
    small,
)
from mta_cli.engine.methods.method import Method
from mta_cli.errors import UsageError

_FAMILIES = (majority, neighbours, plain, oppu, fusion, merge_then_adapt, mta_released, per_pcs, prime, small)
METHODS: dict[str, Method] = {method.name: method for family in _FAMILIES for method in family.METHODS}


def find_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each once, in the order given. UsageFault for a name that is none."""
    found = []
    for name in dict.fromkeys(names):
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            raise UsageError(
                f"there is no method {name!r:.80}", hint=f"did you mean {near[0]}?" if near else "mta eval methods"
            )
        found.append(METHODS[name])
    if not found:
        raise UsageError("no method was named", hint="mta eval methods")
    return found
