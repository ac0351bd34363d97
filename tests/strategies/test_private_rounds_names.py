"""Whose turn it is under ``min_separation`` where nodes have no stable names."""

from dataclasses import replace

import pytest

from fl_plugins.errors import PreconditionError
from fl_plugins.privacy import Gaussian, MinSeparation, NeighborRelation, NoiseSource, Release
from strategies.private_rounds import PrivateRounds

RELEASE = Release(
    mechanism=Gaussian(noise_multiplier=1.0),
    sampling=MinSeparation(size=1, rounds=3, population=6),
    relation=NeighborRelation.of(unit="client", adjacency="zero_out"),
)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("told", [True, False])
def test_a_drawn_node_that_gets_its_name_in_mid_run_rests_for_as_long_as_without(seed, told):
    """Told that the two are one, or not: another node of that name may have come in its place."""
    source, names = NoiseSource(insecure_seed=seed), ["node-1", "2", "3"]
    rounds = PrivateRounds("dp", RELEASE, matrix=None, mean=None, budget=None)
    while rounds.draw(names, 1, source) != ["node-1"]:
        rounds.forget()
    rounds.close()
    names[0] = "1"
    if told:
        rounds.rename("node-1", "1")
    later = []
    for number in (2, 3, 4):
        later += rounds.draw(names, number, source)
        rounds.close()
    assert sorted(later[:2]) == ["2", "3"]
    assert later[2] == "1"


def test_a_renamed_client_is_counted_once():
    release = replace(RELEASE, sampling=replace(RELEASE.sampling, population=3))
    for told in (True, False):
        source, names = NoiseSource(insecure_seed=1), ["node-1", "node-2", "node-3"]
        rounds = PrivateRounds("dp", release, matrix=None, mean=None, budget=None)
        drawn = rounds.draw(names, 1, source)
        rounds.close()
        names[names.index(drawn[0])] = "1"
        if told:
            rounds.rename(drawn[0], "1")
            assert len(rounds.draw(names, 2, source)) == 1
        else:
            with pytest.raises(PreconditionError, match="4 clients were seen"):
                rounds.draw(names, 2, source)


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
