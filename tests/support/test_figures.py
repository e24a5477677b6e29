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
    many = [0.5, 0.25, 1] * 10
    assert figures.interval(many) == figures.bootstrap(many)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 20])
def test_intervals_of_small_sets_are_not_too_sure(count):
    """Of questions that are all alike, of some that are easy, and of those that are known or not:
    a bootstrap of three holds the truth 80 times in 100, and of one never."""
    rng = np.random.default_rng(count)
    for a, b in ((50, 50), (4, 1), (0.3, 0.15)):
        hits = 0
        for _ in range(300):
            values = rng.binomial(8, rng.beta(a, b, count)) / 8
            low, high = figures.interval(list(values))
            assert 0 <= low < high <= 1
            hits += low <= a / (a + b) <= high
        assert hits >= 265
    for values in ([0.5] * count, [0.5] * 50):
        low, high = figures.interval(values)
        assert high - low > 0.03


def results(*differences):
    """Results of sets, as `gains` makes them, whose questions differ so much."""
    found = {}
    for number, values in enumerate(differences):
        values = np.array(values, dtype=float)
        ours = {"sampled": 0.5 + values.mean(), "per_question": {"sampled": list(0.5 + values)}}
        theirs = {"sampled": 0.5, "per_question": {"sampled": [0.5] * len(values)}}
        found[str(number)] = figures.gains(ours, theirs) | {"questions": len(values)}
    return found


def test_the_gain_of_a_mean_is_put_together_from_the_differences_of_its_sets():
    average = figures.mean(results([1, 0, 0, 0, -1, 0] * 10, [0, 1, 0] * 10))
    assert average["sampled_gain"] == pytest.approx((0 + 1 / 3) / 2)
    # By hand: mean squares 1/3 and 1/3, of 60 and 30 questions; each set counts a half.
    half = 1.96 * math.sqrt((1 / 3 / 60 + 1 / 3 / 30) / 4)
    assert average["sampled_gain_high"] - average["sampled_gain"] == pytest.approx(half, rel=1e-3)
    assert average["sampled_gain"] - average["sampled_gain_low"] == pytest.approx(half, rel=1e-3)
    # Ten sets of which no question tells the models apart: of 100 questions one could see 3.8 %.
    same = figures.mean(results(*[[0] * 10] * 10))
    assert same["sampled_gain_high"] == -same["sampled_gain_low"] == pytest.approx(0.0384, abs=1e-3)


def test_the_gain_of_a_mean_of_small_sets_holds_the_truth_95_times_in_100():
    rng, hits, widths = np.random.default_rng(4), 0, []
    for _ in range(300):
        sets = [rng.choice([1, 0, -1], 6, p=[0.25, 0.6, 0.15]) for _ in range(12)]
        found = figures.mean(results(*sets))
        hits += found["sampled_gain_low"] <= 0.1 <= found["sampled_gain_high"]
        widths.append(found["sampled_gain_high"] - found["sampled_gain_low"])
    assert 275 <= hits <= 297
    # 72 questions as one set: their squares are 0.4 in the mean.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(0.4 / 72), rel=0.1)


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
