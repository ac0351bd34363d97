import numpy as np
import pytest

from fl_plugins.aggregation.mean import Mean, mean
from fl_plugins.errors import ReplyError, StructureError


def test_weights_count_in_proportion_whatever_their_scale():
    rows = np.array([[0.0, 3.0], [4.0, 3.0]])
    for scale in (1e-300, 1, 10**12, 5e307):
        found = Mean()(rows, np.array([3, 1]) * scale)
        np.testing.assert_allclose(found.value, [1, 3], rtol=1e-15)  # a few roundings in float64
        np.testing.assert_allclose(found.contribution, [0.75, 0.25], rtol=1e-15)


def test_the_largest_floats_do_not_overflow():
    for dtype in (np.float32, np.float64):
        rows = np.full((4, 2), np.finfo(dtype).max, dtype)
        np.testing.assert_array_equal(mean(rows), rows[0])


@pytest.mark.parametrize("bad", [0.0, -9.0, np.nan, np.inf])
def test_b8_unusable_weights_are_refused_naming_the_row(bad):
    """B8: Flower divides by a sum of zero, spreads NaN, and lets weights 10 and -9 give -8."""
    with pytest.raises(ReplyError, match=r"mean: row 1 has weight .* must be finite and > 0"):
        mean(np.zeros((3, 2)), np.array([10, bad, 1]))


@pytest.mark.parametrize(
    "weights", [np.ones(2), np.ones((3, 1)), np.ones(()), np.array(["1", "2", "3"]), [True] * 3]
)
def test_b8_weights_of_another_shape_or_kind_are_refused(weights):
    with pytest.raises(StructureError, match=r"mean: weights have shape .* but n=3 numbers are needed"):
        mean(np.zeros((3, 2)), weights)
