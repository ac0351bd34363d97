"""ε against an independent computation (mpmath) and against published values."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from fl_plugins.errors import ConfigError, ContractError
from fl_plugins.privacy import (
    Accountant,
    Budget,
    Everyone,
    FixedSize,
    Gaussian,
    Laplace,
    Method,
    NeighborRelation,
    Poisson,
    Release,
)
from fl_plugins.privacy import divergences as d

ADD = NeighborRelation.of(unit="client", adjacency="add_remove")
REPLACE = NeighborRelation.of(unit="client", adjacency="replace")


def release(z, sampling=None, relation=ADD, kind=Gaussian):
    return Release(
        mechanism=kind(noise_multiplier=float(z)), sampling=sampling or Everyone(), relation=relation
    )


def untruncated(q, n=10_000):
    return Poisson(rate=q, population=n, max_cohort=n)


def spent(one, rounds, delta=1e-5):
    accountant = Accountant(one.relation)
    accountant.compose(one, rounds)
    return accountant.report(delta).by_method


@pytest.mark.parametrize("z", [0.06, 0.2])
def test_divergences_beyond_the_largest_float_are_still_the_integral(z):
    q, alpha = 0.1, 9.9
    with mpmath.workdps(20):

        def density(x):
            return mpmath.npdf(x, 0, z) * (1 - q + q * mpmath.exp((2 * x - 1) / (2 * z * z))) ** alpha

        peak = [alpha + step * z for step in (-12, -4, 0, 4, 12)]  # all but e^-72 of it
        oracle = float(mpmath.log(mpmath.quad(density, peak)) / (alpha - 1))
    index = int(np.argmin(abs(d.ORDERS - alpha)))
    assert d.rdp(release(z, untruncated(q)))[index] == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("z", [0.6, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("q", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("alpha", [2, 5, 17, 1.5, 3.7])
def test_the_sampled_gaussians_renyi_divergence_is_the_integral(q, z, alpha):
    with mpmath.workdps(20):

        def density(x):
            return mpmath.npdf(x, 0, z) * (1 - q + q * mpmath.exp((2 * x - 1) / (2 * z * z))) ** alpha

        edges = [mpmath.mpf(3 * step) * z for step in range(-8, int(alpha / z / 3) + 9)]
        oracle = float(mpmath.log(mpmath.quad(density, edges)) / (alpha - 1))
    index = int(np.argmin(abs(d.ORDERS - alpha)))
    assert d.rdp(release(z, untruncated(q)))[index] == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_the_exact_gaussian_satisfies_the_analytic_formula(mu, delta):
    epsilon = d.gaussian_epsilon(delta, mu)
    with mpmath.workdps(40):
        oracle = mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(
            -mu / 2 - epsilon / mu
        )
    if epsilon > 0:
        assert float(oracle) == pytest.approx(delta, rel=1e-6)
    else:
        assert float(oracle) <= delta


# dp.md C: δ = 1e-5, (q, z, rounds) → RDP, PLD; printed there with three decimals.
@pytest.mark.parametrize(
    ("q", "z", "rounds", "rdp", "pld"),
    [(0.01, 1, 1000, 2.101, 1.828), (0.01, 1, 10_000, 6.713, 6.188), (0.1, 1, 100, 7.904, 7.047),
     (0.001, 1, 1000, 0.678, 0.149)],
)  # fmt: skip
def test_poisson_values(q, z, rounds, rdp, pld):
    found = spent(release(z, untruncated(q)), rounds)
    # dp-accounting's divergences between whole orders, which dp.md's values are from, are upper bounds only.
    assert rdp - 0.006 < found[Method.RDP] < rdp + 6e-4
    assert found[Method.PLD] == pytest.approx(pld, rel=5e-3)


def test_unsampled_and_fixed_size_and_laplace_values():
    assert spent(release(2), 1)[Method.EXACT] == pytest.approx(1.993, abs=6e-4)
    assert spent(release(2, relation=REPLACE), 1)[Method.EXACT] == pytest.approx(4.377, abs=6e-4)
    ten = FixedSize(size=10, population=100)
    assert spent(release(2, ten, REPLACE), 1)[Method.RDP] == pytest.approx(2.275, abs=6e-4)
    assert spent(release(4, ten, REPLACE), 1)[Method.RDP] == pytest.approx(0.596, abs=6e-4)
    found = spent(release(1, kind=Laplace), 100)
    assert found[Method.PURE] == pytest.approx(100, rel=1e-12)
    assert found[Method.PLD] == pytest.approx(68.25, rel=5e-3)


@pytest.mark.parametrize("z", [2.0, 4.0])
def test_replace_one_is_above_the_exact_lower_bound_that_dp_accounting_misses(z):
    # One client is in the sample with q = 0.1 and moves the sum by 2C: δ(log(1 + q(e^ε − 1))) = q·δ(ε).
    base = d.gaussian_epsilon(1e-5 / 0.1, 2.0 / z)
    exact = math.log1p(0.1 * math.expm1(base))
    assert spent(release(z, FixedSize(size=10, population=100), REPLACE), 1)[Method.RDP] >= exact
    if z == 2.0:
        assert exact > 0.596  # what the missing factor reports


@pytest.mark.parametrize(("cap", "epsilon"), [(128, 4.01), (150, 1.8305)])
def test_truncation_is_accounted(cap, epsilon):
    found = spent(release(1, Poisson(rate=0.01, population=10_000, max_cohort=cap)), 1000)
    assert found[Method.PLD] == pytest.approx(epsilon, rel=5e-3)
    assert found[Method.RDP] >= found[Method.PLD]


def test_the_default_cap_is_the_mean_and_five_deviations():
    assert Poisson(rate=0.01, population=10_000).cap == 150


def test_a_sampling_has_no_accounting_under_another_adjacency():
    with pytest.raises(ConfigError, match="poisson sampling has no accounting under adjacency='replace'"):
        release(1, untruncated(0.1), REPLACE)
    with pytest.raises(ConfigError, match="fixed_size"):
        release(1, FixedSize(size=1, population=9), ADD)
    with pytest.raises(ConfigError, match="without amplification"):
        release(1, untruncated(0.1), kind=Laplace)
    with pytest.raises(ContractError, match="cannot be composed"):
        Accountant(ADD).compose(release(1, relation=REPLACE))


def test_the_gate_lets_through_as_many_rounds_as_the_best_accounting_allows():
    one, budget = release(1, untruncated(0.01)), Budget(epsilon=1.0, delta=1e-5)
    accountant = Accountant(ADD)
    while not accountant.would_exceed(one, budget):
        accountant.compose(one)
    report = accountant.report(1e-5)
    assert report.epsilon <= 1.0 < report.by_method[Method.RDP]
    accountant.compose(one)
    assert accountant.report(1e-5).epsilon > 1.0


@pytest.mark.parametrize("first", [0, 3])
def test_the_gate_that_looks_ahead_stops_where_one_that_asks_every_round_would(first, monkeypatch):
    """Also beside other releases, and with few distributions computed."""
    one, other = release(1.0, Poisson(rate=0.05, population=1000)), release(8.0, kind=Laplace)
    budget = Budget(epsilon=3.0, delta=1e-5)
    accountant = Accountant(ADD)
    if first:
        accountant.compose(other, first)
    computed = []
    real = Accountant._pld_epsilon

    def counted(self, counts, delta):
        computed.append(counts)
        return real(self, counts, delta)

    monkeypatch.setattr(Accountant, "_pld_epsilon", counted)
    while not accountant.would_exceed(one, budget):
        accountant.compose(one)
    assert 20 < accountant.counts[one] < 200
    assert len(computed) <= 9
    assert accountant.report(1e-5).epsilon <= 3.0
    accountant.compose(one)
    assert accountant.report(1e-5).epsilon > 3.0
    assert accountant.would_exceed(one, budget)


@pytest.mark.parametrize("sampling", [untruncated(0.1), FixedSize(size=1, population=9)])
@pytest.mark.parametrize("z", [1e-6, 0.01])
def test_hardly_any_noise_costs_much_and_takes_no_memory(sampling, z):
    relation = REPLACE if isinstance(sampling, FixedSize) else ADD
    accountant = Accountant(relation)
    one = release(z, sampling, relation)
    assert accountant.would_exceed(one, Budget(epsilon=100.0, delta=1e-5))
    accountant.compose(one)
    assert accountant.report(1e-5).epsilon > 100


def test_losses_smaller_than_the_coarse_grid_get_the_fine_one():
    assert d.pld_interval([release(1, untruncated(0.01)), release(5)]) == d.COARSE
    assert d.pld_interval([release(1, untruncated(0.01)), release(1, untruncated(0.001))]) == d.FINE


def test_insecure_noise_voids_the_report_and_every_report_names_unit_and_adjacency():
    accountant = Accountant(ADD)
    accountant.compose(release(1))
    assert "unit client, adjacency add_remove" in str(accountant.report(1e-5))
    seeded = Release(
        mechanism=Gaussian(noise_multiplier=1.0), sampling=Everyone(), relation=ADD, secure=False
    )
    accountant.compose(seeded)
    assert str(accountant.report(1e-5)).startswith("VOID")


def test_releases_survive_json():
    for one in (
        release(1),
        release(1, untruncated(0.1)),
        release(1, FixedSize(size=1, population=9), REPLACE),
    ):
        assert Release.from_json(one.to_json()) == one


@pytest.mark.parametrize(("cap", "delta", "rounds"), [(150, 1e-5, 20), (140, 1e-3, 3)])
def test_the_rdp_of_truncated_sampling_pays_for_every_cut_round_in_both_directions(cap, delta, rounds):
    """ε is the smallest with δ(RDP without cuts) + e^ε · P(the unit is in a cut cohort) <= δ."""
    q, n = 0.01, 10_000
    accountant = Accountant(ADD)
    accountant.compose(release(1.0, Poisson(rate=q, population=n, max_cohort=cap)), rounds)
    found = accountant.report(delta, pld=False).by_method[Method.RDP]
    cut = rounds * q * stats.binom.sf(cap - 1, n - 1, q)
    rdp = rounds * d.rdp(release(1.0, untruncated(q)))

    def enough(epsilon):
        left = delta - math.exp(epsilon) * cut
        return left > 0 and d.epsilon_from_rdp(d.ORDERS, rdp, left) <= epsilon

    assert cut > 1e-3 * delta  # else the cut costs nothing
    assert enough(found * (1 + 1e-9))
    assert not enough(found * (1 - 1e-6))


def test_where_there_is_an_exact_form_nobody_looks_for_a_numerical_one(monkeypatch):
    """Of hardly any noise a privacy loss distribution takes all memory, and others may ask for that."""
    monkeypatch.setattr(d, "pld", lambda *_: pytest.fail("a distribution was computed"))
    accountant = Accountant(ADD)
    tiny = release(1e-4)
    assert accountant.would_exceed(tiny, Budget(epsilon=1.0, delta=1e-5))
    accountant.compose(tiny)
    report = accountant.report(1e-5)
    assert report.method is Method.EXACT
    assert report.epsilon > 1e6
