"""Hostile clients do exactly what they say."""

import ml_dtypes
import numpy as np
import pytest

from clients.attacks.gaussian_noise import GaussianNoise
from clients.attacks.label_flip import LabelFlip
from clients.attacks.sign_flip import SignFlip
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.registry import Kind
from fl_plugins.spec import build
from fl_plugins.training import Attack, Dataset

UPDATE = {
    "params/a": np.array([[1.0, -2.0]], np.float32),
    "params/b": np.array([0.5], np.float64),
    "params/c": np.array([3.0], ml_dtypes.bfloat16),
    "params/d": np.array(2.0, np.float16),
}
DATA = Dataset(np.arange(6.0).reshape(3, 2), np.array([0, 1, 9], np.int32))


@pytest.mark.parametrize(
    "spec", ["sign_flip(num_byzantine=2)", "gaussian_noise(num_byzantine=2)", "label_flip(2)"]
)
def test_attacks_are_plugins_by_name(spec):
    if "(2)" in spec:
        spec = spec.replace("(2)", "(num_byzantine=2)")
    attack = build(Kind.ATTACK, spec)
    assert isinstance(attack, Attack)
    assert attack.num_byzantine == 2


@pytest.mark.parametrize(
    "attack", [SignFlip(num_byzantine=1), GaussianNoise(num_byzantine=1), LabelFlip(num_byzantine=1)]
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


@pytest.mark.parametrize("attack", [SignFlip, GaussianNoise, LabelFlip])
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
