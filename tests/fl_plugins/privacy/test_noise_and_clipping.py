"""Samplers have the distribution they claim; clipping bounds what it claims; the grid closes the leak."""

import os
import pickle

import numpy as np
import pytest
from scipy import stats

from fl_plugins.errors import ConfigTypeError, StructureError
from fl_plugins.privacy import FixedSize, NoiseSource, Poisson
from fl_plugins.privacy.clipping import clip_l2, clip_l2_per_layer, l2_norm
from fl_plugins.privacy.noise import add_gaussian, grid_for

SEEDED = {"insecure_seed": 7}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("std", [1.0, 3.0])
def test_normals_have_the_right_scale_and_a_wrong_one_is_rejected(dtype, std):
    drawn = NoiseSource(**SEEDED).normal(200_001, std=std, dtype=dtype)
    assert drawn.dtype == dtype
    assert stats.kstest(drawn, "norm", args=(0, std)).pvalue > 1e-3
    assert stats.kstest(drawn, "norm", args=(0, 1.05 * std)).pvalue < 1e-9
    halves = drawn[:100_000], drawn[100_000:200_000]
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / np.sqrt(100_000)  # five standard errors
    # The two of one pair are 2¹⁵ apart in a chunk of 2¹⁶: independent in value, size and direction.
    first, second = drawn[: 1 << 15], drawn[1 << 15 : 1 << 16]
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / np.sqrt(1 << 15)
    turned = np.arctan2(second, first) / (2 * np.pi) + 0.5
    assert stats.kstest(turned, "uniform").pvalue > 1e-3
    assert stats.kstest(np.hypot(first, second) ** 2 / std**2, "chi2", args=(2,)).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 7, 40_001])
def test_normals_are_the_box_muller_transform_of_their_words(size):
    """√(−2 log u)·(± cos θ, ± sin θ), by NumPy's functions in 80 bits."""
    words = NoiseSource(**SEEDED).words(2 * ((size + 1) // 2))
    half = len(words) // 2
    radius = np.sqrt(-2 * np.log(((words[:half] >> np.uint64(11)) + 1.0).astype(np.longdouble) * 2.0**-53))
    angle = (words[half:] >> np.uint64(11)).astype(np.longdouble) * 2.0**-53 * np.arccos(np.longdouble(0))
    one, two = (1.0 - 2.0 * (words[half:] >> np.uint64(bit) & np.uint64(1)) for bit in (0, 1))
    expected = np.concatenate([radius * one * np.cos(angle), radius * two * np.sin(angle)])[:size]
    drawn = NoiseSource(**SEEDED).normal(size)
    assert abs(drawn - expected).max() < 4e-15  # 8.57 is the largest radius, and each factor is off by ≤ 2⁻⁵²


def test_integers_are_uniform_and_so_are_subsets():
    drawn = NoiseSource(**SEEDED).integers(7, 70_000)
    assert stats.chisquare(np.bincount(drawn, minlength=7)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(drawn % 6, minlength=6)).pvalue < 1e-6  # 0 and 6 fall together
    source = NoiseSource(**SEEDED)
    seen = np.bincount([index for _ in range(5000) for index in source.choose(10, 3)], minlength=10)
    assert abs(seen - 1500).max() < 5 * np.sqrt(1500 * 0.7)


def test_poisson_cohorts_have_the_rate_and_never_more_than_the_cap():
    source, names = NoiseSource(**SEEDED), range(1000)
    sampling = Poisson(rate=0.05, population=1000)
    sizes = np.array([len(sampling.draw(names, source)) for _ in range(500)])
    assert abs(sizes.mean() - 50) < 5 * np.sqrt(1000 * 0.05 * 0.95 / 500)
    capped = Poisson(rate=0.5, population=1000, max_cohort=10)
    assert len(capped.draw(names, source)) == 10
    assert len(set(FixedSize(size=9, population=1000).draw(names, source))) == 9


def test_only_a_seed_repeats_and_it_says_so():
    assert np.array_equal(NoiseSource(**SEEDED).normal(9), NoiseSource(**SEEDED).normal(9))
    assert not np.array_equal(NoiseSource().normal(9), NoiseSource().normal(9))
    source = NoiseSource(**SEEDED)
    assert not np.array_equal(source.normal(9), source.normal(9))
    assert (NoiseSource().secure, source.secure) == (True, False)
    assert "INSECURE" in repr(source)
    with pytest.raises(ConfigTypeError, match="must not leave the process"):
        pickle.dumps(NoiseSource())


def test_another_process_id_gets_another_key(monkeypatch):
    source = NoiseSource()
    before = source._next_call()[0]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert source._next_call()[0] != before


@pytest.mark.parametrize("scale", [1e20, 1.0, 1e-30, 1e-300])
def test_clipping_holds_at_every_scale_and_for_0d_arrays(scale):
    update = {"w": np.full((3, 4), scale), "b": np.array(2 * scale)}
    assert l2_norm(update) == pytest.approx(4 * scale, rel=1e-12)
    clipped = clip_l2(update, 0.5 * scale)
    assert l2_norm(clipped.arrays) <= 0.5 * scale
    assert l2_norm(clipped.arrays) == pytest.approx(0.5 * scale, rel=1e-9)
    assert np.array_equal(clip_l2(update, 5 * scale).arrays["w"], update["w"])


def test_zero_stays_zero_and_non_finite_becomes_zero():
    assert not clip_l2({"w": np.zeros(3)}, 1.0).arrays["w"].any()
    for bad in (np.nan, np.inf):
        clipped = clip_l2({"w": np.array([1e6, bad], np.float32), "b": np.ones(2)}, 1.0)
        assert not clipped.finite
        assert not any(value.any() for value in clipped.arrays.values())


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex128, np.longdouble, object])
def test_what_cannot_be_averaged_is_refused(dtype):
    with pytest.raises(StructureError, match="'steps' has dtype"):
        clip_l2({"w": np.ones(2), "steps": np.ones(2).astype(dtype)}, 1.0)


def test_layers_are_clipped_each_to_its_own_norm():
    clipped = clip_l2_per_layer({"a": np.ones(4), "b": np.ones(4)}, {"a": 1.0, "b": 9.0})
    assert l2_norm({"a": clipped.arrays["a"]}) == pytest.approx(1.0, rel=1e-9)
    assert np.array_equal(clipped.arrays["b"], np.ones(4))
    with pytest.raises(StructureError, match="'b'"):
        clip_l2_per_layer({"a": np.ones(4), "b": np.ones(4)}, {"a": 1.0})


def test_the_low_bits_of_a_release_do_not_tell_zero_from_c():
    """Mironov's attack: float32 noise + 1 is a multiple of 2⁻²⁴ where noise + 0 near zero is not."""

    def finer(values):
        small = values[np.abs(values) < 0.05]
        return np.mean(np.rint(small.astype(np.float64) * 2**24) != small.astype(np.float64) * 2**24)

    source, size = NoiseSource(**SEEDED), 100_000
    noise = source.normal(size, dtype=np.float32)
    assert finer(noise) > 0.5 > 0.0 == finer(noise + np.float32(1.0))  # the leak that the grid closes
    for value in (0.0, 1.0):
        out = add_gaussian({"x": np.full(size, value)}, 1.0, source)["x"]
        assert finer(out) == 0.0
        assert np.array_equal(np.rint(out / grid_for(1.0)), out / grid_for(1.0))
        assert stats.kstest(out - value, "norm").pvalue > 1e-3
