"""Randomness that privacy hangs on: the operating system's, expanded by AES-256 in counter mode."""

import os
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

_ZEROS = bytes(1 << 20)


class RandomBits(Protocol):
    """Where sampling and noise come from."""

    def fill(self, array: NDArray[Any]) -> None:
        """Overwrite a contiguous array of unsigned integers with uniform bits."""
        ...


class SystemRandom:
    """A key stream that nobody can repeat: every instance has 256 bits of its own from the system.

    One instance serves one thread.
    """

    def __init__(self) -> None:
        self._stream = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def __repr__(self) -> str:
        return "SystemRandom()"

    def fill(self, array: NDArray[Any]) -> None:
        """See :class:`RandomBits`."""
        # OpenSSL wants room for a block more than it writes.
        spare = bytearray(len(_ZEROS) + 15)
        target = array.reshape(-1).view(np.uint8)
        assert np.shares_memory(target, array)
        for start in range(0, len(target), len(_ZEROS)):
            size = min(len(_ZEROS), len(target) - start)
            self._stream.update_into(memoryview(_ZEROS)[:size], spare)
            target[start : start + size] = np.frombuffer(spare, np.uint8, size)
