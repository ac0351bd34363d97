"""What others have published, in the mode they computed it in; beside it, what this accountant finds.

The older values are the moments accountant's: ε = R(α) + log(1/δ)/(α − 1), the least over each tool's orders.
This accountant converts better and asks the loss distribution, so its own ε are lower; that is tested too.

Not reproduced, since what is known does not determine the setting: the three composed tasks of our research
notes (joint PLD 1.817, sum 2.985: rates, noise and rounds are not recorded; that composition over runs is
below the sum is tested in test_ledger.py), and one figure of Bu et al., see below.
"""

import math

import numpy as np
import pytest
from scipy.stats import norm

from fl_plugins.privacy import (
    Accountant,
    DiscreteGaussian,
    Everyone,
    Gaussian,
    Method,
    NeighborRelation,
    Poisson,
    Release,
)
from fl_plugins.privacy import divergences as d

ADD = NeighborRelation.of(unit="client", adjacency="add_remove")


def sampled(q, z, n=1_000_000):
    sampling = Poisson(rate=q, population=n, max_cohort=n)
    return Release(mechanism=Gaussian(noise_multiplier=z), sampling=sampling, relation=ADD)


def divergences(q, z):
    """Return order → Rényi divergence of one round."""
    return dict(zip(d.ORDERS.round(1).tolist(), d.rdp(sampled(q, z)).tolist(), strict=True))


def moments_accountant(q, z, rounds, delta, orders):
    ours = divergences(q, z)
    return min(rounds * ours[round(order, 1)] - math.log(delta) / (order - 1) for order in orders)


TF_PRIVACY = [*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64)]
WHOLE = range(2, 34)
"""The orders of TF-Privacy and Opacus, and those of the papers' moments λ = α − 1 ≤ 32."""

MNIST = 60_000
PUBLISHED = {
    # tensorflow/privacy, tutorials/README.md: batches of 256.
    "TF-Privacy 15 epochs": (256 / MNIST, 1.3, 15 * MNIST // 256, 1e-5, TF_PRIVACY, 1.19, 2, 0.86),
    "TF-Privacy 60 epochs": (256 / MNIST, 1.1, 60 * MNIST // 256, 1e-5, TF_PRIVACY, 3.01, 2, 2.38),
    "TF-Privacy 45 epochs": (256 / MNIST, 0.7, 45 * MNIST // 256, 1e-5, TF_PRIVACY, 7.10, 2, 5.64),
    # pytorch/opacus, examples/mnist_README.md: batches of 240, 250 of them an epoch.
    "Opacus 15 epochs": (240 / MNIST, 1.3, 15 * 250, 1e-5, TF_PRIVACY, 1.16, 2, 0.83),
    "Opacus 60 epochs": (240 / MNIST, 1.1, 60 * 250, 1e-5, TF_PRIVACY, 2.91, 2, 2.30),
    "Opacus 45 epochs": (240 / MNIST, 0.7, 45 * 250, 1e-5, TF_PRIVACY, 6.86, 2, 5.43),
    # Abadi et al. 2016, section 3.1.
    "Abadi": (0.01, 4.0, 10_000, 1e-5, WHOLE, 1.26, 2, 0.95),
    # McMahan et al. 2018: 763,430 users, 5,000 of them a round.
    "McMahan": (5000 / 763_430, 1.0, 5000, 1e-9, WHOLE, 4.634, 3, 3.90),
    # The README of Bu et al. 2020's code: 1.1912, of which three places are reproduced.
    "Bu 15 epochs": (256 / MNIST, 1.3, 15 * (MNIST // 256), 1e-5, TF_PRIVACY, 1.191, 3, None),
    # Bu et al. 2020, Figure 4, below: both accountants "give (8.68, 10⁻⁵)" at the 70th epoch.
    "Bu 70 epochs": (256 / MNIST, 0.7, 70 * MNIST // 256, 1e-5, TF_PRIVACY, 8.68, 2, None),
}
"""Rate, noise, rounds, δ, orders; what was published, with so many places; and ε by PLD (dp.md C)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_in_the_mode_they_were_computed_in_and_less_in_ours(name):
    q, z, rounds, delta, orders, published, places, tight = PUBLISHED[name]
    classical = moments_accountant(q, z, rounds, delta, orders)
    assert abs(classical - published) <= 0.51 * 10**-places  # they print rounded numbers
    accountant = Accountant(ADD)
    accountant.compose(sampled(q, z), rounds)
    found = accountant.report(delta).by_method
    assert found[Method.RDP] < 0.92 * published
    assert found[Method.PLD] < found[Method.RDP]
    if tight is not None:
        assert found[Method.PLD] == pytest.approx(tight, abs=0.006)


# McMahan, Ramage, Talwar & Zhang 2018: ε at δ = K^−1.1 for K users, C of them a round on average, noise z,
# after 1, 10, … 10⁶ rounds.
ROUNDS = tuple(10**power for power in range(7))
USERS = [
    (1e5, 1e2, 1.0, (0.97, 0.98, 1.00, 1.07, 1.18, 2.21, 7.50)),
    (1e6, 1e1, 1.0, (0.68, 0.69, 0.69, 0.69, 0.69, 0.72, 0.73)),
    (1e6, 1e3, 1.0, (1.17, 1.17, 1.20, 1.28, 1.39, 2.44, 8.13)),
    (1e6, 1e4, 1.0, (1.73, 1.92, 2.08, 3.06, 8.49, 32.38, 187.01)),
    (1e6, 1e3, 3.0, (0.47, 0.47, 0.48, 0.48, 0.49, 0.67, 1.95)),
    (1e9, 1e3, 1.0, (0.84, 0.84, 0.84, 0.85, 0.88, 0.88, 0.88)),
]
"""From memory, no copy of the paper being at hand: a cell that was remembered wrong would not agree."""


@pytest.mark.parametrize(("users", "sampled_users", "z", "published"), USERS)
def test_every_cell_of_mcmahans_table_to_the_places_it_is_printed_with(users, sampled_users, z, published):
    for rounds, cell in zip(ROUNDS, published, strict=True):
        found = moments_accountant(sampled_users / users, z, rounds, users**-1.1, WHOLE)
        assert abs(found - cell) <= 0.51e-2, rounds
        # This accountant's own bound is lower in every cell.
        orders, values = map(np.array, zip(*divergences(sampled_users / users, z).items(), strict=True))
        assert d.epsilon_from_rdp(orders, rounds * values, users**-1.1) < found


def limit(z, epochs, *, batch=256, poisson=True):
    """Return μ of Bu, Dong, Long & Su 2020's central limit theorem; for batches of fixed size, theirs too."""
    rounds, rate = epochs * MNIST / batch, batch / MNIST
    if poisson:
        return rate * math.sqrt(rounds * math.expm1(z**-2))
    spread = math.exp(z**-2) * norm.cdf(1.5 / z) + 3 * norm.cdf(-0.5 / z) - 2
    return rate * math.sqrt(2 * rounds * spread)


@pytest.mark.parametrize(
    ("z", "epochs", "poisson", "mu", "epsilon", "slack"),
    [
        # The README of their code, to four places.
        (1.3, 15, True, None, 0.8345, 0.6e-4),
        (1.3, 15, False, None, 1.0685, 0.6e-4),
        # Figure 4: σ = 1.06 has two places, so μ and ε have hardly three.
        (1.06, 20, True, 0.35, 1.34, 0.6e-2),
        (0.638, 70, True, 1.78, 8.68, 2e-2),
    ],
)
def test_dong_roth_and_sus_conversion_of_a_gaussian_limit_is_the_exact_form(
    z, epochs, poisson, mu, epsilon, slack
):
    """ε(δ, μ) of Gaussian differential privacy is what unsampled Gaussian noise costs here.

    The other half of Figure 4's upper caption, that the moments accountant gives 1.34 at σ = 1.3 as well, is
    not reproduced: it gives 1.3497, by every set of orders.
    """
    found = limit(z, epochs, poisson=poisson)
    if mu is not None:
        assert found == pytest.approx(mu, abs=0.6e-2)
    assert d.gaussian_epsilon(1e-5, found) == pytest.approx(epsilon, abs=slack)
    assert moments_accountant(256 / MNIST, 1.3, 20 * MNIST // 256, 1e-5, TF_PRIVACY) == pytest.approx(
        1.3497, abs=1e-4
    )


def test_a_central_limit_is_no_upper_bound_and_is_nowhere_reported():
    """0.83 by the limit, but 0.86 in truth (test_loss_distributions.py says why PLD is above the truth only
    by a grid): the limit holds for ever more rounds at ever lower rates."""
    accountant = Accountant(ADD)
    accountant.compose(sampled(256 / MNIST, 1.3), 15 * MNIST // 256)
    assert accountant.report(1e-5).epsilon / 1.005 > 1.02 * d.gaussian_epsilon(1e-5, limit(1.3, 15))
    assert {method.value for method in Method} == {"exact", "pure", "rdp", "pld"}


def test_the_better_conversion_of_tensorflow_privacy():
    """The same README: "improved by Tensorflow-privacy using new Moments Accountant to epsilon = 0.9545"."""
    ours = divergences(256 / MNIST, 1.3)
    rounds = math.ceil(15 * MNIST / 256)
    values = np.array([rounds * ours[round(order, 1)] for order in TF_PRIVACY])
    found = d.epsilon_from_rdp(np.array(TF_PRIVACY), values, 1e-5)
    assert found == pytest.approx(0.9545, abs=0.7e-4)


def test_a_tree_of_1600_steps_costs_what_kairouz_et_al_say_by_their_conversion_and_less_by_ours():
    """DP-FTRL 2021, z = 1.13, δ = 10⁻⁶: every step is in 11 nodes, which is one release of z/√11.

    19.74 is the conversion of zero-concentrated privacy, ρ + 2√(ρ log 1/δ).
    """
    rho = 11 / (2 * 1.13**2)
    assert rho + 2 * math.sqrt(-rho * math.log(1e-6)) == pytest.approx(19.74, abs=0.6e-2)
    one = Release(
        mechanism=Gaussian(noise_multiplier=1.13 / math.sqrt(11)), sampling=Everyone(), relation=ADD
    )
    accountant = Accountant(ADD)
    accountant.compose(one)
    found = accountant.report(1e-6).by_method
    assert found[Method.RDP] == pytest.approx(18.71, abs=0.6e-2)
    assert found[Method.EXACT] == pytest.approx(17.667, abs=1e-3)


def test_a_discrete_gaussian_of_one_step():
    """4.430 is exact (the sum over integers); integer noise is accounted by its closed form, 7 % above."""
    values = np.arange(-40, 42)
    p = np.exp(-((values - 1) ** 2) / 2)
    q = np.exp(-(values**2) / 2)
    p, q = p / p.sum(), q / q.sum()

    def delta(epsilon):
        return math.fsum(np.maximum(p - math.exp(epsilon) * q, 0.0))

    assert delta(4.4305) < 1e-5 < delta(4.4295)
    one = Release(mechanism=DiscreteGaussian(std=1.0, l2_sensitivity=1.0), sampling=Everyone(), relation=ADD)
    accountant = Accountant(ADD)
    accountant.compose(one)
    assert 4.43 < accountant.report(1e-5).epsilon < 1.07 * 4.43


def test_the_noise_of_100_rounds_without_sampling():
    """z = 13.906 for ε = 3 at δ = 10⁻⁵."""
    one = Release(mechanism=Gaussian(noise_multiplier=13.906), sampling=Everyone(), relation=ADD)
    accountant = Accountant(ADD)
    accountant.compose(one, 100)
    assert accountant.report(1e-5).epsilon == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize(
    ("claimed", "sensitivity", "rounds", "really"),
    [(8.0, 1.0, 1, 18.9), (1.0, 1.0, 50, 16.1), (10.0, 1e-4, 1, 8.5e8)],
    ids=["one round", "fifty rounds", "as FLIP is shipped"],
)
def test_d11_what_the_classical_formula_with_a_chosen_sensitivity_costs(claimed, sensitivity, rounds, really):
    """σ = √(2 log(1.25/δ))·s/ε, as Flower's LocalDpMod has it; two updates of clip norm 1 are 2 apart."""
    std = math.sqrt(2 * math.log(1.25e5)) * sensitivity / claimed
    assert d.gaussian_epsilon(1e-5, 2 * math.sqrt(rounds) / std) == pytest.approx(really, rel=4e-3)


@pytest.mark.parametrize(("claimed", "delta"), [(10.0, 2.3e-5), (20.0, 1.5e-3)])
def test_d11_the_classical_formula_is_wrong_for_large_epsilon_even_with_the_right_sensitivity(claimed, delta):
    mu = claimed / math.sqrt(2 * math.log(1.25e5))
    assert d.gaussian_delta(claimed, mu) == pytest.approx(delta, rel=0.03)


def test_sampling_amplifies():
    """q = 0.01, z = 1, 1000 rounds, δ = 10⁻⁶: 2.44 by RDP, and 666 for who ignores the sampling."""
    for sampling, epsilon in (
        (Poisson(rate=0.01, population=10**6, max_cohort=10**6), 2.44),
        (Everyone(), 666.4),
    ):
        one = Release(mechanism=Gaussian(noise_multiplier=1.0), sampling=sampling, relation=ADD)
        accountant = Accountant(ADD)
        accountant.compose(one, 1000)
        found = accountant.report(1e-6, pld=False).by_method
        assert found[Method.RDP] == pytest.approx(epsilon, rel=2e-3)
