"""Randomness that nobody can predict: a key from the operating system, expanded by AES-256 in counter mode.

Every call has a stream of its own: the 128-bit counter block is (call: 48 bits, chunk: 32, block: 48), so
chunks are drawn by several threads and still do not depend on how many there are. A forked child gets a new
key: parent and child with the same noise would cancel out.

Normals are Box-Muller in float64, two from two 64-bit words: √(−2 log u) · (cos 2πv, sin 2πv), u a multiple
of 2⁻⁵³ in (0, 1], so that no tail is cut below 8.57 standard deviations (probability 10⁻¹⁷).
"""

import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fl_plugins.aggregation.threads import in_threads
from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError, ConfigTypeError

Floats = NDArray[np.floating[Any]]
Words = NDArray[np.uint64]

_CHUNK = 1 << 15
"""Pairs of normals drawn at a time: what they need fits a core's cache."""

_ZEROS = bytes(_CHUNK * 16)
_LARGEST_BLOCK = 1 << 48


class NoiseSource:
    """A stream of random numbers; safe to call from several threads.

    Parameters
    ----------
    insecure_seed : int, optional
        Makes the numbers a function of this seed, for tests and comparisons: who knows it can subtract the
        noise. ``secure`` is false then, and every report on what used it is void.
    """

    def __init__(self, *, insecure_seed: int | None = None) -> None:
        if insecure_seed is None:
            self._key = os.urandom(32)
        else:
            check_int("noise source", "insecure_seed", insecure_seed, minimum=0)
            self._key = hashlib.sha256(b"fl-plugins insecure seed %d" % insecure_seed).digest()
        self._secure = insecure_seed is None
        self._process = os.getpid()
        self._calls = 0
        self._lock = threading.Lock()

    @property
    def secure(self) -> bool:
        """Whether the key is from the operating system."""
        return self._secure

    def normal(
        self, size: int, *, std: float = 1.0, dtype: type[np.float64] | type[np.float32] = np.float64
    ) -> Floats:
        """Return ``size`` independent N(0, std²), computed in float64 and then rounded to ``dtype``."""
        check_int("noise source", "size", size, minimum=0)
        check_number("noise source", "std", std, minimum=0.0)
        out = np.empty(size, dtype=dtype)
        call = self._next_call()

        def fill(chunk: int) -> None:
            part = out[2 * _CHUNK * chunk : 2 * _CHUNK * (chunk + 1)]
            half = (len(part) + 1) // 2
            words = _words(call, chunk, 2 * half)
            radius = (words[:half] >> np.uint64(11)).astype(np.float64)
            radius += 1.0
            radius *= 2.0**-53
            np.log(radius, out=radius)
            radius *= -2.0 * std * std
            np.sqrt(radius, out=radius)
            angle = (words[half:] >> np.uint64(11)).astype(np.float64)
            angle *= 2.0**-53 * 2.0 * np.pi
            np.multiply(radius, np.cos(angle), out=part[:half], casting="same_kind")
            rest = len(part) - half
            np.sin(angle, out=angle)
            np.multiply(radius[:rest], angle[:rest], out=part[half:], casting="same_kind")

        _for_chunks(fill, -(-size // (2 * _CHUNK)))
        return out

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` floats, uniform on the multiples of 2⁻⁵³ in [0, 1)."""
        return (self.words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def bernoulli(self, probability: float, size: int) -> NDArray[np.bool_]:
        """Return ``size`` independent draws that are true with ``probability`` (to 2⁻⁵³)."""
        check_number("noise source", "probability", probability, minimum=0.0, maximum=1.0)
        return self.uniform(size) < probability

    def integers(self, high: int, size: int) -> NDArray[np.int64]:
        """Return ``size`` integers in [0, high), each exactly as likely as the others."""
        check_int("noise source", "high", high, minimum=1)
        if high > 1 << 62:
            raise ConfigError(f"noise source: high={high}, but it must be at most 2**62.")
        mask = np.uint64((1 << (high - 1).bit_length()) - 1)
        out = np.empty(size, dtype=np.int64)
        missing = size
        while missing:  # more than half of the masked words are below high
            drawn = self.words(2 * missing + 8) & mask
            drawn = drawn[drawn < np.uint64(high)][:missing]
            out[size - missing : size - missing + len(drawn)] = drawn.astype(np.int64)
            missing -= len(drawn)
        return out

    def choose(self, population: int, size: int) -> list[int]:
        """Return a uniformly drawn subset of ``size`` of range(population), in random order."""
        check_int("noise source", "population", population, minimum=0)
        if not 0 <= size <= population:
            raise ConfigError(f"noise source: size={size}, but it must be in [0, population={population}].")
        while True:
            keys = self.words(population)
            if len(np.unique(keys)) == population:  # by symmetry, all orders are equally likely then
                return [int(index) for index in np.argsort(keys)[:size]]

    def words(self, size: int) -> Words:
        """Return ``size`` uniform 64-bit words."""
        check_int("noise source", "size", size, minimum=0)
        out = np.empty(size, dtype=np.uint64)
        call = self._next_call()

        def fill(chunk: int) -> None:
            part = out[2 * _CHUNK * chunk : 2 * _CHUNK * (chunk + 1)]
            part[:] = _words(call, chunk, len(part))

        _for_chunks(fill, -(-size // (2 * _CHUNK)))
        return out

    def _next_call(self) -> tuple[bytes, int]:
        """Return the key and a number that no other call of this key has."""
        with self._lock:
            if self._process != os.getpid() and self._secure:
                self._key, self._calls = os.urandom(32), 0
            self._process = os.getpid()
            self._calls += 1
            assert self._calls < _LARGEST_BLOCK, "2**48 calls"
            return self._key, self._calls

    def __repr__(self) -> str:
        return f"NoiseSource({'from the operating system' if self._secure else 'INSECURE: from a seed'})"

    def __reduce__(self) -> NoReturn:
        raise ConfigTypeError(
            "noise source: its key must not leave the process, so it can be neither pickled nor copied; make "
            "a new NoiseSource() where it is needed."
        )


def _words(call: tuple[bytes, int], chunk: int, size: int) -> Words:
    """Return the first words of a chunk's stream."""
    key, number = call
    block = number.to_bytes(6, "big") + chunk.to_bytes(4, "big") + bytes(6)
    stream = Cipher(algorithms.AES256(key), modes.CTR(block)).encryptor()
    return np.frombuffer(stream.update(_ZEROS[: 8 * size] if 8 * size < len(_ZEROS) else _ZEROS), np.uint64)[
        :size
    ]


def _for_chunks(fill: Callable[[int], None], count: int) -> None:
    """Call ``fill`` for every chunk, by one thread per core once there is work for several."""
    if count < 4:
        for chunk in range(count):
            fill(chunk)
    else:
        in_threads(fill, range(count))
