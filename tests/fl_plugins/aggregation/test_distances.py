import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import distances, pairwise_squared_distances
from fl_plugins.aggregation.gram import FLOAT64, inner_products
from fl_plugins.aggregation.rows import BLOCK_COLUMNS, DenseRows, spread_columns
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


# The guarantee. A pair that float64 computes keeps at least 1e-8 of its norms: 8 of 16 digits.
RTOL = 1e-5


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


@pytest.fixture
def dtypes_used(monkeypatch) -> list[str]:
    """The dtypes of the products that are computed of all columns."""
    used: list[str] = []

    def spied(rows, order, *, dtype=FLOAT64, **rest):
        if rows.shape[1] > distances._SAMPLED_COLUMNS:
            used.append(dtype.name)
        return inner_products(rows, order, dtype=dtype, **rest)

    monkeypatch.setattr(distances, "inner_products", spied)
    return used


def test_rows_that_do_not_cancel_are_multiplied_in_float32_within_the_guarantee(dtypes_used):
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(14, 30_000)).astype(np.float32)
    rows[3] *= 1e8  # no pair with it cancels
    assert_distances(rows, RTOL)
    assert dtypes_used == ["float32"]


def test_float32_sums_whose_roundings_all_go_the_same_way_stay_within_the_guarantee(dtypes_used):
    rng = np.random.default_rng(7)
    rows = np.full((4, 40_000), 0.1, np.float32)
    rows[1] = -1.3
    rows[2, ::2] = 0.7
    rows[2, 1::2] = -0.7
    rows[3] = rng.choice([-0.3, 0.3], 40_000)
    assert_distances(rows, RTOL)
    assert dtypes_used == ["float32"]


@pytest.mark.parametrize(
    ("scale", "offset", "same"),
    [(1.0, 1e4, 0), (1e-20, 0.0, 0), (1e19, 0.0, 0), (1.0, 0.0, 5_000)],
    ids=["offset", "underflow", "overflow", "equal but for the columns outside the sample"],
)
def test_rows_that_float32_cannot_multiply_are_multiplied_in_float64(dtypes_used, scale, offset, same):
    rng = np.random.default_rng(8)
    rows = (offset + scale * rng.normal(size=(5, 5_000))).astype(np.float32)
    if same:
        rows[4] = rows[2] + np.where(np.arange(5_000) == 100, 1e-3, 0).astype(np.float32)
    assert_distances(rows, RTOL)
    assert dtypes_used[-1] == "float64"


def test_a_pair_that_cancels_only_where_the_sample_does_not_look_is_found(dtypes_used):
    rng = np.random.default_rng(9)
    rows = rng.normal(size=(5, 9_000)).astype(np.float32)
    rows[1], rows[2] = rows[0], rows[0]
    sampled = spread_columns(DenseRows(np.arange(9_000.0)[None]), distances._SAMPLED_COLUMNS)[0].astype(int)
    for row in (1, 2):
        rows[row, sampled] = rng.normal(size=len(sampled))
    assert_distances(rows, RTOL)
    assert dtypes_used == ["float32", "float64"]
