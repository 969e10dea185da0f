"""The rivals do the claimed work, with the same weights and rows as our side.

Their results are compared with W + ΔW in a plain model and with a loop that runs the whole text again for every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import rival_answers as answers
from benchmarks import rivals
from benchmarks.losses import mean_loss
from benchmarks.rivals import Recipe
from mta_cli.engine.lora.adapter import LoraWeights, find_target_modules
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.pipeline.models.manifest import ModelEntry
from tests.engine.lora_cases import random_lora, random_rows

RECIPE = Recipe(epochs=4, batch_size=4, learning_rate=1e-2, dtype="float32", autocast=False)
USERS = [random_rows([20, 31, 26, 18, 40, 23], seed=seed) for seed in (1, 2)]
PROMPTS = [row.input_ids for row in random_rows([9, 17, 13], seed=5)]
NAMES = ["ada", "bo", "cy"]


@contextmanager
def changed(model: Any, weights: LoraWeights) -> Iterator[Any]:
    """The model with W + ΔW; W comes back."""
    kept = {path: model.get_submodule(path).weight.detach().clone() for path in weights.factors}
    try:
        for path, weight in kept.items():
            model.get_submodule(path).weight.data = weight + weights.delta_weight(path)
        yield model
    finally:
        for path, weight in kept.items():
            model.get_submodule(path).weight.data = weight


@torch.inference_mode()
def greedy(model: Any, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@torch.inference_mode()
def likelihood(model: Any, prompt: Sequence[int], label: Sequence[int]) -> float:
    chances = model(input_ids=torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
    return float(sum(chances[len(prompt) - 1 + i, token] for i, token in enumerate(label)))


@pytest.fixture(scope="module")
def base(tiny_base_path: Path) -> Any:
    return rivals.load(tiny_base_path, "float32")


@pytest.fixture(scope="module")
def adapters(base: Any) -> dict[str, LoraWeights]:
    """Three users' random LoRAs; ranks and places differ."""
    made = [random_lora(base, seed, rank=2 + seed) for seed in (0, 1)]
    third = random_lora(base, 2, targets="q_proj,v_proj", placement="upper")
    mixed = {**made[0].factors, **{path: (a, 0.5 * b) for path, (a, b) in third.factors.items()}}
    return dict(zip(NAMES, (*made, replace(made[0], factors=mixed)), strict=True))


@pytest.fixture(scope="module")
def folders(
    adapters: dict[str, LoraWeights], tiny_base_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    entry, root = ModelEntry("tiny", "base", tiny_base_path, "sha256:tiny"), tmp_path_factory.mktemp("adapters")
    return {name: rivals.peft_folder(weights, entry, root / name) for name, weights in adapters.items()}


@pytest.fixture(scope="module")
def expected(base: Any, adapters: dict[str, LoraWeights]) -> tuple[tuple[int, ...], ...]:
    """Every user's greedy answer to a prompt of their own."""
    found = []
    for weights, prompt in zip(adapters.values(), PROMPTS, strict=True):
        with changed(base, weights):
            found.append(greedy(base, prompt, 8))
    return tuple(found)


@pytest.fixture(scope="module")
def trained(tiny_base_path: Path) -> list[rivals.Trained]:
    return rivals.trainer_bank(tiny_base_path, USERS, RECIPE)


def test_trainer_trains_what_we_train_and_counts_what_ran(base: Any, trained: list[rivals.Trained]) -> None:
    paths, where = find_target_modules(base, RECIPE.targets, RECIPE.placement)
    for run, rows in zip(trained, USERS, strict=True):
        assert sorted(run.weights.factors) == sorted(paths) and run.weights.placement == where
        assert run.weights.scale == 2.0 and run.weights.rank == 8
        assert run.steps == 8 and run.tokens == 4 * sum(len(row.input_ids) for row in rows)
        assert run.seconds == run.load_seconds + run.train_seconds
        assert mean_loss(base, rows, [run.weights]) < mean_loss(base, rows) - 0.1


def test_trl_comes_to_the_same_factors(trained: list[rivals.Trained], tiny_base_path: Path) -> None:
    pytest.importorskip("trl")
    for theirs, run in zip(rivals.trl_bank(tiny_base_path, USERS, RECIPE), trained, strict=True):
        assert (theirs.steps, theirs.tokens) == (run.steps, run.tokens)
        for path in run.weights.factors:
            torch.testing.assert_close(
                theirs.weights.delta_weight(path), run.weights.delta_weight(path), rtol=1e-3, atol=1e-5
            )


def test_adapting_stops_at_the_target_and_keeps_the_curve(base: Any, tiny_base_path: Path) -> None:
    rows, held_out = USERS[0][:3], USERS[0][3:]
    recipe = rivals.oppu(dtype="float32", autocast=False, learning_rate=2e-2)
    before = mean_loss(base, rows)
    found = rivals.peft_adapt(tiny_base_path, rows, rows, recipe, target=before - 0.1, limit=40, every=2)
    assert found.reached and found.trained.steps == found.curve[-1].step < 40
    assert [point.step for point in found.curve] == list(range(0, found.trained.steps + 1, 2))
    assert found.curve[0].loss == pytest.approx(before, abs=1e-4)
    assert found.curve[-1].loss == pytest.approx(mean_loss(base, rows, [found.trained.weights]), abs=1e-4)
    assert all(point.loss > before - 0.1 for point in found.curve[:-1])
    assert found.trained.tokens == found.trained.steps * sum(len(row.input_ids) for row in rows)
    late = rivals.peft_adapt(tiny_base_path, rows, held_out, recipe, target=0.0, limit=3)
    assert not late.reached and late.trained.steps == 3 and len(late.curve) == 4


def test_every_way_of_peft_gives_every_user_their_answer(
    tiny_base_path: Path, folders: dict[str, Path], expected: tuple[tuple[int, ...], ...]
) -> None:
    model = answers.with_adapters(tiny_base_path, folders, "float32")
    assert len(set(expected)) == 3
    assert answers.answer_each(model, PROMPTS, 8, users=NAMES).ids == expected
    assert answers.answer_mixed(model, PROMPTS, NAMES, 8).ids == expected
    model.set_adapter("bo")
    assert answers.answer_one(model, PROMPTS[1], 8).ids == expected[1:2]
    folded_in = answers.merged(tiny_base_path, folders["cy"], "float32")
    for cache in (None, "static"):
        assert answers.answer_one(folded_in, PROMPTS[2], 8, cache=cache).ids == expected[2:]


def test_labels_are_scored_by_their_likelihood(
    base: Any, adapters: dict[str, LoraWeights], tiny_base_path: Path, folders: dict[str, Path]
) -> None:
    model, labels = answers.with_adapters(tiny_base_path, folders, "float32"), [(7, 9, 2), (30,), (4, 8)]
    found = answers.score_each(model, PROMPTS, labels, users=NAMES)
    for name, prompt, scores, place in zip(NAMES, PROMPTS, found.values, found.chosen, strict=True):
        with changed(base, adapters[name]):
            assert scores == pytest.approx([likelihood(base, prompt, label) for label in labels], abs=1e-4)
        assert scores[place] == max(scores)


def test_a_loss_is_that_of_the_changed_model(base: Any, adapters: dict[str, LoraWeights]) -> None:
    rows, weights = USERS[0], adapters["cy"]
    with changed(base, weights):
        sums = [likelihood(base, row.input_ids[: row.answer_start], row.input_ids[row.answer_start :]) for row in rows]
    labelled = sum(len(row.input_ids) - row.answer_start for row in rows)
    assert mean_loss(base, rows, [weights]) == pytest.approx(-sum(sums) / labelled, abs=1e-5)
    assert mean_loss(base, rows) != pytest.approx(mean_loss(base, rows, [weights]), abs=1e-2)


def test_a_late_part_changes_the_answer_only_through_late_tokens(base: Any) -> None:
    (row,), late = random_rows([30], seed=4), random_lora(base, 3, targets="q_proj", placement="upper")
    everywhere = replace(late, placement=replace(late.placement, late_tokens=len(row.input_ids)))
    few = replace(late, placement=replace(late.placement, late_tokens=2))
    whole = mean_loss(base, [row], [late])
    assert mean_loss(base, [row], [everywhere]) == pytest.approx(whole, abs=1e-6)
    # Queries of the last layer at early positions do not influence later ones, so for them late is the same model.
    assert mean_loss(base, [row], [few]) == pytest.approx(whole, abs=1e-6)
    values = replace(random_lora(base, 3, targets="v_proj", placement="upper"), placement=few.placement)
    assert mean_loss(base, [row], [values]) != pytest.approx(mean_loss(base, [row]), abs=1e-4)


def test_a_row_is_labelled_from_its_answer_on() -> None:
    (row,) = rivals._labelled([TrainingRow((5, 6, 7, 8), 2)])
    assert row == {"input_ids": [5, 6, 7, 8], "labels": [rivals.IGNORED, rivals.IGNORED, 7, 8]}
