"""Pieces are chosen module by module by their response to the user's inputs, with all earlier pieces applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement
from mta_cli.engine.methods.method import UserModel, UserShots
from mta_cli.engine.methods.personalize import build_models
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.errors import UsageError
from mta_cli.lab.methods.per_pcs import METHOD, AnchorPieces, PieceAssembly, assemble_pieces
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.methods.contexts import a_context, a_user, same, settings_of
from tests.engine.slow import hooked

FIRST = "model.layers.1.self_attn.q_proj"  # the first module of the upper layers that runs
EVEN = torch.full((3,), 1 / 3)


def inputs(base: LoadedBase, row: TrainingRow, path: str, parts: Sequence[LoraWeights] = ()) -> Tensor:
    """What goes into a module where the row's answer is predicted [tokens, in], under `parts`."""
    seen: list[Tensor] = []
    handle = base.model.get_submodule(path).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad(), hooked(base.model, parts, row.answer_start):
        base.model(input_ids=torch.tensor([row.input_ids]), use_cache=False)
    handle.remove()
    return seen[0][0, row.answer_start - 1 : -1]


def explicit(anchor: LoraWeights, path: str, x: Tensor) -> Tensor:
    """The score of a piece at each of the inputs `x`, from ΔW itself."""
    delta = anchor.delta_weight(path)
    scores: Tensor = math.sqrt(x.shape[1]) * (x @ delta.T).norm(dim=1) / (delta.norm() * x.norm(dim=1))
    return scores


def mixed(anchors: Sequence[LoraWeights], path: str, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen pieces' A and scaled B, summed separately."""
    a, b = torch.zeros(()), torch.zeros(())
    for i, weight in zip(chosen.tolist(), weights, strict=True):
        own_a, own_b = anchors[i].factors[path]
        a, b = a + weight * own_a, b + weight * anchors[i].scale * own_b
    return a, b


def by_hand(
    base: LoadedBase, anchors: Sequence[LoraWeights], rows: Sequence[TrainingRow]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Three pieces of each module and their weights: one module after the other, a whole pass for each row of each."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    picked = {}
    for path in [path for path, _ in base.model.named_modules() if path in anchors[0].factors]:
        so_far = LoraWeights(dict(factors), 1.0, anchors[0].placement)
        seen = [inputs(base, row, path, [so_far]) for row in rows]
        scores = torch.tensor([sum(float(explicit(one, path, x).mean()) for x in seen) / len(seen) for one in anchors])
        best, chosen = scores.sort(descending=True)
        picked[path] = (chosen[:3], torch.softmax(best[:3], 0))
        factors[path] = mixed(anchors, path, *picked[path])
    return picked


def found(base: LoadedBase, anchors: Sequence[LoraWeights], person: UserShots) -> PieceAssembly:
    return assemble_pieces(base, AnchorPieces(anchors, base.device), person, 3, 1.0)


def planted(base: LoadedBase, direction: Tensor, others: int = 3) -> list[LoraWeights]:
    """Anchors with one piece of rank one: the last reads `direction`, the others read what is orthogonal to it."""
    out = base.model.get_submodule(FIRST).out_features
    generator = torch.Generator().manual_seed(3)
    unit = direction / direction.norm()
    reading = torch.randn(others, len(unit), generator=generator)
    reading = torch.cat([reading - (reading @ unit)[:, None] * unit, unit[None]])
    return [
        LoraWeights({FIRST: (a[None], torch.randn(out, 1, generator=generator))}, 1.0, Placement(1, 1)) for a in reading
    ]


def test_a_score_is_how_much_of_the_piece_answers(base: LoadedBase) -> None:
    anchors = [random_lora(base.model, i, rank=1 + i, placement="upper") for i in range(3)]
    pool, x = AnchorPieces(anchors, base.device), torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([explicit(anchor, FIRST, x).mean() for anchor in anchors])
    assert torch.allclose(pool.scores(FIRST, x, EVEN), expected, atol=1e-5)
    (a, _) = anchors[0].factors[FIRST]  # of rank one: the paper's score, but for its sign
    cosines = torch.nn.functional.cosine_similarity(x, a)
    assert float(pool.scores(FIRST, x, EVEN)[0]) == pytest.approx(8 * float(cosines.abs().mean()), abs=1e-5)


def test_the_size_of_a_piece_counts_for_nothing(base: LoadedBase) -> None:
    anchor, x = random_lora(base.model, 1), torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    scores = AnchorPieces([anchor, replace(anchor, scale=40 * anchor.scale)], base.device).scores(FIRST, x, EVEN)
    assert float(scores[0]) == pytest.approx(float(scores[1]), rel=1e-5) and float(scores[0]) > 0


def test_an_anchor_without_the_piece_scores_nothing(base: LoadedBase) -> None:
    anchors = [random_lora(base.model, 1, targets="v_proj"), random_lora(base.model, 2)]
    scores = AnchorPieces(anchors, base.device).scores(FIRST, torch.ones(3, 64), EVEN)
    assert float(scores[0]) == 0.0 < float(scores[1])


@pytest.mark.parametrize("plain", [True, False])
def test_the_piece_that_answers_the_users_inputs_is_chosen(base: LoadedBase, plain: bool) -> None:
    row = random_rows([20], answer=1)[0]
    anchors = planted(base, inputs(base, row, FIRST)[0])
    assembly = found(base if plain else replace(base, llama_decoder=None), anchors, a_user([row]))
    chosen, weights = assembly.chosen_pieces[FIRST]
    assert chosen[0] == 3 and len(chosen) == 3
    assert weights == pytest.approx(torch.softmax(torch.tensor([8.0, 0.0, 0.0]), 0).tolist(), abs=1e-4)


@pytest.mark.parametrize("placement", ["all", "upper", "late"])
def test_each_module_sees_what_was_put_before_it(base: LoadedBase, placement: str) -> None:
    """Choices and weights equal those of a reference that runs the whole base once for every module and row."""
    anchors = [random_lora(base.model, i, placement=placement) for i in range(5)]
    rows = [*random_rows([17, 30], answer=3), *random_rows([9], seed=1, answer=6)]
    expected, assembly = by_hand(base, anchors, rows), found(base, anchors, a_user(rows))
    assert list(assembly.chosen_pieces) == list(expected)
    for path, (chosen, weights) in expected.items():
        assert assembly.chosen_pieces[path][0] == chosen.tolist()
        assert assembly.chosen_pieces[path][1] == pytest.approx(weights.tolist(), abs=1e-4)


def test_later_choices_would_differ_on_the_base_as_it_is(base: LoadedBase) -> None:
    """What stands before a module matters, so that the test above can fail."""
    anchors = [random_lora(base.model, i) for i in range(5)]
    anchors = [replace(one, scale=20 * one.scale) for one in anchors]
    person = a_user(2)
    assembly, pool = found(base, anchors, person), AnchorPieces(anchors, base.device)
    away = 0.0
    for path, (chosen, weights) in assembly.chosen_pieces.items():
        scores = sum(
            pool.scores(path, x, torch.full((4,), 1 / 8)) for x in (inputs(base, r, path) for r in person.rows)
        )
        assert isinstance(scores, Tensor)
        away = max(away, float((torch.softmax(scores[chosen], 0) - torch.tensor(weights)).abs().max()))
    assert away > 0.01


def test_factors_are_summed_apart(base: LoadedBase) -> None:
    anchors = [random_lora(base.model, i, placement="late") for i in range(4)]
    assembly = found(base, anchors, a_user(2))
    weights = assembly.to_lora_weights()
    assert weights.placement == anchors[0].placement and set(weights.factors) == set(anchors[0].factors)
    for path, (chosen, shares) in assembly.chosen_pieces.items():
        a, b = mixed(anchors, path, torch.tensor(chosen), torch.tensor(shares))
        assert torch.allclose(weights.delta_weight(path), b @ a, atol=1e-5)


@pytest.mark.parametrize("placement", ["all", "upper"])
def test_a_base_without_a_plain_decoder_chooses_the_same(base: LoadedBase, placement: str) -> None:
    anchors = [random_lora(base.model, i, placement=placement) for i in range(4)]
    person = a_user(3)
    ours, theirs = found(base, anchors, person), found(replace(base, llama_decoder=None), anchors, person)
    for path, (chosen, weights) in ours.chosen_pieces.items():
        assert theirs.chosen_pieces[path][0] == chosen and theirs.chosen_pieces[path][1] == pytest.approx(
            weights, abs=1e-4
        )


def test_nothing_is_left_in_the_base(base: LoadedBase) -> None:
    ids, slow = torch.arange(3, 40)[None], replace(base, llama_decoder=None)
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        for one in (base, slow):
            found(one, [random_lora(base.model, i) for i in range(3)], a_user(2))
        assert torch.equal(base.model(input_ids=ids).logits, before)


def test_late_pieces_need_a_plain_decoder(base: LoadedBase) -> None:
    with pytest.raises(UsageError, match="fast path"):
        found(replace(base, llama_decoder=None), [random_lora(base.model, 1, placement="late")], a_user(2))


def test_three_pieces_of_every_module_are_kept(base: LoadedBase) -> None:
    person = a_user(3)
    (made,) = build_models(METHOD, a_context(base, 5), [person], METHOD.default_settings)
    assert made.bytes == 7 * 3 * 4 and len(made.loras) == 1
    (few,) = build_models(METHOD, a_context(base, 2), [person], METHOD.default_settings)
    assert few.bytes == 7 * 2 * 4


def test_somebody_without_shots_and_a_bank_of_nobody(base: LoadedBase) -> None:
    assert build_models(METHOD, a_context(base), [a_user(0)], METHOD.default_settings) == [UserModel()]
    assert build_models(METHOD, a_context(base, 0), [a_user(2)], METHOD.default_settings) == [UserModel()]


def test_the_same_again_in_any_company(base: LoadedBase) -> None:
    bench, person = a_context(base, placement="late"), a_user(1)
    (alone,) = build_models(METHOD, bench, [person], METHOD.default_settings)
    *_, again = build_models(METHOD, bench, [a_user(4, 1), a_user(0, 2), person], METHOD.default_settings)
    assert same(alone.loras[0], again.loras[0])


def test_one_piece_alone_is_that_anchors(base: LoadedBase) -> None:
    bench = a_context(base)
    (made,) = build_models(METHOD, bench, [a_user(2)], settings_of(METHOD, top_k=1))
    for path in made.loras[0].factors:
        assert any(
            torch.allclose(made.loras[0].delta_weight(path), one.delta_weight(path), atol=1e-6) for one in bench.anchors
        )


def test_rows_count_alike_however_long_their_answers(base: LoadedBase) -> None:
    rows = [*random_rows([20], answer=1), *random_rows([25], seed=1, answer=9)]
    assembly = found(base, [random_lora(base.model, i, placement="upper") for i in range(3)], a_user(rows))
    assert assembly.share.tolist() == pytest.approx([0.5, *[1 / 18] * 9])
    assert [len(PromptTree.from_row(row).completions[0]) for row in rows] == [1, 9]
