"""The fast convolution is a convolution: the values and the gradients of the definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from clients.layers import FEW_CHANNELS, Conv, conv_general_dilated, max_pool_2x2

LAYOUT = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_definition(x, w, strides, padding):
    """Kernel position by kernel position, without any convolution.

    Not lax's own: on CPUs, JAX 0.10.2 may read beside an array where padding is negative, and it is so in
    gradients of windows that lie in the padding.
    """
    (rows, columns), (down, across) = w.shape[:2], strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    return sum(
        x[:, i : i + height : down, j : j + width : across] @ w[i, j]
        for i in range(rows)
        for j in range(columns)
    )


def check_values_and_gradients(ours, definition, x, w):
    (cotangent,) = arrays(jax.eval_shape(definition, x, w).shape, seed=1)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, x, w, cotangent):
        value, pull = jax.vjp(function, x, w)
        return value, *pull(cotangent)

    actual, expected = (value_and_gradients(function, x, w, cotangent) for function in (ours, definition))
    for result, reference in zip(actual, expected, strict=True):
        # Sums of at most 9*9*9 products of size ~1 in another order: float32 rounding.
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 2), (1, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3)), ((4, 4), (4, 4))])
@pytest.mark.parametrize("channels", [(2, 4), (8, 9)])
def test_values_and_gradients_are_those_of_the_definition(size, kernel, padding, channels):
    x, w = arrays((3, *size, channels[0]), (*kernel, *channels))
    options = {"window_strides": (1, 1), "padding": padding, "dimension_numbers": LAYOUT}
    definition = partial(by_definition, strides=options["window_strides"], padding=padding)
    check_values_and_gradients(partial(conv_general_dilated, **options), definition, x, w)


@settings(max_examples=40)
@given(
    batch=st.sampled_from([2, 9]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.tuples(st.sampled_from([1, 2, 9]), st.sampled_from([1, 3, 8])),
    padding=st.sampled_from(["SAME", "VALID", ((2, 0), (1, 3)), ((0, 5), (4, 4))]),
)
def test_strided_values_and_gradients_are_those_of_the_definition(
    batch, size, kernel, strides, channels, padding
):
    if padding == "VALID":
        kernel = tuple(map(min, kernel, size))  # lax refuses windows that fit nowhere
    x, w = arrays((batch, *size, channels[0]), (*kernel, *channels))
    options = {"window_strides": strides, "padding": padding, "dimension_numbers": LAYOUT}
    definition = partial(by_definition, strides=options["window_strides"], padding=padding)
    check_values_and_gradients(partial(conv_general_dilated, **options), definition, x, w)


@pytest.mark.parametrize(("size", "padding"), [((4, 5), ((2, 0), (0, 0))), ((1, 1), ((2, 0), (1, 3)))])
def test_gradients_of_windows_that_lie_in_the_padding_read_no_other_memory(size, padding):
    # lax's defect (see by_definition) shows from 8 channels on.
    x, w = arrays((2, *size, 9), (2, 1, 9, 8))
    ours = partial(conv_general_dilated, window_strides=(1, 1), padding=padding, dimension_numbers=LAYOUT)
    check_values_and_gradients(ours, partial(by_definition, strides=(1, 1), padding=padding), x, w)


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
        ours, theirs = (make(2, 4, kernel, rngs=nnx.Rngs(0))(x) for make in (Conv, nnx.Conv))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_linen_takes_the_drop_in_too():
    (x,) = arrays((2, 8, 8, 2))
    ours = linen.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated)
    theirs = linen.Conv(4, (3, 3))
    variables = theirs.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)


def lowered(channels, batch=2):
    x, w = arrays((batch, 8, 8, channels[0]), (3, 3, *channels))

    def loss(x, w):
        return jnp.sum(conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT) ** 2)

    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w).as_text()


def test_few_output_channels_are_matrix_products_on_cpus_and_convolutions_elsewhere(monkeypatch):
    assert lowered((3, FEW_CHANNELS - 1)).count("stablehlo.convolution") == 0
    # Forward and the kernel's gradient have the kernel's output channels, the other gradient its input ones.
    assert lowered((3, FEW_CHANNELS)).count("stablehlo.convolution") == 2
    assert lowered((FEW_CHANNELS, FEW_CHANNELS)).count("stablehlo.convolution") == 3
    monkeypatch.setattr("clients.layers.MAX_PATCHES", 2 * 8 * 8 * 27 - 1)
    assert lowered((3, 3)).count("stablehlo.convolution") == 3
    monkeypatch.undo()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert lowered((3, 3)).count("stablehlo.convolution") == 3


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 5, 7, 2)])
def test_max_pool_equals_flax_in_values_and_gradients(shape):
    (x,) = arrays(shape)  # no ties among continuous values
    value, pull = jax.vjp(max_pool_2x2, x)
    expected, expected_pull = jax.vjp(partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)), x)
    np.testing.assert_array_equal(value, expected)
    (cotangent,) = arrays(value.shape, seed=1)
    np.testing.assert_array_equal(pull(cotangent)[0], expected_pull(cotangent)[0])
