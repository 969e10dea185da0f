"""Personal parts of few bytes: numbers between the bank's main directions, and stacks that are kept small.

All stand on the task adapter. Knows tensors and rows; how the bank came to be is others' business.
"""

from collections.abc import Sequence
from functools import partial

from mta_cli.engine.cores import Kind, bank_basis, count, fit_cores
from mta_cli.engine.lora import LoraWeights
from mta_cli.engine.methods.fusion import EVIDENCE, SHARE_BYTES, by_evidence, fused
from mta_cli.engine.methods.merge_then_adapt import STACKS
from mta_cli.engine.methods.prior import PRIOR, habits
from mta_cli.engine.methods.shape import Bench, Made, Method, Person, Settings, Value
from mta_cli.engine.methods.stacks import OWN, lost, stacks_as
from mta_cli.engine.rounding import rounded

CORES: dict[str, Value] = {"steps": 10, "pull": 0.1, "learning_rate": 0.1}
RATES = tuple({"learning_rate": rate} for rate in (0.03, 0.1, 0.3))


def make_cores(kind: Kind, bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Numbers between the bank's main directions; nothing where the bank has none. Kept in float16."""
    basis = bank_basis(bench.anchors, int(settings["rank"]))
    if basis is None:
        return [Made() for _ in people]
    fitted = _fitted(kind, bench, basis, people, settings, [()] * len(people))
    return [_made(person, one, 2 * count(basis, kind)) for person, one in zip(people, fitted, strict=True)]


def make_core_above(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Fusion by evidence, a core above it and the label prior: Merge-then-Adapt in about a kilobyte."""
    recipes, priors = by_evidence(bench, people, settings), habits(bench, people, settings)
    under = [fused(bench, shares) for shares in recipes]
    basis = bank_basis(bench.anchors, int(settings["rank"]))
    cores: list[LoraWeights | None] = [None] * len(people)
    if basis is not None:
        cores = _fitted("core", bench, basis, people, settings, under)
    return [
        Made(
            (*below, core) if core is not None else below, prior,
            SHARE_BYTES * len(shares) + size + (2 * count(basis, "core") if core is not None and basis else 0),
            failed=basis is not None and lost(person, core),
        )
        for person, below, core, shares, (prior, size) in zip(people, under, cores, recipes, priors, strict=True)
    ]  # fmt: skip


def make_stack(bits: int, bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Stacks alone, kept in `bits` bits a number."""
    found = _stacks(bench, people, settings)
    kept = [rounded(one, bits) if one is not None else (None, 0) for one in found]
    return [_made(person, one, size) for person, (one, size) in zip(people, kept, strict=True)]


def make_frozen_a(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Stacks whose A is made again from the seed, so that B alone is kept, in float16."""
    found = _stacks(bench, people, settings, frozen_a=True)
    sizes = [2 * sum(b.numel() for _, b in one.factors.values()) if one is not None else 0 for one in found]
    return [_made(person, one, size) for person, one, size in zip(people, found, sizes, strict=True)]


def _fitted(
    kind: Kind, bench: Bench, basis: LoraWeights, people: Sequence[Person], settings: Settings,
    under: Sequence[tuple[LoraWeights, ...]],
) -> list[LoraWeights | None]:  # fmt: skip
    return fit_cores(
        bench.base, basis, [person.rows for person in people], kind=kind, steps=int(settings["steps"]),
        learning_rate=float(settings["learning_rate"]), pull=float(settings["pull"]), under=under,
    )  # fmt: skip


def _stacks(
    bench: Bench, people: Sequence[Person], settings: Settings, *, frozen_a: bool = False
) -> list[LoraWeights | None]:
    return stacks_as(bench, people, [() for _ in people], settings, frozen_a=frozen_a)


def _made(person: Person, part: LoraWeights | None, size: int) -> Made:
    return Made((part,), bytes=size) if part is not None else Made(failed=lost(person, part))


METHODS = (
    Method(
        "gains", "a gain for each of the bank's main directions in every module", partial(make_cores, "gains"),
        settings={**CORES, "rank": 8}, grid=RATES,
    ),
    Method(
        "code", "one gain for each of the bank's main directions, the same in every module",
        partial(make_cores, "code"), settings={**CORES, "rank": 8}, grid=RATES,
    ),
    Method(
        "core", "a small matrix between the bank's main directions in every module (LoRA-XS)",
        partial(make_cores, "core"), settings={**CORES, "rank": 2}, grid=RATES,
    ),
    Method(
        "mta-core", "fusion by evidence, a core above it and the label prior", make_core_above,
        settings={**CORES, **EVIDENCE, **PRIOR, "rank": 2}, grid=RATES,
    ),
    Method(
        "stack-r1", "a stack of rank 1", partial(make_stack, 16), settings={**OWN, "rank": 1, "alpha": 2.0},
        grid=STACKS,
    ),
    Method("stack-frozen-a", "a stack whose A stays as the seed made it", make_frozen_a, settings=OWN, grid=STACKS),
    Method("stack-8bit", "a stack kept in 8 bits a number", partial(make_stack, 8), settings=OWN, grid=STACKS),
    Method("stack-4bit", "a stack kept in 4 bits a number", partial(make_stack, 4), settings=OWN, grid=STACKS),
)  # fmt: skip
