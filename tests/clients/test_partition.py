"""Partitioners: every example once, and each with its own rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.partition import by_label, dirichlet, hold_out, iid
from fl_plugins.errors import ConfigError, DataError

LABELS = st.lists(st.integers(0, 5), min_size=0, max_size=80).map(lambda values: np.array(values, np.int32))
SEEDS = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


def assert_every_example_once(parts, labels, num_partitions):
    assert len(parts) == num_partitions
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        np.testing.assert_array_equal(part, np.sort(part))
        labels[part]  # an index array even where it is empty


@given(labels=LABELS, num_partitions=st.integers(1, 20), seed=SEEDS)
def test_iid_deals_every_example_once_and_evenly(labels, num_partitions, seed):
    parts = iid(labels, num_partitions, rng=rng(seed))
    assert_every_example_once(parts, labels, num_partitions)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(labels=LABELS, num_partitions=st.integers(1, 20), alpha=st.floats(1e-3, 1e3), seed=SEEDS)
def test_dirichlet_deals_every_example_once(labels, num_partitions, alpha, seed):
    assert_every_example_once(
        dirichlet(labels, num_partitions, alpha=alpha, rng=rng(seed)), labels, num_partitions
    )


@given(labels=LABELS, num_partitions=st.integers(1, 20), labels_per_client=st.integers(1, 6), seed=SEEDS)
def test_by_label_deals_every_example_once_to_owners_of_its_class(
    labels, num_partitions, labels_per_client, seed
):
    classes = np.unique(labels)
    if labels_per_client > len(classes) or num_partitions * labels_per_client < len(classes):
        with pytest.raises(ConfigError, match="by_label"):
            by_label(labels, num_partitions, labels_per_client=labels_per_client, rng=rng(seed))
        return
    parts = by_label(labels, num_partitions, labels_per_client=labels_per_client, rng=rng(seed))
    assert_every_example_once(parts, labels, num_partitions)
    assert all(len(np.unique(labels[part])) <= labels_per_client for part in parts)


def test_by_label_gives_ten_clients_two_classes_each_and_every_class_two_owners():
    labels = np.repeat(np.arange(10), 20)
    parts = by_label(labels, 10, labels_per_client=2, rng=rng())
    assert [len(part) for part in parts] == [20] * 10
    assert all(len(np.unique(labels[part])) == 2 for part in parts)
    for label in range(10):
        assert sum(label in labels[part] for part in parts) == 2


@pytest.mark.parametrize(
    "deal",
    [
        lambda labels, seed: iid(labels, 7, rng=rng(seed)),
        lambda labels, seed: dirichlet(labels, 7, alpha=0.5, rng=rng(seed)),
        lambda labels, seed: by_label(labels, 7, labels_per_client=2, rng=rng(seed)),
    ],
)
def test_equal_seeds_give_equal_partitions_and_others_do_not(deal):
    labels = np.repeat(np.arange(5), 30)
    first, again, other = (deal(labels, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(first, other, strict=True))


def test_dirichlet_has_the_moments_of_its_distribution():
    labels, alpha, clients = np.zeros(1000, int), 0.5, 4
    shares = np.array(
        [
            [len(part) / 1000 for part in dirichlet(labels, clients, alpha=alpha, rng=rng(seed))]
            for seed in range(2000)
        ]
    )
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)  # of one Dirichlet component
    # 2000 draws of values in [0, 1]: the variance's standard error is below 0.002; five of them.
    np.testing.assert_allclose(shares.var(axis=0), variance, atol=0.01)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / clients, atol=5 * np.sqrt(variance / 2000))


def test_dirichlet_draws_again_until_everyone_has_enough():
    labels = np.repeat(np.arange(3), 40)
    assert min(map(len, dirichlet(labels, 8, alpha=0.1, rng=rng(0)))) < 5
    assert min(map(len, dirichlet(labels, 8, alpha=0.1, rng=rng(0), min_examples=5))) >= 5


def test_dirichlet_says_so_when_the_minimum_is_impossible_or_out_of_reach():
    labels = np.zeros(20, int)
    with pytest.raises(
        ConfigError, match="min_examples=3 for 10 partitions needs 30 examples, but there are 20"
    ):
        dirichlet(labels, 10, alpha=1.0, rng=rng(), min_examples=3)
    with pytest.raises(ConfigError, match=r"none of 1000 draws with alpha=0\.001"):
        dirichlet(labels, 10, alpha=0.001, rng=rng(), min_examples=2)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_refuses_a_concentration_that_is_none(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        dirichlet(np.zeros(5, int), 2, alpha=alpha, rng=rng())


def test_no_partitions_is_an_error():
    with pytest.raises(DataError, match="num_partitions=0"):
        iid(np.zeros(5, int), 0, rng=rng())


@given(labels=LABELS, fraction=st.floats(0, 0.99), seed=SEEDS)
def test_held_out_examples_are_stratified_and_nobody_else_s(labels, fraction, seed):
    rest, held_out = hold_out(labels, fraction, rng=rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held_out])), np.arange(len(labels)))
    for label in np.unique(labels):
        count = (labels == label).sum()
        assert abs((labels[held_out] == label).sum() - fraction * count) <= 0.5
