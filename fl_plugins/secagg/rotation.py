"""A public random rotation: signs, then the Walsh-Hadamard transform, both orthogonal.

It spreads a vector over all its entries: each of the rotated ones is sub-Gaussian with variance ‖x‖²/D, so
that a ring sized for a few of those standard deviations holds a sum of them. Signs are bits of AES-256 in
counter mode under a public seed; nothing is secret here, but the vectors must not depend on the seed.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .prg import MaskStream

Floats = NDArray[np.float64]

_BITS = 6
"""Index bits that one matrix product transforms."""


def padded_size(num_entries: int) -> int:
    """Return the power of two that vectors are filled up to with zeros.

    >>> padded_size(1000)
    1024
    """
    return 1 << max(num_entries - 1, 0).bit_length()


def rotate(vector: Floats, seed: bytes) -> Floats:
    """Return the rotation of ``(D,)`` values, D a power of two, under 32 public bytes."""
    return _hadamard(vector * _signs(seed, vector.size))


def rotate_back(vector: Floats, seed: bytes) -> Floats:
    """Return what :func:`rotate` made this from, up to rounding."""
    return _hadamard(vector) * _signs(seed, vector.size)


def _signs(seed: bytes, size: int) -> NDArray[np.int8]:
    """Return ``size`` values −1 or 1."""
    packed = np.empty(-(-size // 8), np.uint8)
    MaskStream(seed).fill(packed)
    return (1 - 2 * np.unpackbits(packed, count=size, bitorder="little").astype(np.int8)).astype(np.int8)


def _hadamard(vector: Floats) -> Floats:
    """Return H·x / √D.

    H is a Kronecker product of small ones. Each step transforms the highest index bits and moves them to the
    lowest place, so that once all are through they are in order again.
    """
    left = vector.size.bit_length() - 1
    assert vector.size == 1 << left, "a power of two"
    while left:
        bits = min(_BITS, left)
        vector = (vector.reshape(1 << bits, -1).T @ _matrix(bits)).reshape(-1)
        left -= bits
    return vector


@lru_cache(maxsize=_BITS)
def _matrix(bits: int) -> Floats:
    """Return the orthogonal (2^bits, 2^bits) Hadamard matrix."""
    small = np.array([[1.0, 1.0], [1.0, -1.0]])
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.kron(matrix, small)
    return np.asarray(matrix / 2.0 ** (bits / 2.0))
