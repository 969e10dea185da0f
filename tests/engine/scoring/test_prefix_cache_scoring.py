"""Passes: every fork scores as if it ran alone and whole, whatever is kept, shared, padded or frozen underneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement, merge_into_base
from mta_cli.engine.lora.batched import FrozenLoras, TrainableLoras, fuse_factors, module_slices
from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.engine.scoring.prefix_cache_scoring import PrefixCacheScorer, pack_by_length, pack_users_rows
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.scoring.tree_scorers import group_frozen_loras
from mta_cli.engine.text.prompts import TrainingRow
from tests.engine.lora_cases import random_lora
from tests.engine.slow import random_forks, slow_sums, slow_values

SHAPES = [(30, (4,)), (3, (5,)), (19, (1, 6, 2)), (8, (3, 3)), (1, (2,)), (9, (1,)), (41, (7, 1))]
LATE = Placement(1, 1, 8)


def decoder(base: LoadedBase) -> LlamaDecoder:
    assert base.llama_decoder is not None
    return base.llama_decoder


def sums(forks: Sequence[PromptTree], chosen: Sequence[int], scores: object) -> list[list[float]]:
    """Log-likelihoods by row and branch."""
    found = [[0.0] * len(forks[i].completions) for i in chosen]
    for value, row, branch in zip(
        scores.log_likelihoods.tolist(), scores.row.tolist(), scores.completion_index, strict=True
    ):
        found[row][branch] += value
    return found


def close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    assert [len(one) for one in found] == [len(one) for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == pytest.approx(list(theirs), abs=2e-4)


def test_a_fork_lays_out_its_tokens() -> None:
    fork = PromptTree((5, 6, 7), ((10, 11, 12), (20,), (30, 31)))
    assert fork.tokens == (5, 6, 7, 10, 11, 30) and fork.length == 6
    assert fork.positions == [0, 1, 2, 3, 4, 3]
    assert fork.segment_ids == [-1, -1, -1, 0, 0, 2]
    assert list(fork.prediction_targets()) == [(2, 10, 0), (3, 11, 0), (4, 12, 0), (2, 20, 1), (2, 30, 2), (5, 31, 2)]


@pytest.mark.parametrize(("start", "prompt"), [(4, 4), (1, 1), (0, 1)])
def test_a_row_is_a_fork_with_one_answer(start: int, prompt: int) -> None:
    fork = PromptTree.from_row(TrainingRow((3, 4, 5, 6, 7, 8), start))
    assert fork.prompt == (3, 4, 5, 6, 7, 8)[:prompt] and fork.completions == ((3, 4, 5, 6, 7, 8)[prompt:],)


@pytest.mark.parametrize("keep", [0, ACTIVATION_CACHE_BYTES])
@pytest.mark.parametrize("placement", ["all", "upper", "late"])
def test_forks_score_as_alone_and_whole(base: LoadedBase, placement: str, keep: int) -> None:
    forks, lora = random_forks(SHAPES), random_lora(base.model, 1, placement=placement)
    passes = PrefixCacheScorer(decoder(base), forks, lora.placement, cache_bytes=keep)
    crowd = FrozenLoras(decoder(base), [lora])
    expected = [slow_sums(base, fork, [lora]) for fork in forks]
    unlike = [slow_sums(base, fork) for fork in forks]
    assert max(abs(a - b) for x, y in zip(expected, unlike, strict=True) for a, b in zip(x, y, strict=True)) > 0.05
    for chosen in (range(len(forks)), [4, 1], [6, 0, 3, 6], [5], [2, 2], [0, 1, 2]):
        scores = passes.score_trees(chosen, {}, [crowd], [0] * len(chosen))
        close(sums(forks, chosen, scores), [expected[i] for i in chosen])
    assert bool(passes._cache) == (keep > 0 and placement != "all")
    decoder(base).activation_cache.clear()


@pytest.mark.parametrize("first", [[4], [1, 4], [0]])
def test_short_and_long_prompts_meet_in_any_order_of_passes(base: LoadedBase, first: list[int]) -> None:
    """States kept from a pass of prompts shorter than `late`, which have nothing before them, go with longer ones."""
    forks, lora = random_forks(SHAPES), random_lora(base.model, 1, placement="late")
    passes = PrefixCacheScorer(decoder(base), forks, lora.placement)
    crowd = FrozenLoras(decoder(base), [lora])
    passes.score_trees(first, {}, [crowd], [0] * len(first))
    for chosen in ([4, 0], [0, 4, 1], [1, 6]):
        scores = passes.score_trees(chosen, {}, [crowd], [0] * len(chosen))
        close(sums(forks, chosen, scores), [slow_sums(base, forks[i], [lora]) for i in chosen])


@pytest.mark.parametrize("late", [1, 2, 8, 200])
def test_any_number_of_late_tokens(base: LoadedBase, late: int) -> None:
    made = random_lora(base.model, 1, placement="upper")
    lora = LoraWeights(made.factors, made.scale, Placement(1, 1, late))
    forks = random_forks(SHAPES)
    passes = PrefixCacheScorer(decoder(base), forks, lora.placement)
    scores = passes.score_trees(range(len(forks)), {}, [FrozenLoras(decoder(base), [lora])], [0] * len(forks))
    close(sums(forks, range(len(forks)), scores), [slow_sums(base, fork, [lora]) for fork in forks])


@pytest.mark.parametrize("placement", ["all", "late"])
def test_branches_together_equal_branches_one_by_one(base: LoadedBase, placement: str) -> None:
    fork, lora = random_forks([(20, (3, 1, 5, 2))])[0], random_lora(base.model, 1, placement=placement)
    single = [PromptTree(fork.prompt, (branch,)) for branch in fork.completions]
    passes = PrefixCacheScorer(
        decoder(base), [fork, *single, PromptTree(fork.prompt, fork.completions[::-1])], lora.placement
    )
    found = [
        sums(passes.trees, [i], passes.score_trees([i], {}, [FrozenLoras(decoder(base), [lora])], [0]))[0]
        for i in range(6)
    ]
    assert found[0] == pytest.approx([one[0] for one in found[1:5]], abs=1e-4)
    assert found[5] == pytest.approx(found[0][::-1], abs=1e-4)


def test_a_fork_lays_out_the_branches_that_are_asked() -> None:
    whole = PromptTree((5, 6, 7), ((10, 11, 12), (20,), (30, 31)))
    fork = replace(whole, active_indices=(1, 2))
    assert fork.full_tree == whole.full_tree == whole
    assert fork.tokens == (5, 6, 7, 30) and fork.length == 4
    assert fork.positions == [0, 1, 2, 3] and fork.segment_ids == [-1, -1, -1, 2]
    assert fork.columns_in_full_tree == [0, 1, 2, 5] and whole.columns_in_full_tree == list(range(6))
    assert list(fork.prediction_targets()) == [(2, 20, 1), (2, 30, 2), (3, 31, 2)]


@pytest.mark.parametrize("keep", [0, ACTIVATION_CACHE_BYTES])
@pytest.mark.parametrize("placement", ["all", "upper", "late"])
def test_some_branches_of_a_fork_are_what_they_are_among_all(base: LoadedBase, placement: str, keep: int) -> None:
    """They begin where the whole fork did: nothing of a prompt is computed twice."""
    forks, lora = random_forks([(20, (3, 1, 5, 2)), (12, (2, 2, 4))]), random_lora(base.model, 1, placement=placement)
    some = [
        replace(forks[0], active_indices=(1, 2)),
        replace(forks[1], active_indices=(2,)),
        forks[0],
        replace(forks[1], active_indices=(0, 1)),
    ]
    passes, crowd = (
        PrefixCacheScorer(decoder(base), some, lora.placement, cache_bytes=keep),
        FrozenLoras(decoder(base), [lora]),
    )
    wanted = [slow_sums(base, one.full_tree, [lora]) for one in some]
    for chosen in (range(4), [3, 1], [0]):
        found = sums(some, chosen, passes.score_trees(chosen, {}, [crowd], [0] * len(chosen)))
        for i, own in zip(chosen, found, strict=True):
            for branch, value in enumerate(own):
                there = some[i].active_indices is None or branch in (some[i].active_indices or ())
                assert value == pytest.approx(wanted[i][branch] if there else 0.0, abs=2e-4)
    assert len(passes._cache) == (2 if keep and placement != "all" else 0)
    decoder(base).activation_cache.clear()


def test_a_closed_fork_knows_what_may_stand_in_a_tokens_place() -> None:
    branches = ((10, 11, 12), (20,), (10, 11, 13), (10, 14))
    assert PromptTree((5,), branches, active_indices=(0, 3)).allowed_tokens == [None] * 5
    closed = PromptTree((5,), branches, active_indices=(0, 3), constrained=True)
    first, second = (10, 20), (11, 14)
    assert closed.allowed_tokens == [first, second, (12, 13), first, second]
    assert closed.full_tree == PromptTree((5,), branches)


@pytest.mark.parametrize("placement", ["all", "late"])
def test_closed_forks_weigh_a_token_against_its_rivals(base: LoadedBase, placement: str) -> None:
    """Alone and in one pass with open forks, at any number of branches that are asked."""
    lora, branches = random_lora(base.model, 1, placement=placement), ((10, 11, 12), (20, 2), (10, 11, 13), (10, 14))
    prompt = tuple(range(30, 50))
    closed = PromptTree(prompt, branches, constrained=True)
    forks = [closed, replace(closed, constrained=False), replace(closed, active_indices=(1, 2))]
    wanted = slow_sums(base, closed, [lora])
    passes, crowd = PrefixCacheScorer(decoder(base), forks, lora.placement), FrozenLoras(decoder(base), [lora])
    for chosen in ([0], [1, 0, 2], [2, 1], [2]):
        found = sums(forks, chosen, passes.score_trees(chosen, {}, [crowd], [0] * len(chosen)))
        for i, own in zip(chosen, found, strict=True):
            full = [wanted, slow_sums(base, forks[1], [lora]), [0.0, *wanted[1:3], 0.0]][i]
            assert own == pytest.approx(full, abs=2e-4)
    decoder(base).activation_cache.clear()


@pytest.mark.parametrize("placement", ["all", "upper", "late"])
def test_rows_of_several_people_in_one_pass(base: LoadedBase, placement: str) -> None:
    forks = random_forks(SHAPES)
    people = [random_lora(base.model, i, rank=i + 1, placement=placement) for i in range(3)]
    passes = PrefixCacheScorer(decoder(base), forks, people[0].placement)
    crowd = FrozenLoras(decoder(base), people)
    chosen, owners = [0, 0, 0, 6, 1, 2], [0, 1, 2, 2, 1, 0]
    expected = [slow_sums(base, forks[i], [people[owner]]) for i, owner in zip(chosen, owners, strict=True)]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        rows, whose = [chosen[n] for n in order], [owners[n] for n in order]
        scores = passes.score_trees(rows, {}, [crowd], whose)
        close(sums(forks, rows, scores), [expected[n] for n in order])


UNDER = ["all", "upper", "late", "late-elsewhere"]


def frozen(base: LoadedBase, seed: int, kind: str) -> LoraWeights:
    """A frozen part that is placed like, or unlike, what acts above it."""
    made = random_lora(base.model, seed, placement="upper" if kind == "late-elsewhere" else kind)
    return LoraWeights(made.factors, made.scale, Placement(1, 1, 13)) if kind == "late-elsewhere" else made


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize("placement", ["all", "upper", "late"])
@pytest.mark.parametrize("keep", [0, ACTIVATION_CACHE_BYTES])
def test_frozen_parts_underneath(base: LoadedBase, placement: str, under: str, keep: int) -> None:
    """Each fork's own person has parts below those that vary, in other layers and at other tokens."""
    forks, owners = random_forks(SHAPES), [0, 1, 1, 0, 1, 0, 0]
    below = [frozen(base, 10, under), frozen(base, 11, under)]
    acting = random_lora(base.model, 1, placement=placement)
    passes = PrefixCacheScorer(
        decoder(base),
        forks,
        acting.placement,
        frozen_loras=[FrozenLoras(decoder(base), below)],
        tree_users=owners,
        cache_bytes=keep,
    )
    pairs = FrozenLoras(decoder(base), [acting]).factors_for_rows([0])
    late = acting.placement.late_tokens is not None
    for chosen in ([4, 1], range(len(forks))):
        crowd = [FrozenLoras(decoder(base), [acting])] if late else []
        scores = passes.score_trees(chosen, {} if late else pairs, crowd, [0] * len(chosen) if late else [])
        close(sums(forks, chosen, scores), [slow_sums(base, forks[i], [below[owners[i]], acting]) for i in chosen])


def test_several_frozen_parts_of_different_kinds(base: LoadedBase) -> None:
    forks, owners = random_forks(SHAPES), [0, 1, 2, 0, 1, 2, 0]
    below = [(frozen(base, 10, "all"), frozen(base, 11, "late")), (frozen(base, 12, "late-elsewhere"),), ()]
    acting = random_lora(base.model, 1, placement="upper")
    passes = PrefixCacheScorer(
        decoder(base), forks, acting.placement, frozen_loras=group_frozen_loras(decoder(base), below), tree_users=owners
    )
    scores = passes.score_trees(range(len(forks)), FrozenLoras(decoder(base), [acting]).factors_for_rows([0]))
    expected = [slow_sums(base, fork, [*below[owner], acting]) for fork, owner in zip(forks, owners, strict=True)]
    close(sums(forks, range(len(forks)), scores), expected)


@pytest.mark.parametrize("placement", ["all", "upper", "late"])
def test_gradients_of_what_acts_equal_those_of_whole_texts(base: LoadedBase, placement: str) -> None:
    forks, owners = random_forks(SHAPES), [0, 1, 1, 0, 1, 0, 0]
    starts = [random_lora(base.model, i, rank=2, placement=placement) for i in range(2)]
    below = [(frozen(base, 10, placement),), (frozen(base, 11, placement),)]
    group = TrainableLoras(starts, torch.device("cpu"))
    passes = PrefixCacheScorer(
        decoder(base), forks, group.placement, frozen_loras=group_frozen_loras(decoder(base), below), tree_users=owners
    )
    leaves = group.params_for_rows(owners, torch.float32)
    factors = leaves.factors()
    scores = passes.score_trees(range(len(forks)), fuse_factors(module_slices(decoder(base), list(factors)), factors))
    scores.log_likelihoods.sum().backward()
    leaves.accumulate_grads()
    free = [
        LoraWeights(
            {path: (a.clone().requires_grad_(), b.clone().requires_grad_()) for path, (a, b) in one.factors.items()},
            one.scale,
            one.placement,
        )
        for one in starts
    ]
    for fork, owner in zip(forks, owners, strict=True):
        sum((v.sum() for v in slow_values(base, fork, [*below[owner], free[owner]])), torch.zeros(())).backward()
    for i, path in enumerate(group.paths):
        for half in (0, 1):
            expected = torch.stack([_grad(one.factors[path][half]) for one in free])
            assert (group.grads[2 * i + half] - expected).abs().max() < 2e-4 * expected.abs().max().clamp_min(1e-3)


def _grad(tensor: Tensor) -> Tensor:
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)


def test_late_parts_never_change_what_stands_before_them(base: LoadedBase) -> None:
    """Keys and values of early tokens are the same whoever asks, and those of the base's own forward."""
    forks, people = (
        random_forks([(30, (4,)), (17, (2, 3))]),
        [random_lora(base.model, i, placement="late") for i in (1, 2)],
    )
    kept = []
    for owner in (0, 1):
        decoder(base).activation_cache.clear()
        passes = PrefixCacheScorer(decoder(base), forks, LATE)
        passes.score_trees([0, 1], {}, [FrozenLoras(decoder(base), people)], [owner, owner])
        kept.append(passes._get_prefixes([0, 1]))
    for i, fork in enumerate(forks):
        early = [one[i].prefix_kv for one in kept]
        assert early[0] is not None and early[1] is not None and torch.equal(early[0], early[1])
        with torch.no_grad():
            cache = base.model(input_ids=torch.tensor([fork.prompt]), use_cache=True)
        layer = cache.past_key_values.layers[1] if "past_key_values" in cache else cache.cache.layers[1]
        before = len(fork.prompt) - 8
        assert kept[0][i].offset == before
        assert torch.allclose(early[0][0, 0], layer.keys[0, :, :before], atol=1e-5)
        assert torch.allclose(early[0][0, 1], layer.values[0, :, :before], atol=1e-5)


def test_what_an_early_token_says_does_not_depend_on_late_parts_of_the_whole_text(base: LoadedBase) -> None:
    """A part that acts on the last token only leaves the likelihood of that token as the base has it."""
    made = random_lora(base.model, 1, placement="upper")
    one = LoraWeights(made.factors, made.scale, Placement(1, 1, 1))
    fork = random_forks([(12, (3,))])[0]
    passes = PrefixCacheScorer(decoder(base), [fork], one.placement)
    found = passes.score_trees([0], {}, [FrozenLoras(decoder(base), [one])], [0]).log_likelihoods
    assert torch.allclose(found, slow_values(base, fork, [one])[0], atol=1e-4)
    assert (found - slow_values(base, fork, [made])[0]).abs().max() > 1e-3  # acting everywhere is something else


def test_kept_states_are_not_computed_again(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    forks, made = random_forks(SHAPES), []
    begin = PrefixCacheScorer._compute_prefixes
    monkeypatch.setattr(
        PrefixCacheScorer,
        "_compute_prefixes",
        lambda self, chosen: made.extend(self.trees[i] for i in chosen) or begin(self, chosen),
    )
    decoder(base).activation_cache.clear()
    for _ in range(2):
        passes = PrefixCacheScorer(decoder(base), forks, LATE)
        for chosen in ([0, 1, 0], [1, 2], [2, 0]):
            passes.score_trees(chosen, {})
    assert sorted(made, key=forks.index) == forks[:3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("before", [[0, 6], [3, 2, 5], [1], [6, 5, 4, 3, 2, 1, 0]])
def test_numbers_do_not_depend_on_what_was_asked_before(tiny_base_path: Path, dtype: str, before: list[int]) -> None:
    """To the last bit, so that a job which goes on answers what an unbroken one would have."""
    plain = decoder(load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype=dtype))
    forks = random_forks(SHAPES * 3)
    fresh = PrefixCacheScorer(plain, forks, LATE).score_trees(range(len(forks)), {}).log_likelihoods
    plain.invalidate_caches()
    PrefixCacheScorer(plain, forks[::-1], LATE).score_trees(before, {})
    plain.pack_weights()
    assert torch.equal(PrefixCacheScorer(plain, forks, LATE).score_trees(range(len(forks)), {}).log_likelihoods, fresh)


def test_no_more_is_kept_than_asked(base: LoadedBase) -> None:
    forks, kept = random_forks(SHAPES), decoder(base).activation_cache
    kept.clear()
    passes = PrefixCacheScorer(decoder(base), forks, LATE)
    passes.score_trees(range(len(forks)), {})
    starts = passes._get_prefixes(range(len(forks)))
    held = sum(t.untyped_storage().nbytes() for s in starts for t in (s.states, s.prefix_kv) if t is not None)
    assert kept.nbytes == held == sum(passes._prefix_bytes(fork) for fork in forks)
    kept.clear()
    tight = PrefixCacheScorer(decoder(base), forks, LATE, cache_bytes=held - 1)
    tight.score_trees(range(len(forks)), {})
    assert len(kept) == 0


def test_nothing_is_kept_of_weights_that_changed(base: LoadedBase) -> None:
    forks, lora = random_forks(SHAPES), random_lora(base.model, 3)
    chosen = range(len(forks))
    found = [sums(forks, chosen, PrefixCacheScorer(decoder(base), forks, LATE).score_trees(chosen, {}))]
    with merge_into_base(base, lora):
        found.append(sums(forks, chosen, PrefixCacheScorer(decoder(base), forks, LATE).score_trees(chosen, {})))
    found.append(sums(forks, chosen, PrefixCacheScorer(decoder(base), forks, LATE).score_trees(chosen, {})))
    close(found[0], [slow_sums(base, fork) for fork in forks])
    close(found[1], [slow_sums(base, fork, [lora]) for fork in forks])
    assert found[2] == found[0]


def test_what_was_kept_without_gradients_serves_training(base: LoadedBase) -> None:
    """States kept by a pass in inference mode are ordinary ones."""
    forks, lora = random_forks(SHAPES), random_lora(base.model, 1, placement="late")
    decoder(base).activation_cache.clear()
    with torch.inference_mode():
        PrefixCacheScorer(decoder(base), forks, LATE).score_trees(
            range(len(forks)), {}, [FrozenLoras(decoder(base), [lora])], [0] * 7
        )
    group = TrainableLoras([lora], torch.device("cpu"))
    leaves = group.params_for_rows([0] * len(forks), torch.float32)
    acting = fuse_factors(module_slices(decoder(base), group.paths), leaves.factors())
    PrefixCacheScorer(decoder(base), forks, LATE).score_trees(
        range(len(forks)), acting
    ).log_likelihoods.sum().backward()
    leaves.accumulate_grads()
    assert all(bool(grad.any()) for grad in group.grads)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_packing_covers_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = pack_by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(order)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5)), max_size=40), st.integers(1, 200))
def test_packing_by_owner_covers_everything_once_within_the_budget(rows: list[tuple[int, int]], budget: int) -> None:
    lengths, owners = [length for length, _ in rows], [owner for _, owner in rows]
    batches = pack_users_rows(lengths, owners, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_rows_of_one_owner_stay_together_where_that_is_cheaper() -> None:
    alike = [20, 21, 20, 21, 20, 21]
    assert pack_users_rows(alike, [0, 1, 2, 0, 1, 2], 90) == [[0, 3, 1, 4], [2, 5]]
    assert pack_users_rows(alike, [0] * 6, 42) == [[0, 2], [4, 1], [3, 5]]
    unlike = [10, 60, 10, 60]
    assert pack_users_rows(unlike, [0, 0, 1, 1], 120) == pack_by_length(unlike, 120) == [[0, 2], [1, 3]]


def test_packing_fills_what_it_may() -> None:
    assert pack_by_length([5, 5, 5, 5], 20) == [[0, 1, 2, 3]]
    assert pack_by_length([9, 1, 30, 2], 10) == [[1, 3], [0], [2]]
    assert pack_by_length([], 10) == []
