"""Which labels a text's embedding speaks for: a linear discriminant of labelled vectors, in closed form.

Gaussians of one covariance (Fisher, 1936), which is shrunk towards a sphere (Friedman, 1989), as the means are towards
the mean of all: a bank has a few items a label in a few hundred dimensions. Neighbours know what was said of the very
thing or its like; this knows in which direction a label lies where nothing is near. Pure numpy; knows no people.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]

SHRINKAGE = 0.8  # of the covariance: how much of it is a sphere of the same mean variance
MEAN_PRIOR_COUNT = 8.0  # how many vectors the mean of all counts as in a label's mean
MIN_VARIANCE = 1e-6  # mean variance of a direction: vectors that are all the same have none


@dataclass(frozen=True)
class Discriminant:
    """Log-likelihoods of labels, up to what they share: `vectors @ weights + offsets`.

    `weights` [width, labels], `offsets` [labels].
    """

    weights: Array
    offsets: Array

    def __call__(self, vectors: Vectors) -> Array:
        """How much likelier than the average text each label makes these [n, labels], nats."""
        found: Array = vectors @ self.weights + self.offsets
        return found


@dataclass(frozen=True)
class Moments:
    """What a discriminant is made of, so that some of the vectors can be taken out again.

    `counts` [labels], `sums` [labels, width] and `products` [width, width] of vectors.
    """

    counts: Array
    sums: Array
    products: Array

    @classmethod
    def from_labelled_vectors(cls, vectors: Vectors, labels: npt.NDArray[np.int64], many: int) -> Moments:
        """Of `vectors` [n, width] and their `labels` [n], places among `many`."""
        places = np.eye(many, dtype=np.float32)[labels]
        sums, products = places.T @ vectors, vectors.T @ vectors
        return cls(np.bincount(labels, minlength=many).astype(float), sums.astype(float), products.astype(float))

    def __sub__(self, other: Moments) -> Moments:
        """Without the vectors of `other`."""
        return Moments(self.counts - other.counts, self.sums - other.sums, self.products - other.products)

    def fit_discriminant(self) -> Discriminant:
        """The discriminant of these vectors; of none, one that says nothing."""
        total, width = float(self.counts.sum()), self.sums.shape[1]
        if total == 0.0:
            return Discriminant(np.zeros((width, len(self.counts))), np.zeros(len(self.counts)))
        mean = self.sums.sum(axis=0) / total
        means = (self.sums + MEAN_PRIOR_COUNT * mean) / (self.counts + MEAN_PRIOR_COUNT)[:, None]
        cross = means.T @ self.sums  # [width, width]
        spread = (self.products - cross - cross.T + (means.T * self.counts) @ means) / total
        sphere = max(float(np.trace(spread)) / width, MIN_VARIANCE) * np.eye(width)
        weights = np.linalg.solve((1.0 - SHRINKAGE) * spread + SHRINKAGE * sphere, (means - mean).T)
        middle = 0.5 * (means + mean)  # where a label is as likely as the average text
        return Discriminant(weights, -(middle * weights.T).sum(axis=1))
