"""Rényi bounds of integer noise against sums over its probabilities, and what they are charged as."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fl_plugins.errors import ConfigError
from fl_plugins.privacy import (
    Accountant,
    DiscreteGaussian,
    DistributedGaussian,
    DistributedSkellam,
    Everyone,
    Gaussian,
    NeighborRelation,
    Poisson,
    Release,
    Skellam,
)
from fl_plugins.privacy import divergences as d
from fl_plugins.privacy.ledger import Ledger

ZERO_OUT = NeighborRelation.of(unit="client", adjacency="zero_out")
REPLACE = NeighborRelation.of(unit="client", adjacency="replace")
ADD = NeighborRelation.of(unit="client", adjacency="add_remove")


def release(mechanism, relation=ZERO_OUT):
    return Release(mechanism=mechanism, sampling=Everyone(), relation=relation)


def bound(mechanism, alpha, relation=ZERO_OUT):
    (index,) = np.flatnonzero(np.isclose(alpha, d.ORDERS))
    return float(d.rdp(release(mechanism, relation))[index])


def renyi(pmf, shift, alpha):
    """Return D_α(P + shift ‖ P) = log Σ P(k − shift)^α P(k)^(1 − α) / (α − 1) over the values that exist."""
    moved, still = np.log(pmf[:-shift]), np.log(pmf[shift:])
    return float(np.logaddexp.reduce(alpha * moved + (1 - alpha) * still) / (alpha - 1))


def gaussian_pmf(std, reach):
    values = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(values**2) / (2 * std * std))
    return weights / weights.sum()


@pytest.mark.parametrize("std", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("shift", [1, 3])
def test_the_discrete_gaussians_divergence_is_the_sum(std, shift):
    pmf = gaussian_pmf(std, 24 * max(1, int(std)))
    mechanism = DiscreteGaussian(std=std, l2_sensitivity=float(shift))
    for alpha in (2, 3, 5):
        # At whole orders the bound is met.
        assert bound(mechanism, alpha) == pytest.approx(renyi(pmf, shift, alpha), rel=1e-9)
    for alpha in (1.5, 2.5):
        assert bound(mechanism, alpha) >= renyi(pmf, shift, alpha) * (1 - 1e-9)


@pytest.mark.parametrize("variance", [0.5, 4.0, 50.0, 400.0])
@pytest.mark.parametrize("shift", [1, 4])
def test_the_skellams_divergence_is_below_the_bound_and_near_it(variance, shift):
    reach = int(30 * math.sqrt(variance)) + 60
    pmf = stats.skellam.pmf(np.arange(-reach, reach + 1), variance / 2, variance / 2)
    pmf = np.maximum(pmf[pmf > 1e-290], 0)
    mechanism = Skellam(variance=variance, l2_sensitivity=float(shift), l1_sensitivity=float(shift))
    for alpha in (1.5, 2, 2.5, 3, 5, 5.3, 16):
        exact = renyi(pmf, shift, alpha)
        assert exact <= bound(mechanism, alpha) * (1 + 1e-9)
        if variance >= 50.0 and alpha in (2, 3, 5):
            assert bound(mechanism, alpha) < 1.06 * exact  # so a constant that is 6 % too small would show


def test_many_values_that_move_a_little_are_bounded_by_their_joint_norms():
    variance, dimension, alpha = 20.0, 100, 3
    pmf = stats.skellam.pmf(np.arange(-80, 81), variance / 2, variance / 2)
    exact = dimension * renyi(pmf, 1, alpha)  # independent values add up
    mechanism = Skellam(variance=variance, l2_sensitivity=10.0, l1_sensitivity=100.0)
    assert exact <= bound(mechanism, alpha) < 1.2 * exact


def distributed(std, shares, shift=1.0, dimension=1):
    return DistributedGaussian(
        local_std=std, num_shares=shares, dimension=dimension, l2_sensitivity=float(shift)
    )


def summed(std, shares, reach):
    pmf = gaussian_pmf(std, reach)
    total = pmf
    for _ in range(shares - 1):
        total = np.convolve(total, pmf)
    return total


@pytest.mark.parametrize("shares", [2, 3, 5])
@pytest.mark.parametrize("std", [0.5, 0.6, 0.8, 1.0])
def test_the_divergence_of_a_sum_of_discrete_gaussians_is_below_the_bound(std, shares):
    total = summed(std, shares, 6)
    middle = total[total.size // 2 - 8 : total.size // 2 + 9]  # float64 sums are exact enough here
    for alpha in (2, 3):
        assert renyi(middle, 1, alpha) <= bound(distributed(std, shares), alpha) * (1 + 1e-9)


def test_one_discrete_gaussians_bound_is_too_small_for_a_sum():
    """The negative control: without the τ term a sum of narrow shares breaks the bound."""
    alpha, std, shares = 3, 0.5, 2
    total = summed(std, shares, 6)
    middle = total[total.size // 2 - 8 : total.size // 2 + 9]
    assert renyi(middle, 1, alpha) > 1.05 * alpha / (2 * shares * std**2)


@pytest.mark.parametrize("shares", [2, 3, 4])
@pytest.mark.parametrize("std", [0.5, 0.7, 1.0])
def test_tau_bounds_how_far_the_sum_is_from_a_discrete_gaussian(std, shares):
    total = summed(std, shares, 8)
    one = gaussian_pmf(std * math.sqrt(shares), 40)
    reach = 6
    near = slice(total.size // 2 - reach, total.size // 2 + reach + 1)
    distance = np.abs(np.log(total[near] / one[40 - reach : 40 + reach + 1])).max()
    assert 0 < distance <= distributed(std, shares).tau / 2


def test_the_discretisation_is_nothing_from_two_grid_steps_on_and_void_at_one():
    narrow, wide = (distributed(std, 100, dimension=10**6) for std in (1.0, 2.0))
    assert wide.tau * 10**6 == pytest.approx(7e-11, rel=0.05)
    assert narrow.tau * 10**6 == pytest.approx(550, rel=0.05)
    central = release(Gaussian(noise_multiplier=math.sqrt(100) * 2.0))
    assert np.allclose(d.rdp(release(wide)), d.rdp(central), rtol=1e-6)


def test_more_shares_and_fewer_clip_norms_cost_less():
    for kind in (distributed, skellam):
        for few, many in pairwise((2, 5, 50)):
            assert np.all(d.rdp(release(kind(3.0, many))) < d.rdp(release(kind(3.0, few))))
        assert np.all(d.rdp(release(kind(3.0, 5), REPLACE)) > 3.5 * d.rdp(release(kind(3.0, 5))))


def skellam(std, shares):
    return DistributedSkellam(local_std=std, num_shares=shares, l2_sensitivity=1.0, l1_sensitivity=1.0)


def test_distributed_skellam_is_skellam_of_all_shares():
    whole = Skellam(variance=45.0, l2_sensitivity=1.0, l1_sensitivity=1.0)
    assert np.allclose(d.rdp(release(skellam(3.0, 5))), d.rdp(release(whole)), rtol=1e-12)


def epsilon(mechanism, rounds=1, delta=1e-5):
    accountant = Accountant(ZERO_OUT)
    accountant.compose(release(mechanism), rounds)
    return accountant.report(delta).epsilon


def test_the_published_epsilon_of_one_step_of_noise_is_the_sum_and_ours_is_above():
    pmf = gaussian_pmf(1.0, 30)

    def delta(value):
        return math.fsum(np.maximum(pmf[:-1] - math.exp(value) * pmf[1:], 0.0))

    low, high = 0.0, 10.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > 1e-5 else (low, middle)
    assert high == pytest.approx(4.430, abs=5e-4)  # dp.md C
    # RDP, which alone holds in every dimension, gives what it gives for the continuous one.
    ours = epsilon(DiscreteGaussian(std=1.0, l2_sensitivity=1.0))
    assert ours == pytest.approx(4.728507, abs=1e-3)
    assert epsilon(distributed(2.0, 100, shift=20.0, dimension=10**6)) == pytest.approx(ours, rel=1e-6)
    assert epsilon(Gaussian(noise_multiplier=1.0)) < high < ours  # the continuous form is no bound here


@pytest.mark.parametrize("mechanism", [distributed(2.5, 30, 40.0, 1024), skellam(2.5, 30)])
def test_the_ledger_keeps_distributed_noise(mechanism, tmp_path):
    path, one = tmp_path / "ledger.jsonl", release(mechanism)
    with Ledger(path, population="p", relation=ZERO_OUT) as ledger:
        ledger.begin("run", {})
        ledger.commit(ledger.reserve(one, run="run", number=1))
        spent = ledger.report(1e-5).epsilon
    with Ledger(path, population="p", relation=ZERO_OUT) as ledger:
        assert dict(ledger.accountant.counts) == {one: 1}
        assert ledger.report(1e-5).epsilon == spent > 0


@pytest.mark.parametrize("mechanism", [distributed(2.5, 30), skellam(2.5, 30)])
def test_what_has_no_accounting_is_refused(mechanism):
    with pytest.raises(ConfigError, match="takes its share of the noise along"):
        release(mechanism, ADD)
    with pytest.raises(ConfigError, match="without amplification"):
        Release(mechanism=mechanism, sampling=Poisson(rate=0.1, population=100), relation=ZERO_OUT)
    with pytest.raises(ConfigError, match="local_std"):
        distributed(0.4, 3)
