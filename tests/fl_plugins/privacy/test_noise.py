"""Sums that noise cannot cover in float64 are refused."""

import numpy as np
import pytest

from fl_plugins.errors import ConfigError
from fl_plugins.privacy.noise import add_gaussian
from fl_plugins.privacy.random import NoiseSource


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**43, -(2.0**43)])
def test_a_sum_whose_noise_would_be_lost_is_refused(value: float) -> None:
    total = {"params/w": np.array([0.0, value])}
    with pytest.raises(ConfigError, match="params/w has a value"):
        add_gaussian(total, 1.0, NoiseSource(insecure_seed=1))


def test_a_sum_just_below_that_is_noised() -> None:
    value = 2.0**41
    noised = add_gaussian({"w": np.full(10_000, value)}, 1.0, NoiseSource(insecure_seed=1))["w"] - value
    assert abs(noised.std() - 1.0) < 0.05  # seven standard errors
