"""A server that lies, against an honest client: every attack ends in a named refusal, and the client forgets.

Each test plays the attack to the end: if the client answered, the attack would have succeeded and the test
fails. Lies about keys are in ``test_advert_attacks``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fl_plugins.errors import (
    MessageFormatError,
    PacketError,
    PolicyViolationError,
    SecureAggregationError,
    SignatureError,
    StageError,
    SurvivorError,
)
from fl_plugins.secagg import ClientSession, Stage, Tier
from fl_plugins.secagg.codec import Writer
from fl_plugins.secagg.messages import Advert, MaskRequest, UnmaskReply, UnmaskRequest, confirmed_part
from fl_plugins.secagg.shares import open_packet, seal

from .federation import Federation, parameters, until
from .lies import NODES, VICTIM, assert_refused, mask_request, of_seven, share_request


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK])
def test_no_stage_is_answered_twice(stage: Stage) -> None:
    federation = until(of_seven(), stage)
    request = federation.server.requests()[VICTIM]
    session = federation.restore(VICTIM)
    session.answer(stage, request)
    with pytest.raises(StageError, match="answered once and in order"):
        session.answer(stage, request)
    assert session.stage is Stage.CLOSED


@pytest.mark.parametrize("asked", list(Stage))
def test_no_stage_is_skipped(asked: Stage) -> None:
    federation = until(of_seven(), Stage.SHARE)
    if asked is not Stage.SHARE:
        assert_refused(federation, asked, b"", StageError, "share is what it answers next")


def test_shares_of_another_round_do_not_open() -> None:
    earlier, later = until(of_seven(), Stage.MASK), until(of_seven(attempt=1), Stage.MASK)
    old = dict(mask_request(earlier).packets)
    request = mask_request(later)
    packets = [(node, old[node] if node == 1 else packet) for node, packet in request.packets]
    error = assert_refused(
        later, Stage.MASK, replace(request, packets=packets).to_bytes(), PacketError, "node 1 for node 3"
    )
    assert error.suspects == (1,)


def packets_of(
    change: Callable[[dict[int, bytes]], list[tuple[int, bytes]]],
) -> Callable[[MaskRequest], Any]:
    return lambda request: replace(request, packets=change(dict(request.packets)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (packets_of(lambda p: [*{**p, 1: p[2], 2: p[1]}.items()]), "do not open"),
        (packets_of(lambda p: [*{**p, 1: bytes(82)}.items()]), "do not open"),
        (packets_of(lambda p: [*p.items(), (1, p[1])]), "one of each"),
        (packets_of(lambda p: [*p.items(), (VICTIM, p[1])]), "one of each"),
        (packets_of(lambda p: [item for item in p.items() if item[0] != 1]), "one of each"),
    ],
)
def test_swapped_forged_doubled_or_missing_packets_are_refused(
    change: Callable[[MaskRequest], MaskRequest], match: str
) -> None:
    federation = until(of_seven(), Stage.MASK)
    assert_refused(federation, Stage.MASK, change(mask_request(federation)).to_bytes(), PacketError, match)


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ((1, 2, 3, 4), "has 4 nodes, but 5 are needed"),
        ((1, 2, 4, 5, 6, 7), "must contain node 3"),
        ((1, 2, 3, 4, 5, 6, 8), "of those that came this far"),
        ((1, 1, 2, 3, 4, 5, 6), "distinct nodes"),
        ((), "must contain node 3"),
    ],
)
@pytest.mark.parametrize("stage", [Stage.MASK, Stage.CONFIRM])
def test_a_list_of_nodes_that_cannot_be_is_refused(stage: Stage, nodes: tuple[int, ...], match: str) -> None:
    federation = until(of_seven(), stage)
    if stage is Stage.MASK:
        packets = [item for item in mask_request(federation).packets if item[0] in nodes]
        request = MaskRequest(nodes=nodes, packets=packets).to_bytes()
    else:
        request = Writer().ids(nodes).done()
    assert_refused(federation, stage, request, SurvivorError, match)


def unmask_request(federation: Federation) -> UnmaskRequest:
    return UnmaskRequest.from_bytes(federation.server.requests()[VICTIM])


def test_other_survivors_than_the_confirmed_are_refused() -> None:
    federation = until(of_seven(), Stage.UNMASK)
    request = replace(unmask_request(federation), survivors=(1, 2, 3, 4, 5, 6)).to_bytes()
    assert_refused(
        federation, Stage.UNMASK, request, SurvivorError, "not the survivors that this node confirmed"
    )


def test_inconsistent_survivor_sets_are_never_both_confirmed() -> None:
    """Two groups are told different survivors; each signs what it saw, and no set gets t signatures."""
    federation = until(of_seven(), Stage.CONFIRM)
    everyone, without_seven = NODES, NODES[:-1]
    signatures: dict[tuple[int, ...], list[tuple[int, bytes]]] = {everyone: [], without_seven: []}
    for node in NODES:
        told = everyone if node in (1, 2, VICTIM, 7) else without_seven
        reply = federation.answer(node, Stage.CONFIRM, Writer().ids(told).done())
        signatures[told].append((node, reply.body))
    request = UnmaskRequest(survivors=everyone, signatures=signatures[everyone]).to_bytes()
    assert_refused(federation, Stage.UNMASK, request, SignatureError, "4 confirmations, but 5 are needed")
    mixed = sorted(signatures[everyone] + signatures[without_seven])
    until_again = until(of_seven(), Stage.UNMASK)
    forged = UnmaskRequest(survivors=NODES, signatures=mixed).to_bytes()
    assert_refused(until_again, Stage.UNMASK, forged, SignatureError, "did not sign this set")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s[:4], "4 confirmations, but 5 are needed"),
        (lambda s: [s[0]] * 5, "two of one node"),
        (lambda s: [*s[:4], (5, s[0][1])], "node 5 did not sign"),
        (lambda s: [*s[:4], (5, bytes(64))], "node 5 did not sign"),
        (lambda s: [*s[:4], (99, s[4][1])], "do not survive"),
        (lambda s: [], "0 confirmations"),
    ],
)
def test_forged_doubled_or_missing_confirmations_are_refused(
    change: Callable[[Any], Any], match: str
) -> None:
    federation = until(of_seven(), Stage.UNMASK)
    request = unmask_request(federation)
    request = replace(request, signatures=change(list(request.signatures)))
    assert_refused(federation, Stage.UNMASK, request.to_bytes(), SignatureError, match)


def test_a_confirmation_of_another_transcript_is_no_confirmation() -> None:
    federation = until(of_seven(), Stage.UNMASK)
    request = unmask_request(federation)
    other = confirmed_part(bytes(32), NODES, NODES)
    signatures = [(node, federation.identities[node].sign(other)) for node in NODES]
    assert_refused(
        federation,
        Stage.UNMASK,
        replace(request, signatures=signatures).to_bytes(),
        SignatureError,
        "did not sign",
    )


@pytest.mark.parametrize("tier", Tier)
def test_of_no_node_both_secrets_are_given(tier: Tier) -> None:
    federation = until(of_seven(tier), Stage.MASK)
    federation.play_stage({6, 7})
    until(federation, Stage.UNMASK)
    session = federation.restore(VICTIM)
    request = federation.server.requests()[VICTIM]
    reply = UnmaskReply.from_bytes(session.answer(Stage.UNMASK, request).body)
    assert set(reply.seed_shares) == {1, 2, 3, 4, 5}
    assert set(reply.key_shares) == {6, 7}
    # The same question with the lists exchanged, which would complete both secrets, has no answer any more.
    with pytest.raises(StageError):
        session.answer(Stage.UNMASK, UnmaskRequest(survivors=(3, 4, 5, 6, 7)).to_bytes())


def test_without_confirmations_survivors_are_still_checked() -> None:
    for survivors, match in (((1, 2, 3), "3 nodes, but 5"), ((1, 2, 4, 5, 6), "must contain node 3")):
        federation = until(of_seven(Tier.HONEST_BUT_CURIOUS), Stage.UNMASK)
        request = UnmaskRequest(survivors=survivors).to_bytes()
        assert_refused(federation, Stage.UNMASK, request, SurvivorError, match)


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK])
def test_bytes_that_are_no_message_are_refused(stage: Stage) -> None:
    federation = until(of_seven(), stage)
    good = federation.server.requests()[VICTIM]
    for bad in (b"", good[:-1], good + b"\x00", b"\xff" * len(good)):
        assert_refused(federation, stage, bad, SecureAggregationError, "secagg: ")


def test_too_few_neighbors_who_shared_secrets_are_refused_on_a_sparse_graph() -> None:
    federation = until(Federation(parameters(100), tuple(range(1, 101))), Stage.MASK)
    request = mask_request(federation)
    peers = [sender for sender, _ in request.packets]
    without = tuple(node for node in request.nodes if node not in peers[4:])  # four are left, five are needed
    few = MaskRequest(nodes=without, packets=request.packets[:4]).to_bytes()
    assert_refused(federation, Stage.MASK, few, SurvivorError, "4 neighbors shared secrets, but 5 are needed")


def test_a_packet_opens_only_for_its_receiver_its_direction_and_its_transcript() -> None:
    key, pair, transcript = bytes(range(32)), (b"a" * 33, b"b" * 33), bytes(32)
    packet = seal(key, pair, sender=4, receiver=9, transcript=transcript)
    assert open_packet(key, packet, sender=4, receiver=9, transcript=transcript) == pair
    for sender, receiver, other in (
        (9, 4, transcript),
        (3, 9, transcript),
        (4, 8, transcript),
        (4, 9, b"x" * 32),
    ):
        with pytest.raises(PacketError, match=f"node {sender} for node {receiver} do not open"):
            open_packet(key, packet, sender=sender, receiver=receiver, transcript=other)


def test_a_malicious_tier_session_restored_without_its_identity_confirms_nothing() -> None:
    federation = until(of_seven(), Stage.CONFIRM)
    session = ClientSession.from_bytes(federation.saved[VICTIM], policy=federation.policy)
    with pytest.raises(PolicyViolationError, match="without its identity"):
        session.answer(Stage.CONFIRM, federation.server.requests()[VICTIM])


def test_an_advert_has_one_encoding_and_a_reply_one_share_of_an_owner() -> None:
    federation = until(of_seven(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)
    advert = share_request(federation).adverts[0]
    assert advert[-1] == 0
    with pytest.raises(MessageFormatError, match="0 or 1 is meant"):
        Advert.from_bytes(advert[:-1] + b"\2")
    share = (1).to_bytes(8, "big") + bytes(33)
    twice = (2).to_bytes(4, "big") + 2 * share
    none = bytes(4)
    for body in (Writer().sized(twice).sized(none).done(), Writer().sized(none).sized(twice).done()):
        with pytest.raises(MessageFormatError, match="two shares of one owner"):
            UnmaskReply.from_bytes(body)


def test_a_session_that_is_closed_leaves_no_update_in_its_memory() -> None:
    session = until(of_seven(), Stage.SHARE).restore(VICTIM)
    vector = session._memory.vector
    assert vector is not None
    assert vector.any()
    session.close()
    assert not vector.any()
