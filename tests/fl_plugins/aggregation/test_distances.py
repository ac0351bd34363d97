import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import pairwise_squared_distances
from fl_plugins.aggregation.rows import BLOCK_COLUMNS
from fl_plugins.errors import ReplyError


def exact(rows: np.ndarray) -> np.ndarray:
    """Sum of squared differences, pair by pair; the differences of float32 numbers are exact in float64."""
    n = len(rows)
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            difference = rows[i].astype(np.float64) - rows[j].astype(np.float64)
            result[i, j] = math.fsum(difference * difference)
    return result


def assert_distances(rows: np.ndarray, rtol: float) -> np.ndarray:
    found = pairwise_squared_distances(rows)
    np.testing.assert_allclose(found, exact(rows), rtol=rtol, atol=0)
    np.testing.assert_array_equal(found, found.T)
    assert (found >= 0).all()
    assert (np.diag(found) == 0).all()
    return found


def gram_float32(rows: np.ndarray) -> np.ndarray:
    """The usual formula in the input's dtype, as a negative control."""
    gram = rows @ rows.T
    norms = np.diag(gram)
    return norms[:, None] + norms - 2 * gram


# The guarantee is 1e-6: a pair that keeps at least 1e-8 of its norms loses at most 8 of float64's 16 digits.
RTOL = 1e-6


def test_b1_close_parameters_of_scale_1_do_not_cancel():
    """B1: 200k float32 parameters of scale 1 whose d² is 0.036 came out as 0.22, or negative."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=200_000).astype(np.float32)
    rows = (base + 3e-4 * rng.normal(size=(8, base.size))).astype(np.float32)
    found = assert_distances(rows, RTOL)
    off = found[~np.eye(8, dtype=bool)]
    assert 0.03 < off.min() < off.max() < 0.045
    naive = gram_float32(rows)
    assert np.abs(naive - found)[~np.eye(8, dtype=bool)].max() > 0.01  # the hazard is real here


@pytest.mark.parametrize("offset", [1e4, 1e6, -3e4])
def test_a_common_offset_does_not_cancel(offset):
    rng = np.random.default_rng(1)
    assert_distances((offset + rng.normal(size=(6, 3000))).astype(np.float32), RTOL)


def test_a_thousand_with_spread_a_thousandth_does_not_cancel():
    rng = np.random.default_rng(2)
    assert_distances((1e3 + 1e-3 * rng.normal(size=(6, 3000))).astype(np.float32), RTOL)
    # in float64 ‖x‖² / d² is 10¹²: the Gram formula alone would keep 4 digits
    assert_distances(1e3 + 1e-3 * rng.normal(size=(6, 3000)), RTOL)


def test_one_row_of_norm_1e20_does_not_spoil_the_others_distances():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(6, 500)).astype(np.float32)
    rows[4] = 1e20
    found = assert_distances(rows, RTOL)
    np.testing.assert_array_equal(
        np.delete(found, 4, 0)[:, :4], pairwise_squared_distances(rows)[[0, 1, 2, 3, 5], :4]
    )
    rows *= np.float32(1e15)
    assert np.isfinite(assert_distances(rows, RTOL)).all()


def test_float64_distances_that_overflow_are_infinite_and_never_nan():
    rows = np.array([[1e200, 0], [-1e200, 0], [0, 1.0], [0, 2.0]])
    found = pairwise_squared_distances(rows)
    assert np.isinf(found[0, 1:]).all()
    assert np.isinf(found[1, 2:]).all()
    assert found[2, 3] == 1
    assert (np.diag(found) == 0).all()


def test_identical_rows_are_exactly_0_apart():
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(5, BLOCK_COLUMNS + 7)).astype(np.float32)
    rows[3] = rows[1]
    found = assert_distances(rows, RTOL)
    assert found[1, 3] == 0
    assert np.count_nonzero(found) == 18


@given(st.integers(1, 7), st.integers(1, 9), st.sampled_from(["float32", "float64"]), st.integers(0, 10**6))
def test_permuting_rows_permutes_distances_bit_for_bit(n, d, dtype, seed):
    rng = np.random.default_rng(seed)
    rows = rng.choice([-1.0, 0.0, 0.1, 1e3, 1e3 + 1e-4], size=(n, d)).astype(dtype)
    order = rng.permutation(n)
    np.testing.assert_array_equal(
        pairwise_squared_distances(rows[order]), pairwise_squared_distances(rows)[np.ix_(order, order)]
    )
    assert_distances(rows, RTOL)


def test_permutations_are_bit_exact_where_blas_sums_in_blocks():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(23, 5000)).astype(np.float32)
    found = pairwise_squared_distances(rows)
    for _ in range(5):
        order = rng.permutation(len(rows))
        np.testing.assert_array_equal(pairwise_squared_distances(rows[order]), found[np.ix_(order, order)])


def test_a_non_finite_row_is_named():
    rows = np.zeros((3, BLOCK_COLUMNS + 2))
    rows[:, 0] = [0, 1, 2]
    rows[2, -1] = np.inf
    with pytest.raises(ReplyError, match=rf"row 2 of 3 is inf at column {BLOCK_COLUMNS + 1}"):
        pairwise_squared_distances(rows)
