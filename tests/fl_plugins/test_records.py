"""Arrays of any dtype and shape through records, malformed ones refused; integers combined."""

import io
import itertools

import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_plugins.dtypes import EXTENDED
from fl_plugins.errors import PreconditionError, StructureError
from fl_plugins.records import combine_integers, from_named, from_ndarray, to_named, to_ndarray

from .named_arrays import bits

FLOATS = ["float16", "float32", "float64", *EXTENDED]
COUNTING = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SHAPES = [(), (0,), (3,), (2, 0, 3), (2, 3)]


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
