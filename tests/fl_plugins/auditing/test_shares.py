"""Canaries in sums whose noise the clients add: what is accounted is not exceeded, and defects are caught.

Noise and coins are the operating system's, so comparisons leave room for chance as in test_canaries.py.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_plugins.auditing import audit_shares, audit_strategy
from fl_plugins.distributed_privacy import NoisyMean
from fl_plugins.errors import ContractError
from fl_plugins.privacy import NeighborRelation, NoiseSource
from fl_plugins.secagg import distributed_noise
from fl_plugins.secagg.distributed_noise import DistributedNoise, EncodedShare, Noise
from strategies import DistributedDp, FedAvg

ZERO_OUT = NeighborRelation.of(unit="client", adjacency="zero_out")
REPLACE = NeighborRelation.of(unit="client", adjacency="replace")


def encoding(kind: type[NoisyMean] = NoisyMean, **given: Any) -> Callable[[], NoisyMean]:
    defaults: dict[str, Any] = {
        "noise_multiplier": 2.0,
        "clip_norm": 0.5,
        "num_entries": 512,
        "num_bits": 32,
        "cohort": 1000,
        "min_survivors": 420,
        "max_colluders": 20,
    }
    noise = DistributedNoise(**{**defaults, **given})
    return lambda: kind(noise=noise, rotation_seed=bytes(32))


@dataclass(frozen=True, kw_only=True)
class Weak(DistributedNoise):
    """Shares with ``part`` of the noise that is accounted, on the same grid."""

    part: float

    @property
    def local_std(self) -> float:
        return max(self.part * super().local_std, 2.0)


@dataclass(frozen=True, kw_only=True)
class Broken(NoisyMean):
    """Clients add ``part`` of the noise; what is said of it stays."""

    part: float

    def encode(self, update: Iterable[NDArray[Any]]) -> EncodedShare:
        weak = Weak(
            part=self.part, **{each.name: getattr(self.noise, each.name) for each in fields(self.noise)}
        )
        return weak.encode(update, rotation_seed=self.rotation_seed, source=NoiseSource())


@pytest.mark.parametrize("relation", [ZERO_OUT, REPLACE], ids=["zero_out", "replace"])
@pytest.mark.parametrize("noise", list(Noise))
def test_sound_shares_pass_and_their_leak_is_seen(noise: Noise, relation: NeighborRelation) -> None:
    """z = 1, or z = 2 and two clip norms: ε = 4.7. A lower bound of 0 would pass too, and mean nothing."""
    z = 1.0 if relation is ZERO_OUT else 2.0
    finding = audit_shares(encoding(noise=noise, noise_multiplier=z), relation, delta=1e-5)
    assert finding.accounted == pytest.approx(4.74, abs=0.05)
    assert 0.1 < finding.lower_bound < 4.0
    assert not finding.violated
    assert str(relation) in str(finding)


def test_several_sums_are_accounted_for_together() -> None:
    finding = audit_shares(encoding(noise_multiplier=4.0), ZERO_OUT, delta=1e-5, num_sums=4)
    assert "4 releases" in finding.account
    assert not finding.violated


@pytest.mark.parametrize("noise", list(Noise))
def test_shares_without_noise_are_caught(noise: Noise) -> None:
    sound = encoding(noise=noise)()
    broken = Broken(noise=sound.noise, rotation_seed=sound.rotation_seed, part=0.0)
    finding = audit_shares(lambda: broken, ZERO_OUT, delta=1e-5)
    assert finding.accounted is not None
    assert finding.accounted < 2.2
    assert finding.violated


def test_d4_shares_that_are_sized_for_those_who_dropped_out_too_are_caught() -> None:
    """Each of 400 adds what would do for 40,000: a tenth of the noise that is accounted."""
    sound = encoding(cohort=40_000)()
    broken = Broken(noise=sound.noise, rotation_seed=sound.rotation_seed, part=(400 / 40_000) ** 0.5)
    assert audit_shares(lambda: broken, ZERO_OUT, delta=1e-5).violated


def test_shares_from_seeds_that_the_adversary_knows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client has another seed; in the next run it has the same again. Rounding is still random."""
    make, draw, seeds = encoding(), distributed_noise.discrete_gaussian, itertools.count()

    def seeded_noise(size: int, *, std: float, source: NoiseSource) -> Any:
        return draw(size, std=std, source=NoiseSource(insecure_seed=next(seeds)))

    def seeded() -> NoisyMean:
        nonlocal seeds
        seeds = itertools.count()
        return make()

    monkeypatch.setattr(distributed_noise, "discrete_gaussian", seeded_noise)
    assert audit_shares(seeded, ZERO_OUT, delta=1e-5).violated


def federation(adjacency: str) -> Callable[[], DistributedDp]:
    return lambda: DistributedDp(
        FedAvg(weighting="uniform"),
        unit="client",
        adjacency=adjacency,  # type: ignore[arg-type]
        population=40,
        min_clients=34,
        delta=1e-5,
        clip_norm=0.5,
        noise_multiplier=3.0 if adjacency == "zero_out" else 6.0,
        num_bits=32,
    )


@pytest.mark.parametrize("adjacency", ["zero_out", "replace"])
def test_the_whole_protocol_passes_with_clients_that_drop_out(adjacency: str) -> None:
    finding = audit_strategy(federation(adjacency), dropouts=0.1, confidence=0.999)
    assert finding.accounted == pytest.approx(1.386, abs=0.01)
    assert not finding.violated
    assert f"adjacency {adjacency}" in str(finding)


def test_the_whole_protocol_without_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = lambda size, *, std, source: np.zeros(size, np.int64)  # noqa: E731
    monkeypatch.setattr(distributed_noise, "discrete_gaussian", nothing)
    finding = audit_strategy(federation("zero_out"), dropouts=0.1)
    assert finding.violated
    assert finding.shown.guesses.num_correct == finding.shown.guesses.num_guesses


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(ContractError, match="updates of 100 entries, but 400 canaries"):
        audit_shares(encoding(num_entries=100), ZERO_OUT, delta=1e-5)
    add_remove = NeighborRelation.of(unit="client", adjacency="add_remove")
    with pytest.raises(ContractError, match="takes its share of the noise along"):
        audit_shares(encoding(), add_remove, delta=1e-5)
