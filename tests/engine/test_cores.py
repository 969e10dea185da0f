"""A few numbers between frozen factors: they begin at nothing, learn, and are the same in any company."""

from dataclasses import replace

import pytest
import torch

from mta_cli.engine.base import LoadedBase
from mta_cli.engine.cores import Kind, bank_basis, between, count, fit_cores
from mta_cli.engine.lora import LoraWeights
from mta_cli.engine.prompts import Row
from mta_cli.engine.score import mean_loss
from tests.engine.lora_cases import explicit_delta, random_lora, random_rows

KINDS: tuple[Kind, ...] = ("core", "gains", "code")


def bank(base: LoadedBase, placement: str = "upper") -> list[LoraWeights]:
    return [random_lora(base.model, seed, placement=placement) for seed in range(5)]


def basis_of(base: LoadedBase, rank: int = 3, placement: str = "upper") -> LoraWeights:
    basis = bank_basis(bank(base, placement), rank)
    assert basis is not None
    return basis


def crowd() -> list[list[Row]]:
    """Histories of different number and length; the second person has none."""
    return [random_rows([14 + (7 * i + 5 * n) % 31 for n in range(size)], i) for i, size in enumerate((3, 0, 5, 1))]


def fit(
    base: LoadedBase, basis: LoraWeights, people: list[list[Row]], kind: Kind, *, steps: int = 6, rate: float = 0.2,
    pull: float = 0.1, under: tuple[tuple[LoraWeights, ...], ...] = (),
) -> list[LoraWeights | None]:  # fmt: skip
    return fit_cores(base, basis, people, kind=kind, steps=steps, learning_rate=rate, pull=pull, under=under)


def difference(ours: LoraWeights | None, theirs: LoraWeights | None) -> float:
    """Relative Frobenius difference of ΔW over all modules."""
    assert ours is not None and theirs is not None
    off = sum(float((ours.delta(path) - theirs.delta(path)).square().sum()) for path in theirs.factors)
    return float(off**0.5 / theirs.norm())


def test_the_basis_holds_the_anchors_main_directions_at_their_own_size(base: LoadedBase) -> None:
    anchors = bank(base)
    basis = basis_of(base, rank=20)  # all directions there are
    sizes = [anchor.norm() for anchor in anchors]
    assert basis.norm() == pytest.approx((sum(size**2 for size in sizes) / 5) ** 0.5, rel=1e-4)
    for path in basis.factors:
        wanted, found = explicit_delta([(anchor, 1.0) for anchor in anchors], path), basis.delta(path).double()
        cosine = (wanted * found).sum() / (wanted.norm() * found.norm())
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    assert {len(a) for a, _ in basis_of(base, rank=2).factors.values()} == {2}


def test_an_empty_bank_has_no_basis(base: LoadedBase) -> None:
    still = random_lora(base.model, 0)
    nothing = LoraWeights({path: (a, torch.zeros_like(b)) for path, (a, b) in still.factors.items()}, 1.0,
                          still.placement)  # fmt: skip
    assert bank_basis([], 2) is None and bank_basis([nothing], 2) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(), (2,)])
def test_numbers_stand_between_the_factors(base: LoadedBase, kind: Kind, leading: tuple[int, ...]) -> None:
    basis = basis_of(base)
    modules = len(basis.factors)
    assert count(basis, kind) == {"core": 9 * modules, "gains": 3 * modules, "code": 3}[kind]
    numbers = torch.randn(*leading, count(basis, kind), generator=torch.Generator().manual_seed(1))
    factors = between(basis, kind, numbers)
    for person in range(2) if leading else [...]:
        own = numbers[person]
        for i, (path, (a, b)) in enumerate(basis.factors.items()):
            core = {
                "core": lambda i=i, own=own: own[9 * i : 9 * i + 9].view(3, 3),
                "gains": lambda i=i, own=own: torch.diag(own[3 * i : 3 * i + 3]),
                "code": lambda own=own: torch.diag(own),
            }[kind]()
            found = factors[path][1][person] @ factors[path][0][person]
            assert torch.allclose(found, basis.scale * b @ core @ a, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_changes_nothing_and_many_learn(base: LoadedBase, kind: Kind) -> None:
    rows = random_rows([20] * 4)
    basis, untrained = basis_of(base, placement="all"), mean_loss(base, rows)
    (still,) = fit(base, basis, [rows], kind, steps=0)
    assert still is not None and still.norm() == 0.0
    losses = []
    for steps in (5, 30):
        (one,) = fit(base, basis, [rows], kind, steps=steps, pull=0.0)
        assert one is not None and one.scale == 1.0 and one.placement == basis.placement
        losses.append(mean_loss(base, rows, (one,)))
    assert losses[1] < losses[0] < untrained


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_follows_the_gradient_of_the_loss_as_it_is_written(base: LoadedBase, kind: Kind) -> None:
    """Adam's first step moves each number by the learning rate, against the sign of finite differences' slope."""
    rows, basis = random_rows([18, 25]), basis_of(base, rank=2)
    (moved,) = fit(base, basis, [rows], kind, steps=1, rate=0.125)
    assert moved is not None
    checked = 0
    for place in range(min(count(basis, kind), 6)):
        slope = 0.0
        for sign in (1.0, -1.0):
            numbers = torch.zeros(count(basis, kind))
            numbers[place] = 0.05 * sign
            part = LoraWeights(between(basis, kind, numbers), 1.0, basis.placement)
            slope += sign * mean_loss(base, rows, (part,))
        if abs(slope) < 1e-4:
            continue
        wanted = torch.zeros(count(basis, kind))
        wanted[place] = -0.125 if slope > 0 else 0.125
        alone = LoraWeights(between(basis, kind, wanted), 1.0, basis.placement)
        # the basis' directions are orthogonal, so the moved ΔW holds the one number's ΔW exactly
        inner = sum(float((moved.delta(path) * alone.delta(path)).sum()) for path in alone.factors)
        assert inner == pytest.approx(alone.norm() ** 2, rel=1e-3)
        checked += 1
    assert checked > 1


def test_the_pull_holds_numbers_back(base: LoadedBase) -> None:
    rows, basis = random_rows([20] * 4), basis_of(base)
    norms = []
    for pull in (0.0, 1.0, 1e4):
        (one,) = fit(base, basis, [rows], "gains", steps=30, rate=0.02, pull=pull)
        assert one is not None
        norms.append(one.norm())
    assert norms[2] < 0.2 * norms[0] and norms[2] < norms[1] < norms[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["upper", "late"])
@pytest.mark.parametrize("budget", [64, 4096])
def test_company_changes_nothing(
    base: LoadedBase, kind: Kind, placement: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, basis = crowd(), basis_of(base, placement=placement)
    under = tuple((random_lora(base.model, 50 + i, rank=1 + i, placement=placement),) for i in range(4))
    alone = [fit(base, basis, [people[i]], kind, under=under[i : i + 1])[0] for i in range(4)]
    monkeypatch.setattr("mta_cli.engine.lens.tokens_at_once", lambda device: budget)
    together = fit(base, basis, people, kind, under=under)
    assert together[1] is None and alone[1] is None
    for i in (0, 2, 3):
        assert difference(together[i], alone[i]) < 2e-3  # float16 keeps eleven bits of each number
    one, other = together[0], fit(base, basis, people, kind)[0]
    assert difference(one, other) > 0.01  # what lies under matters


def test_nobody_with_rows_gives_nobody_a_part(base: LoadedBase) -> None:
    assert fit(base, basis_of(base), [[], []], "core") == [None, None]
    assert fit(base, basis_of(base), [], "core") == []


def test_numbers_come_back_as_float16_keeps_them(base: LoadedBase) -> None:
    basis = basis_of(base, rank=1)
    (one,) = fit(base, basis, [random_rows([20, 20])], "code")
    assert one is not None
    gains = []
    for path, (_, b) in basis.factors.items():
        frozen, own = basis.scale * b, one.factors[path][1]
        gains.append(float((own * frozen).sum() / frozen.square().sum()))
    assert gains == pytest.approx([float(torch.tensor(gains[0]).half())] * len(gains), rel=1e-5)


def test_numbers_that_are_not_finite_give_no_part_and_leave_the_others_alone(base: LoadedBase) -> None:
    people, basis = crowd(), basis_of(base)
    path = next(iter(basis.factors))
    a, b = random_lora(base.model, 1, placement="upper").factors[path]
    broken = LoraWeights({path: (a, torch.full_like(b, float("nan")))}, 1.0, basis.placement)
    found = fit(base, basis, people, "core", under=((), (), (broken,), ()))
    expected = fit(base, basis, people, "core")
    assert found[2] is None
    for i in (0, 3):
        assert difference(found[i], expected[i]) < 2e-3


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mta_cli.engine.lens import PlainLens

    people, basis = crowd(), basis_of(base)
    expected = fit(base, basis, people, "gains")
    real, refused = PlainLens.losses, []

    def small(self, chosen, factors):  # type: ignore[no-untyped-def]
        if len(chosen) > 2:
            refused.append(len(chosen))
            raise torch.OutOfMemoryError("not enough")
        return real(self, chosen, factors)

    monkeypatch.setattr(PlainLens, "losses", small)
    found = fit(base, basis, people, "gains")
    assert refused
    for i in (0, 2, 3):
        assert difference(found[i], expected[i]) < 2e-3


def test_a_base_without_a_plain_decoder_fits_the_same(base: LoadedBase) -> None:
    people, basis = crowd(), basis_of(base)
    ours, theirs = (fit(one, basis, people, "core") for one in (base, replace(base, plain=None)))
    for i in (0, 2, 3):
        assert difference(ours[i], theirs[i]) < 2e-3
