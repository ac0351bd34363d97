"""Canaries through dp_fedavg: what it accounts is not exceeded, and defects are caught.

Noise and coins are the operating system's, so every comparison is at least five standard deviations of the
bound away from its edge (simulated, with canaries and noise as here), or asks for bounds that err once in a
million runs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fl_plugins.auditing import Finding, audit_strategy
from fl_plugins.errors import ConfigError, ContractError
from fl_plugins.privacy import NoiseSource
from strategies import DpFedAvg, FedAvg
from strategies.clipped_sum import ClippedSum

SURE = 1.0 - 1e-6
"""Confidence where 95 % would fail sound noise, or the order of two bounds, once in some thousand runs."""


def make(kind: type[DpFedAvg] = DpFedAvg, **given: Any) -> Callable[[], DpFedAvg]:
    defaults: dict[str, Any] = {
        "unit": "client",
        "adjacency": "zero_out",
        "population": 300,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "noise_multiplier": 2.0,
    }
    return lambda: kind(FedAvg(weighting="uniform"), **{**defaults, **given})


class NoNoise(DpFedAvg):
    """Forgets the noise."""

    def make_public(self, *args: Any) -> Any:
        self.mean = replace(self.mean, update_noise=1e-9)
        return super().make_public(*args)


class KnownSeed(DpFedAvg):
    """Draws its noise from the round's number, and claims that nobody knows it."""

    def noise_source(self, purpose: str, number: int, attempt: int = 1) -> NoiseSource:
        return NoiseSource(insecure_seed=1000 * attempt + number)


class ShrinkingNoise(DpFedAvg):
    """D4: scales the noise to the replies that came, as a mean over these with noise z·C/(cohort) does."""

    def make_public(self, layout: Any, base: Any, total: ClippedSum, source: NoiseSource) -> Any:
        answered = len(total.weights) / self.population
        self.mean = replace(self.mean, update_noise=self.noise_multiplier * max(answered, 1e-9))
        return super().make_public(layout, base, total, source)


def test_sound_noise_passes_and_its_leak_is_seen() -> None:
    """ε = 4.38 is accounted. A lower bound of 0 would pass too, and mean nothing."""
    finding = audit_strategy(make(noise_multiplier=1.0, population=600), dropouts=0.2)
    assert finding.accounted == pytest.approx(4.377, abs=1e-3)
    assert 0.25 < finding.lower_bound < 4.0
    assert not finding.violated
    assert finding.most > finding.accounted
    assert "verdict      consistent" in str(finding)


@pytest.mark.parametrize(
    "given",
    [
        {"adjacency": "add_remove"},
        {"adjacency": "replace"},
        {"adjacency": "add_remove", "sampling": "poisson(rate=0.3)", "noise_multiplier": 1.0},
        {"adjacency": "replace", "sampling": "fixed_size(size=90)", "noise_multiplier": 3.0},
    ],
)
def test_every_sampling_passes_over_several_rounds_under_its_adjacency(given: dict[str, Any]) -> None:
    finding = audit_strategy(make(**{"population": 120, **given}), num_rounds=3, dropouts=0.1)
    assert not finding.violated
    assert f"unit client, adjacency {given['adjacency']}" in str(finding)
    assert "3 releases" in finding.account


@pytest.mark.parametrize(
    ("broken", "given"),
    [
        (NoNoise, {}),
        (KnownSeed, {}),
        (KnownSeed, {"adjacency": "add_remove", "sampling": "poisson(rate=0.9)"}),
        (ShrinkingNoise, {"population": 1600, "dropouts": 0.85}),
        (ShrinkingNoise, {"population": 1600, "dropouts": 0.85, "adjacency": "replace"}),
    ],
)
def test_broken_noise_is_caught(broken: type[DpFedAvg], given: dict[str, Any]) -> None:
    dropouts = given.get("dropouts", 0.0)
    options = {key: value for key, value in given.items() if key != "dropouts"}
    finding = audit_strategy(make(broken, **options), dropouts=dropouts)
    assert finding.accounted is not None
    assert finding.accounted < 4.5
    assert finding.violated
    assert "VIOLATION" in str(finding)


def test_noise_that_follows_the_replies_shows_itself_only_if_some_are_missing() -> None:
    """Negative control of the one above: the same strategy, and everybody answers."""
    assert not audit_strategy(make(ShrinkingNoise), dropouts=0.0, confidence=SURE).violated


def test_the_insecure_seed_is_broken_as_its_report_says() -> None:
    finding = audit_strategy(make(insecure_seed=3), dropouts=0.0)
    assert finding.account.startswith("VOID")
    assert finding.violated


def test_several_rounds_show_more_than_one() -> None:
    """z = 1.2 in each of 9 rounds is one release with z = 0.4."""
    findings: list[Finding] = [
        audit_strategy(
            make(population=120, noise_multiplier=1.2), num_rounds=rounds, dropouts=0.0, confidence=SURE
        )
        for rounds in (9, 1)
    ]
    assert findings[0].lower_bound > findings[1].lower_bound
    assert not any(finding.violated for finding in findings)


def test_an_adaptive_clip_norm_and_a_server_optimizer_are_audited_too() -> None:
    from fl_plugins.optimizers import sgd

    def adaptive() -> DpFedAvg:
        inner = FedAvg(weighting="uniform", server_optimizer=sgd(learning_rate=0.5, momentum=0.9))
        return DpFedAvg(
            inner,
            unit="client",
            adjacency="zero_out",
            population=120,
            delta=1e-5,
            clip="adaptive(initial=0.1)",
            noise_multiplier=0.3,
        )

    finding = audit_strategy(adaptive, num_rounds=2, dropouts=0.0)
    assert 0.5 < finding.lower_bound < finding.accounted  # type: ignore[operator]


def test_few_canaries_give_no_verdict_where_they_cannot_show_a_violation() -> None:
    finding = audit_strategy(make(population=20, noise_multiplier=0.1), dropouts=0.0)
    assert finding.accounted is not None
    assert finding.most < finding.accounted
    assert "verdict      none" in str(finding)
    assert not finding.violated


def test_what_says_nothing_of_its_release_is_refused() -> None:
    with pytest.raises(ContractError, match="FedAvg does not say what it releases"):
        audit_strategy(FedAvg)
    with pytest.raises(ConfigError, match="dropouts"):
        audit_strategy(make(), dropouts=1.0)
    with pytest.raises(ConfigError, match="released no round"):
        audit_strategy(make(max_epsilon=0.1, population=5))
