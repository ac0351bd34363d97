"""Shamir's sharing against linear algebra over the same field, and its decoding of wrong shares."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import MessageFormatError
from fl_plugins.secagg.shamir import (
    PRIME,
    SECRET_BYTES,
    SHARE_BYTES,
    combine,
    evaluate,
    recover,
    split,
    weights,
)

SECRET = bytes(range(32))


def _solve(points: list[tuple[int, int]]) -> list[int]:
    """Oracle: the polynomial through the points, by Gaussian elimination of Vandermonde's system."""
    rows = [[pow(x, power, PRIME) for power in range(len(points))] + [y % PRIME] for x, y in points]
    for column in range(len(rows)):
        pivot = next(i for i in range(column, len(rows)) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], PRIME - 2, PRIME)
        rows[column] = [value * inverse % PRIME for value in rows[column]]
        for i, row in enumerate(rows):
            if i != column and row[column]:
                rows[i] = [(a - row[column] * b) % PRIME for a, b in zip(row, rows[column], strict=True)]
    return [row[-1] for row in rows]


def test_the_modulus_is_prime() -> None:
    # Fermat's test to 40 bases: wrong with probability below 2^-40 for a number nobody chose to fool it.
    rng = random.Random(0)
    assert all(pow(rng.randrange(2, PRIME), PRIME - 1, PRIME) == 1 for _ in range(40))


@given(
    secret=st.binary(min_size=32, max_size=32),
    holders=st.sets(st.integers(1, 2**64 - 1), min_size=2, max_size=12),
    data=st.data(),
)
def test_any_threshold_of_shares_gives_the_secret_as_linear_algebra_does(
    secret: bytes, holders: set[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, len(holders)))
    order = sorted(holders)
    shares = dict(zip(order, split(secret, threshold, order), strict=True))
    some = data.draw(st.permutations(order))[:threshold]
    chosen = {holder: shares[holder] for holder in some}
    assert combine(chosen, threshold) == secret
    oracle = _solve([(x, int.from_bytes(y, "big")) for x, y in chosen.items()])
    assert oracle[0].to_bytes(32, "big") == secret
    assert evaluate(oracle, order) == [shares[holder] for holder in order]


def test_fewer_shares_fit_every_secret() -> None:
    shares = split(SECRET, 3, [4, 9, 2**64 - 1])
    known = [(4, int.from_bytes(shares[0], "big")), (9, int.from_bytes(shares[1], "big"))]
    for other in (0, 1, 2**256 - 1):
        assert _solve([*known, (0, other)])[0] == other


def test_two_splits_of_one_secret_share_nothing() -> None:
    first, second = (split(SECRET, 2, [1, 2, 3]) for _ in range(2))
    assert not set(first) & set(second)


def test_weights_give_the_constant_term() -> None:
    holders = (3, 7, 2**63, 2**64 - 1)
    polynomial = [5, 6, 7, 8]
    values = [sum(a * x**j for j, a in enumerate(polynomial)) for x in holders]
    assert sum(w * y for w, y in zip(weights(holders), values, strict=True)) % PRIME == 5


def _corrupted(holders: range, threshold: int, liars: tuple[int, ...]) -> dict[int, bytes]:
    shares = dict(zip(holders, split(SECRET, threshold, list(holders)), strict=True))
    for liar in liars:
        shares[liar] = bytes([0]) + random.Random(liar).randbytes(32)
    return shares


@pytest.mark.parametrize(("num_holders", "threshold"), [(5, 4), (6, 4), (10, 4), (12, 9)])
def test_wrong_shares_among_the_first_are_found_and_their_holders_named(
    num_holders: int, threshold: int
) -> None:
    holders = range(1, num_holders + 1)
    for size in range(1, num_holders - threshold + 1):
        for liars in itertools.islice(itertools.combinations(holders, size), 0, None, 7):
            shares = _corrupted(holders, threshold, liars)
            secret, wrong = recover(shares, threshold, SECRET.__eq__)
            assert secret == SECRET
            assert wrong == (() if min(liars) > threshold else liars)


def test_many_wrong_shares_of_many_are_decoded() -> None:
    liars = tuple(range(1, 15))
    shares = _corrupted(range(1, 101), 67, liars)
    assert recover(shares, 67, SECRET.__eq__) == (SECRET, liars)


def test_liars_who_plan_together_cannot_make_an_honest_holder_look_wrong_within_the_radius() -> None:
    holders, threshold = (1, 2, 3, 4, 5, 6), 4
    shares = dict(zip(holders, split(SECRET, threshold, holders), strict=True))
    # The errors of holders 1 and 2 cancel in the secret that 1, 2, 4 and 5 give: radius 1, two liars.
    shares |= {x: (int.from_bytes(shares[x], "big") + 77).to_bytes(33, "big") for x in (1, 2)}
    assert recover(shares, threshold, SECRET.__eq__) == (SECRET, (3, 6))
    # Two more honest holders, radius 2: now they are found.
    more = (*holders, 7, 8)
    shares = dict(zip(more, split(SECRET, threshold, more), strict=True))
    shares |= {x: (int.from_bytes(shares[x], "big") + 77).to_bytes(33, "big") for x in (1, 2)}
    assert recover(shares, threshold, SECRET.__eq__) == (SECRET, (1, 2))


def test_more_wrong_shares_than_surplus_give_nothing_and_blame_nobody() -> None:
    shares = _corrupted(range(1, 7), 4, (1, 2, 3))
    assert recover(shares, 4, SECRET.__eq__) == (None, ())


def test_shares_of_a_value_that_is_no_secret_give_nothing() -> None:
    shares = dict(zip((1, 2, 3), evaluate([2**256 + 5, 1], [1, 2, 3]), strict=True))
    assert combine(shares, 2) is None
    assert recover(shares, 2, lambda _: True) == (None, ())


@pytest.mark.parametrize("holders", [2, 3, 4])
def test_an_owner_who_gives_everybody_zero_is_found_out_like_any_other(holders: int) -> None:
    shares = dict.fromkeys(range(1, holders + 1), bytes(SHARE_BYTES))
    assert recover(shares, 2, SECRET.__eq__) == (None, ())
    assert recover(shares, 2, bytes(SECRET_BYTES).__eq__) == (bytes(SECRET_BYTES), ())


def test_too_few_shares_and_impossible_holders_are_refused() -> None:
    with pytest.raises(MessageFormatError, match="2 shares, but 3"):
        combine({1: bytes(33), 2: bytes(33)}, 3)
    for holders in ([0, 1], [4, 4]):
        with pytest.raises(MessageFormatError, match="positive and distinct"):
            split(SECRET, 2, holders)
