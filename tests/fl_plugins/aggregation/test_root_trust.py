"""Root trust: the paper's loop, and what gives no direction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import RootTrust
from fl_plugins.aggregation.root_trust import root_trust
from fl_plugins.errors import PreconditionError, ReplyError, StructureError

from .updates import cohort


@given(st.integers(0, 10**6))
def test_root_trust_is_the_papers_loop(seed):
    rows = cohort(6, seed, dtype="float64")
    root = np.random.default_rng(seed + 1).normal(size=6)
    length, total, trust = math.hypot(*root), np.zeros(6), []
    for row in rows:
        trust.append(max(0.0, math.fsum(row * root) / math.hypot(*row) / length))
        total += trust[-1] * length / math.hypot(*row) * row
    if not any(trust):
        return
    found = RootTrust(root_update=root)(rows)
    np.testing.assert_allclose(found.value, total / math.fsum(trust), atol=1e-13)
    np.testing.assert_allclose(found.contribution, np.array(trust) / math.fsum(trust), atol=1e-14)
    assert np.linalg.norm(found.value) <= length * (1 + 1e-12)
    order = np.random.default_rng(seed).permutation(6)
    np.testing.assert_array_equal(root_trust(rows[order], root_update=root), found.value)


def test_root_trust_refuses_what_gives_no_direction():
    rows, root = cohort(4, 0), np.ones(6, np.float32)
    for bad in (-np.abs(rows), np.zeros((3, 6), np.float32)):
        with pytest.raises(PreconditionError, match="nothing to trust"):
            root_trust(bad, root_update=root)
    with pytest.raises(PreconditionError, match="nothing to trust"):
        root_trust(rows, root_update=0 * root)
    with pytest.raises(StructureError, match="d=5"):
        root_trust(rows, root_update=np.ones(5))
    with pytest.raises(ReplyError, match="NaN"):
        root_trust(rows, root_update=np.full(6, np.nan))
    with pytest.raises(PreconditionError, match="n=0"):
        root_trust(rows[:0], root_update=root)


def test_an_update_of_zero_is_not_trusted_and_does_no_harm():
    rows = np.array([[0.0, 0.0], [0.0, 3.0]])
    found = RootTrust(root_update=np.array([0.0, 1.0]))(rows)
    assert found.contribution.tolist() == [0, 1]
    assert found.value.tolist() == [0, 1]
