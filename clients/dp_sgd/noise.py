"""Normal noise from random words, inside a compiled program.

The words come from the host's cryptographic generator; JAX's own ``random.normal`` is no substitute even
with such words: it uses 23 bits and never exceeds 5.5 standard deviations. Here (Box and Muller 1958) the
radius has 40 bits, and a normal reaches 7.5: one beyond that is due once in 10¹³.
"""

import math

import jax
import jax.numpy as jnp


def words_needed(size: int) -> int:
    """Return how many words ``size`` normals take: two for two."""
    return 2 * math.ceil(size / 2)


def normals(words: jax.Array, size: int) -> jax.Array:
    """Return ``size`` independent standard normals, float32, of uint32 ``words_needed(size)`` words.

    Box and Muller (1958): a radius and an angle give two, here as the two rows of one broadcast expression.
    XLA:CPU vectorises that; a concatenation of the two it computes with a branch per element.
    """
    first, second = words[: len(words) // 2], words[len(words) // 2 :]
    # 24 + 16 bits in (0, 1]; near 1 float32 keeps the upper ones, near 0 all of them.
    low = ((first & 0xFF) << 8 | second & 0xFF).astype(jnp.int32).astype(jnp.float32)
    high = (first >> 8).astype(jnp.int32).astype(jnp.float32)
    uniform = (high + (low + jnp.float32(0.5)) * jnp.float32(2**-16)) * jnp.float32(2**-24)
    radius = jnp.sqrt(jnp.float32(-2) * jnp.log(uniform))
    quarter_turns = jnp.arange(2, dtype=jnp.int32)[:, None] << 22
    return (radius * _cosine((second >> 8).astype(jnp.int32) + quarter_turns)).reshape(-1)[:size]


def _cosine(bits: jax.Array) -> jax.Array:
    """Return the cosine of the angle that the lower 24 bits say: a quadrant and 22 bits within it.

    Polynomials within ±π/4, to a unit in the last place; XLA:CPU's own took seven times as long in all.
    """
    within = (bits & 0x3FFFFF).astype(jnp.float32) - jnp.float32(2**21 - 0.5)
    angle = within * jnp.float32(math.pi / 2 * 2**-22)
    square = angle * angle
    sine = jnp.full_like(square, 1 / 362880)
    for coefficient in (-1 / 5040, 1 / 120, -1 / 6, 1.0):
        sine = sine * square + jnp.float32(coefficient)
    sine *= angle
    cosine = jnp.full_like(square, -1 / 3628800)
    for coefficient in (1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0):
        cosine = cosine * square + jnp.float32(coefficient)
    turned = jnp.where((bits >> 22 & 1) == 1, -sine, cosine)
    return jnp.where((bits >> 23 & 1) == 1, -turned, turned)
