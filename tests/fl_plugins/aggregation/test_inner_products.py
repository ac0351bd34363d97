"""Rules that work on inner products and distances of rows: far rows, huge norms, exact searches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import (
    Caf,
    CenteredClipping,
    DenseRows,
    GeometricMedian,
    Krum,
    Mda,
    NormBoundedMean,
    canonical_order,
)
from fl_plugins.aggregation.combinations import embed
from fl_plugins.aggregation.mda import least_diameter_subset
from fl_plugins.errors import ConfigError, ReplyError

from .updates import cohort


@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_embedded_points_have_the_distances_of_the_rows(scale):
    """A common offset of 10⁴ spreads; one row 10²⁰ times as large; in any order of arrival."""
    rows = cohort(7, 1, d=300).astype(np.float64) + 1e4
    rows[0] *= scale
    points = embed(DenseRows(rows), np.arange(7), rule="test")
    for i in range(1, 7):
        for j in range(1, 7):
            # Squares are exact to 1e-13 of the norms' product; a square root halves nothing but digits.
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(
                math.dist(rows[i], rows[j]), rel=1e-6
            )
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(math.dist(rows[0], rows[1]), rel=1e-6)


def test_rules_on_inner_products_refuse_norms_beyond_float64s_squares():
    rows = np.ones((5, 3))
    rows[1] = 1e200
    for rule in (GeometricMedian(), Caf(num_byzantine=1), NormBoundedMean(max_norm=1.0)):
        with pytest.raises(ReplyError, match="row 1 of 5 has a norm beyond 1e154"):
            rule(rows)


def test_a_far_minority_does_not_blur_the_geometric_median_of_the_others():
    rows = cohort(9, 2, dtype="float64") + 1e3
    near = GeometricMedian()(np.concatenate([rows, np.full((4, 6), 1e9)])).value
    far = GeometricMedian()(np.concatenate([rows, np.full((4, 6), 1e20)])).value
    np.testing.assert_allclose(near, far, rtol=0, atol=1e-6)  # the direction differs by 1e-6 already
    assert (np.abs(near - 1e3) < 3).all()


def test_a_far_row_is_no_origin_although_it_comes_first():
    rows = np.random.default_rng(0).normal(size=(6, 7))
    far = np.concatenate([rows, np.full((1, 7), -1e6)])
    points = embed(DenseRows(far), canonical_order(far), rule="test")[1:]
    expected = rows[canonical_order(rows)]
    # Seen from 1e6 away, distances of 1 would be off by 1e-5.
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - points, axis=2),
        np.linalg.norm(expected[:, None] - expected, axis=2),
        atol=1e-9,
    )


def test_centered_clipping_in_several_steps_reads_every_block_of_its_centre():
    rng = np.random.default_rng(0)
    d = 50_000  # two blocks of three rows
    rows, center = rng.normal(size=(3, d)), rng.normal(size=d) * np.linspace(0, 5, d)
    expected = center
    for _ in range(3):
        away = rows - expected
        factors = np.minimum(1.0, 100.0 / np.linalg.norm(away, axis=1))
        expected = expected + (factors[:, None] * away).mean(axis=0)
    found = CenteredClipping(max_norm=100.0, iterations=3)(rows, state={"center": center}).value
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # some roundings of numbers up to 20


def test_half_of_the_rows_equal_and_one_more_is_the_geometric_median_exactly():
    rows = cohort(7, 0)
    rows[[0, 2, 3, 6]] = rows[0]
    np.testing.assert_array_equal(GeometricMedian()(rows).value, rows[0])


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_exact_search_for_the_least_diameter_is_a_search_of_all_subsets(seed, f):
    from itertools import combinations

    rng = np.random.default_rng(seed)
    n = 2 * f + int(rng.integers(1, 4))
    points = rng.integers(0, 4, size=(n, 2)).astype(float)  # many ties
    distances = ((points[:, None] - points) ** 2).sum(axis=2)
    best = min(combinations(range(n), n - f), key=lambda s: distances[np.ix_(s, s)].max())
    assert least_diameter_subset(distances, n - f) == list(best)


def test_mda_is_feasible_up_to_its_limit_and_refuses_beyond():
    rows = np.random.default_rng(0).normal(size=(45, 30))
    Mda(num_byzantine=20)(rows)
    with pytest.raises(ConfigError, match="num_byzantine=21 but the exact search ends at 20"):
        Mda(num_byzantine=21)


@pytest.mark.parametrize("rule", [Krum(num_byzantine=1), GeometricMedian(), Caf(num_byzantine=1)], ids=str)
def test_float64_updates_near_the_root_of_their_range_warn_of_nothing(rule):
    rows = np.random.default_rng(0).normal(size=(6, 40)) * 1e151
    rows[:2] *= 50.0
    assert np.isfinite(rule(rows).value).all()
