"""The encoding is unbiased, as precise as it says, and refuses what it cannot say."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import ConfigError, EncodingError
from fl_plugins.secagg import FixedPoint
from fl_plugins.secagg.fixed_point import centered, round_at_random, to_ring
from fl_plugins.secagg.parameters import ring_levels
from fl_plugins.secagg.prg import MaskStream

KEY = bytes(range(32))


def _encoding(**changes: Any) -> FixedPoint:
    values = {"num_bits": 32, "cohort": 10, "clip": 2.0, "max_weight": 64.0, "num_entries": 6}
    return FixedPoint(**{**values, "metrics": {"loss": 10.0}, **changes})


@pytest.mark.parametrize("num_bits", [16, 32])
def test_the_weighted_mean_is_that_of_plain_averaging_within_the_stated_error(num_bits: int) -> None:
    d, n = 20_000, 10
    encoding = _encoding(num_bits=num_bits, num_entries=d)
    rng = np.random.default_rng(0)
    updates = rng.uniform(-2, 2, (n, d)).astype(np.float32)
    weights = [float(w) for w in rng.integers(1, 65, n)]
    losses = rng.uniform(-10, 10, n).tolist()
    total = np.zeros(encoding.length, f"<u{num_bits // 8}")
    for update, weight, loss in zip(updates, weights, losses, strict=True):
        total += encoding.encode([update], weight=weight, metrics={"loss": loss}).words
    decoded = encoding.decode(total, n)
    mean = np.average(updates.astype(np.float64), axis=0, weights=weights)
    deviation = np.sqrt(n) * 2.0 / (2 * encoding.levels) * 64 / sum(weights)
    errors = decoded.update - mean
    assert np.abs(errors).max() < 6 * deviation  # 2·10⁴ entries, sums of ten: beyond 6 σ 10⁻⁵ of the times
    assert abs(errors.mean()) < 4 * deviation / np.sqrt(d)
    assert decoded.weight == sum(weights)  # max_weight is a power of two: whole weights are exact
    assert decoded.metrics["loss"] == pytest.approx(np.average(losses, weights=weights), abs=1e-9)
    assert decoded.clipped_fraction == 0


def test_rounding_is_unbiased_also_in_float32_steps_and_nearest_rounding_is_not() -> None:
    value, times = 100_000.25, 400_000  # a quarter of the times up
    rounded = round_at_random(np.full(times, value), MaskStream(KEY))
    standard_error = np.sqrt(0.25 * 0.75 / times)
    assert set(rounded.tolist()) == {100_000, 100_001}
    assert abs(rounded.mean() - value) < 4 * standard_error
    assert abs(np.rint(value) - value) > 4 * standard_error  # the control


def test_whole_numbers_are_not_rounded_at_all() -> None:
    whole = np.arange(-1000.0, 1000.0)
    np.testing.assert_array_equal(round_at_random(whole, MaskStream(KEY)), whole)


def test_two_encodings_of_one_update_are_rounded_differently() -> None:
    update = [np.full(64, 0.1234567)]
    encoding = _encoding(num_entries=64, num_bits=16)
    first, second = (encoding.encode(update, metrics={"loss": 0.0}).words for _ in range(2))
    assert (first != second).any()


@given(n=st.integers(1, 40), num_bits=st.sampled_from([16, 32]), sign=st.sampled_from([-1.0, 1.0]))
def test_the_largest_values_of_a_whole_cohort_do_not_wrap(n: int, num_bits: int, sign: float) -> None:
    encoding = _encoding(num_bits=num_bits, cohort=n)
    total = np.zeros(encoding.length, f"<u{num_bits // 8}")
    for _ in range(n):
        update = [np.full((2, 3), sign * 2.0)]
        total += encoding.encode(update, weight=64.0, metrics={"loss": sign * 10.0}).words
    decoded = encoding.decode(total, n)
    np.testing.assert_allclose(decoded.update, sign * 2.0, rtol=1e-12)
    assert decoded.metrics["loss"] == pytest.approx(sign * 10.0, rel=1e-12)
    assert decoded.weight == 64.0 * n


def test_a_ring_that_would_wrap_is_refused_with_its_numbers() -> None:
    assert ring_levels(16, 3640) == 8
    message = "the sum of 3641 clients must stay within ±32767 in a ring of 16 bits, which leaves 7 levels"
    with pytest.raises(EncodingError, match=re.escape(message)):
        _encoding(num_bits=16, cohort=3641)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_]
)
def test_any_shape_and_real_dtype_is_encoded_by_value(dtype: Any) -> None:
    arrays = [np.array([[0, 1], [1, 0]]).astype(dtype), np.array(1).astype(dtype), np.zeros((0, 3), dtype)]
    encoding = _encoding(num_entries=5)
    encoded = encoding.encode([*arrays], weight=64.0, metrics={"loss": 1.0})
    decoded = encoding.decode(encoded.words, 1)
    np.testing.assert_allclose(decoded.update, [0, 1, 1, 0, 1], atol=2e-8)  # 1 / L


def test_strided_and_read_only_arrays_are_left_as_they_are() -> None:
    whole = np.linspace(-5, 5, 12).reshape(3, 4)
    part = whole[:, ::2]
    part.flags.writeable = False
    before = whole.copy()
    encoded = _encoding().encode([part], metrics={"loss": 0.0})
    np.testing.assert_array_equal(whole, before)
    assert encoded.num_clipped == np.count_nonzero(np.abs(part) > 2)


def test_clipping_is_counted_here_and_its_fraction_travels_in_the_sum() -> None:
    encoding = _encoding()
    some = encoding.encode([np.array([3.0, -2.5, 2.0, -2.0, 0.0, 9.0])], metrics={"loss": 99.0})
    none = encoding.encode([np.zeros(6)], metrics={"loss": 1.0})
    assert (some.num_clipped, some.clipped_metrics) == (3, ("loss",))
    assert (none.num_clipped, none.clipped_metrics) == (0, ())
    decoded = encoding.decode(some.words + none.words, 2)
    assert decoded.clipped_fraction == pytest.approx(0.25)
    np.testing.assert_allclose(decoded.update, [1, -1, 1, -1, 0, 1], atol=1e-5)
    assert decoded.metrics["loss"] == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("update", "options", "message"),
    [
        ([np.array([0, 0, np.nan, 0, 0, 0])], {}, "not finite"),
        ([np.array([0, 0, np.inf, 0, 0, 0])], {}, "not finite"),
        ([np.zeros(5)], {}, "does not have the 6 entries"),
        ([np.zeros(3), np.zeros(4)], {}, "does not have the 6 entries"),
        ([np.zeros(6, complex)], {}, "complex128 is not real"),
        ([np.zeros(6)], {"weight": 65.0}, "weight=65.0"),
        ([np.zeros(6)], {"weight": 0.0}, "weight=0.0"),
        ([np.zeros(6)], {"weight": -1.0}, "weight=-1.0"),
        ([np.zeros(6)], {"weight": float("nan")}, "weight=nan"),
        ([np.zeros(6)], {"metrics": {"loss": float("inf")}}, "metric loss=inf"),
        ([np.zeros(6)], {"metrics": {}}, r"metrics \[\]"),
        ([np.zeros(6)], {"metrics": {"loss": 0.0, "num_examples": 1.0}}, "num_examples"),
    ],
)
def test_what_cannot_be_said_is_refused(update: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        _encoding().encode(update, **{"metrics": {"loss": 0.0}, **options})


def test_a_sum_whose_ones_or_weights_are_wrong_is_refused() -> None:
    encoding = _encoding()
    words = encoding.encode([np.zeros(6)], metrics={"loss": 0.0}).words
    for num_clients, spoiled in ((2, words), (0, words), (11, words), (1, words + np.uint32(1))):
        with pytest.raises(EncodingError, match="check ones add up to"):
            encoding.decode(spoiled, num_clients)
    heavy = words.copy()
    heavy[4 : encoding.length - 6] = 0
    with pytest.raises(EncodingError, match="weights add up to 0"):
        encoding.decode(heavy, 1)
    with pytest.raises(EncodingError, match="uint16"):
        encoding.decode(words.astype("<u2"), 1)


@pytest.mark.parametrize("changes", [{"num_bits": 64}, {"clip": 0.0}, {"max_weight": -1.0}, {"cohort": 0}])
def test_parameters_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _encoding(**changes)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_integer_vectors_pass_through_the_ring(values: list[int]) -> None:
    # The seam for whatever makes integer vectors: noise of distributed differential privacy, for one.
    integers = np.array(values, np.int64)
    np.testing.assert_array_equal(centered(to_ring(integers, 32)), integers)
