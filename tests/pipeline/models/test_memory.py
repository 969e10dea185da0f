"""The memory of bases: what it grows with, how `--max-memory` is divided up, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES
from mta_cli.engine.model.load import MemoryLimits, load_base
from mta_cli.engine.scoring.prefix_cache_scoring import CPU_BATCH_TOKENS
from mta_cli.engine.scoring.token_budget import TokenBudget
from mta_cli.engine.scoring.token_logprobs import CPU_MAX_LOGITS
from mta_cli.errors import Command, Flag, UsageError, Words
from mta_cli.options import MachineOptions
from mta_cli.pipeline.models.bases import HUB_BASES
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.models.memory import (
    HELD_LOGITS,
    PASS_TOKENS,
    PROGRAM_BYTES,
    answering_bytes,
    divide_memory,
    least_bytes,
    loading_limits,
    read_shape,
    require_memory,
    training_bytes,
    weight_bytes,
)
from mta_cli.pipeline.training.groups import AdapterJob, max_group_size
from store.registry import Registry

CPU = MachineOptions(device="cpu", dtype="float32")
LARGE = HUB_BASES["qwen3-8b"].shape


@pytest.mark.parametrize("name", HUB_BASES)
def test_memory_is_more_than_the_weights(name: str) -> None:
    base = HUB_BASES[name]
    for bytes_of in (training_bytes, answering_bytes):
        assert bytes_of(base.shape, "bfloat16") > 2 * base.parameters
    assert training_bytes(base.shape, "nf4+bfloat16") < training_bytes(base.shape, "bfloat16")
    assert training_bytes(base.shape, "float32") > training_bytes(base.shape, "bfloat16") - 2 * base.parameters


def test_passes_are_as_large_as_the_engines() -> None:
    assert PASS_TOKENS == CPU_BATCH_TOKENS and HELD_LOGITS == CPU_MAX_LOGITS


def test_four_bits_are_those_of_the_layers_alone() -> None:
    rest = LARGE.parameters - LARGE.projections
    assert weight_bytes(LARGE, "nf4+bfloat16", "train") == pytest.approx(0.516 * LARGE.projections + 2 * rest, rel=0.01)
    assert weight_bytes(LARGE, "nf4+float32", "train") > weight_bytes(LARGE, "nf4+bfloat16", "train")


def test_the_shape_is_that_of_the_folder(peopled: Registry) -> None:
    entry = resolve_model("tiny", "base")
    shape = read_shape(entry)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads, shape.head_dim) == (2, 64, 4, 2, 16)
    assert (shape.inner, shape.vocabulary, shape.parameters) == (144, 259, entry.detail["parameters"])
    base = load_base(entry.path, name="tiny", fingerprint="f", device="cpu", dtype="float32")
    layers = [weight for path, weight in base.model.named_parameters() if "_proj" in path]
    assert shape.projections == sum(weight.numel() for weight in layers)
    assert shape.layers * shape.factor_widths == sum(sum(weight.shape) for weight in layers)


def test_without_a_limit_the_engines_own_hold(peopled: Registry) -> None:
    assert loading_limits(resolve_model("tiny", "base"), CPU, "train") == MemoryLimits()


def test_less_memory_gives_smaller_passes_states_and_groups() -> None:
    weights, usual = PROGRAM_BYTES + weight_bytes(LARGE, "nf4+bfloat16", "train"), MemoryLimits()
    assert usual.cache_bytes == ACTIVATION_CACHE_BYTES
    assert divide_memory(LARGE, "nf4+bfloat16", "train", weights + 20 * 10**9) == usual
    before = usual
    for spare in (4 * 10**9, 2 * 10**9, 10**9):
        found = divide_memory(LARGE, "nf4+bfloat16", "train", weights + spare)
        assert found.cache_bytes + found.group_bytes <= spare // 2
        assert (found.batch_tokens or PASS_TOKENS) <= (before.batch_tokens or PASS_TOKENS)
        assert found.cache_bytes <= before.cache_bytes and found.group_bytes <= before.group_bytes
        before = found
    assert before.batch_tokens is not None and before.batch_tokens < PASS_TOKENS


def test_the_least_memory_of_a_training_counts_on_recomputing_where_the_decoder_computes() -> None:
    assert least_bytes(LARGE, "nf4+bfloat16", "train") < least_bytes(
        replace(LARGE, fast=False), "nf4+bfloat16", "train"
    )


def test_a_loaded_base_keeps_its_limits(peopled: Registry) -> None:
    entry = resolve_model("tiny", "base")
    most = least_bytes(read_shape(entry), "float32", "train") + 100_000
    base = load_on_device(entry, replace(CPU, max_memory=f"{most / 1e6:.3f}MB"))
    limits = base.limits
    assert limits.batch_tokens is not None and TokenBudget(base).tokens == limits.batch_tokens < CPU_BATCH_TOKENS
    assert base.llama_decoder is not None and base.llama_decoder.activation_cache.limit == limits.cache_bytes
    job = AdapterJob("meta", "", None, 64, 8.0, "all-linear", "all", 0, "", None)  # type: ignore[arg-type]
    usual = replace(base, limits=MemoryLimits())
    assert 1 <= max_group_size(base, job) < max_group_size(usual, job)
    own = replace(job, rank=2)  # the fusions below them count as well
    assert max_group_size(usual, own, 1 << 26) <= 16 < max_group_size(usual, own)
    assert max_group_size(usual, own, 1 << 31) == 1


def test_what_does_not_fit_is_refused_before_it_is_loaded(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.engine.model.load.load_base", lambda *_, **__: pytest.fail("it is loaded"))
    for use in ("train", "answer"):
        with pytest.raises(UsageError, match=r"tiny in float32 takes about 0\.\d GB, and --max-memory is 0\.1 GB"):
            load_on_device(resolve_model("tiny", "base"), replace(CPU, max_memory="100MB"), use=use)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "hint"),
    [
        (
            {"float32": 9, "nf4+float32": 3, "bfloat16": 7, "nf4+bfloat16": 2},
            (Flag("quantize", "nf4"), " takes about 3.0 GB"),
        ),
        (
            {"float32": 9, "nf4+float32": 8, "bfloat16": 4, "nf4+bfloat16": 2},
            (Flag("dtype", "bfloat16"), " takes about 4.0 GB"),
        ),
        (
            {"float32": 9, "nf4+float32": 8, "bfloat16": 7, "nf4+bfloat16": 5},
            ((Flag("dtype", "bfloat16"), " ", Flag("quantize", "nf4")), " takes about 5.0 GB"),
        ),
        (
            {"float32": 9, "nf4+float32": 8, "bfloat16": 7, "nf4+bfloat16": 7},
            ("choose a smaller base (", Command("model list", available=True), "), or lower ", Flag("history_items")),
        ),
    ],
)
def test_the_hint_names_the_first_format_that_fits(sizes: dict[str, int], hint: Words) -> None:
    with pytest.raises(UsageError, match=r"x in float32 takes about 9\.0 GB, and --max-memory is 6\.0 GB") as refused:
        require_memory("x", replace(CPU, max_memory="6GB"), lambda form: sizes[form] * 10**9)
    assert refused.value.hint == hint
    require_memory("x", replace(CPU, max_memory="9GB"), lambda form: sizes[form] * 10**9)
    require_memory("x", CPU, lambda form: sizes[form] * 10**9)
