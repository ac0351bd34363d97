"""The malicious tier in Flower messages: identities, rosters, confirmations, and what operators say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from fl_plugins.errors import QuorumError
from fl_plugins.secagg import Stage
from fl_plugins.secagg.codec import Reader, Writer
from fl_plugins.secagg.messages import Advert, UnmaskRequest
from fl_plugins.secure_identities import PRIVATE_KEY, make_identity, write_roster
from fl_plugins.secure_round import STAGES

from .federation import (
    WatchedGrid,
    distance,
    initial,
    plain_mean,
    run,
    secure,
    stage_of,
)
from .lies import VICTIM, adverts, assert_refused, attack, malicious, operators, with_body

# -- The malicious tier --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_the_malicious_tier_gives_the_same_result_and_bears_the_same_dropouts(
    tmp_path: Path, stage: Stage | None
) -> None:
    events: list[dict[str, Any]] = []
    grid = WatchedGrid(
        num_nodes=7, node_configs=operators(tmp_path, 7), silent_at={} if stage is None else {stage: [2]}
    )
    result = run(malicious(), grid, events=events)
    gone = {2} if stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK) else set()
    assert distance(result, plain_mean(set(range(1, 8)) - gone)) < 2e-6
    (event,) = [e for e in events if e["event"] == "secure_aggregation"]
    assert event["tier"] == "malicious"
    assert [s for node, s in grid.asked if node == 1] == list(STAGES)


def test_a_node_with_a_roster_takes_part_in_no_honest_but_curious_round(tmp_path: Path) -> None:
    grid = WatchedGrid(num_nodes=5, node_configs=operators(tmp_path, 5))
    with pytest.raises(QuorumError):
        run(secure(), grid)
    assert all("malicious-tier rounds only" in reply.error.reason for reply in grid.replies)


def test_a_node_without_a_roster_takes_part_in_no_malicious_round() -> None:
    with pytest.raises(QuorumError, match="no roster of its peers"):
        run(malicious(), WatchedGrid())


def test_a_sybil_that_is_not_in_the_roster_is_refused_by_all_or_left_out_by_the_server(
    tmp_path: Path,
) -> None:
    configs = operators(tmp_path, 5, num_nodes=6)
    other = tmp_path / "sybil.toml"
    keys = {"a": make_identity(tmp_path / "a"), "b": make_identity(tmp_path / "b")}
    write_roster(other, keys)
    configs[6]["secagg-roster"] = str(other)
    configs[6]["secagg-identity"] = str(tmp_path / "a" / PRIVATE_KEY)
    grid = WatchedGrid(num_nodes=6, node_configs=configs)
    with pytest.raises(QuorumError, match="not in this node's roster"):
        run(malicious(), grid)
    assert not any(reply.content.array_records for reply in grid.replies if reply.has_content())
    helped = run(
        malicious(roster=str(tmp_path / "roster.toml")), WatchedGrid(num_nodes=6, node_configs=configs)
    )
    assert distance(helped, plain_mean(range(1, 6))) < 2e-6


def test_survivors_that_differ_between_clients_are_unmasked_for_nobody(tmp_path: Path) -> None:
    def hide(body: bytes) -> bytes:
        reader = Reader(body, "")
        return Writer().ids([node for node in reader.ids() if node != 7]).done()

    def on_request(message: Message) -> Message:
        if stage_of(message) is Stage.CONFIRM and message.metadata.dst_node_id <= 3:
            return with_body(message, hide)
        return message

    grid = WatchedGrid(num_nodes=7, node_configs=operators(tmp_path, 7), on_request=on_request)
    with pytest.raises(QuorumError, match="confirmed the survivors"):
        run(malicious(), grid)
    assert Stage.UNMASK not in {stage for _, stage in grid.asked}


def test_forged_confirmations_and_swapped_keys_are_refused(tmp_path: Path) -> None:
    configs = operators(tmp_path, 5)

    def forged(body: bytes) -> bytes:
        request = UnmaskRequest.from_bytes(body)
        signatures = [(node, bytes(64)) for node, _ in request.signatures]
        return UnmaskRequest(survivors=request.survivors, signatures=signatures).to_bytes()

    grid, replies = attack(
        Stage.UNMASK, lambda m: with_body(m, forged), strategy=malicious(), node_configs=configs
    )
    assert_refused(grid, replies[Stage.UNMASK], "did not sign this set of survivors")

    def other_key(items: list[bytes]) -> list[bytes]:
        advert = Advert.from_bytes(items[-1])
        return [*items[:-1], Advert(**{**vars(advert), "mask_key": b"\x0a" + bytes(31)}).to_bytes()]

    grid, replies = attack(Stage.SHARE, adverts(other_key), strategy=malicious(), node_configs=configs)
    assert_refused(grid, replies[Stage.SHARE], "is not signed by its identity for this attempt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secagg-roster": "missing.toml"}, "cannot be read"),
        ({"secagg-identity": "missing.pem"}, "cannot be read"),
        ({"secagg-tier": "Malicious"}, "secagg-tier='Malicious'"),
        ({"secagg-tier": "malicious"}, "the roster is empty"),
        ({"secagg-min-clients": 1}, "secagg-min-clients=1"),
        ({"secagg-min-clients": "3"}, "secagg-min-clients='3'"),
    ],
)
def test_a_node_whose_own_config_is_broken_takes_part_in_nothing(changes: dict[str, Any], said: str) -> None:
    grid, replies = attack(Stage.ADVERTISE, lambda m: m, node_configs={VICTIM: changes})
    assert_refused(grid, replies[Stage.ADVERTISE], said)


def test_the_policy_file_of_a_node_counts_here_too(tmp_path: Path) -> None:
    configs = operators(tmp_path, 5)
    for node, config in configs.items():
        policy = tmp_path / f"policy-{node}.toml"
        policy.write_text(
            'roster = "roster.toml"\nmin_cohort = 3\nmax_rounds = 1\n[layers.secure_aggregation]\n'
            'tier = "malicious"\nmax_clip = 1.0\n'
        )
        del config["secagg-roster"]
        config["policy"] = str(policy)
    with pytest.raises(QuorumError, match="max_rounds=1"):
        run(malicious(), WatchedGrid(node_configs=configs), num_rounds=2)
    with pytest.raises(QuorumError, match=r"clip <= 1\.0, announced is 2\.0"):
        run(malicious(clip=2.0), WatchedGrid(node_configs=configs))


def test_the_models_arrays_may_come_in_any_order() -> None:
    arrays = initial()
    turned = ArrayRecord({key: arrays[key] for key in reversed(list(arrays))})
    from fl_plugins.records import to_named
    from fl_plugins.secure_round import model_digest

    assert model_digest(to_named(arrays)) == model_digest(to_named(turned))
    other = {**to_named(arrays), "params/b": np.full(7, 1e-300)}
    assert model_digest(other) != model_digest(to_named(arrays))
