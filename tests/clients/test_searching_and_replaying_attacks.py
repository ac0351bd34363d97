"""Attacks that know more than one update: searched against the server's rule, or replaying what was sent."""

from collections.abc import Callable

import numpy as np
import pytest

from clients.attacks.free_rider import FreeRider
from clients.attacks.inner_product_manipulation import InnerProductManipulation
from clients.attacks.little_is_enough import LittleIsEnough
from fl_plugins import attacks as pure
from fl_plugins.aggregation.krum import Krum
from fl_plugins.aggregation.mean import Mean
from fl_plugins.aggregation.trimmed_mean import TrimmedMean
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError
from fl_plugins.registry import Kind
from fl_plugins.spec import build

VIRTUAL = [
    {"a": rng.normal(1.0, 1.0, (2, 3)), "e": np.empty(0), "b": rng.normal(0.0, 5.0, 4)}
    for rng in map(np.random.default_rng, range(5))
]
ROWS = np.stack([np.concatenate([update["a"].reshape(-1), update["b"]]) for update in VIRTUAL])
SEARCHABLE = [
    (LittleIsEnough, "z", pure.little_is_enough, (-1.5, 0.5, 1.5, 5.0)),
    (InnerProductManipulation, "epsilon", pure.inner_product_manipulation, (0.25, 0.5, 2.5, 8.0)),
]


def sent_row(attack: LittleIsEnough | InnerProductManipulation) -> np.ndarray:
    sent = attack.combine_updates(VIRTUAL, seed=0)
    assert {name: a.shape for name, a in sent.items()} == {"a": (2, 3), "e": (0,), "b": (4,)}
    return np.concatenate([sent["a"].reshape(-1), sent["b"]])


@pytest.mark.parametrize(("plugin", "name", "function", "values"), SEARCHABLE)
def test_a_fixed_parameter_sends_what_the_pure_attack_does_with_the_virtual_clients(
    plugin, name, function, values
):
    for value in values:
        attack = plugin(num_byzantine=1, **{name: value})
        np.testing.assert_array_equal(sent_row(attack), function(ROWS, 1, **{name: value})[0])


@pytest.mark.parametrize(("plugin", "name", "function", "values"), SEARCHABLE)
@pytest.mark.parametrize("rule", [Krum(num_byzantine=2), TrimmedMean(fraction=0.3), Mean()], ids=repr)
def test_a_searched_parameter_is_worse_for_the_rule_than_any_fixed_one(plugin, name, function, values, rule):
    shown = rule.for_cohort(7) if isinstance(rule, TrimmedMean) else rule

    def damage(row: np.ndarray) -> float:
        rows = np.concatenate([ROWS, [row, row]])
        return float(np.linalg.norm(shown(rows).value - ROWS.mean(axis=0)))

    searched = damage(sent_row(plugin(num_byzantine=2, virtual_clients=5, against=rule)))
    fixed = [damage(function(ROWS, 1, **{name: value})[0]) for value in values]
    assert searched >= max(fixed)
    assert searched > min(fixed)
    # Through a mean, what is far off does most: a value off the grid that is given is tried as well.
    far = plugin(num_byzantine=2, virtual_clients=5, against=Mean(), **{name: 100.0})
    np.testing.assert_array_equal(sent_row(far), function(ROWS, 1, **{name: 100.0})[0])


@pytest.mark.parametrize("plugin", ["little_is_enough", "inner_product_manipulation"])
def test_the_rule_to_search_against_is_a_nested_plugin_that_the_virtual_clients_suffice_for(plugin):
    attack = build(
        Kind.ATTACK, f"{plugin}(num_byzantine=2, virtual_clients=5, against=krum(num_byzantine=2))"
    )
    assert attack.against == Krum(num_byzantine=2)
    with pytest.raises(
        PreconditionError,
        match=rf"{plugin}: virtual_clients=4 and num_byzantine=2 make n=6 updates, too few for "
        r"against=Krum\(num_byzantine=2\) \(krum: n=6 .*; raise virtual_clients\.",
    ):
        type(attack)(num_byzantine=2, against=Krum(num_byzantine=2))
    with pytest.raises(ConfigTypeError, match=f"{plugin}: against=3, but it is a rule"):
        type(attack)(num_byzantine=2, against=3)


def test_inner_product_manipulation_needs_a_factor_that_is_not_negative():
    with pytest.raises(ConfigError, match=r"epsilon=-0\.5 must be finite and >= 0"):
        InnerProductManipulation(num_byzantine=1, epsilon=-0.5)


def model(value: float, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"params/w": np.array([value, 2 * value], dtype), "state/steps": np.array(7)}


def replayed(attack: FreeRider) -> list[float]:
    return attack.poison_update({"params/w": np.zeros(2, np.float32)}, seed=0)["params/w"].tolist()


def test_a_free_rider_replays_the_change_between_the_last_two_different_parameters():
    attack = FreeRider(num_byzantine=1, stddev=0.0)
    lent = model(1.0)
    attack.observe(lent, number=1)
    assert replayed(attack) == [0, 0]
    lent["params/w"][:] = 99
    attack.observe(model(1.5), number=2)
    attack.observe(model(1.5), number=2)
    assert replayed(attack) == [0.5, 1]
    attack.observe(model(1.5), number=3)  # a round that changed nothing
    assert replayed(attack) == [0.5, 1]
    attack.observe(model(4.5), number=7)
    assert replayed(attack) == [3, 6]


@pytest.mark.parametrize(
    "restart",
    [
        lambda attack: attack.observe(model(9.0), number=1),
        lambda attack: attack.observe(model(9.0), number=2),
        lambda attack: attack.observe({"params/w": np.zeros((2, 1), np.float32)}, number=3),
    ],
    ids=["an earlier round", "the same round with other parameters", "another model"],
)
def test_a_free_rider_forgets_the_run_before(restart: Callable[[FreeRider], None]):
    attack = FreeRider(num_byzantine=1, stddev=0.0)
    attack.observe(model(1.0), number=1)
    attack.observe(model(1.5), number=2)
    assert replayed(attack) == [0.5, 1]
    restart(attack)
    assert replayed(attack) == [0, 0]


def test_a_free_rider_that_is_not_to_replay_sends_noise_in_all_rounds():
    attack = FreeRider(num_byzantine=1, replay=False)
    attack.observe(model(1.0), number=1)
    attack.observe(model(1.5), number=2)
    assert replayed(attack) == replayed(FreeRider(num_byzantine=1))
    assert 0 < max(map(abs, replayed(attack))) < 0.01
    with pytest.raises(ConfigTypeError, match="free_rider: replay=1 must be a bool"):
        FreeRider(num_byzantine=1, replay=1)
