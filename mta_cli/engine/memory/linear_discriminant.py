"""A linear discriminant (LDA) on embeddings: log-likelihoods of labels in closed form.

One Gaussian for each label, with a shared covariance (Fisher, 1936). The covariance is shrunk towards a multiple of the
identity (Friedman, 1989), and the means towards the overall mean, because a bank has few items per label in hundreds of
dimensions. Neighbours predict near known items; the discriminant extrapolates where no item is near. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]

SHRINKAGE = 0.8  # the share of the scaled identity in the covariance
MEAN_PRIOR_COUNT = 8.0  # the overall mean counts as this many vectors in a label's mean
MIN_VARIANCE = 1e-6  # floor of the mean variance, which is zero for identical vectors


@dataclass(frozen=True)
class LinearDiscriminant:
    """Log-likelihoods of labels, up to a common constant: `vectors @ weights + offsets`.

    `weights` [width, labels], `offsets` [labels].
    """

    weights: Array
    offsets: Array

    def __call__(self, vectors: Vectors) -> Array:
        """The log-likelihood ratio [n, labels] (nats) of each label to the average text, for `vectors` [n, width]."""
        log_ratios: Array = vectors @ self.weights + self.offsets
        return log_ratios


@dataclass(frozen=True)
class Moments:
    """The sufficient statistics of a discriminant. The statistics of a subset of the vectors can be subtracted.

    `counts` [labels], `sums` [labels, width] and `products` [width, width] of vectors.
    """

    counts: Array
    sums: Array
    products: Array

    @classmethod
    def from_labelled_vectors(cls, vectors: Vectors, labels: npt.NDArray[np.int64], label_count: int) -> Moments:
        """The statistics of `vectors` [n, width] with label indices `labels` [n] below `label_count`."""
        one_hot = np.eye(label_count, dtype=np.float32)[labels]  # [n, labels]
        sums, products = one_hot.T @ vectors, vectors.T @ vectors
        return cls(np.bincount(labels, minlength=label_count).astype(float), sums.astype(float), products.astype(float))

    def __sub__(self, other: Moments) -> Moments:
        """The statistics without the vectors of `other`."""
        return Moments(self.counts - other.counts, self.sums - other.sums, self.products - other.products)

    def fit_discriminant(self) -> LinearDiscriminant:
        """The discriminant of these vectors; all zeros without vectors."""
        total, width = float(self.counts.sum()), self.sums.shape[1]
        if total == 0.0:
            return LinearDiscriminant(np.zeros((width, len(self.counts))), np.zeros(len(self.counts)))
        # 1. the mean of all vectors [width], and each label's mean, shrunk towards it  [labels, width]
        mean = self.sums.sum(axis=0) / total
        means = (self.sums + MEAN_PRIOR_COUNT * mean) / (self.counts + MEAN_PRIOR_COUNT)[:, None]
        # 2. the covariance around the labels' means, shrunk towards its mean variance × identity  [width, width]
        cross = means.T @ self.sums
        covariance = (self.products - cross - cross.T + (means.T * self.counts) @ means) / total
        sphere = max(float(np.trace(covariance)) / width, MIN_VARIANCE) * np.eye(width)
        # 3. weights [width, labels], and offsets: a label's ratio is zero halfway between its mean and the overall mean
        weights = np.linalg.solve((1.0 - SHRINKAGE) * covariance + SHRINKAGE * sphere, (means - mean).T)
        middle = 0.5 * (means + mean)
        return LinearDiscriminant(weights, -(middle * weights.T).sum(axis=1))
