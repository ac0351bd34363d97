"""Shamir's secret sharing of 32-byte secrets over the integers modulo p = 2^256 + 297.

Shamir, "How to share a secret" (CACM 22(11), 1979). The prime is above 2^256, so every 32-byte secret is one
element; a share is one too, 33 bytes. A holder's share is the polynomial's value at the holder's *node id*,
1 to 2^64 − 1: there is no table of indices that a server could get wrong. t shares give the secret, t − 1
nothing.

Wrong shares are found by decoding them as a Reed–Solomon codeword (S. Gao, "A new algorithm for decoding
Reed–Solomon codes", 2003), which corrects up to ⌊(m − t)/2⌋ of m; beyond, by leaving out one, two, … holders
until the secret is the one advertised.

==========  ====================================================================
p, t, m     the prime, the threshold, the number of shares at hand
x, y        a holder's id and its share
==========  ====================================================================
"""

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from ..errors import MessageFormatError

PRIME = 2**256 + 297
SHARE_BYTES = 33
SECRET_BYTES = 32
_MAX_SUBSETS = 1_000
"""Sets of holders that are left out by trial before a secret is given up: four seconds for t = 67."""


def split(secret: bytes, threshold: int, holders: Sequence[int]) -> list[bytes]:
    """Return one share for each holder, in their order; any ``threshold`` of them give the secret."""
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return evaluate([int.from_bytes(secret, "big"), *coefficients], holders)


def evaluate(polynomial: Sequence[int], holders: Sequence[int]) -> list[bytes]:
    """Return the shares that a polynomial, constant term first, gives to the holders."""
    if min(holders, default=1) < 1 or len(set(holders)) != len(holders):
        raise MessageFormatError("secagg: the ids of a secret's holders must be positive and distinct.")
    highest_first = list(reversed(polynomial))
    shares = []
    for x in holders:
        y = 0
        for coefficient in highest_first:
            y = (y * x + coefficient) % PRIME
        shares.append(y.to_bytes(SHARE_BYTES, "big"))
    return shares


@lru_cache(maxsize=4_096)
def weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Return what each holder's share is multiplied by to give the secret (Lagrange's formula at zero).

    Computed once per set of holders: on a complete graph, once for all secrets of a round.
    """
    product = 1
    denominators = []
    for x in holders:
        product = product * x % PRIME
        denominator = x
        for other in holders:
            if other != x:
                denominator = denominator * (other - x) % PRIME
        denominators.append(denominator)
    return tuple(product * inverse % PRIME for inverse in _inverses(denominators))


def _inverses(values: Sequence[int]) -> list[int]:
    """Return 1/v for all values with one inversion (Montgomery's trick)."""
    prefix = list(itertools.accumulate(values, lambda a, b: a * b % PRIME, initial=1))
    inverse = pow(prefix[-1], -1, PRIME)
    result = []
    for value, before in zip(reversed(values), reversed(prefix[:-1]), strict=True):
        result.append(inverse * before % PRIME)
        inverse = inverse * value % PRIME
    return result[::-1]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """Return the secret from the ``threshold`` shares of the lowest ids; None if it is no 32-byte value."""
    holders = tuple(sorted(shares)[:threshold])
    if len(holders) < threshold:
        raise MessageFormatError(f"secagg: {len(holders)} shares, but {threshold} are needed.")
    values = (int.from_bytes(shares[holder], "big") for holder in holders)
    secret = sum(w * y for w, y in zip(weights(holders), values, strict=True)) % PRIME
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 1 << 256 else None


def recover(
    shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool]
) -> tuple[bytes | None, tuple[int, ...]]:
    """Return the secret and the holders whose shares are wrong.

    Parameters
    ----------
    shares : Mapping[int, bytes]
        At least ``threshold`` shares by holder.
    threshold : int
        How many shares give the secret.
    is_right : Callable[[bytes], bool]
        Whether a candidate is the secret, as far as what its owner advertised tells.

    Returns
    -------
    tuple[bytes | None, tuple[int, ...]]
        The holders are certain if at most ⌊(m − t)/2⌋ lie; of more, some who plan together can make others
        look wrong, though the secret is right. None and no holders if no candidate is right: too many
        holders lie, or the owner shared nonsense. Wrong shares are looked for only if the first
        ``threshold`` give a wrong secret.
    """
    secret = combine(shares, threshold)
    if secret is not None and is_right(secret):
        return secret, ()
    for candidate in _candidates(shares, threshold):
        polynomial = candidate or [0]  # without coefficients it is zero everywhere
        if polynomial[0] < 1 << 256 and is_right(polynomial[0].to_bytes(SECRET_BYTES, "big")):
            holders = list(shares)
            expected = evaluate(polynomial, holders)
            wrong = [h for h, y in zip(holders, expected, strict=True) if shares[h] != y]
            return polynomial[0].to_bytes(SECRET_BYTES, "big"), tuple(sorted(wrong))
    return None, ()


def _candidates(shares: Mapping[int, bytes], threshold: int) -> "itertools.chain[list[int]]":
    points = [(x, int.from_bytes(y, "big") % PRIME) for x, y in sorted(shares.items())]

    def by_trial() -> "itertools.islice[list[int]]":
        left_out = itertools.chain.from_iterable(
            itertools.combinations(range(len(points)), size) for size in range(1, len(points) - threshold + 1)
        )
        kept = ([p for i, p in enumerate(points) if i not in out][:threshold] for out in left_out)
        return itertools.islice((_interpolate(some) for some in kept), _MAX_SUBSETS)

    decoded = _decode(points, threshold)
    return itertools.chain([] if decoded is None else [decoded], by_trial())


def _decode(points: Sequence[tuple[int, int]], threshold: int) -> list[int] | None:
    """Return the polynomial below degree t that most points lie on, if at most ⌊(m − t)/2⌋ do not (Gao)."""
    if len(points) < threshold + 2:
        return None
    locator = [1]
    for x, _ in points:
        locator = _times_linear(locator, x)
    remainder, last = _interpolate(points), locator
    factor, last_factor = [1], [0]
    while 2 * (len(remainder) - 1) >= len(points) + threshold:
        quotient, rest = _divide(last, remainder)
        last, remainder = remainder, rest
        last_factor, factor = factor, _subtract(last_factor, _multiply(quotient, factor))
    result, rest = _divide(remainder, factor)
    return (result or [0]) if not rest and len(result) <= threshold else None


def _interpolate(points: Sequence[tuple[int, int]]) -> list[int]:
    """Return the polynomial through the points (Newton's divided differences)."""
    xs = [x for x, _ in points]
    table = [y for _, y in points]
    for order in range(1, len(points)):
        inverses = _inverses([xs[i] - xs[i - order] for i in range(order, len(points))])
        for i in range(len(points) - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) * inverses[i - order] % PRIME
    result: list[int] = []
    for x, y in zip(reversed(xs), reversed(table), strict=True):
        result = _times_linear(result, x) if result else []
        result = [(result[0] + y) % PRIME, *result[1:]] if result else [y]
    return _trimmed(result)


def _times_linear(polynomial: list[int], root: int) -> list[int]:
    """Return the polynomial times (X − root)."""
    raised = [0, *polynomial]
    for i, value in enumerate(polynomial):
        raised[i] = (raised[i] - root * value) % PRIME
    return raised


def _multiply(left: list[int], right: list[int]) -> list[int]:
    result = [0] * (len(left) + len(right) - 1) if left and right else []
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[i + j] = (result[i + j] + a * b) % PRIME
    return _trimmed(result)


def _subtract(left: list[int], right: list[int]) -> list[int]:
    pairs = itertools.zip_longest(left, right, fillvalue=0)
    return _trimmed([(a - b) % PRIME for a, b in pairs])


def _divide(numerator: list[int], denominator: list[int]) -> tuple[list[int], list[int]]:
    """Return quotient and remainder."""
    rest = list(numerator)
    quotient = [0] * max(len(numerator) - len(denominator) + 1, 0)
    lead = pow(denominator[-1], -1, PRIME)
    for shift in range(len(quotient) - 1, -1, -1):
        factor = rest[shift + len(denominator) - 1] * lead % PRIME
        quotient[shift] = factor
        for i, value in enumerate(denominator):
            rest[shift + i] = (rest[shift + i] - factor * value) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _trimmed(polynomial: list[int]) -> list[int]:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial
