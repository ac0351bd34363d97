"""Federations in which clients add noise, whose noise comes from fixed seeds."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from fl_plugins import distributed_privacy
from fl_plugins.privacy import NoiseSource
from strategies import DistributedDp, FedAvg

Events = list[dict[str, Any]]

N = 6
GIVEN: dict[str, Any] = {
    "unit": "client",
    "adjacency": "zero_out",
    "population": N,
    "min_clients": 5,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "noise_multiplier": 1.0,
    "stage_timeout_s": 60.0,
}
"""One of six may collude (5 %, rounded up), so four shares of the noise are counted on."""


def private(inner: Any = None, **options: Any) -> DistributedDp:
    given = {**GIVEN, **options}
    return DistributedDp(inner or FedAvg(weighting="uniform", quorum=0.4, max_attempts=2), **given)


def of(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


def ledger_lines(path: Path, kind: str) -> Events:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["line"] == kind]


def fix_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every client's noise from the next of a fixed list of seeds."""
    seeds = itertools.count(100)
    monkeypatch.setattr(distributed_privacy, "NoiseSource", lambda: NoiseSource(insecure_seed=next(seeds)))
