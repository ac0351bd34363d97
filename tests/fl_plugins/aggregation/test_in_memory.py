from functools import partial

import numpy as np
import pytest

from fl_plugins.aggregation import in_memory
from fl_plugins.aggregation.combinations import combine
from fl_plugins.aggregation.in_memory import SLACK, runs_of, through_kernel
from fl_plugins.aggregation.order_statistics import around_median, trimmed
from fl_plugins.aggregation.rows import DenseRows, SelectedRows
from fl_plugins.errors import ReplyError
from fl_plugins.records import Layout, UpdateRows

N, SIZES = 6, {"a": 1_700, "b": 90, "c": 2_500}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Calls of 256 columns: several within an array, and what is left of each, gathered."""
    monkeypatch.setattr(in_memory, "COMPILED_MIN_ELEMENTS", 0)
    monkeypatch.setattr(in_memory, "_LEAST_ELEMENTS", 300 * N)


def shifted(values: np.ndarray, elements: int) -> np.ndarray:
    """Return the values in a buffer that begins so many elements after a multiple of 64 bytes."""
    raw = np.zeros(values.nbytes + 128, np.uint8)
    first = -raw.ctypes.data % 64 + elements * values.itemsize
    found = raw[first : first + values.nbytes].view(values.dtype)
    found[:] = values
    return found


def make(dtype: str = "float32") -> tuple[UpdateRows, np.ndarray]:
    """Updates of three arrays as a strategy has them, aligned in many ways, and as one array."""
    rng = np.random.default_rng(0)
    base = {key: shifted(rng.normal(size=size).astype("float32"), 3) for key, size in SIZES.items()}
    replies = [
        {
            key: shifted((values + 0.1 * rng.normal(size=values.size)).astype(dtype), 5 * row % 16)
            for key, values in base.items()
        }
        for row in range(N)
    ]
    dense = [
        np.concatenate([reply[key].astype("float32") - base[key] for key in sorted(SIZES)])
        for reply in replies
    ]
    return UpdateRows(Layout.of(base), base, replies), np.array(dense)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_kernel_gets_the_rows_whether_it_reads_them_where_they_lie_or_not(dtype):
    rows, dense = make(dtype)
    some = np.array([4, 1, 0, 5])
    for given, expected in ((rows, dense), (SelectedRows(rows, some), dense[some])):
        ordered = np.sort(expected.astype(np.float64), axis=0)[1:-1].mean(axis=0)
        # One rounding of a mean of values below 1.
        np.testing.assert_allclose(
            trimmed(given, num_trimmed=1, rule="test").value, ordered, rtol=0, atol=1e-7
        )
        for rule in (partial(trimmed, num_trimmed=1), partial(around_median, num_kept=3)):
            found = rule(given, rule="test").value
            np.testing.assert_array_equal(found, rule(DenseRows(expected), rule="test").value)


def test_more_rows_than_can_be_read_at_once_are_gathered_with_the_same_result(monkeypatch):
    rows, dense = make()
    expected = trimmed(DenseRows(dense), num_trimmed=2, rule="test").value
    monkeypatch.setattr(in_memory, "DIRECT_MAX_ROWS", N - 1)
    monkeypatch.setattr("fl_plugins.aggregation.order_statistics.DIRECT_MAX_ROWS", N - 1)
    np.testing.assert_array_equal(trimmed(rows, num_trimmed=2, rule="test").value, expected)


def test_windows_are_aligned_and_stay_within_their_buffers():
    rows, dense = make()
    starts: list[int] = []

    def kernel(skipped, vectors):
        base, *others = (
            vector[skip : skip + 256] for skip, vector in zip(skipped.tolist(), vectors, strict=True)
        )
        for vector in vectors:
            assert vector.ctypes.data % 64 == 0
            assert vector.shape == (256 + SLACK,)
        starts.append(int(skipped.max()))
        return np.array([other - base for other in others])[2]

    value = through_kernel(rows, kernel, width=256, check=None)
    np.testing.assert_array_equal(value, dense[2])
    assert max(starts) > 0  # some of them were read where they lie


def test_only_arrays_that_need_no_cast_are_read_where_they_lie():
    assert [run.size for run in runs_of(make()[0])] == [SIZES[key] for key in sorted(SIZES)]
    assert runs_of(make("float16")[0]) == []
    assert runs_of(DenseRows(np.zeros((2, 9), np.float16))) == []
    assert runs_of(DenseRows(np.zeros((9, 2), np.float32).T)) == []


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
