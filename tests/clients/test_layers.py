"""The fast convolution is lax's convolution: same values, same gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from clients.layers import Conv, conv_general_dilated, max_pool_2x2

LAYOUT = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 2), (1, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3)), ((4, 4), (4, 4))])
def test_values_and_gradients_equal_those_of_plain_lax(size, kernel, padding):
    x, w = arrays((3, *size, 2), (*kernel, 2, 4))
    options = {"window_strides": (1, 1), "padding": padding, "dimension_numbers": LAYOUT}
    value, pull = jax.vjp(partial(conv_general_dilated, **options), x, w)
    expected, expected_pull = jax.vjp(partial(lax.conv_general_dilated, **options), x, w)
    np.testing.assert_array_equal(value, expected)
    (cotangent,) = arrays(value.shape, seed=1)
    # Sums of at most 3*8*8 products of size ~1 in another order: float32 rounding.
    for gradient, reference in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-4)


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["SAME", "VALID", ((2, 0), (1, 3)), ((0, 5), (4, 4))]),
)
def test_strided_values_and_gradients_equal_those_of_plain_lax(size, kernel, strides, padding):
    if padding == "VALID":
        kernel = tuple(map(min, kernel, size))  # lax refuses windows that fit nowhere
    x, w = arrays((2, *size, 2), (*kernel, 2, 3))
    options = {"window_strides": strides, "padding": padding, "dimension_numbers": LAYOUT}
    value, pull = jax.vjp(partial(conv_general_dilated, **options), x, w)
    expected, expected_pull = jax.vjp(partial(lax.conv_general_dilated, **options), x, w)
    np.testing.assert_array_equal(value, expected)
    (cotangent,) = arrays(value.shape, seed=1)
    # Sums of at most 2*9*9 products of size ~1 in another order: float32 rounding.
    for gradient, reference in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": ((1, 1), (1, 1))},
        {"feature_group_count": 2},
        {"precision": "highest"},
    ],
)
def test_what_has_no_fast_path_is_left_to_lax(options):
    (x,) = arrays((2, 8, 8, 2))
    ours = Conv(2, 4, (3, 3), rngs=nnx.Rngs(0), **options)
    theirs = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0), **options)

    def gradients(module):
        return jax.grad(lambda x: jnp.sum(jnp.square(module(x))))(x)

    np.testing.assert_array_equal(ours(x), theirs(x))
    np.testing.assert_array_equal(gradients(ours), gradients(theirs))


def test_one_dimensional_and_batched_inputs_work_as_in_flax():
    for kernel, shape in (((3,), (2, 9, 2)), ((3, 3), (5, 2, 8, 8, 2)), ((3, 3), (8, 8, 2))):
        (x,) = arrays(shape)
        np.testing.assert_array_equal(
            Conv(2, 4, kernel, rngs=nnx.Rngs(0))(x), nnx.Conv(2, 4, kernel, rngs=nnx.Rngs(0))(x)
        )


def test_linen_takes_the_drop_in_too():
    (x,) = arrays((2, 8, 8, 2))
    ours = linen.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated)
    theirs = linen.Conv(4, (3, 3))
    variables = theirs.init(jax.random.key(0), x)
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 5, 7, 2)])
def test_max_pool_equals_flax_in_values_and_gradients(shape):
    (x,) = arrays(shape)  # no ties among continuous values
    value, pull = jax.vjp(max_pool_2x2, x)
    expected, expected_pull = jax.vjp(partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)), x)
    np.testing.assert_array_equal(value, expected)
    (cotangent,) = arrays(value.shape, seed=1)
    np.testing.assert_array_equal(pull(cotangent)[0], expected_pull(cotangent)[0])
