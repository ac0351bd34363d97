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
    **options: Any,
) -> jax.Array:
    """Drop-in for ``lax.conv_general_dilated`` in Flax layers: same values, gradients fast in loops.

    Pass it as ``conv_general_dilated=`` to ``nnx.Conv`` or Linen's ``Conv``. Two-dimensional NHWC × HWIO
    convolutions with stride 1, no dilation, no groups and no further options take the fast path, all others
    are ``lax``'s own.
    """
    spatial = lhs.ndim - 2
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    is_plain = (
        spatial == 2
        and layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and all(size == 1 for size in (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == 1
        and all(option is None for option in options.values())
    )
    if not is_plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **options,
        )
    pads = (
        lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        if isinstance(padding, str)
        else padding
    )
    (top, bottom), (left, right) = pads
    return _conv(lhs, rhs, ((top, bottom), (left, right)))


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


def _plain_conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolve ``(b, h, w, i)`` with ``(kh, kw, i, o)`` at stride 1."""
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolve with gradients as in :func:`_conv_backward`."""
    return _plain_conv(x, kernel, pads)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the output and what its gradients need."""
    return _plain_conv(x, kernel, pads), (x, kernel)


def _conv_backward(
    pads: Pads, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients for ``x`` and ``kernel``."""
    x, kernel = residuals
    kernel_height, kernel_width = kernel.shape[:2]
    (top, bottom), (left, right) = pads
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    x_pads = (
        (kernel_height - 1 - top, kernel_height - 1 - bottom),
        (kernel_width - 1 - left, kernel_width - 1 - right),
    )
    x_gradient = _plain_conv(gradient, flipped, x_pads)
    # The batch is summed over: it stands where the input features of a convolution do.
    kernel_gradient = _plain_conv(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), pads)
    return x_gradient, kernel_gradient.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)
