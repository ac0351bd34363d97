"""Integer and Laplace noise have the distribution they claim, and tests would see a wrong scale."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fl_plugins.errors import ConfigError, StructureError
from fl_plugins.privacy import NoiseSource
from fl_plugins.privacy import samplers as s
from fl_plugins.privacy.clipping import clip_l1, l1_norm
from fl_plugins.privacy.noise import grid_for

SIZE = 200_000


def gaussian_pmf(std, values):
    """By the plain sum."""
    reach = np.arange(-int(40 * std) - 40, int(40 * std) + 41)
    return np.exp(-(values**2) / (2 * std * std)) / math.fsum(np.exp(-(reach**2) / (2 * std * std)))


def skellam_pmf(std, values):
    return stats.skellam.pmf(values, std * std / 2, std * std / 2)


KINDS = [(s.discrete_gaussian, gaussian_pmf), (s.skellam, skellam_pmf)]


def fit(drawn, pmf, std):
    """Return the p-value of a χ² test in up to 40 groups of about equal probability."""
    values = np.arange(-int(16 * std) - 30, int(16 * std) + 31)
    probabilities = pmf(std, values)
    group = np.minimum((np.cumsum(probabilities) * 40).astype(int), 39)
    expected = np.bincount(group, probabilities)
    observed = np.bincount(group, np.bincount(drawn - values[0], minlength=values.size))
    kept = expected > 0
    return stats.chisquare(observed[kept], expected[kept] / expected.sum() * drawn.size).pvalue


@pytest.mark.parametrize(("draw", "pmf"), KINDS)
@pytest.mark.parametrize("std", [0.7, 2.0, 50.0, 819.2])
def test_the_right_scale_is_accepted_and_wrong_ones_are_rejected(draw, pmf, std):
    drawn = draw(SIZE, std=std, source=NoiseSource(insecure_seed=11))
    assert drawn.dtype == np.int64
    assert fit(drawn, pmf, std) > 1e-3
    for wrong in (0.95, 1.05):
        assert fit(drawn, pmf, wrong * std) < 1e-9
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / math.sqrt(SIZE)  # five standard errors


def test_the_two_distributions_are_told_apart():
    drawn = s.skellam(SIZE, std=1.0, source=NoiseSource(insecure_seed=11))
    assert fit(drawn, skellam_pmf, 1.0) > 1e-3
    assert fit(drawn, gaussian_pmf, 1.0) < 1e-9


@pytest.mark.parametrize(
    ("table", "pmf"), [(s._gaussian_table, gaussian_pmf), (s._skellam_table, skellam_pmf)]
)
@pytest.mark.parametrize("std", [0.5, 2.0, 100.0])
def test_a_table_is_the_distribution_function_to_far_into_the_tail(table, pmf, std):
    made = table(std)
    bounds = [
        0,
        *((int(high) << 64) + int(low) for high, low in zip(made.high, made.low, strict=True)),
        1 << 128,
    ]
    weights = np.array([float(upper - lower) for lower, upper in pairwise(bounds)])
    weights /= 2.0**128
    values = made.first + np.arange(weights.size)
    likely = weights > 2.0**-100  # below, 128 binary places leave less than 28 digits of a weight
    assert abs(values[likely]).max() > 8 * std
    # scipy's Skellam is itself good to some 1e-9 in the tail.
    assert weights[likely] == pytest.approx(pmf(std, values[likely]), rel=1e-7)
    assert np.array_equal(values, -values[::-1])
    assert max(weights[0], weights[-1]) < 2.0**-110


class Scripted(NoiseSource):
    """Gives the words of a script."""

    def __init__(self, *words):
        super().__init__(insecure_seed=0)
        self.script = [np.uint64(word) for word in words]

    def words(self, size):
        taken, self.script = self.script[:size], self.script[size:]
        return np.array(taken, np.uint64)


def test_a_word_that_ties_with_an_entry_is_decided_by_the_next_64_bits():
    table = s._gaussian_table(2.0)
    for at in (5, 20, 27, len(table.high) - 5):
        high, low = int(table.high[at]), int(table.low[at])
        assert low > 0
        here = table.first + at
        # U < P(X ≤ here) gives at most here; U = P(X ≤ here) the next value.
        assert table.draw(1, Scripted(high, low - 1)) == here
        assert table.draw(1, Scripted(high, low)) == here + 1
    # The outermost entry has a weight below 2⁻¹²⁸, which is none.
    assert table.draw(1, Scripted(0, 0)) == table.first + 1
    assert table.draw(1, Scripted(2**64 - 1, 2**64 - 1)) >= -table.first - 1


@pytest.mark.parametrize("draw", [s.discrete_gaussian, s.skellam])
def test_scales_without_a_table_are_refused_and_only_a_seed_repeats(draw):
    for std in (0.1, 5000.0, math.nan):
        with pytest.raises(ConfigError, match="std="):
            draw(1, std=std, source=NoiseSource())
    assert not np.array_equal(
        draw(99, std=5.0, source=NoiseSource()), draw(99, std=5.0, source=NoiseSource())
    )
    assert draw(0, std=5.0, source=NoiseSource()).shape == (0,)


def test_laplace_noise_has_its_scale_and_lies_on_the_grid():
    source = NoiseSource(insecure_seed=5)
    drawn = s.laplace(SIZE, scale=3.0, source=source)
    assert stats.kstest(drawn, "laplace", args=(0, 3.0)).pvalue > 1e-3
    for wrong in (2.85, 3.15):
        assert stats.kstest(drawn, "laplace", args=(0, wrong)).pvalue < 1e-9
    out = s.add_laplace({"x": np.full((400, 500), 7.3), "y": np.array(1.0)}, 3.0, source)
    assert stats.kstest(out["x"].ravel() - 7.3, "laplace", args=(0, 3.0)).pvalue > 1e-3
    assert np.array_equal(np.rint(out["x"] / grid_for(3.0)), out["x"] / grid_for(3.0))
    assert out["y"].shape == ()
    for bad in (math.nan, math.inf, 1e14):
        with pytest.raises(ConfigError, match="clip what is summed"):
            s.add_laplace({"x": np.array([0.0, bad])}, 3.0, source)


def test_clipping_by_the_l1_norm_bounds_it_at_every_scale():
    for scale in (1e300, 1.0, 1e-300):
        update = {"w": np.full((2, 3), -scale), "b": np.array(2 * scale)}
        clipped = clip_l1(update, 0.5 * scale)
        assert clipped.norm == pytest.approx(8 * scale, rel=1e-12)
        assert 0.5 * scale * (1 - 1e-9) < l1_norm(clipped.arrays) <= 0.5 * scale
        assert np.array_equal(clip_l1(update, 9 * scale).arrays["w"], update["w"])
    assert not clip_l1({"w": np.array([1.0, math.nan])}, 1.0).finite
    assert (
        not clip_l1({"w": np.full(4, 1e308)}, 1.0).arrays["w"].any()
    )  # a norm beyond float64: nothing is left
    with pytest.raises(StructureError, match="int64"):
        clip_l1({"w": np.ones(2, np.int64)}, 1.0)
