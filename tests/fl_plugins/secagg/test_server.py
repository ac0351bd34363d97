"""The server takes nothing malformed, late or of a stranger, finds wrong shares, and never sums a lie."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_plugins.errors import (
    AdvertError,
    MessageFormatError,
    RoundAbortedError,
    SecureAggregationError,
    SignatureError,
    StageError,
)
from fl_plugins.secagg import FixedPoint, Reply, ServerSession, Stage, Tier
from fl_plugins.secagg.messages import Advert, UnmaskReply, pack_by_node
from fl_plugins.secagg.shares import PACKET_BYTES

from .federation import Federation, parameters, until

NODES = (1, 2, 3, 4, 5, 6, 7)


def _federation(tier: Tier = Tier.HONEST_BUT_CURIOUS, **changes: Any) -> Federation:
    return Federation(parameters(len(NODES), tier=tier, **changes), NODES)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, "<u4"),
        np.zeros((5, 1), "<u4"),
        np.zeros(1, "<u4"),
        np.zeros(5, "<u2"),
        np.zeros(5, "<i8"),
        np.zeros(5, "<f4"),
    ],
)
def test_a_masked_vector_of_another_shape_or_dtype_counts_as_dropped(vector: Any) -> None:
    federation = until(_federation(), Stage.MASK)
    for node, body in federation.server.requests().items():
        reply = federation.answer(node, Stage.MASK, body)
        if node == 4:
            with pytest.raises(MessageFormatError, match="node 4's masked vector"):
                federation.server.receive(node, b"", vector)
        else:
            federation.server.receive(node, reply.body, reply.vector)
    federation.server.advance()
    assert "masked vector" in federation.server.refusals[4]
    del federation.saved[4]
    result = federation.run({Stage.UNMASK: {4}})
    assert result.dropped == (4,)
    np.testing.assert_array_equal(result.vector, federation.expected(set(NODES) - {4}))


def test_a_late_masked_vector_is_not_added() -> None:
    federation = until(_federation(), Stage.MASK)
    requests = federation.server.requests()
    federation.play_stage({4})
    late = federation.answer(4, Stage.MASK, requests[4])
    with pytest.raises(StageError, match="node 4 was not asked for stage unmask"):
        federation.server.receive(4, late.body, late.vector)
    result = federation.run({Stage.UNMASK: {4}})
    np.testing.assert_array_equal(result.vector, federation.expected(set(NODES) - {4}))


def test_second_answers_and_strangers_are_refused_and_change_nothing() -> None:
    federation = until(_federation(), Stage.MASK)
    for node, body in federation.server.requests().items():
        reply = federation.answer(node, Stage.MASK, body)
        federation.server.receive(node, reply.body, reply.vector)
        for who in (node, 99):
            with pytest.raises(StageError, match="was not asked"):
                federation.server.receive(who, reply.body, reply.vector)
    assert not set(federation.server.refusals) & set(NODES)
    federation.server.advance()
    np.testing.assert_array_equal(federation.run().vector, federation.expected(NODES))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"node": 5}, "node 4 advertised keys for node 5"),
        ({"identity": bytes(32), "signature": bytes(64)}, "of another tier"),
    ],
)
def test_an_advert_for_somebody_else_or_of_another_tier_is_refused(
    change: dict[str, Any], match: str
) -> None:
    federation = _federation()
    body = federation.answer(4, Stage.ADVERTISE, federation.server.requests()[4]).body
    with pytest.raises(AdvertError, match=match):
        federation.server.receive(4, replace(Advert.from_bytes(body), **change).to_bytes())


def test_a_copied_key_costs_only_the_copier() -> None:
    federation = _federation()
    requests = federation.server.requests()
    first = Advert.from_bytes(federation.answer(1, Stage.ADVERTISE, requests[1]).body)
    federation.server.receive(1, first.to_bytes())
    with pytest.raises(AdvertError, match="node 2 advertised a key that is in use"):
        federation.server.receive(2, replace(first, node=2).to_bytes())
    for node in NODES[2:]:
        federation.server.receive(node, federation.answer(node, Stage.ADVERTISE, requests[node]).body)
    federation.server.advance()
    result = federation.run({stage: {2} for stage in Stage})
    assert result.survivors == (1, 3, 4, 5, 6, 7)


def test_identities_outside_the_servers_roster_are_left_out_early() -> None:
    federation = _federation(Tier.MALICIOUS)
    known = frozenset(federation.identities[node].public for node in NODES[1:])
    server = ServerSession(federation.parameters, NODES, roster=known)
    reply = federation.answer(1, Stage.ADVERTISE, server.requests()[1])
    with pytest.raises(SignatureError, match="node 1"):
        server.receive(1, reply.body)


@pytest.mark.parametrize(
    "receivers", [(1, 2, 3, 5, 6), (1, 2, 3, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6), (1, 1, 2, 3, 5, 6)]
)
def test_packets_for_others_than_the_neighbors_are_refused(receivers: tuple[int, ...]) -> None:
    federation = until(_federation(), Stage.SHARE)
    body = pack_by_node(dict.fromkeys(receivers, bytes(PACKET_BYTES)), PACKET_BYTES)
    with pytest.raises(MessageFormatError, match="not for its neighbors"):
        federation.server.receive(4, body)


def test_a_forged_confirmation_is_refused() -> None:
    federation = until(_federation(Tier.MALICIOUS), Stage.CONFIRM)
    with pytest.raises(SignatureError, match="node 4 did not sign"):
        federation.server.receive(4, bytes(64))


def _spoil(liars: set[int], owners: set[int] | None = None) -> Any:
    """Return a change of unmask replies: the liars send noise for the owners' shares."""

    def change(node: int, reply: Reply) -> Reply:
        if node not in liars or reply.vector is not None or len(reply.body) < 80:
            return reply
        shares = UnmaskReply.from_bytes(reply.body)

        def wrong(table: Any) -> dict[int, bytes]:
            noise = np.random.default_rng(node)
            return {
                owner: bytes(1) + noise.bytes(32) if owners is None or owner in owners else share
                for owner, share in table.items()
            }

        spoiled = UnmaskReply(seed_shares=wrong(shares.seed_shares), key_shares=wrong(shares.key_shares))
        return Reply(body=spoiled.to_bytes())

    return change


@pytest.mark.parametrize("owners", [None, {1}, {7}])
@pytest.mark.parametrize("liars", [{1}, {2}, {1, 2}])
def test_wrong_shares_are_left_out_and_their_holders_named(liars: set[int], owners: set[int] | None) -> None:
    federation = Federation(parameters(10), tuple(range(1, 11)))
    federation.server.parameters.topology(10)
    until(federation, Stage.MASK)
    federation.play_stage({10} if owners is None else {7})
    federation.play_stage({10} if owners is None else {7}, tamper=_spoil(liars, owners))
    result = federation.server.result
    np.testing.assert_array_equal(result.vector, federation.expected(result.survivors))
    assert set(result.wrong_shares) == liars


def test_more_wrong_shares_than_surplus_abort_and_name_the_owner() -> None:
    federation = until(_federation(), Stage.UNMASK)
    with pytest.raises(RoundAbortedError, match="node 5's own-mask seed give what it advertised") as caught:
        federation.play_stage(tamper=_spoil({1, 2, 3}, {5}))
    assert caught.value.suspects == (5,)
    assert federation.server.stage is Stage.CLOSED
    with pytest.raises(StageError, match="no sum"):
        _ = federation.server.result


def test_an_owner_who_shared_nonsense_is_named() -> None:
    federation = _federation()
    requests = federation.server.requests()
    for node in NODES:
        session, reply = federation.begin(node, requests[node])
        if node == 5:
            session._memory.seed = bytes(32)  # not what it committed to
        federation.saved[node] = session.to_bytes()
        federation.server.receive(node, reply.body)
    federation.server.advance()
    with pytest.raises(RoundAbortedError, match="node 5's own-mask seed") as caught:
        federation.run()
    assert caught.value.suspects == (5,)


def test_shares_that_were_not_asked_for_are_refused() -> None:
    federation = until(_federation(), Stage.UNMASK)
    reply = UnmaskReply.from_bytes(federation.answer(4, Stage.UNMASK, federation.server.requests()[4]).body)
    fewer = dict(list(reply.seed_shares.items())[1:])
    for seeds, keys in (
        (fewer, {}),
        (reply.seed_shares, {1: bytes(33)}),
        ({**reply.seed_shares, 9: bytes(33)}, {}),
    ):
        with pytest.raises(MessageFormatError, match="not those that were asked for"):
            federation.server.receive(4, UnmaskReply(seed_shares=seeds, key_shares=keys).to_bytes())


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK])
def test_below_the_threshold_every_stage_aborts_with_the_numbers_and_reasons(stage: Stage) -> None:
    federation = until(_federation(Tier.MALICIOUS), stage)
    federation.server.refuse(1, "out of memory", suspects=[2])
    least = 3 if stage is Stage.ADVERTISE else 5
    match = (
        rf"{least - 1} of 7 nodes .*\(stage {stage}\), but {least} are needed\. Refusals: 1: out of memory"
    )
    with pytest.raises(RoundAbortedError, match=match) as caught:
        federation.play_stage(NODES[: 8 - least])
    assert caught.value.suspects == (2,)
    with pytest.raises(StageError, match="closed"):
        federation.server.advance()
    with pytest.raises(StageError, match="closed"):
        federation.server.requests()


def test_a_mask_that_does_not_cancel_is_noticed_in_the_decoded_sum() -> None:
    encoding = FixedPoint(num_bits=32, cohort=7, clip=1.0, max_weight=1.0, num_entries=3)
    vectors = {node: encoding.encode([np.full(3, 0.5)]).words for node in NODES}
    for spoiled in (False, True):
        federation = Federation(parameters(7, length=encoding.length), NODES, vectors=vectors)

        def change(node: int, reply: Reply, spoiled: bool = spoiled) -> Reply:
            return replace(reply, vector=reply.vector + 1) if spoiled and node == 3 else reply  # type: ignore[operator]

        until(federation, Stage.MASK)
        federation.play_stage(tamper=change)
        result = federation.run()
        if spoiled:
            with pytest.raises(SecureAggregationError, match="check ones"):
                encoding.decode(result.vector, len(result.survivors))
        else:
            np.testing.assert_allclose(encoding.decode(result.vector, 7).update, 0.5, atol=1e-7)


def test_impossible_cohorts_are_refused() -> None:
    for nodes in ((), (0, 1, 2), (1, 1, 2), (1, 2, 2**64)):
        with pytest.raises(AdvertError, match="distinct ids"):
            ServerSession(parameters(7), nodes)
    with pytest.raises(AdvertError, match="cohort=3"):
        ServerSession(parameters(3), NODES)
