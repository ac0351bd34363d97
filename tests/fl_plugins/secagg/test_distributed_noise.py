"""Noise that the clients add: the sum is right, its noise is what is charged, bad parameters are refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import hadamard

from fl_plugins.errors import ConfigError, EncodingError, RoundAbortedError
from fl_plugins.privacy import Accountant, Everyone, Gaussian, NeighborRelation, NoiseSource, Release
from fl_plugins.privacy.samplers import MAX_STD
from fl_plugins.secagg import Stage
from fl_plugins.secagg.distributed_noise import MIN_LOCAL_STD, DistributedNoise, Noise
from fl_plugins.secagg.fixed_point import NUM_ONES
from fl_plugins.secagg.rotation import rotate, rotate_back

from .federation import Federation, parameters

SEED = bytes(range(32))
ZERO_OUT = NeighborRelation.of(unit="client", adjacency="zero_out")


def settings(**changes):
    values = {
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "num_entries": 1000,
        "num_bits": 16,
        "cohort": 20,
        "min_survivors": 15,
    }
    return DistributedNoise(**{**values, **changes})


def updates(count, size, norm=0.5, seed=3):
    drawn = np.random.default_rng(seed).normal(size=(count, size)) + 1.0
    return drawn * (norm / np.linalg.norm(drawn, axis=1, keepdims=True))


def noisy_sum(config, vectors, source=None):
    source = source or NoiseSource(insecure_seed=17)
    total = 0
    for vector in vectors:
        total = total + config.encode([vector], rotation_seed=SEED, source=source).words
    return config.decode(total, len(vectors), rotation_seed=SEED).update


@pytest.mark.parametrize("size", [1, 2, 32, 64, 128, 1024])
def test_the_rotation_is_signs_and_the_hadamard_matrix(size):
    vector = np.random.default_rng(size).normal(size=size)
    signs = rotate_back(rotate(np.ones(size), SEED), SEED)
    assert np.allclose(signs, 1.0, rtol=1e-12)
    matrix = np.stack([rotate(row, SEED) for row in np.eye(size)], axis=1)
    flips = matrix[0] * math.sqrt(size)  # the first row of H is all ones
    assert np.allclose(abs(flips), 1.0, rtol=1e-12)
    assert np.allclose(rotate(vector, SEED), hadamard(size) @ (flips * vector) / math.sqrt(size), atol=1e-12)
    assert size < 32 or 0.2 < np.mean(flips > 0) < 0.8


def test_the_rotation_spreads_one_entry_over_all_and_comes_back():
    vector = np.zeros(1 << 13)
    vector[77] = 5.0
    turned = rotate(vector, SEED)
    assert np.allclose(abs(turned), 5.0 / math.sqrt(vector.size), rtol=1e-12)
    assert np.allclose(rotate_back(turned, SEED), vector, atol=1e-12)
    assert not np.allclose(rotate(vector, bytes(32)), turned)


@pytest.mark.parametrize("changes", [{}, {"cohort": 900, "min_survivors": 700}, {"stds": 6.0}])
def test_the_scale_fills_half_the_ring_with_k_standard_deviations(changes):
    config = settings(num_entries=5000, **changes)
    n, s = config.cohort, config.scale
    signal = (n * config.clip_norm * s) ** 2 / 8192
    share = s * config.noise_multiplier * config.clip_norm / math.sqrt(config.min_survivors)
    assert config.local_std == pytest.approx(share, rel=1e-12)
    assert config.stds * math.sqrt(signal + n * share**2 + n / 4) == pytest.approx(2**15, rel=1e-9)


def test_a_wide_ring_is_not_used_for_more_precision_than_noise_has():
    config = settings(num_bits=32)
    assert config.local_std == pytest.approx(MAX_STD)
    assert config.effective_noise_multiplier == pytest.approx(1.0, rel=1e-4)


def test_integers_never_have_a_longer_norm_than_is_charged():
    config = settings(num_entries=1024, num_bits=16, cohort=500, min_survivors=500)
    source = NoiseSource(insecure_seed=1)
    # All halves: the longest norm in expectation.
    halves = np.floor(np.full(1024, config.clip_norm * config.scale / 32.0)) + 0.5
    assert np.linalg.norm(halves) < 1.02 * config.clip_norm * config.scale
    halves *= np.sqrt((config.clip_norm * config.scale) ** 2 / (halves @ halves))
    drawn = [config._round(halves, source) for _ in range(300)]
    assert max(int(each @ each) for each in drawn) <= config.max_squared_norm
    plain = [np.floor(halves) + (source.uniform(1024) < halves % 1) for _ in range(300)]
    assert max(each @ each for each in plain) > config.max_squared_norm  # what the repetition is for
    assert np.mean(drawn, axis=0) == pytest.approx(halves, abs=5 * 0.5 / math.sqrt(300))


@pytest.mark.parametrize("noise", list(Noise))
@pytest.mark.parametrize("num_bits", [16, 32])
def test_the_sum_has_the_clipped_updates_and_the_noise_of_its_survivors(noise, num_bits):
    config = settings(noise=noise, num_bits=num_bits, num_entries=3000)
    vectors = updates(20, 3000, norm=2.0)  # four times the clip norm
    error = noisy_sum(config, vectors) - vectors.sum(axis=0) / 4
    expected = config.noise_multiplier * config.clip_norm * math.sqrt(20 / 15)
    assert error.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * 3000))  # five standard errors
    assert abs(error.mean()) < 5 * expected / math.sqrt(3000)


def central_std(epsilon, clip_norm, delta=1e-5):
    """Return the standard deviation of central Gaussian noise of that ε, accounted alike (RDP)."""

    def spent(z):
        accountant = Accountant(ZERO_OUT)
        accountant.compose(charge(Gaussian(noise_multiplier=z)))
        return accountant.report(delta, pld=False).by_method["rdp"]

    low, high = 0.1, 10.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return high * clip_norm


def charge(mechanism):
    return Release(mechanism=mechanism, sampling=Everyone(), relation=ZERO_OUT)


@pytest.mark.parametrize(
    ("noise", "size", "tolerance"),  # three standard errors, √(2/D), or more
    [(Noise.DISCRETE_GAUSSIAN, 1 << 16, 0.02), (Noise.SKELLAM, 1 << 14, 0.035)],
)
def test_sixteen_bits_cost_next_to_nothing_beside_central_noise_of_the_same_epsilon(noise, size, tolerance):
    clients = 100
    config = settings(noise=noise, num_entries=size, cohort=clients, min_survivors=clients, clip_norm=1.0)
    accountant = Accountant(ZERO_OUT)
    accountant.compose(charge(config.mechanism))
    central = central_std(accountant.report(1e-5).epsilon, 1.0) ** 2
    vectors = updates(clients, size, norm=1.0)
    error = noisy_sum(config, vectors) - vectors.sum(axis=0)
    assert np.mean(error**2) / central == pytest.approx(1.0, abs=tolerance)
    # The test sees noise that is charged for fewer survivors than there are.
    fewer = replace(config, min_survivors=90)
    error = noisy_sum(fewer, vectors) - vectors.sum(axis=0)
    assert np.mean(error**2) / central > 1.0 + tolerance


def test_a_colluders_share_is_not_counted_on():
    counted, all_honest = settings(max_colluders=5), settings()
    assert counted.mechanism.num_shares == 10
    assert counted.local_std * math.sqrt(10) / counted.scale == pytest.approx(0.5, rel=1e-12)
    assert counted.local_std / counted.scale > all_honest.local_std / all_honest.scale
    assert counted.effective_noise_multiplier == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_counts_as_zero_and_still_brings_noise(bad):
    config = settings()
    words = config.encode([np.full(1000, bad)], rotation_seed=SEED, source=NoiseSource(insecure_seed=2)).words
    zero = config.encode([np.zeros(1000)], rotation_seed=SEED, source=NoiseSource(insecure_seed=2)).words
    assert np.array_equal(words, zero)
    assert words[:NUM_ONES].tolist() == [1] * NUM_ONES
    noise = words[NUM_ONES:].view("<i2")
    assert noise.std() == pytest.approx(config.local_std, rel=5 / math.sqrt(2 * noise.size))


def test_too_few_survivors_are_not_decoded_and_wrong_sums_are_refused():
    config = settings()
    total = sum(
        config.encode([row], rotation_seed=SEED, source=NoiseSource(insecure_seed=4)).words
        for row in updates(14, 1000)
    )
    with pytest.raises(RoundAbortedError, match=r"14 clients in the sum.*min_survivors=15"):
        config.decode(total, 14, rotation_seed=SEED)
    with pytest.raises(EncodingError, match="check ones"):
        config.decode(total, 15, rotation_seed=SEED)
    with pytest.raises(EncodingError, match="check ones"):
        config.decode(total + np.uint16(7), 21, rotation_seed=SEED)
    with pytest.raises(EncodingError, match="words"):
        config.decode(total[:-1], 15, rotation_seed=SEED)


def test_updates_of_another_size_or_dtype_are_refused():
    config = settings()
    for arrays in ([np.zeros(999)], [np.zeros(1000), np.zeros(1)], []):
        with pytest.raises(EncodingError, match="1000"):
            config.encode(arrays, rotation_seed=SEED, source=NoiseSource())
    with pytest.raises(EncodingError, match="not real"):
        config.encode([np.zeros(1000, complex)], rotation_seed=SEED, source=NoiseSource())
    parts = [np.zeros((10, 50), np.float32), np.zeros(()), np.zeros(499, np.float16)]
    assert config.encode(parts, rotation_seed=SEED, source=NoiseSource()).words.size == config.length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohort": 60_000, "min_survivors": 60_000}, r"60000 clients, which leaves.* 0\.\d+ grid steps"),
        ({"noise_multiplier": 1e-4}, "below 2 the sum of shares is no noise"),
        ({"cohort": 70_000, "num_bits": 16}, "cohort=70000, but a ring of 16 bits counts to 65535"),
        ({"max_colluders": 14}, "at least 2 must be left"),
        ({"min_survivors": 21}, "cohort=20, but it must be >= 21"),
        ({"min_survivors": 1}, "min_survivors"),
        ({"num_bits": 8}, "16 or 32 bits"),
        ({"noise": "gaussian"}, "discrete_gaussian, skellam"),
        ({"stds": 2.0}, "stds"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"num_bits": 32, "noise_multiplier": 1e-6, "num_entries": 1 << 22}, "beyond 64 bits"),
    ],
)
def test_parameters_that_cannot_hold_are_refused_with_the_numbers(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_the_smallest_share_that_is_accepted_is_two_steps():
    low, high = 1e-4, 1.0
    while high - low > 1e-8:
        middle = (low + high) / 2
        try:
            settings(noise_multiplier=middle)
        except ConfigError:
            low = middle
        else:
            high = middle
    assert settings(noise_multiplier=high).local_std == pytest.approx(MIN_LOCAL_STD, rel=1e-3)


def test_through_the_protocol_with_dropouts_the_survivors_sum_comes_out():
    config = settings(num_entries=50, cohort=12, min_survivors=8, noise_multiplier=0.3)
    source, rows = NoiseSource(insecure_seed=9), updates(12, 50)
    vectors = {
        node: config.encode([row], rotation_seed=SEED, source=source).words
        for node, row in enumerate(rows, 1)
    }
    federation = Federation(
        parameters(12, num_bits=16, length=config.length, min_clients=8, dropout=0.2),
        tuple(vectors),
        vectors=vectors,
    )
    result = federation.run({Stage.SHARE: [3], Stage.MASK: [5]})
    decoded = config.decode(result.vector, len(result.survivors), rotation_seed=SEED)
    kept = [node - 1 for node in result.survivors]
    assert sorted(kept) == [0, 1, 3, *range(5, 12)]
    std = 0.3 * 0.5 * math.sqrt(10 / 8)
    assert np.max(abs(decoded.update - rows[kept].sum(axis=0))) < 6 * std
