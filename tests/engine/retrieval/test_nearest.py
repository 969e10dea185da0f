"""The nearest rows: exactly what sorting all of them gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mta_cli.engine.retrieval.nearest import nearest_rows
from mta_cli.errors import IntegrityFault

Matrix = NDArray[np.float32]


def unit(rows: int, dim: int, seed: int = 0) -> Matrix:
    """Random rows of length one."""
    matrix = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def sorted_all(matrix: Matrix, query: Matrix) -> tuple[list[int], NDArray[np.float64]]:
    """Every row by its product in float64, largest first, equal ones in their order."""
    products = (matrix * query.astype(np.float64)).sum(axis=1)
    order = np.argsort(-products, kind="stable")
    return order.tolist(), products[order]


def check(matrix: Matrix, queries: Matrix, k: int) -> None:
    for query in queries:
        rows, values = nearest_rows(matrix, query, k)
        assert rows.shape == values.shape == (min(k, len(matrix)),) and values.dtype == np.float32
        order, products = sorted_all(matrix, query)
        assert rows.tolist() == order[:k]
        assert np.allclose(values, products[:k], atol=1e-7, rtol=0)


@pytest.mark.parametrize("queries", [1, 2, 3, 7])
@pytest.mark.parametrize("k", [1, 8, 200, 999])
def test_it_is_the_head_of_a_full_sort(k: int, queries: int) -> None:
    check(unit(500, 24), unit(queries, 24, seed=1), k)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(0, 99))
def test_ties_go_to_the_lowest_index(rows: int, kinds: int, k: int, queries: int, seed: int) -> None:
    """Few kinds of rows, so that nearly all products are tied."""
    random = np.random.default_rng(seed)
    matrix = unit(kinds, 7, seed)[random.integers(0, kinds, rows)]
    matrix[random.random(rows) < 0.2] = 0.0
    check(matrix, unit(queries, 7, seed + 1), k)


def test_rows_that_float32_cannot_tell_apart_are_told_apart() -> None:
    matrix = np.tile(unit(1, 384), (300, 1))
    matrix[:, 0] += np.random.default_rng(0).integers(-3, 4, 300).astype(np.float32) * np.float32(1e-8)
    check(matrix, matrix[:4], 10)


def test_nothing_but_zero_rows() -> None:
    rows, values = nearest_rows(np.zeros((300, 4), dtype=np.float32), np.ones(4, dtype=np.float32) / 2, 3)
    assert rows.tolist() == [0, 1, 2] and values.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rows", "k"), [(0, 3), (5, 0)])
def test_nothing_to_find(rows: int, k: int) -> None:
    found, values = nearest_rows(unit(rows, 4) if rows else np.zeros((0, 4), dtype=np.float32), unit(1, 4)[0], k)
    assert found.shape == values.shape == (0,)


def test_a_mapped_file_is_searched_as_memory_is(tmp_path: Path) -> None:
    matrix = unit(300, 12)
    written: np.memmap[Any, Any] = np.memmap(tmp_path / "profiles", dtype=np.float32, mode="w+", shape=matrix.shape)
    written[:] = matrix
    written.flush()
    mapped: np.memmap[Any, Any] = np.memmap(tmp_path / "profiles", dtype=np.float32, mode="r", shape=matrix.shape)
    check(mapped, matrix[:3], 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = unit(200, 6)
    matrix[150, 2] = bad
    with pytest.raises(IntegrityFault, match="profile 150 has a number that is not finite"):
        nearest_rows(matrix, unit(1, 6)[0], 3)
