"""The nearest of many profiles, exactly, in about the time of reading them once. Knows vectors; no users or files.

Products are taken in float32 first, which errs in the last digits. What that error could keep from the nearest `k` is
taken again in float64, so the answer depends on the vectors alone: not on blocks, threads or the BLAS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mta_cli.errors import IntegrityFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_PER_BLOCK = 2**16  # rows that are read together
QUERIES_PER_BLOCK = 64  # queries that are answered in one reading
MAX_SINGLE_QUERIES = 4  # queries up to this many are faster one by one than in a matrix product
EXACT_ROWS_PER_BLOCK = 2**12  # rows that are taken again in float64 together


def nearest_rows(
    matrix: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The `k` rows of `matrix [n, dim]` with the largest products with each of `queries [q, dim]`, largest first.

    Returns their indices and the products, both [q, min(k, n)], or [min(k, n)] for one query [dim]. Of equal products
    the lower index is first. Rows and queries have length one or zero, so the products are cosines. `matrix` may be a
    memmap: it is read in blocks. Raises IntegrityFault when a number is not finite.
    """
    each = np.atleast_2d(queries)
    shape = (len(each), min(k, len(matrix)))
    indices, products = np.zeros(shape, dtype=np.intp), np.zeros(shape, dtype=np.float32)
    for start in range(0, len(each) if indices.size else 0, QUERIES_PER_BLOCK):
        for i, (rows, values) in enumerate(_nearest(matrix, each[start : start + QUERIES_PER_BLOCK], k), start):
            indices[i], products[i] = rows, values
    return (indices, products) if queries.ndim == 2 else (indices[0], products[0])


_TopK = tuple["NDArray[np.intp]", "NDArray[np.float64]"]  # rows and products, best first


def _nearest(matrix: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> list[_TopK]:
    best: list[_TopK] = [(np.zeros(0, dtype=np.intp), np.zeros(0)) for _ in queries]
    for start in range(0, len(matrix), ROWS_PER_BLOCK):
        block = np.asarray(matrix[start : start + ROWS_PER_BLOCK], dtype=np.float32)
        for i, rough in enumerate(_products(block, queries)):
            if not np.isfinite(rough).all():
                raise IntegrityFault(f"Of the profiles {start:,} to {start + len(block) - 1:,} one is not finite.")
            rows = _candidate_rows(rough, best[i][1], k, matrix.shape[1])
            for piece in (
                rows[first : first + EXACT_ROWS_PER_BLOCK] for first in range(0, len(rows), EXACT_ROWS_PER_BLOCK)
            ):
                best[i] = _merge_top_k(best[i], (piece + start, _exact_products(block[piece], queries[i])), k)
    return best


def _products(block: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """[q, rows], each at most `dim · 2^-23` from the truth."""
    if len(queries) > MAX_SINGLE_QUERIES:
        return np.ascontiguousarray((block @ queries.T).T)
    found = np.empty((len(queries), len(block)), dtype=np.float32)
    for out, query in zip(found, queries, strict=True):
        # As many dot products: each reads its row from end to end, where a matrix-vector product jumps between rows.
        np.matmul(block[:, None, :], query, out=out[:, None])
    return found


def _candidate_rows(rough: NDArray[np.float32], best: NDArray[np.float64], k: int, dim: int) -> NDArray[np.intp]:
    """Rows that may be among the first `k`, whatever the rounding of `rough` hides.

    A product of two vectors of length one errs by at most `dim · 2^-24` to first order (Higham, Accuracy and Stability
    of Numerical Algorithms, 2002, section 3.1); twice that is allowed for.
    """
    slack = dim * 2.0**-23
    rows = np.flatnonzero(rough >= best[-1] - slack) if len(best) == k else np.arange(len(rough))
    if len(rows) > k:
        values = rough[rows]
        rows = rows[values >= np.partition(values, -k)[-k] - 2 * slack]
    return rows


def _exact_products(rows: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Products in float64, summed in the same order for every row, so that equal rows give equal numbers."""
    products: NDArray[np.float64] = (rows * query.astype(np.float64)).sum(axis=1)
    return products


def _merge_top_k(one: _TopK, other: _TopK, k: int) -> _TopK:
    rows, values = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.lexsort((rows, -values))[:k]
    return rows[order], values[order]
