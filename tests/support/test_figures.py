"""Intervals (support/figures.py)."""

import math

import numpy as np
import pytest

from support import figures


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    rng, hits = np.random.default_rng(1), 0
    for trial in range(200):
        low, high = figures.bootstrap(rng.binomial(8, 0.6, size=60) / 8, seed=trial, draws=300)
        hits += low <= 0.6 <= high
    assert 180 <= hits <= 199
    assert figures.bootstrap([0, 1, 1, 0.5], 3) == figures.bootstrap([0, 1, 1, 0.5], 3)


def test_wilson_covers_a_share_that_is_all_but_one_where_the_bootstrap_does_not():
    rng, hits = np.random.default_rng(2), {figures.wilson: 0, figures.bootstrap: 0}
    for _ in range(300):
        values = rng.binomial(1, 0.97, size=40)
        for method in hits:
            low, high = method(values) if method is figures.wilson else method(values, draws=200)
            hits[method] += low <= 0.97 <= high
    assert 275 <= hits[figures.wilson] <= 299 and hits[figures.bootstrap] < 240
    # It is where |p - share| = z sqrt(p (1 - p) / n), and a bootstrap would say (0, 0), (1, 1).
    for share, n in ((0.0, 9), (0.25, 8), (1.0, 60)):
        for p, end in zip(
            figures.interval([1] * int(share * n) + [0] * int((1 - share) * n)), (0, 1)
        ):
            assert (
                abs(p - share) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n), rel=1e-3)
                or p == share == end
            )
    assert figures.interval([0.5, 0.25, 1]) == figures.bootstrap([0.5, 0.25, 1])


def test_the_interval_of_a_difference_holds_it_95_times_in_100():
    """Of two models that are right on 97 and 94 of 100: a bootstrap holds it less often."""
    rng, hits = np.random.default_rng(3), {figures.paired: 0, figures.bootstrap: 0}
    for _ in range(300):
        ours, theirs = rng.binomial(1, 0.97, size=40), rng.binomial(1, 0.94, size=40)
        for method in hits:
            low, high = method((ours - theirs).astype(float))
            hits[method] += low <= 0.03 <= high
    assert 279 <= hits[figures.paired] <= 300 and hits[figures.bootstrap] < hits[figures.paired]
    low, high = figures.paired(np.zeros(20))
    assert low < 0 < high and low == -high
    assert figures.paired(np.ones(5))[1] == 1
