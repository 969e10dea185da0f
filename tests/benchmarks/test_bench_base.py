"""The measured speeds of a base: every kind of base runs, and random weights are those of the catalog's shape."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from benchmarks import bench_base
from benchmarks.bench_base import Throughput, measure, measure_base
from benchmarks.random_base import make_random_base
from mta_cli.engine.model.load import LoadedBase
from mta_cli.pipeline.models import memory
from mta_cli.pipeline.models.bases import HUB_BASES, HubBase

TINY = HubBase("mta/tiny", "llama", "none", 3, 64, 4, 2, 16, 96, 300)


@pytest.fixture
def base() -> LoadedBase:
    return make_random_base(TINY, device="cpu", dtype="float32")


@pytest.mark.parametrize(("family", "decoder"), [("llama", "fast"), ("granite", "transformers")])
def test_a_shape_is_measured_with_random_weights(family: str, decoder: str) -> None:
    row = measure_base(replace(TINY, family=family), "cpu", "float32", 0.1, 3)
    assert (row["base"], row["device"], row["dtype"], row["decoder"]) == ("tiny", "cpu", "float32", decoder)
    assert all(value > 0 for name, value in row.items() if name.endswith("/s"))
    assert row["memory, GB"] > TINY.parameters * 4 / 1e9


def test_the_first_pieces_do_not_count_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([150.0, 151.0, 152.0])
    monkeypatch.setattr(bench_base.time, "perf_counter", lambda: next(now))

    def pieces() -> Generator[int, None, None]:
        yield from (10, 10, 10, 10, 10)

    assert measure(pieces(), 1.5, warm_up=2) == Throughput(20, 2.0)


def test_one_user_and_a_batch_are_decoded_past_the_end_of_a_turn(base: LoadedBase) -> None:
    assert sum(itertools.islice(bench_base.decode_tokens(base, 0), 40)) == 40
    assert list(itertools.islice(bench_base.decode_batch_tokens(base, 3, 0), 40)) == [3] * 40


def test_users_are_adapted_in_larger_and_larger_groups(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, build = [], bench_base.build_models

    def counted(method, context, users, settings):  # type: ignore[no-untyped-def]
        sizes.append([user.number for user in users])
        models = build(method, context, users, settings)
        assert all(len(model.loras) == 2 for model in models), "a fusion and a stack"
        return models

    monkeypatch.setattr(bench_base, "build_models", counted)
    assert bench_base.measure_adapting(base, 2.0, 0).rate > 0
    assert sizes[:2] == [[0], [1, 2]], "no user comes again: states of known rows would be cached"


def test_rows_are_as_long_as_the_computed_memory_assumes() -> None:
    assert bench_base.ROW_TOKENS == memory.ROW_TOKENS
    assert bench_base.ANSWER_TOKENS == memory.ROW_TOKENS * memory.ANSWER_SHARE


def test_every_family_of_the_catalog_has_a_random_base_of_its_shape() -> None:
    for family in sorted({base.family for base in HUB_BASES.values()}):
        shape = replace(TINY, family=family)
        base = make_random_base(shape, device="cpu", dtype="bfloat16")
        assert base.model.num_parameters() == shape.parameters
        assert (base.llama_decoder is not None) == shape.fast, family
        assert base.dtype == torch.bfloat16 and not any(w.requires_grad for w in base.model.parameters())


def test_the_seed_makes_the_weights() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        make_random_base(TINY, device="cpu", dtype="float32", seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)
