"""Triggers change what they say, and the success rate counts only other classes."""

import numpy as np
import pytest

from fl_plugins.attacks import feature_trigger, pixel_trigger, success_rate
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_the_pixel_trigger_is_a_square_in_the_lower_right_corner(channels):
    x = np.random.default_rng(0).random((2, 4, 5, *channels)).astype(np.float32)
    copy = x.copy()
    triggered = pixel_trigger(size=2, value=9.0)(x)
    assert triggered.dtype == np.float32
    for image, row, column in np.ndindex(2, 4, 5):
        inside = row >= 2 and column >= 3
        expected = np.full(channels, 9.0) if inside else x[image, row, column]
        np.testing.assert_array_equal(triggered[image, row, column], expected)
    np.testing.assert_array_equal(x, copy)


def test_the_feature_trigger_is_one_column():
    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(feature_trigger(column=1, value=-1.0)(x), [[0, -1], [2, -1], [4, -1]])
    assert x[0, 1] == 1


def test_triggers_refuse_what_they_do_not_fit():
    for shape in ((3, 4), (3, 1, 5), (3, 5, 1, 1)):
        with pytest.raises(DataError, match="pixel_trigger: examples have shape"):
            pixel_trigger(size=2)(np.zeros(shape))
    for shape in ((3, 2), (3, 4, 4)):
        with pytest.raises(DataError, match="feature_trigger: examples have shape"):
            feature_trigger(column=2, value=1.0)(np.zeros(shape))
    with pytest.raises(ConfigError, match="size=0"):
        pixel_trigger(size=0)
    with pytest.raises(ConfigTypeError, match="column="):
        feature_trigger(column=1.0, value=1.0)
    with pytest.raises(ConfigError, match="value=nan"):
        feature_trigger(column=1, value=float("nan"))


def test_the_success_rate_leaves_out_the_targets_own_examples():
    labels = np.array([0, 0, 1, 2, 3, 4])
    predicted = np.array([0, 0, 0, 2, 0, 1])
    assert success_rate(predicted, labels, target=0) == 2 / 4
    with pytest.raises(DataError, match="no example of another class than target=0"):
        success_rate(predicted[:2], labels[:2], target=0)
    with pytest.raises(ConfigError, match="give equal"):
        success_rate(predicted[:2], labels, target=0)
