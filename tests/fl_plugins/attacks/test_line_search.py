"""The searched parameter does at least the damage of any fixed one."""

import numpy as np
import pytest

from fl_plugins.aggregation import Krum, Median, TrimmedMean
from fl_plugins.attacks import (
    distance_from_honest_mean,
    inner_product_manipulation,
    line_search,
    little_is_enough,
)
from fl_plugins.errors import ConfigError

F = 3
HONEST = np.random.default_rng(1).normal(0.5, 1.0, (9, 30)).astype(np.float32)
RULES = [TrimmedMean(num_byzantine=F), Median(), Krum(num_byzantine=F)]
GRID = [0.1, 0.5, 1.0, 2.0, 4.0]


def damage_by_hand(rule, hostile):
    """‖rule(honest and hostile) − honest mean‖ as a loop."""
    aggregate = rule(np.concatenate([HONEST, hostile])).value
    mean = [float(np.mean(HONEST[:, j].astype(float))) for j in range(HONEST.shape[1])]
    return sum((float(a) - m) ** 2 for a, m in zip(aggregate, mean, strict=True)) ** 0.5


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize(
    "attack",
    [
        lambda z: little_is_enough(HONEST, F, z=z),
        lambda epsilon: inner_product_manipulation(HONEST, F, epsilon=epsilon),
    ],
)
@pytest.mark.parametrize("refinements", [0, 3])
def test_the_search_finds_the_worst_of_the_grid_or_worse(rule, attack, refinements):
    found = line_search(
        HONEST,
        attack,
        aggregate=lambda rows: rule(rows).value,
        parameters=GRID,
        refinements=refinements,
    )
    by_hand = {parameter: damage_by_hand(rule, attack(parameter)) for parameter in GRID}
    # float64 sums in two orders
    assert found.damage == pytest.approx(damage_by_hand(rule, attack(found.parameter)), rel=1e-9)
    np.testing.assert_array_equal(found.hostile, attack(found.parameter))
    if refinements:
        assert found.damage >= max(by_hand.values()) * (1 - 1e-9)
    else:
        assert found.parameter == max(by_hand, key=by_hand.get)


def test_refinement_closes_in_on_a_peak_between_grid_points():
    peak = 1.3

    def damage(aggregate):
        return -((float(aggregate[0]) - peak) ** 2)

    honest = HONEST[:, :1]
    searches = [
        line_search(
            honest,
            lambda value: np.full((1, 1), value),
            aggregate=lambda rows: rows[-1],
            parameters=[0.0, 1.0, 2.0],
            damage=damage,
            refinements=refinements,
        ).parameter
        for refinements in (0, 2, 12)
    ]
    assert searches[0] == 1.0
    assert abs(searches[1] - peak) <= 0.25
    assert abs(searches[2] - peak) <= 2.0**-11


def test_the_rule_sees_honest_rows_first_and_a_nan_is_the_worst_there_is():
    seen = []

    def aggregate(rows):
        seen.append(rows)
        return np.full(30, np.nan) if rows[-1, 0] == 2.0 else rows[-1] * 1e6

    found = line_search(
        HONEST,
        lambda value: np.full((F, 30), value, np.float32),
        aggregate=aggregate,
        parameters=[1.0, 2.0, 3.0],
    )
    assert found.parameter == 2.0
    assert found.damage == np.inf
    assert all(rows.shape == (12, 30) for rows in seen)
    np.testing.assert_array_equal(seen[0][:9], HONEST)


def test_equal_damages_keep_the_first_parameter():
    found = line_search(
        HONEST, lambda _: HONEST[:1], aggregate=lambda rows: rows.mean(axis=0), parameters=[1.0, 2.0, 3.0]
    )
    assert found.parameter == 1.0


@pytest.mark.parametrize("grid", [[], [1.0, 1.0], [2.0, 1.0]])
def test_a_grid_that_does_not_ascend_is_refused(grid):
    with pytest.raises(ConfigError, match="ascending grid"):
        line_search(HONEST, lambda _: HONEST[:1], aggregate=lambda rows: rows[0], parameters=grid)


def test_the_default_damage_is_the_distance_from_the_honest_mean():
    damage = distance_from_honest_mean(np.array([[0.0, 0.0], [2.0, 0.0]]))
    assert damage(np.array([1.0, 0.0])) == 0
    assert damage(np.array([4.0, 4.0])) == 5
