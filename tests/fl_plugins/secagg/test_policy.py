"""Parameters that are impossible, that the node's policy forbids, or of a round gone by are refused."""

import json
from typing import Any

import pytest

from fl_plugins.errors import (
    MessageFormatError,
    PolicyViolationError,
    SecureAggregationError,
    StageError,
)
from fl_plugins.secagg import ClientPolicy, Identity, Progress, Stage, Tier

from .federation import Federation, parameters

NODES = (1, 2, 3, 4, 5, 6, 7)
VICTIM = 3


def _federation(tier: Tier = Tier.HONEST_BUT_CURIOUS, **changes: Any) -> Federation:
    return Federation(parameters(len(NODES), tier=tier, **changes), NODES)


def _begin_refused(
    error: type[SecureAggregationError], match: str, request: bytes | None = None, **options: Any
) -> None:
    federation = _federation(options.pop("tier", Tier.HONEST_BUT_CURIOUS), **options.pop("changes", {}))
    with pytest.raises(error, match=match):
        federation.begin(VICTIM, request or federation.parameters.to_bytes(), **options)


def _edited(**changes: Any) -> bytes:
    values = json.loads(parameters(len(NODES)).to_bytes())
    return json.dumps({**values, **changes}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_bits": 64}, "rings have 16 or 32 bits"),
        ({"num_bits": 2}, "rings have 16 or 32 bits"),
        ({"num_bits": 16.0}, "rings have 16 or 32 bits"),
        ({"cohort": 10**6, "num_bits": 16}, "levels per value"),
        ({"clip": 1e999}, "clip"),
        ({"clip": 0}, "clip"),
        ({"max_weight": -1}, "max_weight"),
        ({"min_clients": 1}, "min_clients"),
        ({"tier": "none"}, "none"),
        ({"mod_range": 2}, "names differ"),
        ({"sid": "00"}, "sid"),
        ({"round": -1}, "round"),
        ({"round": 2**64}, "below 2"),
        ({"length": True}, "length"),
    ],
)
def test_an_oversized_modulus_and_other_impossible_parameters_are_refused(
    changes: dict[str, Any], match: str
) -> None:
    _begin_refused(MessageFormatError, match, _edited(**changes))


def test_parameters_in_another_spelling_are_refused() -> None:
    _begin_refused(MessageFormatError, "one encoding", _edited() + b" ")
    _begin_refused(MessageFormatError, "no parameters", b"\xff\x00")


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ({"min_clients": 5}, "min_clients=3, but this node wants >= 5"),
        ({"corrupt": 0.2}, "corrupt=0.05, but this node reckons with 0.2"),
        ({"num_bits": frozenset({16})}, "a ring of 32 bits"),
        ({"max_length": 4}, "length=5"),
        (
            {"required_tier": Tier.MALICIOUS, "roster": frozenset({bytes(32)})},
            "malicious-tier rounds only",
        ),
    ],
)
def test_the_nodes_own_policy_decides(policy: dict[str, Any], match: str) -> None:
    _begin_refused(PolicyViolationError, match, policy=ClientPolicy(**policy))


def test_a_malicious_tier_round_needs_a_roster_and_a_listed_identity() -> None:
    _begin_refused(PolicyViolationError, "no roster", tier=Tier.MALICIOUS, policy=ClientPolicy())
    for identity in (None, Identity.generate()):
        _begin_refused(
            PolicyViolationError, "no identity that its roster lists", tier=Tier.MALICIOUS, identity=identity
        )


@pytest.mark.parametrize("other", [{"model": bytes(32)}, {"layout": bytes(32)}, {"run_id": 8}])
def test_another_model_layout_or_run_than_the_nodes_own_is_refused(other: dict[str, Any]) -> None:
    _begin_refused(PolicyViolationError, f"{next(iter(other))} is not this node's", **other)


@pytest.mark.parametrize(("round_", "attempt"), [(3, 0), (2, 9), (3, 1), (0, 0)])
def test_a_round_number_rolled_back_is_refused(round_: int, attempt: int) -> None:
    last = Progress.from_bytes(Progress(run_id=7, round=3, attempt=1).to_bytes())
    _begin_refused(
        StageError,
        "is not after round 3, attempt 1",
        changes={"round": round_, "attempt": attempt},
        previous=last,
    )


def test_a_later_attempt_or_another_run_is_begun() -> None:
    last = Progress(run_id=7, round=3, attempt=1)
    for changes in ({"attempt": 2}, {"round": 4}, {"run_id": 8, "round": 0}):
        federation = _federation(**changes)
        session, _ = federation.begin(VICTIM, federation.parameters.to_bytes(), previous=last)
        assert session.stage is Stage.SHARE
