"""Masks: AES-256 in counter mode, read as little-endian words of the ring.

A key of 256 bits makes one stream, with a zero initial counter block; a key is used for one mask only. The
words are the stream's bytes in order, the same on every machine: two nodes of different versions can only
cancel each other's masks if this never changes, so ``tests/vectors/secagg_masks.json`` pins it.

A mask is expanded and added a quarter of a megabyte at a time, so that it never leaves the processor's cache.
"""

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

RING_DTYPES: dict[int, np.dtype[Any]] = {16: np.dtype("<u2"), 32: np.dtype("<u4")}
"""Ring Z/2^b by its bits."""

_CHUNK_BYTES = 1 << 18
_ZEROS = bytes(_CHUNK_BYTES)


class MaskStream:
    """The words of one key's mask, in order."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"secagg: a mask key of {len(key)} bytes, but AES-256 needs 32.")
        self._cipher: CipherContext = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite a contiguous array with the next bytes of the stream."""
        view = out.data.cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            part = view[start : start + _CHUNK_BYTES]
            self._cipher.update_into(memoryview(_ZEROS)[: len(part)], part)


def apply_masks(vector: NDArray[Any], added: list[bytes], subtracted: list[bytes]) -> None:
    """Add the masks of some keys to ``(d,)`` ring words in place and subtract those of others, modulo 2^b.

    Chunk by chunk for all keys, so that a chunk of the vector is read and written once.
    """
    words = _CHUNK_BYTES // vector.itemsize
    scratch = np.empty(min(words, vector.size), vector.dtype)
    streams: list[tuple[np.ufunc, MaskStream]] = [(np.add, MaskStream(key)) for key in added]
    streams += [(np.subtract, MaskStream(key)) for key in subtracted]
    for start in range(0, vector.size, words):
        chunk = vector[start : start + words]
        mask = scratch[: chunk.size]
        for combine, stream in streams:
            stream.fill(mask)
            combine(chunk, mask, out=chunk)
