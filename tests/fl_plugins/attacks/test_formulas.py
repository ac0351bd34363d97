"""Every attack against a slow loop written from its paper."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_plugins import attacks
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError, ReplyError, StructureError

HONEST = np.random.default_rng(0).normal(1.0, [0.1, 1.0, 3.0, 0.0, 2.0], (7, 5))
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 on both sides, a few roundings

matrices = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 8), st.integers(1, 6)),
    elements=st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3)),
)

ALL = {
    "sign_flip": lambda x, f: attacks.sign_flip(x, f, scale=2.0),
    "gaussian_noise": lambda x, f: attacks.gaussian_noise(x, f, stddev=1.0, rng=np.random.default_rng(3)),
    "zero": attacks.zero,
    "constant": lambda x, f: attacks.constant(x, f, value=2.5),
    "non_finite": attacks.non_finite,
    "free_rider": lambda x, f: attacks.free_rider(x, f, previous=None),
    "sybil_copies": attacks.sybil_copies,
    "little_is_enough": lambda x, f: attacks.little_is_enough(x, f, z=1.0),
    "inner_product_manipulation": attacks.inner_product_manipulation,
    "mimic": attacks.mimic,
    "min_max": attacks.min_max,
    "min_sum": attacks.min_sum,
}


def mean_and_deviation(x):
    """Per coordinate, in plain Python."""
    columns = [[float(v) for v in column] for column in x.T]
    means = [math.fsum(column) / len(column) for column in columns]
    deviations = [
        math.sqrt(math.fsum((v - mean) ** 2 for v in column) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    return np.array(means), np.array(deviations)


def squared_distance(a, b):
    return math.fsum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))


def halved(feasible, upper):
    """The paper's search: the largest feasible gamma >= 0, by halving."""
    low, high = 0.0, upper
    while feasible(high):
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return low


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_f_rows_of_the_same_dtype_and_honest_rows_are_untouched(name, dtype):
    honest = HONEST.astype(dtype)
    copy = honest.copy()
    for f in (0, 1, 3):
        sent = ALL[name](honest, f)
        assert sent.shape == (f, 5)
        assert sent.dtype == dtype
    np.testing.assert_array_equal(honest, copy)
    # Equal arguments give equal bits.
    assert ALL[name](honest, 3).tobytes() == ALL[name](honest, 3).tobytes()


@pytest.mark.parametrize("name", ALL)
def test_bad_arguments_are_refused(name):
    with pytest.raises(ConfigError, match="num_byzantine=-1 must be >= 0"):
        ALL[name](HONEST, -1)
    for count in (True, 1.0, "2"):
        with pytest.raises(ConfigTypeError, match="must be an int"):
            ALL[name](HONEST, count)
    for shape in ((5,), (3, 0), (2, 2, 2)):
        with pytest.raises(StructureError, match=r"\(m, d\) array of floats"):
            ALL[name](np.zeros(shape), 1)
    with pytest.raises(StructureError, match="int64"):
        ALL[name](np.zeros((3, 2), np.int64), 1)
    with pytest.raises(PreconditionError, match="m=0 honest updates"):
        ALL[name](np.zeros((0, 2)), 1)
    with pytest.raises(ReplyError, match="honest row 1 is not finite"):
        ALL[name](np.array([[0.0], [np.nan], [1.0]]), 1)


@given(matrices, st.integers(1, 4))
def test_the_plain_attacks_send_what_they_say(x, f):
    mean, _ = mean_and_deviation(x)
    expected = {
        "sign_flip": -2.0 * mean,
        "zero": 0 * mean,
        "constant": 0 * mean + 2.5,
        "free_rider": 0 * mean,
        "sybil_copies": -x[0],
        "inner_product_manipulation": -0.5 * mean,
    }
    for name, row in expected.items():
        np.testing.assert_allclose(ALL[name](x, f), np.tile(row, (f, 1)), rtol=1e-12, atol=1e-10)
    last = np.arange(x.shape[1], dtype=float)
    np.testing.assert_array_equal(attacks.free_rider(x, f, previous=last), np.tile(last, (f, 1)))
    np.testing.assert_array_equal(attacks.sybil_copies(x, f, of=1, scale=1.0), np.tile(x[1], (f, 1)))
    np.testing.assert_allclose(
        attacks.inner_product_manipulation(x, f, epsilon=3.0)[0], -3 * mean, rtol=1e-12, atol=1e-10
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_non_finite_sends_what_it_is_told(value):
    np.testing.assert_array_equal(attacks.non_finite(HONEST, 2, value=value), np.full((2, 5), float(value)))
    with pytest.raises(ConfigError, match="value='NaN' must be one of nan, inf, -inf"):
        attacks.non_finite(HONEST, 2, value="NaN")


def test_gaussian_noise_has_its_deviation_and_differs_between_rows_and_generators():
    honest = np.ones((3, 20_000), np.float32)
    first, again, other = (
        attacks.gaussian_noise(honest, 2, stddev=0.3, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    # 40,000 draws: standard errors 0.3/sqrt(40000) = 0.0015 and 0.3/sqrt(80000) = 0.0011; five of them.
    assert abs(first.mean()) < 0.0075
    assert abs(first.std() - 0.3) < 0.0055
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first != other).any()


def phi(z):
    """The normal distribution function, by the trapezoidal rule: an oracle without an inverse."""
    grid = np.linspace(-12, z, 400_001)
    return float(np.trapezoid(np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), grid))


@pytest.mark.parametrize(
    ("n", "f", "supporters"), [(50, 24, 2), (20, 4, 7), (10, 1, 5), (10, 2, 4), (25, 5, 8), (51, 12, 14)]
)
def test_z_is_the_normal_quantile_of_the_papers_share(n, f, supporters):
    # Algorithm 3: s = floor(n/2 + 1) - f; the largest z with Phi(z) <= (n - f - s) / (n - f).
    # Steps of 3e-5: the integral's error is below 1e-8.
    assert phi(attacks.z_max(n, f)) == pytest.approx((n - f - supporters) / (n - f), abs=1e-8)


@pytest.mark.parametrize(("n", "f"), [(10, 6), (4, 3), (2, 1)])
def test_z_is_refused_where_the_paper_has_none(n, f):
    with pytest.raises(PreconditionError, match="honest supporters"):
        attacks.z_max(n, f)
    with pytest.raises(ConfigError, match="num_byzantine=0 must be >= 1"):
        attacks.z_max(10, 0)


@given(matrices, st.floats(-3, 3).map(lambda z: round(z, 3)))
def test_little_is_enough_is_mean_minus_z_deviations(x, z):
    mean, deviation = mean_and_deviation(x)
    np.testing.assert_allclose(
        attacks.little_is_enough(x, 2, z=z), np.tile(mean - z * deviation, (2, 1)), rtol=1e-9, atol=1e-9
    )


def test_little_is_enough_takes_the_papers_z_of_all_clients():
    mean, deviation = mean_and_deviation(HONEST)
    np.testing.assert_allclose(
        attacks.little_is_enough(HONEST, 3)[0], mean - attacks.z_max(10, 3) * deviation, **EXACT
    )


@pytest.mark.parametrize("attack", ["min_max", "min_sum"])
@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@given(x=matrices)
def test_min_max_and_min_sum_use_their_constraint_up_and_do_not_break_it(attack, direction, x):
    mean, deviation = mean_and_deviation(x)
    norm = math.sqrt(math.fsum(mean**2))
    p = {"std": -deviation, "unit": -mean / norm if norm else 0 * mean, "sign": -np.sign(mean)}[direction]
    pairs = [[squared_distance(a, b) for b in x] for a in x]
    if attack == "min_max":
        bound = max(map(max, pairs))

        def measure(row):
            return max(squared_distance(row, a) for a in x)
    else:
        bound = max(map(math.fsum, pairs))

        def measure(row):
            return math.fsum(squared_distance(row, a) for a in x)

    sent = getattr(attacks, attack)(x, 1, direction=direction)[0]
    scale = bound + norm**2 + 1e-6
    assert measure(sent) <= bound + 1e-9 * scale
    if bound < 1e-6 or float(p @ p) < 1e-6:
        return  # no room or no direction: it stays at the mean
    beyond = mean + (1 + 1e-4) * (sent - mean) + 1e-4 * p
    assert measure(beyond) > bound
    gamma = halved(lambda g: measure(mean + g * p) <= bound, 1.0)
    np.testing.assert_allclose(sent, mean + gamma * p, rtol=1e-6, atol=1e-6 * math.sqrt(scale))


def test_min_max_of_equal_updates_is_their_mean():
    same = np.ones((4, 3))
    np.testing.assert_array_equal(attacks.min_max(same, 1), np.ones((1, 3)))
    np.testing.assert_array_equal(attacks.min_sum(same, 1, direction="unit"), np.ones((1, 3)))
    with pytest.raises(ConfigError, match="direction='up' must be one of std, unit, sign"):
        attacks.min_max(HONEST, 1, direction="up")
    with pytest.raises(PreconditionError, match="m >= 2"):
        attacks.min_sum(HONEST[:1], 1)


@pytest.mark.parametrize(("far", "near"), [(3, 1), (0, 5), (5, 2), (2, 4)])
def test_mimic_copies_the_client_that_is_farthest_along_the_widest_direction(far, near):
    rng = np.random.default_rng(5)
    history = rng.normal(size=(4, 6, 8))
    history[:, far, 0] += 9.0  # far and near pull apart along one axis, far a little more
    history[:, near, 0] -= 7.0
    covariance = sum(np.outer(u - r.mean(axis=0), u - r.mean(axis=0)) for r in history for u in r)
    z = np.ones(8)
    for _ in range(500):  # power iteration on the d x d matrix that the code never forms
        z = covariance @ z / np.linalg.norm(covariance @ z)
    expected = max(range(6), key=lambda client: abs(sum(float(r[client] @ z) for r in history)))
    assert attacks.mimic_target(history) == expected == far
    np.testing.assert_array_equal(attacks.mimic(history[0], 2, target=3), history[0][[3, 3]])
    np.testing.assert_array_equal(
        attacks.mimic(history[1], 1)[0], history[1][attacks.mimic_target(history[1:2])]
    )
    with pytest.raises(ConfigError, match="target=6 must be < m=6"):
        attacks.mimic(history[0], 1, target=6)
    with pytest.raises(StructureError, match=r"\(t, m, d\)"):
        attacks.mimic_target(history[0])


def test_sizes_and_places_must_make_sense():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be finite"):
            attacks.constant(HONEST, 1, value=value)
    with pytest.raises(ConfigError, match="finite and >= 0"):
        attacks.inner_product_manipulation(HONEST, 1, epsilon=-0.1)
    with pytest.raises(ConfigTypeError, match="must be a number"):
        attacks.little_is_enough(HONEST, 1, z="1")
    with pytest.raises(ConfigError, match="of=7 must be < m=7"):
        attacks.sybil_copies(HONEST, 1, of=7)
    with pytest.raises(StructureError, match=r"previous has shape \(4,\)"):
        attacks.free_rider(HONEST, 1, previous=np.zeros(4))


def test_what_a_narrow_dtype_cannot_hold_becomes_infinite():
    huge = np.full((2, 1), 6e4, np.float16)
    assert attacks.sign_flip(huge, 1) == -np.inf
