"""Exact nearest-neighbour search over profiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mta_cli.errors import IntegrityFault


def nearest_rows(
    matrix: NDArray[np.float32], query: NDArray[np.float32], k: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The `k` rows of `matrix [n, dim]` with the largest products with `query [dim]`, largest first.

    Returns their indices and the products, both [min(k, n)]. Ties go to the lower index. Rows and query have norm one
    or zero, so the products are cosines. `matrix` may be a memmap. Raises IntegrityFault if a number is not finite.
    """
    k = min(k, len(matrix))
    if k == 0:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.float32)
    # 1. float32 products, one dot product per row: faster than matrix @ query, which jumps between rows  [n]
    rough = np.matmul(matrix[:, None, :], query)[:, 0]
    if not np.isfinite(rough).all():
        raise IntegrityFault(f"profile {int(np.flatnonzero(~np.isfinite(rough))[0]):,} has a number that is not finite")
    # 2. the rows that may be among the first k: the error of a float32 product of unit vectors is below dim · 2^-23
    #    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1)
    kth = np.partition(rough, -k)[-k]
    rows = np.flatnonzero(rough >= kth - 2 * len(query) * 2.0**-23)
    # 3. their products in float64, so that the order does not depend on the BLAS; ties go to the lower index
    exact = (matrix[rows] * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((rows, -exact))[:k]
    return rows[order], exact[order].astype(np.float32)
