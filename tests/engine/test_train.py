"""Training: equal to PEFT, exact after a resumption, right at the labelled positions."""

from pathlib import Path

import pytest
import torch

from mta_cli.engine.base import LoadedBase
from mta_cli.engine.lora import LoraWeights, folded, initial
from mta_cli.engine.train import CLIP, Schedule, Trainer, collate, epoch_batches, learn_weights, mean_loss, score
from tests.engine.lora_cases import random_lora, random_rows

SCHEDULE = Schedule(steps=6, batch_size=3, learning_rate=5e-3)


def fresh(base: LoadedBase) -> LoraWeights:
    return initial(base.model, "all-linear", "all", 4, 8.0, 0)


def test_equal_to_peft(base: LoadedBase, tiny_base_path: Path) -> None:
    """Same initial weights and data: the same losses, and the same ΔW to 1e-5, as PEFT trained by a plain loop."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    rows, start = random_rows([30, 25, 40, 18, 33, 29, 21]), fresh(base)
    with Trainer(base, start, rows, SCHEDULE, seed=3) as trainer:
        ours = [step.loss for step in trainer.steps()]
        weights = trainer.weights()

    plain = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(plain, config)
    layers = {path: model.get_submodule(f"base_model.model.{path}") for path in start.factors}
    with torch.no_grad():
        for path, (a, b) in start.factors.items():
            layers[path].lora_A["default"].weight.copy_(a)
            layers[path].lora_B["default"].weight.copy_(b)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=SCHEDULE.learning_rate, weight_decay=0.0)
    theirs, batches = [], [*epoch_batches(rows, 3, 3, 0), *epoch_batches(rows, 3, 3, 1)]
    for step, batch in enumerate(batches):
        total, count = torch.zeros(()), 0
        for row in (rows[i] for i in batch):  # one row at a time: no padding, all logits, shifted labels
            ids = torch.tensor([row.input_ids])
            labels = ids.clone()
            labels[0, : row.answer_start] = -100
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
            count += len(row.input_ids) - row.answer_start
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.param_groups[0]["lr"] = SCHEDULE.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(total.item() / count)

    assert ours == pytest.approx(theirs, abs=1e-5)
    for path in start.factors:
        layer = layers[path]
        delta = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(weights.delta(path), delta, atol=1e-5)
        assert float(delta.detach().norm()) > 1e-3


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stopped_and_resumed_gives_the_same_bytes(base: LoadedBase, stop: int) -> None:
    rows = random_rows([20, 31, 17, 26, 22, 19, 28, 30])
    with Trainer(base, fresh(base), rows, SCHEDULE, seed=5) as trainer:
        whole = [step.loss for step in trainer.steps()]
        expected = trainer.weights().to_bytes({})
    with Trainer(base, fresh(base), rows, SCHEDULE, seed=5) as trainer:
        steps = trainer.steps()
        for _ in range(stop):
            next(steps)
        state = trainer.state()
    with Trainer(base, fresh(base), rows, SCHEDULE, seed=5) as trainer:
        trainer.resume(state)
        assert len(trainer.taken) == stop
        list(trainer.steps())
        assert [step.loss for step in trainer.taken] == whole
        assert trainer.weights().to_bytes({}) == expected


def test_a_checkpoint_of_another_training_is_refused(base: LoadedBase) -> None:
    rows = random_rows([20, 20])
    with Trainer(base, initial(base.model, "q_proj", "all", 2, 4, 0), rows, SCHEDULE, 0) as trainer:
        state = trainer.state()
    with Trainer(base, fresh(base), rows, SCHEDULE, 0) as trainer, pytest.raises((ValueError, KeyError)):
        trainer.resume(state)


def test_training_learns_and_leaves_the_base_alone(base: LoadedBase) -> None:
    rows = random_rows([24] * 6)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    untrained = mean_loss(base, rows)
    with Trainer(base, fresh(base), rows, Schedule(60, 6, 2e-2), 0) as trainer:
        list(trainer.steps())
        weights = trainer.weights()
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with folded(base.model, weights):
        assert mean_loss(base, rows) < 0.5 * untrained


def test_scores_do_not_depend_on_company(base: LoadedBase) -> None:
    rows = random_rows([12, 60, 33, 7], answer=3)
    together = score(base, rows)
    alone = [score(base, [row])[0] for row in rows]
    assert [count for _, count in together] == [3, 3, 3, 3]
    for (a, _), (b, _) in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_scores_equal_a_plain_log_softmax(base: LoadedBase) -> None:
    row = random_rows([20], answer=5)[0]
    with torch.inference_mode():
        logprobs = torch.log_softmax(base.model(input_ids=torch.tensor([row.input_ids])).logits[0], -1)
    expected = sum(float(logprobs[p - 1, row.input_ids[p]]) for p in range(row.answer_start, 20))
    assert score(base, [row])[0][0] == pytest.approx(expected, abs=1e-4)


def test_labels_are_the_answer_and_nothing_else() -> None:
    rows = random_rows([9, 14], answer=4)
    batch = collate(rows, torch.device("cpu"))
    assert batch.labels.tolist() == [token for row in rows for token in row.input_ids[row.answer_start :]]
    assert batch.tokens == 23


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    rows = random_rows([10 + i % 7 for i in range(23)])
    first, second = (epoch_batches(rows, 4, 0, epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(i for batch in batches for i in batch) == list(range(23))
    assert first != second and first == epoch_batches(rows, 4, 0, 0)


def test_the_learning_rate_warms_up_and_decays() -> None:
    schedule = Schedule(100, 1, 1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.01
    assert Schedule.epochs(17, 2, 8, 1.0).steps == 6


def test_an_exploding_loss_stops_the_training(base: LoadedBase) -> None:
    rows = random_rows([12, 12])
    with Trainer(base, fresh(base), rows, SCHEDULE, 0) as trainer:
        with torch.no_grad():
            next(iter(trainer._layers.values())).a.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="step 1"):
            list(trainer.steps())


def test_learned_weights_find_the_anchor_that_made_the_shots(base: LoadedBase) -> None:
    rows = random_rows([24] * 5)
    with Trainer(base, fresh(base), rows, Schedule(60, 5, 2e-2), 0) as trainer:
        list(trainer.steps())
        right = trainer.weights()
    wrong = random_lora(base.model, 4)
    free = learn_weights(base, [right, wrong], [0.3, 0.3], rows, steps=40, pull=0.0)
    assert free[0] > 0.5 > free[1]
    held = learn_weights(base, [right, wrong], [0.3, 0.3], rows, steps=40, pull=1e4)
    assert held == pytest.approx([0.3, 0.3], abs=0.02)
