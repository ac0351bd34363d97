"""``UpdateRows``: reply − global, a block of columns at a time."""

import ml_dtypes
import numpy as np
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation.rows import blocks
from fl_plugins.dtypes import is_float
from fl_plugins.records import Layout, UpdateRows, from_named, to_named

from .named_arrays import models


def assembled(rows: UpdateRows, max_columns: int) -> np.ndarray:
    parts = list(blocks(rows, max_columns))
    assert [columns.start for columns, _ in parts] == list(range(0, rows.shape[1], max_columns))
    for columns, block in parts:
        assert block.shape == (rows.shape[0], columns.stop - columns.start)
        assert block.flags.writeable
        assert block.flags.c_contiguous
    return np.concatenate([block for _, block in parts], axis=1)


@given(models(), st.integers(1, 60), st.randoms(use_true_random=False))
def test_update_rows_equal_the_differences_for_any_block_size_and_key_order(named, max_columns, random):
    layout = Layout.of(named)
    rng = np.random.default_rng(0)
    replies = []
    for _ in range(3):
        keys = list(named)
        random.shuffle(keys)
        replies.append(
            {
                k: np.asarray(named[k] + rng.normal(size=named[k].shape)).astype(named[k].dtype)
                if is_float(named[k].dtype)
                else named[k]
                for k in keys
            }
        )
    rows = UpdateRows(layout, named, replies)
    assert rows.shape == (3, layout.size)
    assert rows.dtype == layout.compute_dtype
    if layout.size == 0:
        assert not list(blocks(rows, max_columns))
        return
    expected = np.array([layout.flatten(reply) - layout.flatten(named) for reply in replies])
    np.testing.assert_array_equal(assembled(rows, max_columns), expected)


def test_update_rows_read_fortran_ordered_replies_by_element():
    base = {"w": np.zeros((2, 3), np.float32)}
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    reply = to_named(ArrayRecord({"w": Array(np.asfortranarray(values))}))
    np.testing.assert_array_equal(assembled(UpdateRows(Layout.of(base), base, [reply]), 4), [np.arange(6)])


def test_update_rows_subtract_float64_replies_before_rounding():
    base = {"w": np.ones(1, np.float32)}
    reply = {"w": np.array([1 + 2.0**-30])}
    update = assembled(UpdateRows(Layout.of(base), base, [reply]), 1)
    assert update.dtype == np.float32
    assert update[0, 0] == 2.0**-30  # rounding the reply to float32 first would give 0


def test_update_rows_mix_every_float_width():
    base = {"w": np.array([1.0, 2.0], ml_dtypes.bfloat16)}
    replies = [{"w": np.array([2.0, 4.0], dtype)} for dtype in ("float16", "float32", "float64", "bfloat16")]
    np.testing.assert_array_equal(assembled(UpdateRows(Layout.of(base), base, replies), 5), [[1, 2]] * 4)


def test_update_rows_leave_received_buffers_alone():
    record = from_named({"w": np.ones(4, np.float32)})
    before = record["w"].data
    rows = UpdateRows(Layout.of(record), to_named(record), [to_named(record)])
    for _, block in blocks(rows, 4):
        block += 1
    assert record["w"].data == before
    np.testing.assert_array_equal(assembled(rows, 4), np.zeros((1, 4)))


def test_a_difference_that_overflows_is_infinite_without_a_warning():
    base = {"w": np.full(1, -3e38, np.float32)}
    assert np.isinf(assembled(UpdateRows(Layout.of(base), base, [{"w": -base["w"]}]), 1)).all()
