import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation.trimmed_mean import TrimmedMean, trimmed_mean
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError


@given(st.integers(1, 4999), st.integers(1, 2000))
def test_b7_a_fraction_means_the_decimal_that_was_written(ten_thousandths, n):
    """B7: ``int(0.29 * 100)`` is 28."""
    text = f"0.{ten_thousandths:04d}"
    assert TrimmedMean(fraction=float(text)).num_trimmed(n) == math.floor(Fraction(text) * n)


def test_b7_29_percent_of_100_is_29():
    assert TrimmedMean(fraction=0.29).num_trimmed(100) == 29


@pytest.mark.parametrize(("fraction", "n", "needed"), [(0.2, 4, 5), (0.1, 9, 10), (0.3, 3, 4), (0.07, 1, 15)])
def test_b7_a_fraction_that_trims_nothing_is_refused(fraction, n, needed):
    """B7: Flower's default of 0.2 trims nothing for n <= 4 and says nothing; one attacker decides."""
    rule = TrimmedMean(fraction=fraction)
    with pytest.raises(PreconditionError, match=f"of n={n} updates trims nothing.* needs n >= {needed}"):
        rule.check(n)
    with pytest.raises(PreconditionError):
        rule(np.arange(float(n))[:, None])
    rule.check(needed)
    assert rule.num_trimmed(needed) == 1


@pytest.mark.parametrize("f", [1, 2, 7])
def test_n_of_at_most_2f_is_refused(f):
    rule = TrimmedMean(num_byzantine=f)
    with pytest.raises(
        PreconditionError, match=f"^trimmed_mean: n={2 * f} .*needs n > 2f, that is n >= {2 * f + 1}; raise"
    ):
        rule.check(2 * f)
    rule.check(2 * f + 1)


@pytest.mark.parametrize("fraction", [0.0, 0.5, -0.1, 1.0, math.nan, math.inf])
def test_a_fraction_outside_0_to_a_half_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"must be in \(0, 0.5\)"):
        TrimmedMean(fraction=fraction)


@pytest.mark.parametrize("fraction", [1, True, "0.2"])
def test_a_fraction_that_is_no_float_is_refused(fraction):
    with pytest.raises(ConfigTypeError, match="fraction="):
        TrimmedMean(fraction=fraction)


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_a_count_that_is_no_whole_number_is_refused(value):
    with pytest.raises(ConfigTypeError, match="num_byzantine="):
        TrimmedMean(num_byzantine=value)


def test_a_negative_count_is_refused():
    with pytest.raises(ConfigError, match="num_byzantine=-1 but it must be >= 0"):
        TrimmedMean(num_byzantine=-1)


def test_exactly_one_of_count_and_fraction_is_given():
    for arguments in ({}, {"num_byzantine": 1, "fraction": 0.2}):
        with pytest.raises(ConfigError, match="exactly one of them"):
            TrimmedMean(**arguments)


def test_count_and_fraction_agree():
    rows = np.random.default_rng(0).normal(size=(10, 5))
    np.testing.assert_array_equal(trimmed_mean(rows, fraction=0.2), trimmed_mean(rows, num_byzantine=2))


def test_float32_rows_are_summed_in_float64():
    rows = np.random.default_rng(0).uniform(1, 2, size=(99, 50)).astype(np.float32)
    exact = [np.float32(math.fsum(column) / 99) for column in rows.T.tolist()]
    np.testing.assert_array_equal(trimmed_mean(rows, num_byzantine=0), exact)


def test_equal_values_average_to_themselves_in_every_dtype():
    rows = np.full((3, 2), 0.1)  # (0.1 + 0.1 + 0.1) / 3 is 0.10000000000000002
    np.testing.assert_array_equal(trimmed_mean(rows, num_byzantine=0), rows[0])
