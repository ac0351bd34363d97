"""Canaries through the layer that protects clients from the server: no more than its ε, defects are caught.

Noise and coins are the operating system's, so comparisons leave room for chance as in test_canaries.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from clients.mods import local_dp
from clients.mods.local_dp import LocalDp
from fl_plugins.auditing import audit_layer
from fl_plugins.errors import ConfigError, ContractError
from fl_plugins.local_privacy import local_release
from fl_plugins.privacy import Everyone, Gaussian, NeighborRelation, NoiseSource, Release


def layer(kind: type[Any] = LocalDp, **given: Any) -> Callable[[], Any]:
    defaults: dict[str, Any] = {"clip_norm": 0.5, "epsilon": 2.0, "delta": 1e-5, "max_rounds": 4}
    return lambda: kind(**{**defaults, **given})


@dataclass(frozen=True, kw_only=True)
class NoNoise(LocalDp):
    """Forgets the noise."""

    @property
    def noise_std(self) -> float:
        return 1e-12


@dataclass(frozen=True, kw_only=True)
class ChosenSensitivity(LocalDp):
    """D11: noise for a sensitivity that the clip norm does not have, here a tenth of 2C."""

    @property
    def noise_std(self) -> float:
        return super().noise_std / 10.0


@dataclass(frozen=True, kw_only=True)
class OneRoundOnly(LocalDp):
    """D11: every reply spends all of ε, and replies are not composed."""

    @property
    def noise_std(self) -> float:
        mechanism = local_release(epsilon=self.epsilon, delta=self.delta, max_rounds=1).mechanism
        assert isinstance(mechanism, Gaussian)
        return mechanism.noise_multiplier * self.clip_norm


def test_the_leak_of_sound_replies_is_seen() -> None:
    """A lower bound of 0 would never be a violation, and mean nothing."""
    finding = audit_layer(layer(epsilon=6.0), num_clients=300, num_rounds=4)
    assert finding.accounted == pytest.approx(6.0, rel=2e-3)
    assert finding.lower_bound > 0.1
    assert "unit client, adjacency replace" in str(finding)
    assert "4 releases" in finding.account


def test_sound_replies_pass_where_a_violation_could_be_shown() -> None:
    sure = 1.0 - 1e-6  # 95 % would fail sound noise once in some hundred runs
    finding = audit_layer(layer(max_rounds=1), num_clients=300, confidence=sure)
    assert finding.accounted == pytest.approx(2.0, rel=2e-3)
    assert finding.most > finding.accounted
    assert not finding.violated


@pytest.mark.parametrize("broken", [NoNoise, ChosenSensitivity])
def test_too_little_noise_is_caught(broken: type[LocalDp]) -> None:
    finding = audit_layer(layer(broken), num_clients=300)
    assert finding.violated
    assert "VIOLATION" in str(finding)


def test_d11_replies_that_are_not_composed_are_caught() -> None:
    """Each reply costs the 2 that 100 of them may: four cost 4.3, and 0.35 is accounted."""
    finding = audit_layer(layer(OneRoundOnly, max_rounds=100), num_clients=400, num_rounds=4)
    assert finding.accounted is not None
    assert finding.accounted < 0.5
    assert finding.violated


def test_noise_from_a_seed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client has the same noise, which the adversary knows."""
    monkeypatch.setattr(local_dp, "NoiseSource", lambda: NoiseSource(insecure_seed=4))
    assert audit_layer(layer(), num_clients=300).violated


def test_noise_that_all_clients_share_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed in each round, which nobody knows: two clients' replies differ by what they have sent."""
    rounds = iter(range(10**6))
    seeds: dict[int, int] = {}

    def shared() -> NoiseSource:
        number = next(rounds) // 300
        return NoiseSource(insecure_seed=seeds.setdefault(number, 1000 + number))

    monkeypatch.setattr(local_dp, "NoiseSource", shared)
    assert audit_layer(layer(), num_clients=300).violated


def test_what_promises_nothing_of_replies_is_refused() -> None:
    with pytest.raises(ContractError, match="object does not say what a reply tells"):
        audit_layer(object, num_clients=3)

    class ZeroOut(LocalDp):
        @property
        def release(self) -> Release:  # type: ignore[override]
            relation = NeighborRelation.of(unit="client", adjacency="zero_out")
            return Release(mechanism=Gaussian(noise_multiplier=1.0), sampling=Everyone(), relation=relation)

    with pytest.raises(ContractError, match="account for adjacency replace"):
        audit_layer(layer(ZeroOut), num_clients=3)
    with pytest.raises(ConfigError, match=r"a reply of round 2 did not come.*max_rounds=1"):
        audit_layer(layer(max_rounds=1), num_clients=3, num_rounds=2)
