"""Scores of made-up seeds and rows."""

import math

from scipy import stats


def crossed(rng, a, b, seed=0.0, row=0.0, rest=0.0):
    """Scores [a, b] of the two-way model, mean 0, with these standard deviations."""
    return (
        seed * rng.normal(size=(a, 1)) + row * rng.normal(size=b) + rest * rng.normal(size=(a, b))
    )


def right_or_wrong(rng, a, b, accuracy, **terms):
    total = math.sqrt(sum(size**2 for size in terms.values()))
    return (crossed(rng, a, b, **terms) + stats.norm.ppf(accuracy) * total > 0).astype(float)
