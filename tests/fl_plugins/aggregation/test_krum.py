import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation.krum import Krum, MultiKrum, krum, krum_scores, multi_krum
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError
from fl_plugins.records import Layout, UpdateRows


@pytest.mark.parametrize("rule", [Krum, MultiKrum])
@pytest.mark.parametrize("f", [0, 1, 2, 5])
def test_b4_n_below_2f_plus_3_is_refused(rule, f):
    """B4: Flower clamps, so n=3 with f=1 selects the attacker silently."""
    name = rule.name
    with pytest.raises(
        PreconditionError, match=rf"^{name}: n={2 * f + 2} .* needs n >= 2f\+3 = {2 * f + 3}; raise"
    ):
        rule(num_byzantine=f).check(2 * f + 2)
    rule(num_byzantine=f).check(2 * f + 3)
    with pytest.raises(PreconditionError):
        rule(num_byzantine=f)(np.eye(2 * f + 2))


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_num_byzantine_must_be_a_whole_number(value):
    for rule in (Krum, MultiKrum):
        with pytest.raises(ConfigTypeError, match="num_byzantine="):
            rule(num_byzantine=value)
    if value is not None:
        with pytest.raises(ConfigTypeError, match="num_selected="):
            MultiKrum(num_byzantine=0, num_selected=value)


def test_negative_f_and_an_empty_selection_are_refused():
    with pytest.raises(ConfigError, match="krum: num_byzantine=-1 but it must be >= 0"):
        Krum(num_byzantine=-1)
    with pytest.raises(ConfigError, match="multi_krum: num_selected=0 but it must be >= 1"):
        MultiKrum(num_byzantine=0, num_selected=0)


def test_multi_krum_selects_at_most_n_minus_f():
    MultiKrum(num_byzantine=2, num_selected=5).check(7)
    with pytest.raises(PreconditionError, match=r"n=7 updates but num_selected=6 needs m <= n - f = 5"):
        MultiKrum(num_byzantine=2, num_selected=6).check(7)


def test_multi_krum_selects_n_minus_f_minus_2_by_default():
    rows = np.random.default_rng(0).normal(size=(11, 4))
    assert np.count_nonzero(MultiKrum(num_byzantine=3)(rows).contribution) == 6


def test_a_row_is_masked_and_not_sorted_away_from_its_own_neighbours():
    """B1: ``argsort()[1:]`` drops whichever distance is smallest, not the row's own."""
    distances = np.array(
        [[0.0, 0.0, 5.0, 9.0], [0.0, 0.0, 5.0, 9.0], [5.0, 5.0, 0.0, 4.0], [9.0, 9.0, 4.0, 0.0]]
    )
    # n=4, f=0: the two nearest others; a duplicate is a neighbour at distance 0.
    np.testing.assert_array_equal(krum_scores(distances, num_byzantine=0), [5, 5, 9, 13])


def test_b1_an_attacker_at_thirteen_times_the_distance_is_never_selected():
    """B1: on float32 parameters of scale 1 cancellation made the attacker win in 1 of 40 trials."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=50_000).astype(np.float32)
    for _ in range(10):
        rows = (base + 3e-4 * rng.normal(size=(7, base.size))).astype(np.float32)
        rows[0] = base + 3e-4 * np.sqrt(13) * rng.normal(size=base.size)
        assert Krum(num_byzantine=2)(rows).contribution[0] == 0


def test_b2_float16_updates_select_an_honest_row():
    """B2: Flower's distances were all NaN in float16 and the first client won."""
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float16)
    rows[0] = 60000
    assert krum(rows, num_byzantine=1).max() < 10


def test_b3_reordered_keys_do_not_change_the_selection():
    """B3: identical models with reordered keys were 200 apart."""
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    replies = [{"a": np.full(2, 1.0 + i), "b": np.full(2, 10.0 + i)} for i in (0.0, 0.25, 0.5, 1.0, 5.0)]
    reordered = [dict(reversed(reply.items())) if i % 2 else reply for i, reply in enumerate(replies)]
    found = [krum(UpdateRows(Layout.of(base), base, each), num_byzantine=1) for each in (replies, reordered)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], [1.25, 1.25, 10.25, 10.25])


def test_b5_multi_krum_is_the_unweighted_mean_of_the_selected():
    """B5: Flower weights the selected by claimed num-examples; this rule has no place for them."""
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [100.0], [-100.0]])
    assert multi_krum(rows, num_byzantine=2, num_selected=5) == [2.0]


@given(st.integers(3, 9), st.integers(0, 10**6))
def test_ties_are_broken_by_content_and_not_by_arrival(n, seed):
    """Rows on a coarse grid tie often; whatever the order, the same *content* must be selected."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (n, 2)).astype(float)
    shuffled = rows[rng.permutation(n)]
    f = (n - 3) // 2
    np.testing.assert_array_equal(krum(rows, num_byzantine=f), krum(shuffled, num_byzantine=f))
    np.testing.assert_array_equal(multi_krum(rows, num_byzantine=f), multi_krum(shuffled, num_byzantine=f))


def test_equal_scores_go_to_the_lexicographically_first_row():
    corners = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # all four score the same
    np.testing.assert_array_equal(krum(corners, num_byzantine=0), [0, 0])
