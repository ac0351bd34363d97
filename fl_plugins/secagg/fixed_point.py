"""What a client puts into the ring, and what the server reads from the sum.

A vector holds, in this order::

    1 1 1 1 | weight | clipped fraction | weight × metric, for each metric | weight × update entry, d times

One word per update entry and per check one; the other numbers are few and need more than a 16-bit word has
room for, so each is written in as many digits as 40 bits take. Digits are summed like everything else and
only then put together.

**Sizes.** With n clients at most, one value has L = ⌊(2^(b−1) − 1)/n⌋ − 1 positive levels, so that no sum
wraps. An entry x, clipped to ±c, becomes v·x·L/c, v = weight / max_weight, rounded up or down at random so
that its expectation is exact; the random bits come from AES in counter mode with a fresh key of the
operating system.

**Error.** Of one entry of Σ vᵢ·xᵢ: mean 0, standard deviation at most √n·c/(2L).

**The four ones** must add up to the number of survivors. They do not if a mask is missing or wrong (but for
a chance of 2^(−4b)); about what a client chose to send they prove nothing.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int, check_number
from ..errors import ConfigError, EncodingError
from .parameters import RoundParameters, ring_levels
from .prg import RING_DTYPES, MaskStream

NUM_ONES = 4
SCALAR_BITS = 40
_CHUNK = 1 << 15
"""Entries at a time: a few float64 vectors of them stay in a core's second-level cache."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A client's ring words, and what clipping cost.

    Parameters
    ----------
    words : NDArray
        ``(length,)``, not yet masked.
    num_clipped : int
        Update entries beyond ±clip; warn if they are many.
    clipped_metrics : tuple[str, ...]
        Metrics beyond their bounds.
    """

    words: NDArray[Any] = field(repr=False)
    num_clipped: int
    clipped_metrics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DecodedSum:
    """What the sum of n clients says; every mean is weighted by the clients' weights.

    Parameters
    ----------
    num_clients : int
        How many are in it.
    weight : float
        Σ weights.
    clipped_fraction : float, optional
        Mean over the clients of the fraction of entries that were clipped; ``None`` if that is not told.
    metrics : Mapping[str, float]
        Weighted means.
    update : NDArray
        ``(d,)`` float64: weighted mean of the updates.
    """

    num_clients: int
    weight: float
    clipped_fraction: float | None
    metrics: Mapping[str, float]
    update: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """The encoding that clients and server share.

    Parameters
    ----------
    num_bits : int
        The ring Z/2^b: 16 or 32.
    cohort : int
        n, the most clients that a sum may have.
    clip : float
        Largest magnitude of an update entry.
    max_weight : float
        Largest weight.
    num_entries : int
        d, the entries of an update.
    metrics : Mapping[str, float]
        Largest magnitude of each metric, by name.
    """

    num_bits: int
    cohort: int
    clip: float
    max_weight: float
    num_entries: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner = "secagg fixed point"
        if self.num_bits not in RING_DTYPES:
            raise ConfigError(
                f"{owner}: num_bits={self.num_bits!r}, but rings have {sorted(RING_DTYPES)} bits."
            )
        check_int(owner, "cohort", self.cohort, minimum=1)
        check_int(owner, "num_entries", self.num_entries, minimum=0)
        bounds = {"clip": self.clip, "max_weight": self.max_weight, **self.metrics}
        for name, bound in bounds.items():
            check_number(owner, name, bound, minimum=0.0, open_below=True)
        ring_levels(self.num_bits, self.cohort)

    @classmethod
    def of(
        cls, parameters: RoundParameters, num_entries: int, metrics: Mapping[str, float] | None = None
    ) -> Self:
        """Return the encoding of a round."""
        return cls(
            num_bits=parameters.num_bits,
            cohort=parameters.cohort,
            clip=parameters.clip,
            max_weight=parameters.max_weight,
            num_entries=num_entries,
            metrics=metrics or {},
        )

    @property
    def levels(self) -> int:
        """Positive levels of one client's word."""
        return ring_levels(self.num_bits, self.cohort)

    @property
    def length(self) -> int:
        """Words of a vector."""
        return self._first_entry + self.num_entries

    @property
    def _digit_bits(self) -> int:
        return self.levels.bit_length() - 1

    @property
    def _num_digits(self) -> int:
        return math.ceil((SCALAR_BITS + 1) / self._digit_bits)

    @property
    def _first_entry(self) -> int:
        return NUM_ONES + self._num_digits * (2 + len(self.metrics))

    def encode(
        self,
        update: Iterable[NDArray[Any]],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        rounding_key: bytes | None = None,
    ) -> Encoded:
        """Return a client's words.

        Parameters
        ----------
        update : Iterable[NDArray]
            Arrays of any shape and real dtype with ``num_entries`` entries in all.
        weight : float
            Above 0 and at most ``max_weight``.
        metrics : Mapping[str, float] | None
            Exactly those that have bounds.
        rounding_key : bytes | None
            For tests only: 32 bytes that determine the rounding, which are never reused.

        Raises
        ------
        EncodingError
            If a number is not finite, the weight out of range, or there are more or fewer entries or metrics.
        """
        given = dict(metrics or {})
        if set(given) != set(self.metrics):
            raise EncodingError(
                f"secagg: metrics {sorted(given)}, but the round has bounds for "
                f"{sorted(self.metrics)}; the names must agree."
            )
        if not (math.isfinite(weight) and 0 < weight <= self.max_weight):
            raise EncodingError(
                f"secagg: weight={weight}, but it must be above 0 and at most "
                f"max_weight={self.max_weight:g}; raise the bound on the server."
            )
        for name, value in given.items():
            if not math.isfinite(value):
                raise EncodingError(f"secagg: metric {name}={value} is not finite; nothing was sent.")
        stream = MaskStream(rounding_key or os.urandom(32))
        share = weight / self.max_weight
        words: NDArray[Any] = np.empty(self.length, RING_DTYPES[self.num_bits])
        num_clipped = self._encode_entries(update, share, stream, words[self._first_entry :])
        scalars = [share, num_clipped / max(self.num_entries, 1)]
        outside = []
        for name, bound in self.metrics.items():
            if abs(given[name]) > bound:
                outside.append(name)
            scalars.append(share * max(-1.0, min(1.0, given[name] / bound)))
        words[:NUM_ONES] = 1
        words[NUM_ONES : self._first_entry] = to_ring(self._digits(np.array(scalars), stream), self.num_bits)
        return Encoded(words=words, num_clipped=num_clipped, clipped_metrics=tuple(outside))

    def _encode_entries(
        self, update: Iterable[NDArray[Any]], share: float, stream: MaskStream, out: NDArray[Any]
    ) -> int:
        """Write the update's words; return how many entries were clipped."""
        factor, at, num_clipped = share * (self.levels / self.clip), 0, 0
        for chunk in _chunks(update):
            if at + chunk.size > out.size:
                at = out.size + 1
                break
            if not np.isfinite(chunk).all():
                raise EncodingError(
                    "secagg: the update has entries that are not finite; nothing was sent. Lower the "
                    "learning rate, or leave this client out."
                )
            outside = int(np.count_nonzero(np.abs(chunk) > self.clip))
            if outside:
                num_clipped += outside
                np.clip(chunk, -self.clip, self.clip, out=chunk)
            np.multiply(chunk, factor, out=chunk)
            # The product may exceed L by a rounding error.
            np.clip(chunk, -self.levels, self.levels, out=chunk)
            out[at : at + chunk.size] = to_ring(round_at_random(chunk, stream), self.num_bits)
            at += chunk.size
        if at != out.size:
            raise EncodingError(
                f"secagg: the update does not have the {out.size} entries that the round's layout has."
            )
        return num_clipped

    def _digits(self, scalars: NDArray[np.float64], stream: MaskStream) -> NDArray[np.int64]:
        """Return the signed digits, lowest first, of numbers in [−1, 1]."""
        whole = round_at_random(scalars * 2.0**SCALAR_BITS, stream)
        shifts = np.arange(self._num_digits) * self._digit_bits
        digits = (np.abs(whole)[:, None] >> shifts) & ((1 << self._digit_bits) - 1)
        signed: NDArray[np.int64] = (np.sign(whole)[:, None] * digits).ravel()
        return signed

    def decode(self, words: NDArray[Any], num_clients: int) -> DecodedSum:
        """Read the sum of ``num_clients`` vectors.

        Raises
        ------
        EncodingError
            If the check ones do not add up to that number, or the weights do not to a possible sum.
        """
        if words.shape != (self.length,) or words.dtype != RING_DTYPES[self.num_bits]:
            raise EncodingError(
                f"secagg: a sum of shape {words.shape} and dtype {words.dtype}, but it has "
                f"{self.length} words of {RING_DTYPES[self.num_bits]}."
            )
        ones = words[:NUM_ONES].tolist()
        if not 1 <= num_clients <= self.cohort or ones != [num_clients] * NUM_ONES:
            raise EncodingError(
                f"secagg: the check ones add up to {ones} for {num_clients} clients of at most "
                f"{self.cohort}; masks did not cancel, or a client encoded something else. The sum is "
                "of no use."
            )
        digits = centered(words[NUM_ONES : self._first_entry]).reshape(-1, self._num_digits)
        scale = 2.0 ** (np.arange(self._num_digits) * self._digit_bits - float(SCALAR_BITS))
        share, clipped, *metrics = (digits @ scale).tolist()
        if not 0 < share <= num_clients * (1 + 2.0**-30):
            raise EncodingError(
                f"secagg: the weights add up to {share * self.max_weight:g} for {num_clients} clients "
                f"with at most {self.max_weight:g} each; a client encoded something else. The sum is "
                "of no use."
            )
        update = centered(words[self._first_entry :]).astype(np.float64)
        update *= self.clip / self.levels / share
        return DecodedSum(
            num_clients=num_clients,
            weight=share * self.max_weight,
            clipped_fraction=clipped / num_clients,
            metrics={
                name: value * bound / share
                for (name, bound), value in zip(self.metrics.items(), metrics, strict=True)
            },
            update=update,
        )


def round_at_random(values: NDArray[np.float64], stream: MaskStream) -> NDArray[np.int64]:
    """Round each value up with the probability of its fraction, else down.

    The expectation is at most 2^-32 off.
    """
    uniform: NDArray[Any] = np.empty(values.size, "<u4")
    stream.fill(uniform)
    low = np.floor(values)
    up = uniform < (values - low) * 2.0**32
    return (low + up).astype(np.int64)


def to_ring(values: NDArray[np.int64], num_bits: int) -> NDArray[Any]:
    """Return integers modulo 2^b; anything that makes integer vectors may enter here."""
    return values.astype(RING_DTYPES[num_bits])


def centered(words: NDArray[Any]) -> NDArray[Any]:
    """Return ring words as integers from −2^(b−1) to 2^(b−1) − 1; a view."""
    return words.view(words.dtype.str.replace("u", "i"))


def _chunks(update: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.float64]]:
    """Yield the arrays' entries in float64, a few at a time, as fresh arrays."""
    for array in update:
        if array.dtype.kind == "c":
            raise EncodingError(f"secagg: an update of dtype {array.dtype} is not real; send its two parts.")
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            yield np.array(flat[start : start + _CHUNK], np.float64)
