"""A few numbers for each person between frozen factors, fitted by gradient, many people at once.

`ΔW = s · B_f C A_f` for every module of a frozen `basis`, where C alone is the person's: a full matrix (`core`, as in
LoRA-XS, arXiv 2405.17604), a diagonal (`gains`), or one diagonal for all modules (`code`). Knows neither users nor
files.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mta_cli.engine.fusion import compress, merge
from mta_cli.engine.lens import Budget, make_lens, shared_passes
from mta_cli.engine.lora import Factors, LoraWeights
from mta_cli.engine.parts import blocks_of
from mta_cli.engine.passes import Fork

if TYPE_CHECKING:
    from mta_cli.engine.base import LoadedBase
    from mta_cli.engine.prompts import Row

Kind = Literal["core", "gains", "code"]


def bank_basis(anchors: Sequence[LoraWeights], rank: int) -> LoraWeights | None:
    """The main `rank` directions of the anchors' sum; None where there is nothing.

    Its norm is the root mean square of the anchors', so that numbers near 1 move a model as far as an anchor does.
    """
    joint = merge([(anchor, 1.0) for anchor in anchors])
    if joint is None or (main := compress(joint, rank)).norm() == 0.0:
        return None
    typical = (sum(anchor.norm() ** 2 for anchor in anchors) / len(anchors)) ** 0.5
    return LoraWeights(main.factors, main.scale * typical / main.norm(), main.placement)


def count(basis: LoraWeights, kind: Kind) -> int:
    """How many numbers a person has."""
    return basis.rank if kind == "code" else sum(_sizes(basis, kind))


def between(basis: LoraWeights, kind: Kind, numbers: Tensor) -> Factors:
    """`A_f [… , rank, in]` and `s · B_f C [… , out, rank]` by path, for `numbers` `[… , count]`."""
    sizes = _sizes(basis, kind)
    pieces = [numbers[..., :size] for size in sizes] if kind == "code" else torch.split(numbers, sizes, -1)
    factors: Factors = {}
    for (path, (a, b)), own in zip(basis.factors.items(), pieces, strict=True):
        turned = b @ own.reshape(*own.shape[:-1], len(a), len(a)) if kind == "core" else b * own.unsqueeze(-2)
        factors[path] = (a.expand(*numbers.shape[:-1], *a.shape), basis.scale * turned)
    return factors


def fit_cores(
    base: "LoadedBase",
    basis: LoraWeights,
    people_rows: Sequence[Sequence["Row"]],
    *,
    kind: Kind,
    steps: int,
    learning_rate: float,
    pull: float,
    under: Sequence[tuple[LoraWeights, ...]] = (),
) -> list[LoraWeights | None]:
    """Everybody's ΔW, with scale 1, from `steps` of Adam (arXiv 1412.6980) on all of their rows, beginning at C = 0.

    The loss of a person is the mean negative log-likelihood of their labelled tokens (nats) + `pull` × the mean square
    of their numbers. `under` are each person's frozen parts. Numbers come back as float16 keeps them. None for whoever
    has no rows, or numbers that are not finite. Nobody's company changes more than the last bits.
    """
    if not any(people_rows):
        return [None for _ in people_rows]
    fit = _Fit(base, basis, people_rows, kind, under)
    optimizer = torch.optim.Adam([fit.numbers], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (pull * fit.numbers.square().mean(1)).sum().backward()  # type: ignore[no-untyped-call]
        fit.gather()
        optimizer.step()
    kept, frozen = fit.numbers.detach().cpu().half().float(), _moved(basis, torch.device("cpu"))
    return [
        LoraWeights(between(frozen, kind, own), 1.0, basis.placement)
        if rows and bool(torch.isfinite(own).all())
        else None
        for rows, own in zip(people_rows, kept, strict=True)
    ]


class _Fit:
    """Everybody's `numbers` [people, count] and the gradients of their losses."""

    def __init__(
        self,
        base: "LoadedBase",
        basis: LoraWeights,
        people_rows: Sequence[Sequence["Row"]],
        kind: Kind,
        under: Sequence[tuple[LoraWeights, ...]],
    ) -> None:
        forks = [Fork.of(row) for rows in people_rows for row in rows]
        self._owners = [person for person, rows in enumerate(people_rows) for _ in rows]
        self._lens = make_lens(base, forks, basis.placement, under=under, people=self._owners)
        self._budget, self._kind = Budget(base), kind
        self._basis = _moved(basis, base.device)
        labels = [0] * len(people_rows)
        for person, fork in zip(self._owners, forks, strict=True):
            labels[person] += len(fork.branches[0])
        self._shares = torch.tensor([1.0 / labels[person] for person in self._owners], device=base.device)
        self.numbers = torch.zeros(len(people_rows), count(basis, kind), device=base.device, requires_grad=True)

    def gather(self) -> None:
        """Add the gradient of everybody's mean negative log-likelihood to that of `numbers`."""
        rows = range(len(self._owners))
        self._budget.spend(shared_passes(self._lens, rows, self._owners, self._budget.tokens), self._pass)

    def _pass(self, batch: list[int]) -> None:
        heads, _ = blocks_of([self._owners[i] for i in batch])
        own = self.numbers[heads[0]] if len(heads) == 1 else self.numbers[heads]
        factors = {
            path: (a.to(self._lens.dtype), b.to(self._lens.dtype))
            for path, (a, b) in between(self._basis, self._kind, own).items()
        }
        losses, row = self._lens.losses(batch, factors)
        (losses * self._shares[batch][row]).sum().backward()  # type: ignore[no-untyped-call]


def _moved(basis: LoraWeights, device: torch.device) -> LoraWeights:
    """The basis in float32 on `device`."""
    factors = {
        path: (a.to(device, torch.float32), b.to(device, torch.float32)) for path, (a, b) in basis.factors.items()
    }
    return LoraWeights(factors, basis.scale, basis.placement)


def _sizes(basis: LoraWeights, kind: Kind) -> list[int]:
    """How many of a person's numbers each module takes."""
    ranks = [len(a) for a, _ in basis.factors.values()]
    return [rank * rank for rank in ranks] if kind == "core" else ranks
