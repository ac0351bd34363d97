from functools import partial

import numpy as np
import pytest

from fl_plugins.aggregation import pipeline
from fl_plugins.aggregation.combinations import combine
from fl_plugins.aggregation.order_statistics import around_median, trimmed
from fl_plugins.aggregation.rows import DenseRows, SelectedRows
from fl_plugins.errors import ReplyError
from fl_plugins.records import Layout, UpdateRows

N, SIZES = 6, {"a": 700, "b": 90, "c": 1_500}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 272 columns: some within one array, some over two or three, and a last, narrower one."""
    monkeypatch.setattr(pipeline, "COMPILED_MIN_ELEMENTS", 0)
    monkeypatch.setattr(pipeline, "_ELEMENTS", 300 * N)


def make(dtype: str = "float32") -> tuple[UpdateRows, np.ndarray]:
    """Updates of three arrays as a strategy has them, and as one array."""
    rng = np.random.default_rng(0)
    base = {key: rng.normal(size=size).astype("float32") for key, size in SIZES.items()}
    replies = [
        {key: (values + 0.1 * rng.normal(size=values.size)).astype(dtype) for key, values in base.items()}
        for _ in range(N)
    ]
    dense = [
        np.concatenate([reply[key].astype("float32") - base[key] for key in sorted(SIZES)])
        for reply in replies
    ]
    return UpdateRows(Layout.of(base), base, replies), np.array(dense)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_kernel_gets_the_same_rows_whether_it_subtracts_itself_or_not(dtype):
    rows, dense = make(dtype)
    some = np.array([4, 1, 0, 5])
    for given, expected in ((rows, dense), (SelectedRows(rows, some), dense[some])):
        for rule in (partial(trimmed, num_trimmed=1), partial(around_median, num_kept=3)):
            found = rule(given, rule="test").value
            np.testing.assert_array_equal(found, rule(DenseRows(expected), rule="test").value)
        ordered = np.sort(expected.astype(np.float64), axis=0)[1:-1].mean(axis=0)
        # One rounding of a mean of values below 1.
        np.testing.assert_allclose(
            trimmed(given, num_trimmed=1, rule="test").value, ordered, rtol=0, atol=1e-7
        )


def test_only_arrays_that_need_no_cast_are_handed_on_as_they_lie():
    rows, _ = make()
    half, _ = make("float16")
    assert rows.differences(0, 700) is not None
    assert rows.differences(1, 700) is None
    assert half.differences(0, 700) is None
    base, [reply] = rows.differences(710, 50, np.array([3]))
    out = np.empty((1, 50), np.float32)
    rows.read_into(710, out, np.array([3]))
    np.testing.assert_array_equal(reply - base, out[0])


@pytest.mark.parametrize("count", [2, 4, 5])
def test_a_compiled_combination_is_the_float64_sum_rounded_once(count):
    rows, dense = make()
    order = np.array([3, 0, 5, 1, 2, 4])
    shares = np.zeros(N)
    shares[:count] = np.random.default_rng(1).dirichlet(np.ones(count))
    found = combine(rows, order, shares, rule="test")
    expected = shares @ dense[order].astype(np.float64)
    # One rounding to float32, of values below 1.
    np.testing.assert_allclose(found, expected, rtol=2**-24, atol=1e-15)
    assert found.dtype == np.float32


def test_a_row_that_is_not_finite_is_named_as_it_was_given():
    _, dense = make()
    dense[2, 2_100] = np.nan
    with pytest.raises(ReplyError, match="row 2 of 5 is nan at column 2100"):
        combine(DenseRows(dense), np.array([5, 4, 2, 1, 0, 3]), np.array([0.2] * 5 + [0]), rule="test")
    # A row that plays no part is not read.
    found = combine(DenseRows(dense), np.arange(N), np.array([0.5, 0.5, 0, 0, 0, 0]), rule="test")
    assert np.isfinite(found).all()
