"""Convolution and pooling whose gradients stay on XLA:CPU's fast path inside loops.

The gradient of a convolution is itself a convolution, with batch and feature axes in each other's place.
As JAX writes it, XLA:CPU runs that one 4 to 20 times slower inside a loop (and local training is a loop)
than a convolution of plain NHWC × HWIO layout. The functions here have the same values and gradients, with
the gradients written as plain NHWC × HWIO convolutions of transposed arrays. On GPUs nothing is lost.

XLA:CPU's convolution is slow too where it has few output channels, as that of a small first layer or the
gradient for its output. On CPUs these are one matrix product with the *patches*, the contents of all windows
side by side (im2col). See :data:`FEW_CHANNELS`.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")

FEW_CHANNELS = 8
"""With fewer output channels, stride 1 is a product: measured by ``benchmarks/trainer.py --convolutions``."""

MAX_PATCHES = 2**21
"""... unless its patches have more numbers than this (8 MB in float32), which no cache would hold."""

_plain = contextvars.ContextVar("plain_convolutions", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Within it :func:`conv_general_dilated` is ``lax``'s own: for who reads the convolutions in a jaxpr."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


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
    """Drop-in for ``lax.conv_general_dilated`` in Flax layers: same function, gradients fast in loops.

    Pass it as ``conv_general_dilated=`` to ``nnx.Conv`` or Linen's ``Conv``. Two-dimensional NHWC × HWIO
    convolutions of any stride and padding, without dilation, groups and further options, take the fast path;
    all others are ``lax``'s own.
    """
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if _plain.get() or not (
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
    """Convolve ``(b, h, w, i)`` with ``(kh, kw, i, o)``, the faster way."""
    if strides != (1, 1) or not _as_product(x.shape, kernel.shape, pads):
        return _lax_conv(x, kernel, pads, strides)
    patches = _patches(x, kernel.shape, pads)
    rows = kernel.reshape(patches.shape[0], -1)
    outputs = lax.dot_general(rows, patches.reshape(len(rows), -1), (((0,), (0,)), ((), ())))
    return outputs.reshape(-1, *patches.shape[1:]).transpose(3, 1, 2, 0)


def _lax_conv(x: jax.Array, kernel: jax.Array, pads: Pads, strides: Strides = (1, 1)) -> jax.Array:
    """Convolve with ``lax``, but with negative padding done before: XLA:CPU 0.10.2 reads foreign memory."""
    if min(map(min, pads)) < 0:
        x, pads = _pad(x, pads), ((0, 0), (0, 0))
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_LAYOUT)


def _pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Pad the two middle axes with zeros; negative padding cuts off."""
    (top, bottom), (left, right) = pads
    around = [(0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _kernel_gradient(x: jax.Array, gradient: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Return the gradient for ``kernel``, the faster way; of padded ``x`` every window counts."""
    if _as_product(x.shape, kernel.shape, pads):
        patches = _patches(x, kernel.shape, pads)
        features = gradient.transpose(3, 1, 2, 0).reshape(gradient.shape[3], -1)
        rows = patches.reshape(patches.shape[0], -1)
        return lax.dot_general(rows, features, (((1,), (1,)), ((), ()))).reshape(kernel.shape)
    # The batch is summed over: it stands where the input features of a convolution do.
    images, windows = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    convolved = _lax_conv(images, windows, pads)
    return convolved.transpose(1, 2, 0, 3)


def _as_product(x_shape: Sequence[int], kernel_shape: Sequence[int], pads: Pads) -> bool:
    """Return whether a convolution of stride 1 is faster as a product with its patches."""
    if kernel_shape[3] >= FEW_CHANNELS or jax.default_backend() != "cpu":
        return False
    outputs = [
        size + sum(pad) - window + 1
        for size, pad, window in zip(x_shape[1:3], pads, kernel_shape[:2], strict=True)
    ]
    num_patches = x_shape[0] * math.prod(outputs)
    return min(outputs) > 0 and num_patches * math.prod(kernel_shape[:3]) <= MAX_PATCHES


def _patches(x: jax.Array, kernel_shape: Sequence[int], pads: Pads) -> jax.Array:
    """Return the windows' contents, ``(kh * kw * i, oh, ow, b)``.

    Shifted across, then down: copies of rows that lie together. Batch last, so that these are long.
    """
    rows, columns = kernel_shape[:2]
    x = _pad(x.transpose(3, 1, 2, 0), pads)
    width = x.shape[2] - columns + 1
    x = jnp.concatenate([x[:, :, shift : shift + width] for shift in range(columns)])
    height = x.shape[1] - rows + 1
    return jnp.concatenate([x[:, shift : shift + height] for shift in range(rows)])


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
    return x_gradient, _kernel_gradient(x, gradient, kernel, (kernel_pads[0], kernel_pads[1]))


_conv.defvjp(_conv_forward, _conv_backward)
