"""``Layout``: named arrays to one vector and back, whatever their order; other models refused by name."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import DivergenceError, StructureError
from fl_plugins.records import Layout, UpdateRows, from_named

from .named_arrays import MODEL, bits, models


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
