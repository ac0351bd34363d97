"""Randomness that nobody can predict: a key from the operating system, expanded by AES-256 in counter mode.

Every call has a stream of its own: the 128-bit counter block is (call: 48 bits, chunk: 32, block: 48), so
chunks are drawn by several threads and still do not depend on how many there are. A forked child gets a new
key: parent and child with the same noise would cancel out.

Normals are Box-Muller in float64, two from two 64-bit words: √(−2 log u) · (± cos θ, ± sin θ), u a multiple
of 2⁻⁵³ in (0, 1], so that no tail is cut below 8.57 standard deviations (probability 10⁻¹⁷), θ one of 2⁵³
equidistant angles in [0, π/2), the signs two further bits. Sine and cosine are Taylor series here, since
NumPy's take longer than all the rest.
"""

import hashlib
import math
import os
import threading
from collections.abc import Callable, Sequence
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

_SHIFT = np.uint64(11)
_SIGN = np.uint64(1 << 63)
_SINE = [(-1) ** k / math.factorial(2 * k + 1) / math.sqrt(2.0) for k in range(8)]
_COSINE = [(-1) ** k / math.factorial(2 * k) / math.sqrt(2.0) for k in range(9)]
"""Taylor series in y², of sin(y)/y and cos(y), over √2: what is left out is below 5·10⁻¹⁷ for |y| ≤ π/4."""

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

        mine = threading.local()  # fresh memory costs more than what is computed in it

        def fill(chunk: int) -> None:
            if not hasattr(mine, "scratch"):
                mine.scratch = np.empty((5, min(_CHUNK, (size + 1) // 2)))
            part = out[2 * _CHUNK * chunk : 2 * _CHUNK * (chunk + 1)]
            _box_muller(_words(call, chunk, len(part) + len(part) % 2), std, part, mine.scratch)

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


def _box_muller(words: Words, std: float, out: Floats, scratch: NDArray[np.float64]) -> None:
    """Fill ``out`` with normals from as many words, one more if it is odd.

    With θ = π/4 + y, (cos θ, sin θ) = (cos y − sin y, cos y + sin y)/√2.
    """
    half = len(words) // 2
    radius, y, square, sine, cosine = scratch[:, :half]
    bits = square.view(np.uint64)
    np.right_shift(words[:half], _SHIFT, out=bits)
    radius[...] = bits.view(np.int64)
    radius += 1.0
    radius *= 2.0**-53
    np.log(radius, out=radius)
    radius *= -2.0 * std * std
    np.sqrt(radius, out=radius)
    np.right_shift(words[half:], _SHIFT, out=bits)
    y[...] = bits.view(np.int64)
    y -= 2.0**52
    y *= 2.0**-53 * math.pi / 2.0
    np.multiply(y, y, out=square)
    _polynomial(_SINE, square, out=sine)
    sine *= y
    _polynomial(_COSINE, square, out=cosine)
    np.subtract(cosine, sine, out=y)
    cosine += sine
    np.left_shift(words[half:], np.uint64(63), out=bits)
    y.view(np.uint64)[...] ^= bits
    np.left_shift(words[half:], np.uint64(62), out=bits)
    bits &= _SIGN
    cosine.view(np.uint64)[...] ^= bits
    np.multiply(radius, y, out=out[:half], casting="same_kind")
    rest = len(out) - half
    np.multiply(radius[:rest], cosine[:rest], out=out[half:], casting="same_kind")


def _polynomial(coefficients: Sequence[float], x: NDArray[np.float64], *, out: NDArray[np.float64]) -> None:
    """Evaluate Σ cₖ·xᵏ, by Horner's rule."""
    out.fill(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        out *= x
        out += coefficient


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
