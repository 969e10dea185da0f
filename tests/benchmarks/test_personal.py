"""The benchmarks of answering give both sides the same models, and both come to the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_evaluate, bench_generate, personal
from benchmarks import rival_answers as rival
from benchmarks.harness import Timed
from mta_cli.engine.model.llama import LlamaDecoder
from mta_cli.engine.model.load import LoadedBase, load_base
from mta_cli.pipeline.models.manifest import ModelEntry


@pytest.fixture(autouse=True)
def strong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that change what the tiny base says."""
    monkeypatch.setattr(personal, "SPREAD", 0.5)


@pytest.fixture
def base(tiny_base_path: Path) -> LoadedBase:
    return _load(tiny_base_path)


@pytest.fixture
def folders(base: LoadedBase, tiny_base_path: Path, tmp_path: Path) -> Iterator[dict[str, Path]]:
    entry = ModelEntry("tiny", "base", tiny_base_path, "sha256:tiny")
    yield personal.folders(personal.adapters(base.model, 3), entry, tmp_path)


def _load(path: Path, dtype: str = "float32") -> LoadedBase:
    return load_base(path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype=dtype)


def _plain(base: LoadedBase) -> LlamaDecoder:
    assert base.llama_decoder is not None
    return base.llama_decoder


def test_adapters_are_of_the_upper_third_and_differ(base: LoadedBase) -> None:
    first, second = personal.adapters(base.model, 2)
    assert first.placement.late_tokens is None and first.placement.last_layer == len(_plain(base).layers) - 1
    assert first.rank == personal.RANK and sorted(first.factors) == sorted(second.factors)
    assert all((first.delta_weight(path) != second.delta_weight(path)).any() for path in first.factors)


def test_one_user_gets_the_same_tokens_whichever_way_and_no_end_stops_them(
    base: LoadedBase, folders: dict[str, Path], tiny_base_path: Path
) -> None:
    (weights,), prompt = personal.adapters(base.model, 1), bench_generate.prompts_of(base, 1)[0]
    everywhere = LoadedBase(**{**vars(base), "end_ids": tuple(range(len(base.tokenizer)))})
    assert (
        personal.endless(everywhere).end_ids == () and personal.endless(everywhere).llama_decoder is base.llama_decoder
    )
    sides = bench_generate.one_user(lambda: _load(tiny_base_path), tiny_base_path, weights, folders["user0"], prompt)
    made = {name: [list(answer) for answer in side(9)] for name, side in sides.items()}
    assert all(answers == made[bench_generate.PEFT] for answers in made.values())
    assert [len(answer) for answer in made[bench_generate.PEFT]] == [9]
    assert set(bench_generate.both(sides, 9)) == {f"{name}/{count}" for name in sides for count in (1, 9)}


def test_weights_that_keep_their_order_are_never_packed(tiny_base_path: Path) -> None:
    base = _load(tiny_base_path, "bfloat16")
    speaking = bench_generate.speaking(base, personal.adapters(base.model, 1)[0], packed=False)
    assert isinstance(speaking.llama_decoder, LlamaDecoder) and speaking.llama_decoder is base.llama_decoder
    speaking.llama_decoder.pack_weights()
    assert all(joint._packed is None and not joint.has_half for joint in speaking.llama_decoder.all_projections())


def test_many_users_get_the_same_tokens_whichever_way(
    base: LoadedBase, folders: dict[str, Path], tiny_base_path: Path
) -> None:
    weights, prompts = personal.adapters(base.model, 3), bench_generate.prompts_of(base, 3)
    sides = bench_generate.many_users(base, tiny_base_path, weights, folders, prompts, 6, 2)
    made = {name: [list(answer) for answer in side()] for name, side in sides.items()}
    assert len({tuple(answer) for answer in made[bench_generate.TOGETHER]}) == 3
    assert made[bench_generate.MIXED] == made[bench_generate.TOGETHER]
    assert made[bench_generate.LOOP] == made[bench_generate.TOGETHER][:2]


def test_queries_get_the_same_labels_and_answers_whichever_way(
    base: LoadedBase, folders: dict[str, Path], tiny_base_path: Path
) -> None:
    people, model = personal.adapters(base.model, 3), rival.with_adapters(tiny_base_path, folders, "float32")
    labelled, free = (bench_evaluate.queries(base, task, 7) for task in ("taste", "voice"))
    assert labelled.owners == sorted(labelled.owners) and len(set(labelled.owners)) > 1
    weighed = {k: side() for k, side in bench_evaluate.weighing(base, people, model, labelled, 5).items()}
    assert weighed[bench_evaluate.SCORE] == weighed[bench_evaluate.OURS][:5] and len(weighed[bench_evaluate.OURS]) == 7
    answered = {k: side() for k, side in bench_evaluate.answering(base, people, model, free, 5, 6).items()}
    assert [list(ids) for ids in answered[bench_evaluate.GENERATE]] == list(answered[bench_evaluate.OURS][:5])


def test_a_label_that_was_said_is_known_by_its_tokens_without_the_end() -> None:
    labels = [(5, 6, 9), (7, 9)]
    assert [bench_evaluate._label(said, labels) for said in ((5, 6, 1), (7, 2, 3), (5, 7, 9))] == [0, 1, -1]


def test_tokens_are_compared_place_by_place() -> None:
    assert personal.alike([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 9]]) == 0.75


def test_floors_count_every_weight_once(base: LoadedBase) -> None:
    plain = _plain(base)
    embedding = base.model.get_input_embeddings().weight
    matrices = {id(weight): weight for weight in base.model.parameters() if weight.ndim == 2}
    numbers = sum(weight.numel() for weight in matrices.values())
    if embedding is not base.model.get_output_embeddings().weight:
        numbers -= embedding.numel()
    assert personal.weight_bytes(plain) == 4 * personal.weight_bytes(plain, 1, 1) == 4 * numbers
    assert personal.weight_bytes(plain, 0.5, 1) == numbers / 2 + plain.head.weight.numel() / 2
    assert personal.reading(plain, 3) == 6 * (numbers - plain.head.weight.numel())


def test_rows_compare_rates_whatever_the_number_of_answers() -> None:
    runs: dict[str, Any] = {
        bench_generate.MIXED: [Timed(8.0, [[1, 2]] * 4)],
        bench_generate.LOOP: [Timed(8.0, [[1, 2]])],
        bench_generate.TOGETHER: [Timed(1.0, [[1, 2]] * 3 + [[1, 3]])],
    }
    found = {row["many users"]: row for row in bench_generate.many_users_rows(runs, 0.5)}
    assert found[bench_generate.MIXED]["mta is faster"] == 8 and found[bench_generate.LOOP]["mta is faster"] == 32
    assert found[bench_generate.TOGETHER]["% of limit"] == 50
    assert found[bench_generate.MIXED]["tokens as mta's"] == 7 / 8
    rows = {
        row["64 queries"]: row
        for row in bench_evaluate.rows("x", {"a": runs[bench_generate.LOOP], "mta": runs[bench_generate.TOGETHER]}, 0.5)
    }
    assert rows["x: a"]["mta is faster"] == 32 and rows["x: mta"]["% of limit"] == 50


def test_decoding_is_what_comes_after_the_first_token() -> None:
    def timed(seconds: float, count: int) -> list[Timed[Any]]:
        return [Timed(seconds, [[1] * count])]

    runs = {
        f"{bench_generate.PEFT}/1": timed(1.0, 1),
        f"{bench_generate.PEFT}/5": timed(9.0, 5),
        "mta/1": timed(1.0, 1),
        "mta/5": timed(3.0, 5),
    }
    peft, ours = bench_generate.one_user_rows(runs, 5, {bench_generate.PEFT: 0.25, "mta": 0.25})
    assert ours["times PEFT"] == 3 and ours["times PEFT, decoding"] == 4 and ours["% of floor"] == 50
    assert peft["decoding tokens/s"] == 0.5 and peft["tokens as PEFT's"] == 1.0


def test_reports_say_what_the_adapters_are(base: LoadedBase) -> None:
    assert personal.facts(base, users=2) == {
        "dtype": "float32",
        "rank": 8,
        "placement": "upper",
        "targets": "all-linear",
        "users": 2,
    }
