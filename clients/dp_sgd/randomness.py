"""Randomness that privacy hangs on: the system's, expanded by :mod:`fl_plugins.privacy.random`."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_plugins.privacy.random import NoiseSource

_WORDS = 1 << 17
"""64-bit words drawn at a time: a megabyte, which one thread does."""


class RandomBits(Protocol):
    """Where sampling and noise come from."""

    def fill(self, array: NDArray[Any]) -> None:
        """Overwrite a contiguous array of unsigned integers with uniform bits."""
        ...


class SystemRandom:
    """Bits that nobody can repeat: every instance has a key of its own from the system."""

    def __init__(self) -> None:
        self._source = NoiseSource()

    def __repr__(self) -> str:
        return "SystemRandom()"

    def fill(self, array: NDArray[Any]) -> None:
        """See :class:`RandomBits`."""
        target = array.reshape(-1).view(np.uint8)
        assert np.shares_memory(target, array)
        for start in range(0, len(target), 8 * _WORDS):
            part = target[start : start + 8 * _WORDS]
            part[:] = self._source.words(-(-len(part) // 8)).view(np.uint8)[: len(part)]
