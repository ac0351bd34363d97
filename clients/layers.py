"""Convolution and pooling whose gradients stay on XLA:CPU's fast path inside loops.

The gradient of a convolution is itself a convolution, with batch and feature axes in each other's place.
As JAX writes it, XLA:CPU runs that one 4 to 20 times slower inside a loop (and local training is a loop)
than a convolution of plain NHWC × HWIO layout. The functions here have the same values and gradients, with
the gradients written as plain NHWC × HWIO convolutions of transposed arrays. On GPUs nothing is lost.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """Drop-in for ``lax.conv_general_dilated`` in Flax layers: same values, gradients fast in loops.

    Pass it as ``conv_general_dilated=`` to ``nnx.Conv`` or Linen's ``Conv``. Two-dimensional NHWC × HWIO
    convolutions of any stride and padding, without dilation, groups and further options, take the fast path;
    all others are ``lax``'s own.
    """
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if not (
        lhs.ndim == 4
        and layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and all(size == 1 for size in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and all(option is None for option in options.values())
    ):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            **options,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    (top, bottom), (left, right) = padding
    down, across = window_strides
    return _conv(lhs, rhs, (down, across), ((top, bottom), (left, right)))


Conv: Callable[..., nnx.Conv] = functools.partial(nnx.Conv, conv_general_dilated=conv_general_dilated)
"""``nnx.Conv`` with :func:`conv_general_dilated`."""


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Return the maximum over 2×2 windows of ``(b, h, w, c)``: ``(b, h // 2, w // 2, c)``.

    As ``nnx.max_pool(x, (2, 2), (2, 2))``, except that equal maxima share the gradient.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top, bottom = x[:, 0:height:2], x[:, 1:height:2]
    rows = jnp.maximum(top, bottom)
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def _plain_conv(x: jax.Array, kernel: jax.Array, pads: Pads, strides: Strides = (1, 1)) -> jax.Array:
    """Convolve ``(b, h, w, i)`` with ``(kh, kw, i, o)``."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    """Convolve with gradients as in :func:`_conv_backward`."""
    return _plain_conv(x, kernel, pads, strides)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the output and what its gradients need."""
    return _plain_conv(x, kernel, pads, strides), (x, kernel)


def _conv_backward(
    strides: Strides, pads: Pads, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients for ``x`` and ``kernel``.

    A strided convolution is one of stride 1 of which only every s-th output is kept: its gradient has zeros
    between. They are written out, since a dilated convolution would leave the fast path.
    """
    x, kernel = residuals
    if strides != (1, 1):
        between = [(0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0)]
        gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), between)
    x_pads, kernel_pads = [], []
    for size, window, given, (before, _) in zip(
        x.shape[1:3], kernel.shape[:2], gradient.shape[1:3], pads, strict=True
    ):
        # What makes the results as large as x and kernel; the last rows of x may have been in no window.
        x_pads.append((window - 1 - before, size - given + before))
        kernel_pads.append((before, window + given - 1 - size - before))
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    x_gradient = _plain_conv(gradient, flipped, (x_pads[0], x_pads[1]))
    # The batch is summed over: it stands where the input features of a convolution do.
    kernel_gradient = _plain_conv(
        x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), (kernel_pads[0], kernel_pads[1])
    )
    return x_gradient, kernel_gradient.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)
