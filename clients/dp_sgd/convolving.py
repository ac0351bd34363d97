"""Convolutions under ``vmap`` over examples: one convolution of the whole batch, gradients fast in loops."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap

from ..layers import conv_general_dilated


def convolve(x: jax.Array, kernel: jax.Array, parameters: Mapping[str, Any]) -> jax.Array:
    """Return the result of a ``conv_general_dilated`` equation, ready to be mapped over ``x``."""
    options = dict(parameters)
    # As JAX writes it in a jaxpr: the output's own dtype, which is the default.
    if options["preferred_element_type"] == x.dtype:
        options["preferred_element_type"] = None
    batch = options["dimension_numbers"].lhs_spec[0]

    @custom_vmap
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        result: jax.Array = conv_general_dilated(x, kernel, **options)
        return result

    @convolution.def_vmap
    def mapped(size: int, is_mapped: list[bool], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
        if is_mapped == [True, False] and batch == 0 and options["dimension_numbers"].out_spec[0] == 0:
            folded = conv_general_dilated(x.reshape(-1, *x.shape[2:]), kernel, **options)
            return folded.reshape(size, -1, *folded.shape[1:]), True
        axes = [0 if each else None for each in is_mapped]
        plain = jax.vmap(lambda x, kernel: lax.conv_general_dilated(x, kernel, **options), axes)
        return plain(x, kernel), True  # type: ignore[no-untyped-call]

    result: jax.Array = convolution(x, kernel)
    return result
