"""A weighted sum whose bits depend on what is added, and not on order, grouping or who adds."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_plugins.aggregation.core import Foldable
from fl_plugins.aggregation.mean import Mean
from fl_plugins.aggregation.rows import DenseRows
from fl_plugins.aggregation.streaming import WeightedSum, power_of_two_above
from fl_plugins.errors import StructureError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6).filter(
    lambda value: value == 0 or abs(value) > 1e-3
)
"""Magnitudes that span 2³⁰: less than 2⁵³/n² for the n used here, so that the sum must be exact."""


@st.composite
def terms(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(FLOATS, min_size=d, max_size=d), min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(1, 2**29 - 1), min_size=n, max_size=n))
    return np.array(rows, np.float32), np.array(weights, np.float64)


def summed(rows: NDArray[np.float32], weights: NDArray[np.float64]) -> WeightedSum:
    total = WeightedSum.zeros(rows.shape[1])
    total.add_rows(DenseRows(rows), weights)
    return total


def exact(rows: NDArray[np.float32], weights: NDArray[np.float64]) -> list[Fraction]:
    return [
        sum((Fraction(w) * Fraction(float(x)) for w, x in zip(weights, column, strict=True)), Fraction(0))
        for column in rows.T
    ]


@given(terms())
def test_high_plus_low_is_the_exact_sum(given_: tuple[NDArray[np.float32], NDArray[np.float64]]) -> None:
    rows, weights = given_
    total = summed(rows, weights)
    found = [Fraction(high) + Fraction(low) for high, low in zip(total.high, total.low, strict=True)]
    assert found == exact(rows, weights)


@given(terms(), st.randoms(use_true_random=False), st.integers(1, 4))
def test_order_and_grouping_leave_every_bit_of_the_mean(given_, random, parts: int) -> None:
    rows, weights = given_
    whole = Mean()(rows, weights).value
    order = list(range(len(rows)))
    random.shuffle(order)
    merged = WeightedSum.zeros(rows.shape[1])
    for part in range(parts):
        chosen = order[part::parts]
        if chosen:
            merged.merge(summed(rows[chosen], weights[chosen]), scale=0.25)
    assert Mean().from_sum(merged, weights * 0.25, dtype=rows.dtype).value.tobytes() == whole.tobytes()
    assert Mean()(rows[order], weights[order]).value.tobytes() == whole.tobytes()


def test_the_mean_is_the_correctly_rounded_one_where_a_plain_sum_loses_everything() -> None:
    rows = np.array([[2.0**60], [1.0], [-(2.0**60)], [2.0]], np.float32)
    assert Mean()(rows).value.tolist() == [0.75]
    assert float(rows.astype(np.float64).sum()) == 2.0  # the negative control: 1 is lost in 2⁶⁰


def test_sums_in_parts_agree_with_fsum_where_plain_float64_sums_differ() -> None:
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(1000, 50)) * 10.0 ** rng.integers(-4, 4, (1000, 50))).astype(np.float32)
    weights = rng.integers(1, 10**7, 1000).astype(np.float64)
    expected = [math.fsum((weights * column).tolist()) for column in rows.T.astype(np.float64)]
    merged = WeightedSum.zeros(50)
    plain = np.zeros(50)
    for part in range(3):
        merged.merge(summed(rows[part::3], weights[part::3]))
        plain += weights[part::3] @ rows[part::3].astype(np.float64)
    assert (merged.high + merged.low).tolist() == expected  # both are the exact sum, rounded once
    assert (plain != weights @ rows.astype(np.float64)).any()


def test_many_columns_are_added_on_several_cores_as_on_one() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(5, 20_001)).astype(np.float32)
    weights = rng.integers(1, 100, 5).astype(np.float64)
    one = WeightedSum.zeros(20_001)
    for row, weight in zip(rows, weights, strict=True):
        one.add_block(slice(0, 20_001), row[None], np.array([weight]))
    many = summed(rows, weights)
    assert one.high.tobytes() == many.high.tobytes()
    assert one.low.tobytes() == many.low.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("short", [True, False], ids=["exact products", "rounded products"])
def test_compiled_additions_have_the_bits_of_numpys(dtype: type, short: bool) -> None:
    rng = np.random.default_rng(0)
    n, d = 21, 65_541  # three calls of the kernel, the last with terms to spare, and a rest of columns
    rows = (rng.normal(size=(n, d)) * 10.0 ** rng.integers(-12, 12, (n, d))).astype(dtype)
    weights = rng.integers(1, 1000, n) * (1.0 if short else 0.1)
    compiled, plain = WeightedSum.zeros(d), WeightedSum.zeros(d)
    compiled.add_rows(DenseRows(rows), weights)
    plain.add_block(slice(0, d), rows, weights)
    np.testing.assert_array_equal(compiled.high, plain.high)
    np.testing.assert_array_equal(compiled.low, plain.low)
    assert (compiled.low != 0).any()


def test_a_row_that_is_not_finite_harms_no_other_column_in_compiled_code() -> None:
    rows = np.ones((9, 1 << 18), np.float32)
    rows[8, 5] = np.inf
    total = summed(rows, np.full(9, 2.0))
    assert np.flatnonzero(~np.isfinite(total.high)).tolist() == [5]
    assert set(np.delete(total.high, 5)) == {18.0}


def test_an_empty_sum_takes_another_over_as_if_it_had_added_it() -> None:
    rng = np.random.default_rng(5)
    other = WeightedSum(rng.normal(size=9_000), 1e-17 * rng.normal(size=9_000))
    other.high[:3], other.low[2:4] = -0.0, -0.0
    empty, added = WeightedSum.zeros(9_000), WeightedSum(np.zeros(9_000), np.zeros(9_000))
    for total in (empty, added):
        total.merge(other, scale=0.125)
    assert (empty.high.tobytes(), empty.low.tobytes()) == (added.high.tobytes(), added.low.tobytes())
    empty.merge(other)
    np.testing.assert_allclose(empty.high, 1.125 * other.high, rtol=1e-15)  # one rounding of float64


def test_what_is_not_finite_stays_where_it_is() -> None:
    total = summed(np.array([[1.0, np.inf], [2.0, 1.0]], np.float32), np.ones(2))
    assert total.divided_by(2.0, np.dtype(np.float32)).tolist()[0] == 1.5
    assert not np.isfinite(total.divided_by(2.0, np.dtype(np.float32))[1])


def test_largest_float64_rows_with_any_weights_do_not_overflow() -> None:
    rows = np.full((3, 1), np.finfo(np.float64).max / 4)
    assert Mean()(rows, np.array([1e300, 3e300, 2e-300])).value == rows[0]


@pytest.mark.parametrize("values", [[1e308] * 5, [5e-324], [3.0, 5.0, 1.0]])
def test_the_power_of_two_is_finite_and_above_the_sum(values: list[float]) -> None:
    scale = power_of_two_above(values)
    assert math.frexp(scale)[0] == 0.5
    assert math.fsum(value / scale for value in values) <= 32  # 2¹⁰²³ is the largest there is


def test_sums_of_different_models_are_not_added() -> None:
    with pytest.raises(StructureError, match="2 elements and 3"):
        WeightedSum.zeros(2).merge(WeightedSum.zeros(3))
    with pytest.raises(StructureError, match="float64"):
        WeightedSum(np.zeros(2), np.zeros(2, np.float32))


def test_mean_says_that_it_can_be_folded() -> None:
    assert isinstance(Mean(), Foldable)
