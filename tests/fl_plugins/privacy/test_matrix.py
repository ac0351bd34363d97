"""Banded matrix factorisation: sensitivity for every participation, the optimum, the noise's law."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, PreconditionError
from fl_plugins.privacy import (
    Accountant,
    BandedGaussian,
    BandedMatrix,
    CorrelatedNoise,
    Everyone,
    Gaussian,
    MinSeparation,
    NeighborRelation,
    NoiseSource,
    Release,
)

Floats = NDArray[np.float64]


def noise_of(matrix: BandedMatrix) -> Floats:
    """Return the matrix that makes z into the noise, from what the stream does with unit vectors."""
    stream = CorrelatedNoise(matrix)
    return np.stack([stream.next(row) for row in np.eye(matrix.rounds)])


def encoder(matrix: BandedMatrix) -> Floats:
    """Return C as the inverse of what the stream does: not from the matrix's own rows."""
    return np.asarray(np.linalg.inv(noise_of(matrix)))


def patterns(rounds: int, gap: int) -> Iterator[tuple[int, ...]]:
    """Yield every set of rounds that are at least ``gap`` apart."""
    for bits in itertools.product([0, 1], repeat=rounds):
        chosen = tuple(np.flatnonzero(bits).tolist())
        if all(later - earlier >= gap for earlier, later in itertools.pairwise(chosen)):
            yield chosen


def moved(c: Floats, chosen: tuple[int, ...], changes: Floats, *, upto: int) -> float:
    """Return ‖C·Δ‖² over the rounds before ``upto``: in standard deviations² of z, what one unit moves."""
    delta = np.zeros((len(c), changes.shape[1]))
    delta[list(chosen)] = changes[: len(chosen)]
    return float(np.sum((c @ delta)[:upto] ** 2))


def charged(matrix: BandedMatrix, upto: int) -> float:
    """Return the weight of the blocks that ``upto`` rounds have begun."""
    return float(np.sum(matrix.block_weights[: math.ceil(upto / matrix.bands)]))


@pytest.mark.parametrize(("rounds", "bands"), [(1, 2), (5, 2), (8, 2), (9, 3), (10, 4), (7, 6), (4, 9)])
def test_no_participation_moves_more_than_was_charged_by_then_and_one_moves_just_that(
    rounds: int, bands: int
) -> None:
    matrix = BandedMatrix(rounds=rounds, bands=bands)
    c = encoder(matrix)
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(20, rounds, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    same = np.ones((rounds, 1))
    most = 0.0
    for chosen in patterns(rounds, bands):
        for changes in (same, *directions):
            for upto in range(1, rounds + 1):
                assert moved(c, chosen, changes, upto=upto) <= charged(matrix, upto) * (1 + 1e-9)
        most = max(most, moved(c, chosen, same, upto=rounds))
    assert most == pytest.approx(charged(matrix, rounds), rel=1e-9)


@pytest.mark.parametrize(("rounds", "bands"), [(8, 2), (9, 3), (10, 4)])
def test_a_unit_that_returns_one_round_too_soon_moves_more_than_was_charged(rounds: int, bands: int) -> None:
    matrix = BandedMatrix(rounds=rounds, bands=bands)
    c, same = encoder(matrix), np.ones((rounds, 1))
    most = max(moved(c, chosen, same, upto=rounds) for chosen in patterns(rounds, bands - 1))
    assert most > 1.2 * charged(matrix, rounds)


@given(st.integers(1, 30), st.integers(2, 9), st.randoms(use_true_random=False))
def test_the_charge_holds_for_any_length_and_any_participation(rounds: int, bands: int, random: Any) -> None:
    matrix = BandedMatrix(rounds=rounds, bands=bands)
    c = encoder(matrix)
    chosen, number = [], random.randrange(bands)
    while number < rounds:
        chosen.append(number)
        number += bands + random.choice([0, 0, 0, 1, random.randrange(bands)])
    changes = np.array([[random.uniform(-1, 1), 0.0] for _ in range(rounds)])
    changes[:, 1] = np.sqrt(1 - changes[:, 0] ** 2)
    upto = random.randint(1, rounds)
    assert moved(c, tuple(chosen), changes, upto=upto) <= charged(matrix, upto) * (1 + 1e-9)
    assert np.sum(matrix.block_weights) == pytest.approx(math.ceil(rounds / bands), rel=1e-9)


def test_the_noise_of_a_round_depends_on_no_later_one_and_c_has_only_its_bands() -> None:
    matrix = BandedMatrix(rounds=12, bands=4)
    inverse, c = noise_of(matrix), encoder(matrix)
    assert not np.triu(inverse, 1).any()
    np.testing.assert_allclose(np.triu(c, 1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.tril(c, -4), 0.0, atol=1e-12)
    for t, s in itertools.product(range(12), range(12)):
        if 0 <= t - s < 4:
            assert c[t, s] == pytest.approx(matrix.rows[t, t - s], rel=1e-9)


def root_mean_square(inverse: Floats) -> float:
    """Return the running sums' error for σ = 1, a sum and a round at a time."""
    running, total = np.zeros(len(inverse)), 0.0
    for row in inverse:
        running = running + row
        total += float(running @ running)
    return math.sqrt(total / len(inverse))


@pytest.mark.parametrize(
    ("rounds", "bands", "least"),
    [(64, 16, 2.5), (128, 16, 2.9), (256, 32, 3.8)],
    ids=lambda value: str(value),
)
def test_running_sums_have_the_error_that_the_paper_promises_at_equal_cost(
    rounds: int, bands: int, least: float
) -> None:
    """The bounds are what jax-privacy's optimum was measured to save (dp.md B: 2.5, 2.9, 3.8 times)."""
    matrix = BandedMatrix(rounds=rounds, bands=bands)
    ratio = root_mean_square(np.eye(rounds)) / root_mean_square(noise_of(matrix))
    assert ratio >= least
    assert matrix.gain == pytest.approx(ratio, rel=1e-9)


def test_two_rounds_have_the_minimum_that_can_be_found_on_paper() -> None:
    """C = [[√(1 − c²), 0], [c, 1]]: the error (1 + (1 − c)²)/(1 − c²) + 1 is least where c² − 3c + 1 = 0."""
    c = (3.0 - math.sqrt(5.0)) / 2.0
    expected = np.array([[math.sqrt(1.0 - c * c), 0.0], [c, 1.0]])
    np.testing.assert_allclose(encoder(BandedMatrix(rounds=2, bands=2)), expected, atol=1e-4)


def test_no_other_matrix_near_it_has_a_smaller_error_at_the_same_cost() -> None:
    matrix = BandedMatrix(rounds=24, bands=6)
    c, best = encoder(matrix), root_mean_square(noise_of(matrix))
    rng = np.random.default_rng(1)
    for scale in (0.3, 0.1, 0.03, 0.01):
        for _ in range(25):
            other = c * np.exp(scale * rng.normal(size=c.shape))
            norms = np.sum(other**2, axis=0)
            total = sum(float(norms[start : start + 6].max()) for start in range(0, 24, 6))
            other *= math.sqrt(4.0 / total)
            assert root_mean_square(np.linalg.inv(other)) > best


def covariance_error(rows: Floats, inverse: Floats) -> float:
    """Return the largest deviation of the rows' covariance from σ²·C⁻¹C⁻ᵀ, in standard errors.

    n pairs with variances a, b and covariance c: the mean product has variance (a·b + c²)/n.
    """
    expected = inverse @ inverse.T
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / rows.shape[1])
    return float(np.max(np.abs(rows @ rows.T / rows.shape[1] - expected) / spread))


def test_the_stream_has_the_covariance_that_is_claimed_and_independent_noise_has_not() -> None:
    """36 covariances of 40,000 values each; 5 standard errors are exceeded in 2 of 100,000 runs."""
    matrix, source = BandedMatrix(rounds=8, bands=3), NoiseSource(insecure_seed=1)
    stream = CorrelatedNoise(matrix)
    fresh = np.stack([source.normal(40_000) for _ in range(8)])
    rows = np.stack([stream.next(each) for each in fresh])
    inverse = noise_of(matrix)
    assert covariance_error(rows, inverse) < 5.0
    assert covariance_error(encoder(matrix) @ rows, np.eye(8)) < 5.0
    assert covariance_error(fresh, inverse) > 20.0
    assert covariance_error(rows[::-1], inverse) > 20.0
    assert covariance_error(1.03 * rows, inverse) > 5.0


def test_rounding_does_not_grow_over_a_long_stream() -> None:
    """C times what the stream gives is z again, to 1e-12 of its size, after 400 rounds too."""
    matrix, rng = BandedMatrix(rounds=400, bands=8), np.random.default_rng(4)
    stream, fresh = CorrelatedNoise(matrix), rng.normal(size=(400, 5))
    rows = np.stack([stream.next(each) for each in fresh])
    for t in range(400):
        again = sum(matrix.rows[t, j] * rows[t - j] for j in range(min(8, t + 1)))
        np.testing.assert_allclose(again, fresh[t], atol=1e-12)


def test_a_stream_ends_and_is_for_one_model() -> None:
    stream = CorrelatedNoise(BandedMatrix(rounds=2, bands=2))
    stream.next(np.zeros(3))
    with pytest.raises(PreconditionError, match=r"shape \(4,\) after \(3,\)"):
        stream.next(np.zeros(4))
    stream.next(np.zeros(3))
    with pytest.raises(PreconditionError, match="rounds=2 are over; begin another"):
        stream.next(np.zeros(3))


def test_the_stream_keeps_its_noise_to_itself() -> None:
    stream, given_row = CorrelatedNoise(BandedMatrix(rounds=3, bands=2)), np.array([123.456])
    returned = stream.next(given_row)
    assert "123" not in repr(stream)
    returned[:] = 0.0
    given_row[:] = 0.0
    reference = CorrelatedNoise(BandedMatrix(rounds=3, bands=2))
    reference.next(np.array([123.456]))
    assert stream.next(np.zeros(1)) == reference.next(np.zeros(1)) != 0.0


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: BandedMatrix(rounds=0, bands=2), "rounds"),
        (lambda: BandedMatrix(rounds=10, bands=1), "bands"),
        (lambda: BandedMatrix(rounds=1025, bands=2), "rounds=1025.*at most 1024.*another stream"),
        (lambda: BandedGaussian(noise_multiplier=0.0, bands=2), "noise_multiplier"),
        (lambda: BandedGaussian(noise_multiplier=1.0, bands=1), "bands"),
        (lambda: MinSeparation(size=0, rounds=2, population=10), "size"),
        (lambda: MinSeparation(size=1, rounds=1, population=10), "rounds"),
        (lambda: MinSeparation(size=4, rounds=3, population=11), "come back too soon.*at most 3.*at most 2"),
    ],
)
def test_what_cannot_hold_is_refused(build: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build()


ZERO_OUT, REPLACE = (NeighborRelation.of(unit="client", adjacency=name) for name in ("zero_out", "replace"))
APART = MinSeparation(size=2, rounds=4, population=10)


@pytest.mark.parametrize(
    ("sampling", "adjacency", "reason"),
    [
        (Everyone(), "zero_out", "at least so many rounds apart"),
        (MinSeparation(size=2, rounds=3, population=10), "zero_out", "bands=4.*MinSeparation"),
        (APART, "add_remove", "no accounting under adjacency='add_remove'"),
    ],
)
def test_banded_noise_is_only_for_units_that_rest(sampling: Any, adjacency: str, reason: str) -> None:
    relation = NeighborRelation.of(unit="client", adjacency=adjacency)
    mechanism = BandedGaussian(noise_multiplier=1.0, bands=4)
    with pytest.raises(ConfigError, match=reason):
        Release(mechanism=mechanism, sampling=sampling, relation=relation)


@pytest.mark.parametrize("relation", [ZERO_OUT, REPLACE], ids=["zero_out", "replace"])
def test_the_blocks_of_a_stream_cost_as_much_as_so_many_gaussian_releases(relation: NeighborRelation) -> None:
    matrix = BandedMatrix(rounds=14, bands=4)
    blocks, plain = Accountant(relation), Accountant(relation)
    for weight in matrix.block_weights:
        mechanism = BandedGaussian(noise_multiplier=2.0 / math.sqrt(weight), bands=4)
        release = Release(mechanism=mechanism, sampling=APART, relation=relation)
        assert Release.from_json(release.to_json()) == release
        blocks.compose(release)
    plain.compose(
        Release(mechanism=Gaussian(noise_multiplier=2.0), sampling=Everyone(), relation=relation), 4
    )
    one, other = blocks.report(1e-5), plain.report(1e-5)
    assert one.method == "exact"
    for method, epsilon in one.by_method.items():
        assert epsilon == pytest.approx(other.by_method[method], rel=1e-9)


def test_a_cohort_is_a_uniform_draw_of_at_most_so_many() -> None:
    """Ten thousand draws of 2 of 5: each name in 4,000 ± 5 standard deviations of √(10,000 · 0.4 · 0.6)."""
    source = NoiseSource(insecure_seed=2)
    counts = dict.fromkeys("abcde", 0)
    for _ in range(10_000):
        drawn = APART.draw("abcde", source)
        assert len(set(drawn)) == 2
        for name in drawn:
            counts[name] += 1
    assert all(abs(count - 4000) < 5 * math.sqrt(2400) for count in counts.values())
    assert APART.draw("a", source) == ["a"]
    assert APART.draw("", source) == []
    with pytest.raises(PreconditionError, match="11 units are there"):
        APART.draw("abcdefghijk", source)
