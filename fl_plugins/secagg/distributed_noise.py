"""Differential privacy with no trusted party: each client adds a share of the noise before it masks.

Kairouz, Liu & Steinke 2021 (discrete Gaussian); Agarwal, Kairouz & Liu 2021 (Skellam). A client's vector::

    1 1 1 1 | update: clipped to L2 norm c → zeros up to D = 2^m → rotated → × s → rounded → + noise, mod 2^b

The server sees the sum only, takes it back to reals and rotates it back. Every client counts the same, and
no metric travels along: a weight or a metric would be released without noise.

**Sensitivity.** Rounding at random is repeated until the integer vector's squared norm is at most

    min{ (c·s + √D)², (c·s)² + D/4 + c·s + √D/2 }

which happens with probability ≥ 1 − e^(−1/2) each time. The norm is that of the integers that are sent, so
no floating-point error before it matters. A client whose update is not finite sends a vector of zeros, with
its noise: that it stays away would tell something.

**Noise.** Each share has standard deviation s·z·c/√m, m = min_survivors − max_colluders: the fewest shares
that an adversary does not know. With more survivors there is more noise, and the ε charged still holds.

**Scale.** With n_max clients an entry of the sum has standard deviation at most
√(s²·(c²·n²/D + n·σ₀²) + n/4), σ₀ = z·c/√m; s is the largest for which k of them fit into half the ring,
but not finer than noise of :data:`~fl_plugins.privacy.samplers.MAX_STD` steps needs. Entries beyond that
wrap: at k = 4 fewer than 1 in 10⁴, and they cost accuracy, not privacy.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int, check_number
from ..errors import ConfigError, EncodingError, RoundAbortedError
from ..privacy.clipping import clip_l2
from ..privacy.mechanisms import DistributedGaussian, DistributedSkellam
from ..privacy.random import NoiseSource
from ..privacy.samplers import MAX_STD, discrete_gaussian, skellam
from .fixed_point import NUM_ONES, centered, to_ring
from .prg import RING_DTYPES
from .rotation import padded_size, rotate, rotate_back

OWNER = "distributed noise"

MIN_LOCAL_STD = 2.0
"""In grid steps. A sum of discrete Gaussians is not one: at n = 100 and d = 10⁶ the difference costs
ε = 10⁻¹⁰ at σ = 2, and more than 500 at σ = 1."""

_MAX_TRIES = 400
"""Roundings before giving up; all of them fail with probability below 10⁻⁸⁰."""


class Noise(StrEnum):
    """Which distribution a share has."""

    DISCRETE_GAUSSIAN = "discrete_gaussian"
    SKELLAM = "skellam"


@dataclass(frozen=True, kw_only=True)
class EncodedShare:
    """A client's ring words, not yet masked, and what only its own log may say.

    Parameters
    ----------
    words : NDArray
        ``(length,)``.
    norm : float
        L2 norm of the update before clipping; NaN if it was not finite.
    """

    words: NDArray[Any] = field(repr=False)
    norm: float = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class NoisySum:
    """What the server learns.

    Parameters
    ----------
    num_clients : int
        How many are in it.
    update : NDArray
        ``(d,)`` float64: the sum of their clipped updates, with noise.
    """

    num_clients: int
    update: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DistributedNoise:
    """The encoding with noise that clients and server share.

    Parameters
    ----------
    noise : Noise
        The distribution of a share.
    noise_multiplier : float
        z: standard deviation of the noise on a sum of the fewest survivors, in clip norms.
    clip_norm : float
        c: the largest L2 norm of an update.
    num_entries : int
        d: entries of an update.
    num_bits : int
        b: the ring Z/2^b, 16 or 32.
    cohort : int
        n: the most clients that a sum may have.
    min_survivors : int
        The fewest clients in a sum that is decoded.
    max_colluders : int
        How many of them may tell the adversary their share of the noise.
    stds : float
        k: standard deviations of an entry of the sum that fit into half the ring.

    Raises
    ------
    ConfigError
        If the ring is so small that a share of the noise has less than :data:`MIN_LOCAL_STD` steps.
    """

    noise: Noise = Noise.DISCRETE_GAUSSIAN
    noise_multiplier: float
    clip_norm: float
    num_entries: int
    num_bits: int
    cohort: int
    min_survivors: int
    max_colluders: int = 0
    stds: float = 4.0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "noise", Noise(self.noise))
        except ValueError:
            known = ", ".join(member.value for member in Noise)
            raise ConfigError(f"{OWNER}: noise={self.noise!r}, but it must be one of {known}.") from None
        if self.num_bits not in RING_DTYPES or type(self.num_bits) is not int:
            raise ConfigError(f"{OWNER}: num_bits={self.num_bits!r}, but rings have 16 or 32 bits.")
        for name in ("noise_multiplier", "clip_norm"):
            check_number(OWNER, name, getattr(self, name), minimum=0.0, open_below=True)
        check_number(OWNER, "stds", self.stds, minimum=3.0, maximum=64.0)
        check_int(OWNER, "num_entries", self.num_entries, minimum=1)
        check_int(OWNER, "min_survivors", self.min_survivors, minimum=2)
        check_int(OWNER, "cohort", self.cohort, minimum=self.min_survivors)
        check_int(OWNER, "max_colluders", self.max_colluders, minimum=0)
        if self.max_colluders > self.min_survivors - 2:
            raise ConfigError(
                f"{OWNER}: max_colluders={self.max_colluders} of min_survivors={self.min_survivors}, but at "
                "least 2 must be left to share the noise; raise min_survivors."
            )
        if self.cohort >= 1 << self.num_bits:
            raise ConfigError(
                f"{OWNER}: cohort={self.cohort}, but a ring of {self.num_bits} bits counts to "
                f"{(1 << self.num_bits) - 1}; use 32 bits or fewer clients."
            )
        if self.local_std < MIN_LOCAL_STD:
            raise ConfigError(
                f"{OWNER}: a ring of {self.num_bits} bits must hold {self.stds:g} standard deviations of the "
                f"sum of {self.cohort} clients, which leaves a share of the noise {self.local_std:.3g} grid "
                f"steps with noise_multiplier={self.noise_multiplier:g} over {self.num_noise_shares} shares; "
                f"below {MIN_LOCAL_STD:g} the sum of shares is no noise that is accounted for. Use 32 bits, "
                "fewer clients, or more noise."
            )
        if (self.clip_norm * self.scale + math.sqrt(self.size)) ** 2 >= 2.0**62:
            raise ConfigError(
                f"{OWNER}: noise_multiplier={self.noise_multiplier:g} is so little that a clipped update has "
                f"a norm of {self.clip_norm * self.scale:.3g} grid steps, whose square is beyond 64 bits."
            )

    @property
    def size(self) -> int:
        """D: entries of a rotated vector."""
        return padded_size(self.num_entries)

    @property
    def length(self) -> int:
        """Words of a vector."""
        return NUM_ONES + self.size

    @property
    def num_noise_shares(self) -> int:
        """The fewest shares of noise in a sum that the adversary does not know."""
        return self.min_survivors - self.max_colluders

    @property
    def _real_std(self) -> float:
        """One share's standard deviation before scaling."""
        return self.noise_multiplier * self.clip_norm / math.sqrt(self.num_noise_shares)

    @property
    def scale(self) -> float:
        """Grid steps per unit of the update."""
        n, k, c = self.cohort, self.stds, self.clip_norm
        fits = math.sqrt(4.0**self.num_bits - n * k * k) / (
            2.0 * k * math.sqrt(c * c * n * n / self.size + n * self._real_std**2)
        )
        return min(fits, MAX_STD / self._real_std)

    @property
    def local_std(self) -> float:
        """One share's standard deviation in grid steps."""
        return min(self.scale * self._real_std, MAX_STD)

    @property
    def max_squared_norm(self) -> int:
        """The largest squared L2 norm of a client's integers before noise."""
        norm, size = self.clip_norm * self.scale, self.size
        return math.floor(
            min(
                (norm + math.sqrt(size)) ** 2,
                norm * norm + size / 4.0 + norm + math.sqrt(size) / 2.0,
            )
        )

    @property
    def mechanism(self) -> DistributedGaussian | DistributedSkellam:
        """What to charge for one sum, whoever of at least ``min_survivors`` is in it."""
        l2 = math.sqrt(self.max_squared_norm)
        if self.noise is Noise.SKELLAM:
            return DistributedSkellam(
                local_std=self.local_std,
                num_shares=self.num_noise_shares,
                l2_sensitivity=l2,
                # Integers: |k| ≤ k².
                l1_sensitivity=l2 * min(math.sqrt(self.size), l2),
            )
        return DistributedGaussian(
            local_std=self.local_std,
            num_shares=self.num_noise_shares,
            dimension=self.size,
            l2_sensitivity=l2,
        )

    @property
    def effective_noise_multiplier(self) -> float:
        """The noise over the *rounded* sensitivity: what central Gaussian noise of the same ε would have."""
        return self.local_std * math.sqrt(self.num_noise_shares / self.max_squared_norm)

    def encode(
        self, update: Iterable[NDArray[Any]], *, rotation_seed: bytes, source: NoiseSource
    ) -> EncodedShare:
        """Return a client's words.

        Parameters
        ----------
        update : Iterable[NDArray]
            Arrays of any shape and real dtype with ``num_entries`` entries in all.
        rotation_seed : bytes
            32 public bytes, the same for all, made without regard to the updates.
        source : NoiseSource
            Of rounding and noise; from the operating system but in tests.

        Raises
        ------
        EncodingError
            If there are more or fewer entries.
        """
        clipped = clip_l2({"update": self._flat(update)}, self.clip_norm)
        values = self._round(rotate(clipped.arrays["update"], rotation_seed) * self.scale, source)
        draw = skellam if self.noise is Noise.SKELLAM else discrete_gaussian
        values += draw(self.size, std=self.local_std, source=source)
        words: NDArray[Any] = np.empty(self.length, RING_DTYPES[self.num_bits])
        words[:NUM_ONES] = 1
        words[NUM_ONES:] = to_ring(values, self.num_bits)
        return EncodedShare(words=words, norm=clipped.norm)

    def decode(self, words: NDArray[Any], num_clients: int, *, rotation_seed: bytes) -> NoisySum:
        """Read the sum of ``num_clients`` vectors.

        Raises
        ------
        RoundAbortedError
            If they are fewer than ``min_survivors``: their noise is less than was charged. Drop the sum.
        EncodingError
            If the check ones do not add up to that number.
        """
        if num_clients < self.min_survivors:
            raise RoundAbortedError(
                f"{OWNER}: {num_clients} clients in the sum, but the noise is right for at least "
                f"min_survivors={self.min_survivors}; the sum was not read. Ask more clients, or lower "
                "min_survivors (each then adds more noise)."
            )
        if words.shape != (self.length,) or words.dtype != RING_DTYPES[self.num_bits]:
            raise EncodingError(
                f"{OWNER}: a sum of shape {words.shape} and dtype {words.dtype}, but it has "
                f"{self.length} words of {RING_DTYPES[self.num_bits]}."
            )
        ones = words[:NUM_ONES].tolist()
        if num_clients > self.cohort or ones != [num_clients] * NUM_ONES:
            raise EncodingError(
                f"{OWNER}: the check ones add up to {ones} for {num_clients} clients of at most "
                f"{self.cohort}; masks did not cancel, or a client encoded something else. The sum is of no "
                "use."
            )
        rotated = centered(words[NUM_ONES:]) / self.scale
        return NoisySum(
            num_clients=num_clients, update=rotate_back(rotated, rotation_seed)[: self.num_entries]
        )

    def _flat(self, update: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
        """Return all entries, then zeros."""
        flat, at = np.zeros(self.size), 0
        for array in update:
            if array.dtype.kind == "c":
                raise EncodingError(f"{OWNER}: an update of dtype {array.dtype} is not real; send its parts.")
            if at + array.size <= self.num_entries:
                flat[at : at + array.size] = np.asarray(array, np.float64).reshape(-1)
            at += array.size
        if at != self.num_entries:
            raise EncodingError(
                f"{OWNER}: an update of {at} entries, but the round's layout has {self.num_entries}."
            )
        return flat

    def _round(self, values: NDArray[np.float64], source: NoiseSource) -> NDArray[np.int64]:
        """Round every value up or down at random, again until the norm is within the bound."""
        low = np.floor(values)
        fraction = values - low
        for _ in range(_MAX_TRIES):
            rounded = (low + (source.uniform(values.size) < fraction)).astype(np.int64)
            # Exact in 64 bits, see __post_init__.
            if int(np.dot(rounded, rounded)) <= self.max_squared_norm:
                return rounded
        raise EncodingError(
            f"{OWNER}: {_MAX_TRIES} roundings were all longer than the bound; nothing was sent. This has a "
            "probability below 10⁻⁸⁰: look for a fault in the node's memory or its random numbers."
        )
