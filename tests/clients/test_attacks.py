"""Hostile clients do exactly what they say."""

import ml_dtypes
import numpy as np
import pytest

from clients.attacks.backdoor import Backdoor
from clients.attacks.constant import Constant
from clients.attacks.free_rider import FreeRider
from clients.attacks.gaussian_noise import GaussianNoise
from clients.attacks.inner_product_manipulation import InnerProductManipulation
from clients.attacks.label_flip import LabelFlip
from clients.attacks.little_is_enough import LittleIsEnough
from clients.attacks.mimic import Mimic
from clients.attacks.min_max import MinMax, MinSum
from clients.attacks.non_finite import NonFinite
from clients.attacks.sign_flip import SignFlip
from clients.attacks.sybil import Sybil
from clients.attacks.zero import Zero
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.registry import Kind
from fl_plugins.spec import build
from fl_plugins.training import Attack, Dataset, HasGoal, SeesParameters, SharesIdentity, TrainsVirtualClients

UPDATE = {
    "params/a": np.array([[1.0, -2.0]], np.float32),
    "params/b": np.array([0.5], np.float64),
    "params/c": np.array([3.0], ml_dtypes.bfloat16),
    "params/d": np.array(2.0, np.float16),
}
DATA = Dataset(np.arange(6.0).reshape(3, 2), np.array([0, 1, 9], np.int32))


EVERY = {
    "backdoor": Backdoor,
    "constant": Constant,
    "free_rider": FreeRider,
    "gaussian_noise": GaussianNoise,
    "inner_product_manipulation": InnerProductManipulation,
    "label_flip": LabelFlip,
    "little_is_enough": LittleIsEnough,
    "mimic": Mimic,
    "min_max": MinMax,
    "min_sum": MinSum,
    "non_finite": NonFinite,
    "sign_flip": SignFlip,
    "sybil": Sybil,
    "zero": Zero,
}


@pytest.mark.parametrize("name", EVERY)
def test_attacks_are_plugins_by_name(name):
    attack = build(Kind.ATTACK, f"{name}(num_byzantine=2)")
    assert type(attack) is EVERY[name]
    assert isinstance(attack, Attack)
    assert attack.num_byzantine == 2
    assert isinstance(attack, SharesIdentity) == (name in ("mimic", "sybil"))
    assert isinstance(attack, TrainsVirtualClients) == (
        name in ("inner_product_manipulation", "little_is_enough", "min_max", "min_sum")
    )
    assert isinstance(attack, SeesParameters) == (name == "free_rider")
    assert isinstance(attack, HasGoal) == (name == "backdoor")


@pytest.mark.parametrize(
    "attack",
    [
        attack(num_byzantine=1, **({"trigger": "feature"} if name == "backdoor" else {}))
        for name, attack in EVERY.items()
    ],
    ids=list(EVERY),
)
def test_names_shapes_and_dtypes_stay_and_inputs_are_untouched(attack):
    copies = {name: array.copy() for name, array in UPDATE.items()}
    y = DATA.y.copy()
    update = attack.poison_update(UPDATE, seed=1)
    data = attack.poison_data(DATA, num_classes=10)
    assert {name: (array.shape, array.dtype) for name, array in update.items()} == {
        name: (array.shape, array.dtype) for name, array in UPDATE.items()
    }
    assert (data.x.shape, data.y.shape, data.y.dtype) == (DATA.x.shape, DATA.y.shape, DATA.y.dtype)
    np.testing.assert_array_equal(DATA.y, y)
    for name, array in UPDATE.items():
        np.testing.assert_array_equal(array, copies[name])


def test_sign_flip_sends_minus_scale_times_the_update_and_trains_on_true_data():
    attack = SignFlip(num_byzantine=1, scale=4)
    poisoned = attack.poison_update(UPDATE, seed=0)
    for name, array in UPDATE.items():
        np.testing.assert_array_equal(poisoned[name].astype(float), array.astype(float) * -4)
    assert attack.poison_data(DATA, num_classes=None) is DATA
    assert SignFlip(num_byzantine=0).scale == 10


def test_sign_flip_may_overflow_a_narrow_dtype():
    huge = {"w": np.array([6e4], np.float16)}
    assert SignFlip(num_byzantine=1).poison_update(huge, seed=0)["w"] == -np.inf


def test_gaussian_noise_has_its_deviation_and_nothing_of_the_update():
    update = {"a": np.full((100, 200), 5.0, np.float32), "b": np.full((100, 200), 5.0, np.float32)}
    attack = GaussianNoise(num_byzantine=1, stddev=0.3)
    noise, again, other = (attack.poison_update(update, seed=seed) for seed in (1, 1, 2))
    # 20,000 draws: standard errors 0.3/sqrt(20000) = 0.0021 and 0.3/sqrt(40000) = 0.0015; five of them.
    assert abs(noise["a"].mean()) < 0.011
    assert abs(noise["a"].std() - 0.3) < 0.0075
    np.testing.assert_array_equal(noise["a"], again["a"])
    assert (noise["a"] != other["a"]).any()
    assert (noise["a"] != noise["b"]).any()
    assert attack.poison_data(DATA, num_classes=None) is DATA


def test_label_flip_mirrors_the_labels_of_any_dtype_and_nothing_else():
    attack = LabelFlip(num_byzantine=1)
    np.testing.assert_array_equal(attack.poison_data(DATA, num_classes=10).y, [9, 8, 0])
    assert attack.poison_data(DATA, num_classes=10).x is DATA.x
    narrow = Dataset(np.ones((2, 1)), np.array([0, 255], np.uint8))
    np.testing.assert_array_equal(attack.poison_data(narrow, num_classes=256).y, [255, 0])
    assert attack.poison_update(UPDATE, seed=0) is UPDATE


def test_label_flip_says_what_it_cannot_flip():
    attack = LabelFlip(num_byzantine=1)
    with pytest.raises(ConfigError, match="num_classes=None"):
        attack.poison_data(DATA, num_classes=None)
    for y in (np.array([0.5]), np.array([10]), np.array([-1])):
        with pytest.raises(DataError, match=r"must be integers in 0\.\.9"):
            attack.poison_data(Dataset(np.ones((1, 1)), y), num_classes=10)


@pytest.mark.parametrize("attack", EVERY.values())
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ConfigError), (True, ConfigTypeError), (1.0, ConfigTypeError), ("2", ConfigTypeError)],
)
def test_num_byzantine_must_be_a_count(attack, value, error):
    with pytest.raises(error, match="num_byzantine="):
        attack(num_byzantine=value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_sizes_must_be_finite_and_positive(value):
    with pytest.raises(ConfigError, match="scale="):
        SignFlip(num_byzantine=1, scale=value)
    with pytest.raises(ConfigError, match="stddev="):
        GaussianNoise(num_byzantine=1, stddev=value)
    with pytest.raises(ConfigTypeError, match="stddev="):
        GaussianNoise(num_byzantine=1, stddev="1")


def test_zero_constant_and_non_finite_send_one_number():
    for attack, number in (
        (Zero(num_byzantine=1), 0.0),
        (Constant(num_byzantine=1, value=-2.5), -2.5),
        (NonFinite(num_byzantine=1), np.nan),
        (NonFinite(num_byzantine=1, value="-inf"), -np.inf),
    ):
        for array in attack.poison_update(UPDATE, seed=0).values():
            np.testing.assert_array_equal(array.astype(float), np.full(array.shape, number))
    with pytest.raises(ConfigError, match="value='nil' must be one of nan, inf, -inf"):
        NonFinite(num_byzantine=1, value="nil")
    with pytest.raises(ConfigError, match="value=nan must be finite"):
        Constant(num_byzantine=1, value=float("nan"))


def test_a_free_rider_sends_only_noise_or_nothing():
    update = {"a": np.full((100, 200), 5.0, np.float32)}
    attack = FreeRider(num_byzantine=1, stddev=0.3)
    noise, again, other = (attack.poison_update(update, seed=seed)["a"] for seed in (1, 1, 2))
    # 20,000 draws: standard errors 0.0021 and 0.0015; five of them.
    assert abs(noise.mean()) < 0.011
    assert abs(noise.std() - 0.3) < 0.0075
    np.testing.assert_array_equal(noise, again)
    assert (noise != other).any()
    assert not FreeRider(num_byzantine=1, stddev=0.0).poison_update(update, seed=1)["a"].any()
    with pytest.raises(ConfigError, match="stddev=-1 must be finite and >= 0"):
        FreeRider(num_byzantine=1, stddev=-1)


def test_sybils_are_all_partition_0_and_send_its_scaled_update():
    attack = Sybil(num_byzantine=3, scale=-2.0)
    assert [attack.acts_as(partition) for partition in range(3)] == [0, 0, 0]
    for name, array in attack.poison_update(UPDATE, seed=5).items():
        np.testing.assert_array_equal(array.astype(float), UPDATE[name].astype(float) * -2)
    with pytest.raises(ConfigError, match="scale=0 must not be 0"):
        Sybil(num_byzantine=1, scale=0)


def test_little_is_enough_deals_its_data_once_and_sends_mean_minus_z_deviations():
    attack = LittleIsEnough(num_byzantine=1, z=1.5, virtual_clients=3)
    data = Dataset(np.arange(8.0)[:, None], np.arange(8))
    parts = attack.split_data(data, seed=1)
    assert sorted(len(part) for part in parts) == [2, 3, 3]
    assert sorted(np.concatenate([part.y for part in parts])) == list(range(8))
    again = attack.split_data(data, seed=1)
    assert all((a.y == b.y).all() for a, b in zip(parts, again, strict=True))
    other = attack.split_data(data, seed=2)
    assert any(len(a) != len(b) or (a.y != b.y).any() for a, b in zip(parts, other, strict=True))
    rows = [np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), np.array([[6.0, 3.0]])]
    empty = np.empty((0, 2))
    sent = attack.combine_updates([{"w": row, "e": empty} for row in rows], seed=0)
    deviations = [((4 + 1 + 9) / 3) ** 0.5, ((1 + 1 + 4) / 3) ** 0.5]
    # float64 on both sides, a few roundings
    np.testing.assert_allclose(sent["w"], [[3 - 1.5 * deviations[0], 1 - 1.5 * deviations[1]]], rtol=1e-12)
    assert sent["e"].shape == (0, 2)
    with pytest.raises(DataError, match="2 examples cannot make virtual_clients=3"):
        attack.split_data(data.take(np.arange(2)), seed=0)
    with pytest.raises(ConfigError, match="virtual_clients=1 must be >= 2"):
        LittleIsEnough(num_byzantine=1, virtual_clients=1)
    with pytest.raises(ConfigTypeError, match="virtual_clients=2.5"):  # noqa: RUF043
        LittleIsEnough(num_byzantine=1, virtual_clients=2.5)


def test_mimics_are_all_one_honest_client():
    assert [Mimic(num_byzantine=2).acts_as(partition) for partition in range(2)] == [2, 2]
    assert Mimic(num_byzantine=2, target=5).acts_as(0) == 5
    assert Mimic(num_byzantine=1).poison_update(UPDATE, seed=0) is UPDATE
    with pytest.raises(ConfigError, match="target=1 must be >= num_byzantine=2"):
        Mimic(num_byzantine=2, target=1)
    with pytest.raises(ConfigTypeError, match="target=True must be an int"):
        Mimic(num_byzantine=0, target=True)


def test_min_max_and_min_sum_go_as_far_as_the_parts_distances_allow_over_all_arrays_together():
    parts = [
        {"a": np.array([[x]]), "e": np.empty(0), "b": np.array(y, np.float32)}
        for x, y in ((1.0, 0.0), (2.0, 0.0), (6.0, 4.0))
    ]
    rows = np.array([[1.0, 0.0], [2.0, 0.0], [6.0, 4.0]])
    between = ((rows[:, None] - rows) ** 2).sum(axis=2)
    for attack, measure, limit in (
        (MinMax(num_byzantine=1), np.max, between.max()),
        (MinSum(num_byzantine=1), np.sum, between.sum(axis=1).max()),
    ):
        sent = attack.combine_updates(parts, seed=0)
        assert {name: (a.shape, a.dtype) for name, a in sent.items()} == {
            name: (a.shape, a.dtype) for name, a in parts[0].items()
        }
        row = np.array([sent["a"].item(), sent["b"].item()])
        # "b" is rounded to float32, 6e-8 of it
        assert measure(((row - rows) ** 2).sum(axis=1)) == pytest.approx(limit, rel=1e-6)
        along = row - rows.mean(axis=0)
        np.testing.assert_allclose(along / along[0], rows.std(axis=0) / rows.std(axis=0)[0], rtol=1e-6)
        assert (along < 0).all()
    with pytest.raises(ConfigError, match="min_sum: direction='up' must be one of std, unit, sign"):
        MinSum(num_byzantine=1, direction="up")
    with pytest.raises(ConfigError, match="min_max: virtual_clients=1 must be >= 2"):
        MinMax(num_byzantine=1, virtual_clients=1)


def test_a_backdoor_poisons_the_first_examples_and_boosts_the_update():
    column = {"trigger": "feature", "column": 1, "value": -1.0}
    attack = Backdoor(num_byzantine=1, target=7, fraction=0.5, scale=3, **column)
    poisoned = attack.poison_data(DATA, num_classes=10)
    np.testing.assert_array_equal(poisoned.x, [[0, -1], [2, -1], [4, 5]])  # ceil(0.5 * 3) = 2 of them
    np.testing.assert_array_equal(poisoned.y, [7, 7, 9])
    assert DATA.y[0] == 0
    assert attack.poison_update(UPDATE, seed=0)["params/b"] == 1.5
    images = Dataset(np.zeros((2, 3, 3, 1), np.float32), np.array([0, 1]))
    square = Backdoor(num_byzantine=1, target=1, fraction=1.0).poison_data(images, num_classes=2)
    assert square.x.sum() == 8
    np.testing.assert_array_equal(square.x[0, 1:, 1:, 0], np.ones((2, 2)))


def test_a_backdoors_success_is_measured_on_triggered_examples_of_other_classes():
    attack = Backdoor(num_byzantine=1, target=9, trigger="feature", value=-1.0)
    goal = attack.success_data(DATA)
    np.testing.assert_array_equal(goal.x, [[-1, 1], [-1, 3]])
    np.testing.assert_array_equal(goal.y, [9, 9])
    assert goal.y.dtype == DATA.y.dtype
    with pytest.raises(DataError, match="no example of another class than target=9"):
        attack.success_data(DATA.take(np.array([2])))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"target": -1}, ConfigError, "target=-1"),
        ({"target": True}, ConfigTypeError, "target=True"),
        ({"trigger": "sound"}, ConfigError, "trigger='sound' must be one of pixel, feature"),
        ({"fraction": 1.5}, ConfigError, "fraction="),
        ({"fraction": 0}, ConfigError, "fraction="),
        ({"scale": 0}, ConfigError, "scale="),
        ({"size": 0}, ConfigError, "size=0"),
        ({"value": float("inf")}, ConfigError, "value=inf"),
        ({"trigger": "feature", "column": -1}, ConfigError, "column=-1"),
    ],
)
def test_a_backdoor_refuses_what_makes_no_sense(given, error, match):
    with pytest.raises(error, match=match):
        Backdoor(num_byzantine=1, **given)


def test_a_backdoor_needs_a_class_of_the_task():
    for num_classes in (None, 7):
        with pytest.raises(ConfigError, match=f"target=7 but the task has num_classes={num_classes}"):
            Backdoor(num_byzantine=1, target=7).poison_data(DATA, num_classes=num_classes)
