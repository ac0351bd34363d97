import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import in_memory
from fl_plugins.aggregation.order_statistics import COUNTED_COLUMNS, around_median, select_ranks, trimmed
from fl_plugins.aggregation.rows import DenseRows
from fl_plugins.errors import ReplyError


@pytest.mark.parametrize("n", range(1, 12))
def test_the_network_sorts_every_0_1_input_for_every_range_of_ranks(n):
    """By the 0-1 principle (Knuth 5.3.4, Theorem Z) it then sorts every input."""
    inputs = np.array(list(itertools.product([0.0, 1.0], repeat=n))).T
    ordered = np.sort(inputs, axis=0)
    for first, stop in itertools.combinations(range(n + 1), 2):
        np.testing.assert_array_equal(select_ranks(inputs, first, stop), ordered[first:stop])


@given(st.integers(1, 150), st.integers(0, 10**6))
def test_ranks_of_larger_cohorts_agree_with_numpy(n, seed):
    rng = np.random.default_rng(seed)
    block = rng.normal(size=(n, 5)).astype(np.float32)
    before = block.copy()
    first = int(rng.integers(0, n))
    stop = int(rng.integers(first + 1, n + 1))
    np.testing.assert_array_equal(select_ranks(block, first, stop), np.sort(block, axis=0)[first:stop])
    np.testing.assert_array_equal(block, before)


def kept_counts(rows: np.ndarray, num_trimmed: int) -> np.ndarray:
    """How much of each row is kept, averaged over every order in which equal values could be sorted."""
    n, d = rows.shape
    counts = np.zeros(n)
    for column in range(d):
        values = rows[:, column].tolist()
        ordered = sorted(values)[num_trimmed : n - num_trimmed]
        for row, value in enumerate(values):
            counts[row] += ordered.count(value) / values.count(value)
    return counts


@given(st.integers(1, 9), st.integers(1, 6), st.integers(2, 9), st.integers(0, 10**6))
def test_contribution_is_the_share_of_kept_values_with_ties_shared(n, d, levels, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, levels, (n, d)).astype(float)
    f = int(rng.integers(0, (n - 1) // 2 + 1))
    found = trimmed(DenseRows(rows), num_trimmed=f, rule="test").contribution
    # counts are sums of at most 54 rationals < 1: 1e-12 is rounding
    np.testing.assert_allclose(found, kept_counts(rows, f) / (d * (n - 2 * f)), rtol=0, atol=1e-12)


def test_contribution_is_exact_where_only_some_columns_have_ties():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, COUNTED_COLUMNS)).astype(np.float32)
    rows[:, ::3] = 0.0
    found = trimmed(DenseRows(rows), num_trimmed=2, rule="test").contribution
    np.testing.assert_allclose(found, kept_counts(rows, 2) / rows.shape[1] / 3, rtol=0, atol=1e-12)


def test_sums_beyond_float64_stay_within_the_kept_values_and_warn_of_nothing():
    rows = np.full((4, 3), 1.7e308)
    rows[0] = -1.7e308
    np.testing.assert_array_equal(
        trimmed(DenseRows(rows), num_trimmed=1, rule="test").value, np.full(3, 1.7e308)
    )


def means_near_the_median(rows: np.ndarray, kept: int) -> np.ndarray:
    """Per column the mean of the ``kept`` values nearest the median, the lower first, in float64."""
    means = []
    for column in rows.astype(np.float64).T:
        median = np.median(column)
        means.append(np.mean(sorted(column, key=lambda value: (abs(value - median), value))[:kept]))
    return np.array(means)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "f"), [(2, 0), (3, 1), (8, 2), (11, 3)])
def test_compiled_kernels_are_the_oracles_to_the_last_column_of_a_narrower_block(monkeypatch, n, f, dtype):
    """Below COMPILED_MIN_ELEMENTS NumPy computes, so no other test comes here."""
    monkeypatch.setattr(in_memory, "COMPILED_MIN_ELEMENTS", 0)
    monkeypatch.setattr(in_memory, "_LEAST_ELEMENTS", 300 * n)
    rng = np.random.default_rng(n)
    # Quarters: medians and differences are exact, so ties are the same ties for the oracle.
    rows = (rng.integers(-400, 400, (n, 1_021)) / 4).astype(dtype)
    if f:
        rows[0, ::7] = 1e30
    ordered = np.sort(rows.astype(np.float64), axis=0)
    # A mean of values below 100 is off by a rounding of their sum and one of the result.
    for found, expected in (
        (trimmed(DenseRows(rows), num_trimmed=f, rule="test"), ordered[f : n - f].mean(axis=0)),
        (around_median(DenseRows(rows), num_kept=n - f, rule="test"), means_near_the_median(rows, n - f)),
    ):
        assert found.value.dtype == dtype
        np.testing.assert_allclose(found.value, expected, rtol=0, atol=200 * np.finfo(dtype).eps)
    shuffled = DenseRows(rows[rng.permutation(n)])
    for rule in (partial(trimmed, num_trimmed=f), partial(around_median, num_kept=n - f)):
        np.testing.assert_array_equal(
            rule(shuffled, rule="test").value, rule(DenseRows(rows), rule="test").value
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_compiled_kernel_refuses_a_row_that_is_not_finite_even_where_it_is_trimmed(monkeypatch, bad):
    monkeypatch.setattr(in_memory, "COMPILED_MIN_ELEMENTS", 0)
    rows = np.random.default_rng(0).normal(size=(5, 600)).astype(np.float32)
    rows[3, -1] = bad
    with pytest.raises(ReplyError, match=r"test: row 3 of 5 is .* at column 599"):
        trimmed(DenseRows(rows), num_trimmed=2, rule="test")


@pytest.mark.parametrize("least", [0, 10**9], ids=["compiled", "numpy"])
def test_zeros_have_no_sign_whatever_arrives_first(monkeypatch, least):
    monkeypatch.setattr(in_memory, "COMPILED_MIN_ELEMENTS", least)
    rows = np.array(list(itertools.product([0.0, -0.0], repeat=3))).T
    assert not np.signbit(trimmed(DenseRows(rows), num_trimmed=1, rule="test").value).any()


def test_contribution_of_many_columns_is_counted_all_over_them():
    rows = np.random.default_rng(0).normal(size=(4, 4 * COUNTED_COLUMNS)).astype(np.float32)
    rows[0, rows.shape[1] // 2 :] = 99.0  # trimmed there, kept in half of the others
    found = trimmed(DenseRows(rows), num_trimmed=1, rule="test").contribution
    # Half of the 2048 that are counted there: a standard error of 0.011 · 0.5 · 0.5; five of them.
    assert found[0] == pytest.approx(0.125, abs=0.014)


@pytest.mark.parametrize("least", [0, 10**9], ids=["compiled", "numpy"])
def test_equal_rows_are_their_own_mean_although_their_sum_is_rounded(monkeypatch, least):
    monkeypatch.setattr(in_memory, "COMPILED_MIN_ELEMENTS", least)
    rows = np.tile(np.random.default_rng(0).normal(size=600), (7, 1))
    assert (sum(rows) / 7 != rows[0]).any()
    assert (sum(rows) * (1 / 7) != rows[0]).any()
    np.testing.assert_array_equal(trimmed(DenseRows(rows), num_trimmed=0, rule="test").value, rows[0])
