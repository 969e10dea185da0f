"""The common ways to train personal adapters: Hugging Face's Trainer with PEFT, and TRL's SFTTrainer.

Each function is what a careful user would script with the tool's own options; the tools are not patched. If a tool
offers several ways, the one measured as fastest here is the default. Does not use our own code.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.losses import mean_loss

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.pipeline.models.manifest import ModelEntry

IGNORED = -100  # the label that all of these tools ignore


@dataclass(frozen=True)
class Recipe:
    """What to train and how; the defaults are those of a meta-LoRA of ours.

    `dtype` is the base's; PEFT keeps the factors in float32 and `autocast` multiplies in bfloat16 (Trainer's `bf16`).
    """

    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 2e-4
    rank: int = 8
    alpha: float = 16.0
    targets: str = "all-linear"
    placement: str = "upper"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "bfloat16"
    autocast: bool = True
    schedule: str = "cosine"
    warmup: float = 0.1


@dataclass(frozen=True)
class Trained:
    """One user's adapter; tokens that ran, without padding; seconds for loading the base, and for everything after."""

    weights: LoraWeights
    tokens: int
    steps: int
    load_seconds: float
    train_seconds: float

    @property
    def seconds(self) -> float:
        """All seconds, including loading."""
        return self.load_seconds + self.train_seconds


@dataclass(frozen=True)
class Point:
    """A user's held-out loss (nats per labelled token) after so many steps and seconds of training."""

    step: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Adapted:
    """A few-shot training that went on until a held-out loss was reached, or its steps were used up."""

    trained: Trained
    curve: tuple[Point, ...]
    reached: bool


def trainer_bank(folder: Path, users: Sequence[Sequence[TrainingRow]], recipe: Recipe) -> list[Trained]:
    """A LoRA for each user's rows, one after another, with Trainer and PEFT; the base is loaded afresh for each."""
    return [_train(folder, rows, recipe, _trainer) for rows in users]


def trl_bank(folder: Path, users: Sequence[Sequence[TrainingRow]], recipe: Recipe) -> list[Trained]:
    """A LoRA for each user's rows, one after another, with TRL's SFTTrainer; the base is loaded afresh for each.

    Its `chunked_nll` loss computes logits of labelled positions only. On a CPU this is so in TRL 1.4 to 1.7. Later
    versions up to 1.14 fill the last chunk of 256 positions with unlabelled ones, 1.15 needs Triton, and 1.16 computes
    the logits of all positions if there is no Triton.
    """
    return [_train(folder, rows, recipe, _sft_trainer) for rows in users]


def peft_adapt(
    folder: Path,
    rows: Sequence[TrainingRow],
    held_out: Sequence[TrainingRow],
    recipe: Recipe,
    *,
    target: float,
    limit: int,
    every: int = 1,
) -> Adapted:
    """A LoRA from scratch on one user's `rows` until the loss on `held_out` is at most `target`, or for `limit` steps.

    The held-out loss is measured every `every` steps, outside the timed seconds.
    """
    watch = _Watch(held_out, target, every)
    trained = _train(folder, rows, recipe, lambda *given: _trainer(*given, steps=limit, watch=watch))
    return Adapted(
        replace(trained, train_seconds=trained.train_seconds - watch.aside), tuple(watch.curve), watch.reached
    )


def oppu(**changes: Any) -> Recipe:
    """OPPU's adapter (arXiv 2402.04401): rank 8 and alpha 8 on q and v in all layers, at a constant learning rate."""
    own = {"rank": 8, "alpha": 8.0, "targets": "q_proj,v_proj", "placement": "all", "schedule": "constant", "warmup": 0}
    return Recipe(**{**own, **changes})


def load(folder: Path, dtype: str = "bfloat16") -> Any:
    """The base, loaded by transformers in this dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    from mta_cli.engine.model.load import quiet_libraries

    quiet_libraries()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def peft_folder(weights: LoraWeights, entry: ModelEntry, to: Path) -> Path:
    """`weights` as an adapter folder that PEFT loads, each module with its own rank and PEFT's scale 1.

    `mta user export` pads all modules to one rank, because some programs need that; PEFT would then multiply zeros.
    """
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.pipeline.personalize.export_formats import CONFIG_FILE, WEIGHTS_FILE, peft_config

    scaled = {path: (a.float(), weights.scale * b.float()) for path, (a, b) in weights.factors.items()}
    plain = LoraWeights(scaled, 1.0, weights.placement)
    ranks = {path: int(a.shape[0]) for path, (a, _) in scaled.items() if a.shape[0] != plain.rank}
    config = {**peft_config(plain, entry), "rank_pattern": ranks, "alpha_pattern": ranks}
    to.mkdir(parents=True, exist_ok=True)
    (to / WEIGHTS_FILE).write_bytes(plain.to_bytes({}))
    (to / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return to


def _train(folder: Path, rows: Sequence[TrainingRow], recipe: Recipe, make: Callable[..., Any]) -> Trained:
    from transformers import AutoTokenizer, PrinterCallback, set_seed

    start = time.perf_counter()
    set_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder, recipe.dtype)
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        trainer = make(model, tokenizer, rows, recipe, out)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    ended = time.perf_counter()
    weights, state = factors_of(trainer.model, recipe.placement), trainer.state
    return Trained(weights, state.num_input_tokens_seen, state.global_step, loaded - start, ended - loaded)


def lora_config(model: Any, recipe: Recipe) -> Any:
    """PEFT's configuration of the LoRA that `recipe` describes, for a bare base."""
    from peft import LoraConfig

    from mta_cli.engine.lora.adapter import find_target_modules

    paths, where = find_target_modules(model, recipe.targets, recipe.placement)
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=sorted({path.rsplit(".", 1)[-1] for path in paths}),
        layers_to_transform=list(range(where.first_layer, where.last_layer + 1)),
    )


def factors_of(model: Any, placement: str) -> LoraWeights:
    """The factors of a PeftModel's one adapter, as float32 `LoraWeights`."""
    from mta_cli.engine.lora.adapter import LoraWeights, Placement

    factors, scale = {}, 1.0
    for path, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            pair = module.lora_A["default"].weight, module.lora_B["default"].weight
            factors[path] = (pair[0].detach().float().clone(), pair[1].detach().float().clone())
            scale = module.scaling["default"]
    return LoraWeights(factors, scale, Placement.from_name(placement, model.config.num_hidden_layers))


def _settings(recipe: Recipe, out: str, **more: Any) -> dict[str, Any]:
    """The arguments that both trainers share: no logging, no saving, no worker processes, rows grouped by length."""
    return {
        "output_dir": out,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "bf16": recipe.autocast,
        "use_cpu": recipe.device == "cpu",
        "seed": recipe.seed,
        "train_sampling_strategy": "group_by_length",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "include_num_input_tokens_seen": "non_padding",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def _trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TrainingRow],
    recipe: Recipe,
    out: str,
    *,
    steps: int = -1,
    watch: _Watch | None = None,
) -> Any:
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    adapted = get_peft_model(model, lora_config(model, recipe))
    trainer = Trainer(
        model=adapted,
        args=TrainingArguments(**_settings(recipe, out, max_steps=steps)),
        train_dataset=_labelled(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORED),
    )
    if watch is not None:
        trainer.add_callback(watch.callback(adapted))
    return trainer


def _labelled(rows: Sequence[TrainingRow]) -> list[dict[str, list[int]]]:
    """Rows as Trainer takes them, prompt tokens without a label."""
    return [
        {
            "input_ids": list(row.input_ids),
            "labels": [IGNORED] * row.answer_start + list(row.input_ids[row.answer_start :]),
        }
        for row in rows
    ]


def _sft_trainer(model: Any, tokenizer: Any, rows: Sequence[TrainingRow], recipe: Recipe, out: str) -> Any:
    """TRL's trainer at its fastest on a CPU: rows already tokenised, no gradient checkpoints, no length limit."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    own = {
        "loss_type": "chunked_nll",
        "completion_only_loss": True,
        "gradient_checkpointing": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    items = [
        {**labelled, "completion_mask": [int(label != IGNORED) for label in labelled["labels"]]}
        for labelled in _labelled(rows)
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(**_settings(recipe, out, **own)),
        train_dataset=Dataset.from_list(items),
        processing_class=tokenizer,
        peft_config=lora_config(model, recipe),
    )


class _Watch:
    """Measures the held-out loss while a Trainer runs, stops it at the target, and keeps this time separate."""

    def __init__(self, rows: Sequence[TrainingRow], target: float, every: int) -> None:
        self.rows, self.target, self.every = rows, target, every
        self.curve: list[Point] = []
        self.aside, self.reached = 0.0, False
        self._start = 0.0

    def callback(self, model: Any) -> Any:
        """A callback for the Trainer that trains `model`."""
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                watch._start = time.perf_counter()
                watch.look(model, 0)

            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                if state.global_step % watch.every == 0 and watch.look(model, state.global_step):
                    control.should_training_stop = True

        return Callback()

    def look(self, model: Any, step: int) -> bool:
        """Whether the held-out loss has reached the target."""
        began = time.perf_counter()
        with _resting(model):
            loss = mean_loss(model, self.rows)
        self.curve.append(Point(step, began - self._start - self.aside, loss))
        self.aside += time.perf_counter() - began
        self.reached = loss <= self.target
        return self.reached


@contextmanager
def _resting(model: Any) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
