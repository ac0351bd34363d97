"""A public random rotation: signs, then the Walsh-Hadamard transform, both orthogonal.

It spreads a vector over all its entries: each of the rotated ones is sub-Gaussian with variance ‖x‖²/D, so
that a ring sized for a few of those standard deviations holds a sum of them. Signs are bits of AES-256 in
counter mode under a public seed; nothing is secret here, but the vectors must not depend on the seed.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .prg import MaskStream

Floats = NDArray[np.float64]


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

    Each step transforms the highest index bit and moves it to the lowest place, so that once all are through
    they are in order again. Additions only: the same bits on every machine.
    """
    half = vector.size // 2
    assert vector.size & (vector.size - 1) == 0, "a power of two"
    source, target = vector, np.empty_like(vector)
    for _ in range(vector.size.bit_length() - 1):
        pairs = target.reshape(half, 2)
        np.add(source[:half], source[half:], out=pairs[:, 0])
        np.subtract(source[:half], source[half:], out=pairs[:, 1])
        source, target = target, np.empty_like(vector) if source is vector else source
    return np.asarray(source / math.sqrt(vector.size))
