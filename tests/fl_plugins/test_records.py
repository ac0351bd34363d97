import io
import itertools

import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_plugins.aggregation.rows import blocks
from fl_plugins.dtypes import EXTENDED, is_float
from fl_plugins.errors import DivergenceError, PreconditionError, StructureError
from fl_plugins.records import (
    Layout,
    UpdateRows,
    combine_integers,
    from_named,
    from_ndarray,
    to_named,
    to_ndarray,
)

FLOATS = ["float16", "float32", "float64", *EXTENDED]
COUNTING = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SHAPES = [(), (0,), (3,), (2, 0, 3), (2, 3)]


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def sample(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every kind of bit pattern, NaN payloads included (bool may only be 0 and 1)."""
    dtype = EXTENDED.get(name) or np.dtype(name)
    rng = np.random.default_rng(0)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    raw = rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize).astype(np.uint8)
    return raw.view(dtype).reshape(shape)


# -- Array ⇄ ndarray ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape"), list(itertools.product(FLOATS + COUNTING, SHAPES)))
def test_d5_every_dtype_and_shape_round_trips_bit_for_bit(name, shape):
    """D5: Flower alone brings bfloat16 back as raw ``V2``."""
    values = sample(name, shape)
    back = to_ndarray(from_ndarray(values))
    assert (back.dtype, back.shape) == (values.dtype, shape)
    assert bits(back) == bits(values)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_d5_what_stock_flower_serialises_is_read_with_its_dtype(name):
    values = sample(name, (2, 3))
    back = to_ndarray(Array(values))
    assert back.dtype == values.dtype
    assert bits(back) == bits(values)


def test_stock_flower_reads_what_is_serialised_here():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(from_ndarray(values).numpy(), values)
    assert bits(from_ndarray(values.astype(ml_dtypes.bfloat16)).numpy()) == bits(
        values.astype(ml_dtypes.bfloat16)
    )


def test_d5_jax_arrays_are_accepted_and_bfloat16_is_exact():
    import jax.numpy as jnp

    values = jnp.linspace(-3, 3, 7, dtype=jnp.bfloat16)
    back = to_ndarray(from_ndarray(values))
    assert back.dtype == ml_dtypes.bfloat16
    assert bits(back) == bits(np.asarray(values))


def test_to_ndarray_views_the_arrays_own_bytes_read_only():
    array = Array(np.arange(1000.0))
    view = to_ndarray(array)
    assert not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(array.data, dtype=np.uint8))


def test_fortran_order_is_kept_without_a_copy_and_has_the_same_elements():
    values = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    array = Array(values)
    view = to_ndarray(array)
    np.testing.assert_array_equal(view, values)
    assert np.shares_memory(view, np.frombuffer(array.data, dtype=np.uint8))


@pytest.mark.parametrize("code", [">f2", ">f4", ">f8", ">i4", ">u8"])
def test_big_endian_arrays_become_native(code):
    values = np.arange(5).astype(code)
    for array in (Array(values), from_ndarray(values)):
        back = to_ndarray(array)
        assert back.dtype.isnative
        assert not back.flags.writeable
        np.testing.assert_array_equal(back, values)


def test_non_contiguous_arrays_are_sent_by_value():
    values = np.arange(24.0).reshape(4, 6)[::2, ::-3]
    np.testing.assert_array_equal(to_ndarray(from_ndarray(values)), values)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1 + 2j]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.zeros(2, dtype="V2"),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=np.longdouble),
        np.array([object()]),
    ],
    ids=lambda values: str(values.dtype),
)
def test_unsupported_dtypes_are_refused_both_ways(values):
    with pytest.raises(StructureError, match="is not supported"):
        from_ndarray(values)
    if not values.dtype.hasobject:
        with pytest.raises(StructureError, match="is not supported"):
            to_ndarray(Array(values))


def altered(**changes) -> Array:
    fields = vars(Array(np.arange(6, dtype=np.float32).reshape(2, 3)))
    return Array(**{name: changes.get(name, fields[name]) for name in ("dtype", "shape", "stype", "data")})


def npy(header: str, payload: bytes = b"\0" * 24) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + payload


GOOD = Array(np.arange(6, dtype=np.float32).reshape(2, 3)).data


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": GOOD[:-1]}, "needs 24 bytes of data but 23 came"),
        ({"data": GOOD + b"\0"}, "needs 24 bytes of data but 25 came"),
        ({"data": GOOD[:50]}, "truncated"),
        ({"data": b""}, "not an .npy file"),
        ({"data": GOOD[:9]}, "not an .npy file"),
        ({"data": b"PK" + GOOD[2:]}, "not an .npy file"),
        ({"data": GOOD[:6] + b"\x09" + GOOD[7:]}, "not an .npy file"),
        ({"shape": (3, 2)}, "declares shape"),
        ({"dtype": "int32"}, "declares dtype int32"),
        ({"dtype": "bfloat16"}, "declares dtype bfloat16"),
        ({"dtype": "float64"}, "declares dtype float64"),
        ({"dtype": "no-such"}, "'no-such' is not supported"),
        ({"stype": "torch"}, "'torch' is not supported"),
        ({"data": pickled()}, "declares dtype float32 but its data has '|O'"),
        ({"data": npy("{'descr': '<f4', 'fortran_order': False}")}, "does not parse"),
        ({"data": npy("__import__('os').getcwd()")}, "does not parse"),
        ({"data": npy("(" * 9000)}, "does not parse"),
        ({"data": npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}")}, "plain array"),
        ({"data": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3)}")}, "plain array"),
        ({"data": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}")}, "plain array"),
        (
            {
                "data": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
                "shape": (2**32, 2**32),
            },
            "bytes of data but 24 came",
        ),
    ],
)
def test_malformed_arrays_are_refused_with_the_reason(changes, message):
    assert to_ndarray(altered()).shape == (2, 3)
    with pytest.raises(StructureError, match=message):
        to_ndarray(altered(**changes))


def test_a_bool_array_of_other_bytes_is_refused():
    array = Array(np.array([True, False]))
    array.data = array.data[:-1] + b"\x07"
    with pytest.raises(StructureError, match="only the bytes 0 and 1"):
        to_ndarray(array)


def test_records_keep_their_order_and_name_the_broken_array():
    named = {"z": np.ones(2), "a": np.array(3, dtype=np.int8)}
    record = from_named(named)
    assert list(record) == list(to_named(record)) == ["z", "a"]
    record["a"].data = record["a"].data[:-1]
    with pytest.raises(StructureError, match="array 'a': shape"):
        to_named(record)
    with pytest.raises(StructureError, match="array 'x': an array: dtype 'complex128'"):
        from_named({"x": np.array(1j)})


# -- Layout ---------------------------------------------------------------------------------------------


@st.composite
def models(draw) -> dict[str, np.ndarray]:
    """Named arrays of finite values over all dtypes and degenerate shapes."""
    named = {}
    for key in draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=5)):
        dtype = np.dtype(
            draw(st.sampled_from(["float16", "float32", "float64", "bfloat16", "int64", "bool"]))
        )
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        values = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape) * 8
        named[key] = values.astype(dtype)
    return named


@given(models(), st.randoms(use_true_random=False))
def test_flatten_and_unflatten_are_inverse_for_every_dtype_and_any_order(named, random):
    layout = Layout.of(named)
    vector = layout.flatten(named)
    assert vector.shape == (layout.size,)
    assert vector.dtype == (np.float64 if any(v.dtype == np.float64 for v in named.values()) else np.float32)
    keys = list(named)
    random.shuffle(keys)
    like = {key: named[key] for key in keys}
    back = layout.unflatten(vector, like=like)
    assert list(back) == keys
    for key, values in named.items():
        assert (back[key].dtype, back[key].shape) == (values.dtype, values.shape)
        assert bits(back[key]) == bits(values)
    assert list(layout.unflatten(vector)) == list(layout.float_keys)


def test_b3_reordered_keys_never_mix_layers():
    """B3: Flower pairs arrays by position in several places."""
    first = {"a": np.zeros(2), "b": np.full(2, 10.0)}
    second = {"b": np.full(2, 10.0), "a": np.zeros(2)}
    layout = Layout.of(first)
    assert layout == Layout.of(from_named(second))
    assert layout.fingerprint == Layout.of(second).fingerprint
    np.testing.assert_array_equal(layout.flatten(second), layout.flatten(first))


def test_the_fingerprint_depends_on_names_shapes_and_dtypes():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.int32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].astype(np.float16), "b": base["b"]},
        {"a": base["a"]},
    ]
    prints = {Layout.of(named).fingerprint for named in [base, *others]}
    assert len(prints) == 5
    assert all(len(text) == 64 for text in prints)


def test_integer_arrays_are_not_part_of_the_vector():
    named = {"count": np.array(2**60 + 1), "kernel": np.ones((2, 2), np.float32), "mask": np.array([True])}
    layout = Layout.of(named)
    assert layout.float_keys == ("kernel",)
    assert layout.other_keys == ("count", "mask")
    assert layout.size == 4
    assert layout.unflatten(layout.flatten(named), like=named)["count"] == 2**60 + 1


MODEL = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32), "steps": np.array(1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "node 3: array 'bias' is missing; use"),
        ({"bias": None, "offset": np.zeros(3)}, "'bias' is missing and array 'offset' is not in the model"),
        ({"extra": np.zeros(3)}, "node 3: array 'extra' is not in the model"),
        ({"bias": np.zeros(1)}, r"node 3: array 'bias' has shape \(1,\) but the model's is \(3,\)"),
        ({"bias": np.array(0.0)}, r"array 'bias' has shape \(\)"),
        ({"kernel": np.zeros((3, 2))}, r"'kernel' has shape \(3, 2\)"),
        ({"bias": np.zeros(3, int)}, "'bias' has dtype int64 but the model's is float32"),
        ({"steps": np.array(1.0)}, "'steps' has dtype float64 but the model's is int64"),
        ({"steps": np.array(1, np.int32)}, "'steps' has dtype int32"),
        ({"bias": np.zeros(3, complex)}, "node 3: array 'bias': dtype 'complex128' is not supported"),
    ],
)
def test_b8_other_keys_shapes_or_kinds_are_refused_by_name(changes, message):
    """B8: Flower broadcasts shape (1,) over (3,) and turns counters into floats."""
    reply = {key: value for key, value in (MODEL | changes).items() if value is not None}
    layout = Layout.of(MODEL)
    with pytest.raises(StructureError, match=message):
        layout.check(reply, owner="node 3")
    with pytest.raises(StructureError):
        layout.flatten(reply)
    with pytest.raises(StructureError):
        UpdateRows(layout, MODEL, [MODEL, reply])


def test_a_float_of_another_width_is_accepted():
    Layout.of(MODEL).check(MODEL | {"bias": np.zeros(3, np.float16), "kernel": np.zeros((2, 3))})


@pytest.mark.parametrize("value", [7e4, -7e4, np.nan, np.inf])
def test_a_value_that_does_not_fit_its_dtype_raises_naming_the_array(value):
    layout = Layout.of({"a": np.zeros(2, np.float32), "half": np.zeros(2, np.float16)})
    with pytest.raises(DivergenceError, match=r"array 'half': .* does not fit float16"):
        layout.unflatten(np.array([1e6, 0, 0, value], np.float32))


def test_unflatten_rounds_to_nearest_and_refuses_another_length():
    layout = Layout.of({"a": np.zeros(1, ml_dtypes.bfloat16)})
    # bfloat16 has 8 significant bits: 1 + 1.6·2⁻⁸ lies nearer to 1 + 2·2⁻⁸ than to 1.
    assert layout.unflatten(np.array([1 + 1.6 * 2**-8], np.float32))["a"][0] == 1 + 2**-7
    with pytest.raises(StructureError, match=r"shape \(2,\) but the model has 1"):
        layout.unflatten(np.zeros(2, np.float32))


def test_unflatten_gives_arrays_that_do_not_share_memory_with_the_vector():
    layout = Layout.of({"a": np.zeros(3)})
    vector = np.zeros(3)
    layout.unflatten(vector)["a"][:] = 1
    assert not vector.any()


# -- UpdateRows -----------------------------------------------------------------------------------------


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


# -- Integers -------------------------------------------------------------------------------------------


@given(
    st.sampled_from(COUNTING).flatmap(
        lambda name: st.lists(
            hnp.arrays(name, (2, 3), elements=hnp.from_dtype(np.dtype(name))), min_size=1, max_size=7
        )
    )
)
def test_combine_integers_is_the_lower_median_of_each_element(values):
    combined = combine_integers(values)
    assert (combined.dtype, combined.shape) == (values[0].dtype, (2, 3))
    for index in np.ndindex(2, 3):
        # Python integers: exact at any width.
        assert int(combined[index]) == sorted(int(v[index]) for v in values)[(len(values) - 1) // 2]


def test_b8_integer_state_keeps_its_dtype_and_is_exact_beyond_2_to_the_53():
    """B8: Flower averages counters into floats."""
    values = [np.array(2**53 + k) for k in (1, 2, 3)]
    combined = combine_integers(values)
    assert (combined.dtype, combined.shape, int(combined)) == (np.int64, (), 2**53 + 2)


def test_fewer_than_half_liars_cannot_move_an_integer_out_of_the_honest_range():
    for liars in ([0, 0], [10**9, 10**9], [0, 10**9]):
        assert 5 <= combine_integers([np.array(v) for v in [5, 6, 7, *liars]]) <= 7
    assert combine_integers([np.array(v) for v in [0, 0, 0, 5, 6]]) == 0  # a majority can


def test_combine_integers_refuses_what_is_not_comparable():
    with pytest.raises(PreconditionError, match="n=0"):
        combine_integers([])
    with pytest.raises(StructureError, match=r"shape \(1,\)"):
        combine_integers([np.zeros(3, int), np.zeros(1, int)])
    with pytest.raises(StructureError, match="int32"):
        combine_integers([np.zeros(3, int), np.zeros(3, np.int32)])
    with pytest.raises(StructureError, match="is a float"):
        combine_integers([np.zeros(3)])
