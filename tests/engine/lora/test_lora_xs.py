"""A few numbers between frozen factors: they begin at nothing, learn, are the same in any company, and in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.batched import owner_blocks
from mta_cli.engine.lora.lora_xs import (
    LoraXsCore,
    TrainableCores,
    bank_basis,
    pack_core,
    truncate_basis,
    unpack_core,
)
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.errors import IntegrityFault
from tests.engine.likelihoods import mean_loss
from tests.engine.lora_cases import difference, explicit_delta, random_lora, random_rows

CPU = torch.device("cpu")


def bank(base: LoadedBase, placement: str = "upper") -> list[LoraWeights]:
    return [random_lora(base.model, seed, placement=placement) for seed in range(5)]


def basis_of(base: LoadedBase, rank: int = 3, placement: str = "upper") -> LoraWeights:
    basis = bank_basis(bank(base, placement), rank)
    assert basis is not None
    return basis


def nothing_of(weights: LoraWeights) -> LoraWeights:
    """The same modules without any ΔW."""
    factors = {path: (a, torch.zeros_like(b)) for path, (a, b) in weights.factors.items()}
    return LoraWeights(factors, weights.scale, weights.placement)


def crowd() -> list[list[TrainingRow]]:
    """Histories of different number and length; the second person has none."""
    return [random_rows([14 + (7 * i + 5 * n) % 31 for n in range(size)], i) for i, size in enumerate((3, 0, 5, 1))]


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(
    base: LoadedBase,
    core: LoraXsCore,
    people: Sequence[Sequence[TrainingRow]],
    steps: int,
    rate: float,
    under: Sequence[tuple[LoraWeights, ...]],
    budget: int | None = None,
) -> Trainer:
    """A training that has ended; every step is on all of a person's rows."""
    members = [
        GroupMember(core, rows, Schedule(steps, len(rows), rate), i, parts)
        for i, (rows, parts) in enumerate(zip(people, under, strict=True))
    ]
    trainer = Trainer(base, members, budget=budget)
    list(trainer.train_steps())
    return trainer


def fit(
    base: LoadedBase,
    basis: LoraWeights,
    people: Sequence[Sequence[TrainingRow]],
    *,
    steps: int = 6,
    rate: float = 0.2,
    pull: float = 0.1,
    under: Sequence[tuple[LoraWeights, ...]] = (),
    budget: int | None = None,
) -> list[LoraWeights | None]:
    """Everybody's ΔW as the store gives it back; None where there are no rows, or where training failed."""
    able = [i for i, rows in enumerate(people) if rows]
    below = [under[i] if under else () for i in able]
    trainer = trained(base, LoraXsCore(basis, pull), [people[i] for i in able], steps, rate, below, budget)
    found: list[LoraWeights | None] = [None] * len(people)
    for place, i in enumerate(able):
        found[i] = trainer.stored_weights(place) if place not in trainer.failed else None
    return found


def equal(ours: LoraWeights, theirs: LoraWeights) -> bool:
    """Whether two parts are the same bit for bit."""
    return ours.to_bytes({}) == theirs.to_bytes({})


def test_the_basis_holds_the_anchors_main_directions_at_their_own_size(base: LoadedBase) -> None:
    anchors = bank(base)
    basis = basis_of(base, rank=20)  # all directions there are
    sizes = [anchor.norm() for anchor in anchors]
    assert basis.norm() == pytest.approx((sum(size**2 for size in sizes) / 5) ** 0.5, rel=1e-4)
    for path in basis.factors:
        wanted, found = explicit_delta([(anchor, 1.0) for anchor in anchors], path), basis.delta_weight(path).double()
        cosine = (wanted * found).sum() / (wanted.norm() * found.norm())
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    assert {len(a) for a, _ in basis_of(base, rank=2).factors.values()} == {2}


def test_an_empty_bank_has_no_basis(base: LoadedBase) -> None:
    assert bank_basis([], 2) is None and bank_basis([nothing_of(random_lora(base.model, 0))], 2) is None


def test_modules_that_differ_in_rank_share_as_many_directions_as_all_have(base: LoadedBase) -> None:
    wide, thin = random_lora(base.model, 0, rank=4), random_lora(base.model, 1, rank=1)
    first, second = list(wide.factors)[:2]
    mixed = LoraWeights({first: wide.factors[first], second: thin.factors[second]}, 1.0, wide.placement)
    basis = bank_basis([mixed], 4)
    assert basis is not None and {len(a) for a, _ in basis.factors.values()} == {1}
    core = LoraXsCore(basis)
    assert unpack_core(basis, pack_core(drawn(core.num_parameters))).rank == 1


def test_more_directions_than_a_module_is_wide_are_those_it_has(base: LoadedBase) -> None:
    many = [random_lora(base.model, seed, rank=16) for seed in range(8)]
    basis = bank_basis(many, 100)
    narrowest = min(min(b.shape[0], a.shape[1]) for a, b in many[0].factors.values())
    assert basis is not None and {len(a) for a, _ in basis.factors.values()} == {narrowest}


def test_directions_of_nothing_carry_no_core(base: LoadedBase) -> None:
    with pytest.raises(IntegrityFault, match="come to nothing"):
        unpack_core(nothing_of(basis_of(base, 2)), bytes(2 * len(basis_of(base).factors)))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_narrowed_basis_is_the_banks_of_the_lower_rank(base: LoadedBase, rank: int) -> None:
    wide, wanted = basis_of(base, rank=5), basis_of(base, rank)
    narrow = truncate_basis(wide, rank)
    assert difference(narrow, wanted) < 1e-4
    assert narrow.norm() == pytest.approx(wide.norm(), rel=1e-6) and narrow.placement == wide.placement
    assert {(len(a), b.shape[1]) for a, b in narrow.factors.values()} == {(rank, rank)}


@pytest.mark.parametrize("rank", [3, 4, 100])
def test_a_basis_that_is_narrow_enough_stays_as_it_is(base: LoadedBase, rank: int) -> None:
    basis = basis_of(base, rank=3)
    assert equal(truncate_basis(basis, rank), basis)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_numbers_stand_between_the_factors(base: LoadedBase, leading: tuple[int, ...]) -> None:
    basis = basis_of(base)
    modules, core = len(basis.factors), LoraXsCore(basis)
    assert core.num_parameters == 9 * modules
    numbers = drawn(*leading, core.num_parameters)
    factors = core.factors(numbers)
    for person in range(2) if leading else [...]:
        own = numbers[person]
        for i, (path, (a, b)) in enumerate(basis.factors.items()):
            found = factors[path][1][person] @ factors[path][0][person]
            assert torch.allclose(found, basis.scale * b @ own[9 * i : 9 * i + 9].view(3, 3) @ a, atol=1e-5)


def test_a_part_is_what_its_numbers_mean_also_on_a_coarse_basis(base: LoadedBase) -> None:
    basis = basis_of(base)
    coarse = basis.cast_for_storage()
    numbers = drawn(LoraXsCore(basis).num_parameters).half()
    fine, part = LoraXsCore(basis).to_lora(numbers), LoraXsCore(coarse).to_lora(numbers)
    assert {half.dtype for pair in part.factors.values() for half in pair} == {torch.float32}
    assert part.scale == 1.0 and part.placement == basis.placement
    assert 0 < difference(part, fine) < 1e-3
    for path, (a, b) in LoraXsCore(basis).factors(numbers.float()).items():
        assert torch.equal(fine.delta_weight(path), b @ a)


def test_no_step_changes_nothing_and_many_learn(base: LoadedBase) -> None:
    rows = random_rows([20] * 4)
    basis, untrained = basis_of(base, placement="all"), mean_loss(base, rows)
    (still,) = fit(base, basis, [rows], steps=0)
    assert still is not None and still.norm() == 0.0
    losses = []
    for steps in (5, 30):
        (one,) = fit(base, basis, [rows], steps=steps, pull=0.0)
        assert one is not None and one.scale == 1.0 and one.placement == basis.placement
        losses.append(mean_loss(base, rows, (one,)))
    assert losses[1] < losses[0] < untrained


def test_one_step_follows_the_gradient_of_the_loss_as_it_is_written(base: LoadedBase) -> None:
    """Adam's first step moves each number by the learning rate, against the sign of finite differences' slope."""
    rows, basis = random_rows([18, 25]), basis_of(base, rank=2)
    core = LoraXsCore(basis)
    (moved,) = fit(base, basis, [rows], steps=1, rate=0.125)
    assert moved is not None
    checked = 0
    for place in range(min(core.num_parameters, 6)):
        slope = 0.0
        for sign in (1.0, -1.0):
            numbers = torch.zeros(core.num_parameters)
            numbers[place] = 0.05 * sign
            slope += sign * mean_loss(base, rows, (core.to_lora(numbers),))
        if abs(slope) < 1e-4:
            continue
        wanted = torch.zeros(core.num_parameters)
        wanted[place] = -0.125 if slope > 0 else 0.125
        alone = core.to_lora(wanted)
        # the basis' directions are orthogonal, so the moved ΔW holds the one number's ΔW exactly
        inner = sum(float((moved.delta_weight(path) * alone.delta_weight(path)).sum()) for path in alone.factors)
        assert inner == pytest.approx(alone.norm() ** 2, rel=1e-3)
        checked += 1
    assert checked > 1


def test_the_pull_holds_numbers_back(base: LoadedBase) -> None:
    rows, basis = random_rows([20] * 4), basis_of(base)
    norms = []
    for pull in (0.0, 1.0, 1e4):
        (one,) = fit(base, basis, [rows], steps=30, rate=0.02, pull=pull)
        assert one is not None
        norms.append(one.norm())
    assert norms[2] < 0.2 * norms[0] and norms[2] < norms[1] < norms[0]


@pytest.mark.parametrize("pull", [0.0, 0.3])
def test_the_pull_is_the_gradient_of_its_share_of_the_mean_square(base: LoadedBase, pull: float) -> None:
    group = TrainableCores(LoraXsCore(basis_of(base), pull), 3, CPU)
    group.numbers.copy_(drawn(*group.numbers.shape))
    leaf = group.numbers.clone().requires_grad_()
    (pull * leaf.square().mean(1)).sum().backward()  # type: ignore[no-untyped-call]
    group.grads[0].fill_(2.0)
    group.add_penalty_grad()
    assert leaf.grad is not None
    torch.testing.assert_close(group.grads[0], 2.0 + leaf.grad)


@pytest.mark.parametrize("owners", [[0, 1, 2], [2, 0, 2], [1, 1, 1], [2, 2, 0, 0]])
def test_gradients_equal_those_of_a_plain_formulation(base: LoadedBase, owners: list[int]) -> None:
    """Each block of rows answers with a weight of its own; gradients of two passes add up."""
    core = LoraXsCore(basis_of(base))
    group = TrainableCores(core, 3, CPU)
    group.numbers.copy_(drawn(*group.numbers.shape))
    heads, _ = owner_blocks(owners)
    plain = group.numbers.clone().requires_grad_()
    for repeat in (1.0, 2.0):
        leaves = group.params_for_rows(owners, torch.float32)
        total, wanted = torch.zeros(()), torch.zeros(())
        for path, (a, b) in leaves.factors().items():
            blocks = (b @ a).view(len(heads), *(b @ a).shape[-2:])
            for block, owner in enumerate(heads):
                total = total + (repeat + block) * blocks[block].square().sum()
                own_a, own_b = core.factors(plain[owner])[path]
                wanted = wanted + (repeat + block) * (own_b @ own_a).square().sum()
        total.backward(), wanted.backward()  # type: ignore[no-untyped-call, no-untyped-call]
        leaves.accumulate_grads()
    assert plain.grad is not None
    torch.testing.assert_close(group.grads[0], plain.grad, rtol=1e-4, atol=1e-5)
    assert [bool(grad.any()) for grad in group.grads[0]] == [person in owners for person in range(3)]


def test_coarse_passes_keep_fine_numbers(base: LoadedBase) -> None:
    group = TrainableCores(LoraXsCore(basis_of(base)), 2, CPU)
    group.numbers.copy_(drawn(*group.numbers.shape))
    before = group.numbers.clone()
    leaves = group.params_for_rows([0, 1], torch.bfloat16)
    factors = leaves.factors()
    assert {tensor.dtype for pair in factors.values() for tensor in pair} == {torch.bfloat16}
    sum((b.float().sum() for _, b in factors.values()), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    leaves.accumulate_grads()
    assert group.grads[0].dtype == torch.float32 and bool(group.grads[0].any())
    assert torch.equal(group.numbers, before)


def test_what_a_group_gives_out_stays_as_it_was(base: LoadedBase) -> None:
    group = TrainableCores(LoraXsCore(basis_of(base)), 2, CPU)
    weights = group.user_weights(0)
    group.numbers.fill_(1.0)
    assert weights.norm() == 0 and group.user_weights(0).norm() > 0


@pytest.mark.parametrize("placement", ["upper", "late"])
@pytest.mark.parametrize("budget", [64, 4096])
def test_company_changes_nothing(base: LoadedBase, placement: str, budget: int) -> None:
    people, basis = crowd(), basis_of(base, placement=placement)
    under = [(random_lora(base.model, 50 + i, rank=1 + i, placement=placement),) for i in range(4)]
    together = fit(base, basis, people, under=under, budget=budget)
    assert together[1] is None
    for i in (0, 2, 3):
        (alone,) = fit(base, basis, [people[i]], under=[under[i]])
        assert difference(together[i], alone) < 2e-3  # float16 keeps eleven bits of each number
    assert difference(together[0], fit(base, basis, people)[0]) > 0.01  # what lies under matters


def test_numbers_that_are_not_finite_give_no_part_and_leave_the_others_alone(base: LoadedBase) -> None:
    people, basis = crowd(), basis_of(base)
    path = next(iter(basis.factors))
    a, b = random_lora(base.model, 1, placement="upper").factors[path]
    broken = LoraWeights({path: (a, torch.full_like(b, float("nan")))}, 1.0, basis.placement)
    found = fit(base, basis, people, under=((), (), (broken,), ()))
    expected = fit(base, basis, people)
    assert found[2] is None
    for i in (0, 3):
        assert difference(found[i], expected[i]) < 2e-3


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mta_cli.engine.scoring.backends import LlamaBackend

    people, basis = crowd(), basis_of(base)
    expected = fit(base, basis, people)
    real, refused = LlamaBackend.score_rows, []

    def small(self, chosen, factors):  # type: ignore[no-untyped-def]
        if len(chosen) > 2:
            refused.append(len(chosen))
            raise torch.OutOfMemoryError("not enough")
        return real(self, chosen, factors)

    monkeypatch.setattr(LlamaBackend, "score_rows", small)
    found = fit(base, basis, people)
    assert refused
    for i in (0, 2, 3):
        assert difference(found[i], expected[i]) < 2e-3


def test_a_base_without_a_plain_decoder_fits_the_same(base: LoadedBase) -> None:
    people, basis = crowd(), basis_of(base)
    ours, theirs = (fit(one, basis, people) for one in (base, replace(base, llama_decoder=None)))
    for i in (0, 2, 3):
        assert difference(ours[i], theirs[i]) < 2e-3
