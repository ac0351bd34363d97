import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import DenseRows, Rows, canonical_order, non_finite_rows, threads
from fl_plugins.aggregation.rows import BLOCK_COLUMNS, as_rows, block_width, blocks, map_blocks
from fl_plugins.aggregation.threads import in_threads
from fl_plugins.errors import PreconditionError, StructureError
from fl_plugins.records import Layout, UpdateRows


def test_dense_and_record_rows_are_rows():
    base = {"w": np.zeros(2)}
    assert isinstance(DenseRows(np.zeros((1, 2))), Rows)
    assert isinstance(UpdateRows(Layout.of(base), base, [base]), Rows)


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        (">f4", "float32"),
        (">f8", "float64"),
    ],
)
def test_b2_narrow_floats_are_computed_in_float32(dtype, computed):
    """B2: distances in float16 were all NaN, so the first client always won."""
    values = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rows = DenseRows(values)
    assert rows.dtype == computed
    ((columns, block),) = blocks(rows, 10)
    assert (columns, block.dtype) == (slice(0, 3), computed)
    np.testing.assert_array_equal(block, np.arange(6).reshape(2, 3))


@given(st.integers(1, 12), st.integers(1, 15))
def test_blocks_are_fresh_and_cover_every_column_once(d, max_columns):
    values = np.arange(2.0 * d).reshape(2, d)
    values.flags.writeable = False
    seen = []
    for columns, block in blocks(DenseRows(values), max_columns):
        assert block.shape == (2, columns.stop - columns.start)
        assert block.shape[1] <= max_columns
        assert block.flags.c_contiguous
        seen.append(block.copy())
        block[:] = -1
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), values)


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64", "longdouble", "object"])
def test_b2_updates_that_are_not_floats_are_refused(dtype):
    """B2: int8 wrapped around and gave a self-distance of 256."""
    with pytest.raises(StructureError, match=r"updates have dtype .* but floats are needed"):
        DenseRows(np.zeros((2, 3), dtype))


def test_no_rows_no_columns_and_other_ranks_are_refused():
    with pytest.raises(PreconditionError, match="krum: n=0 updates"):
        as_rows(np.zeros((0, 3)), rule="krum")
    with pytest.raises(StructureError, match="krum: the updates have d=0"):
        as_rows(np.zeros((3, 0)), rule="krum")
    with pytest.raises(StructureError, match=r"shape \(3,\) but \(n, d\) is needed"):
        as_rows(np.zeros(3), rule="krum")


def test_non_finite_rows_names_every_bad_row():
    values = np.zeros((5, BLOCK_COLUMNS + 3), np.float32)
    values[1, 0], values[3, -1], values[4, 5] = np.nan, -np.inf, 3e38
    assert non_finite_rows(values) == [1, 3]


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_canonical_order_is_pythons_lexicographic_order(n, d, seed):
    values = np.random.default_rng(seed).integers(0, 3, (n, d)).astype(float)
    expected = sorted(range(n), key=lambda i: values[i].tolist())  # sorted() is stable
    assert canonical_order(values).tolist() == expected


def test_canonical_order_reads_on_where_the_first_block_does_not_decide():
    values = np.zeros((3, 2 * BLOCK_COLUMNS + 1))
    values[:, -1] = [2, 0, 1]
    assert canonical_order(values).tolist() == [1, 2, 0]


def test_canonical_order_of_a_thousand_rows_that_differ_one_by_one():
    n = sys.getrecursionlimit() + 1
    values = np.triu(np.ones((n, n), np.float32))
    assert canonical_order(values).tolist() == list(range(n))[::-1]


def test_blocks_in_work_hold_a_tenth_of_a_large_input_however_many_cores_there_are(monkeypatch):
    monkeypatch.setattr(threads, "_num_cores", lambda: 64)
    n, d = 8, 1 << 20
    width = block_width(n, d, elements=1 << 20)
    both, lock, most, now = threading.Barrier(2), threading.Lock(), 0, 0

    def work(columns, block):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        if columns.stop <= 2 * width:
            both.wait(timeout=60)  # two do run at once
        with lock:
            now -= 1

    map_blocks(DenseRows(np.zeros((n, d), np.float32)), work, width=width)
    assert 2 <= most <= n * d / 10 / (n * width)


def test_work_that_starts_threads_itself_computes_where_it_is():
    found = in_threads(lambda i: in_threads(lambda j: 10 * i + j, range(3)), range(5))
    assert found == [[10 * i + j for j in range(3)] for i in range(5)]


def test_of_several_errors_the_first_items_is_raised_and_threads_work_again_after_it():
    def work(number):
        if number >= 40:
            raise ValueError(number)

    with pytest.raises(ValueError, match="40"):
        in_threads(work, range(100))
    assert in_threads(str, range(3)) == ["0", "1", "2"]
