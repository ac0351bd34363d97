"""Whose turn it is under ``min_separation`` where nodes have no stable names."""

import pytest

from fl_plugins.privacy import Gaussian, MinSeparation, NeighborRelation, NoiseSource, Release
from strategies.private_rounds import PrivateRounds

RELEASE = Release(
    mechanism=Gaussian(noise_multiplier=1.0),
    sampling=MinSeparation(size=1, rounds=3, population=6),
    relation=NeighborRelation.of(unit="client", adjacency="zero_out"),
)


@pytest.mark.parametrize("seed", range(20))
def test_a_drawn_node_that_comes_back_under_another_id_rests_for_as_long_as_under_its_own(seed):
    source, names = NoiseSource(insecure_seed=seed), ["node-1", "node-2", "node-3"]
    rounds = PrivateRounds("dp", RELEASE, matrix=None, mean=None, budget=None)
    (drawn,) = rounds.draw(names, 1, source)
    rounds.close()
    names[names.index(drawn)] = "node-9"
    later = []
    for number in (2, 3, 4):
        later += rounds.draw(names, number, source)
        rounds.close()
    assert "node-9" not in later[:2]
    assert later[2] == "node-9"
