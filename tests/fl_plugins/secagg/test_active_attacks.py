"""A server that lies, against an honest client: every attack ends in a named refusal, and the client forgets.

Each test plays the attack to the end: if the client answered, the attack would have succeeded and the test
fails.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fl_plugins.errors import (
    AdvertError,
    MessageFormatError,
    PacketError,
    PolicyViolationError,
    SecureAggregationError,
    SignatureError,
    StageError,
    SurvivorError,
)
from fl_plugins.secagg import ClientSession, Identity, Stage, Tier, Topology
from fl_plugins.secagg.codec import Writer
from fl_plugins.secagg.keys import public_key
from fl_plugins.secagg.messages import (
    Advert,
    MaskRequest,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
    confirmed_part,
)
from fl_plugins.secagg.shares import open_packet, seal

from .federation import MODEL, Federation, parameters, until

NODES = (1, 2, 3, 4, 5, 6, 7)
VICTIM = 3


def _federation(tier: Tier = Tier.MALICIOUS, **changes: Any) -> Federation:
    return Federation(parameters(len(NODES), tier=tier, **changes), NODES)


def _refused(
    federation: Federation, stage: Stage, request: bytes, error: type[SecureAggregationError], match: str
) -> SecureAggregationError:
    """Send the victim a request; it must refuse, and have forgotten everything."""
    session = federation.restore(VICTIM)
    with pytest.raises(error, match=match) as caught:
        session.answer(stage, request)
    assert session.stage is Stage.CLOSED
    assert session._memory == type(session._memory)()
    with pytest.raises(StageError):
        session.answer(stage, request)
    with pytest.raises(StageError):
        session.to_bytes()
    return caught.value


def _share_request(federation: Federation) -> ShareRequest:
    return ShareRequest.from_bytes(federation.server.requests()[VICTIM])


def _with_adverts(request: ShareRequest, change: Callable[[list[Advert]], list[Advert]]) -> bytes:
    adverts = change([Advert.from_bytes(item) for item in request.adverts])
    return replace(request, adverts=tuple(advert.to_bytes() for advert in adverts)).to_bytes()


def _swap_keys(adverts: list[Advert]) -> list[Advert]:
    """Give nodes 1 and 2 each other's keys: a machine in the middle of the two."""
    first, second, *rest = adverts
    return [
        replace(first, packet_key=second.packet_key, mask_key=second.mask_key),
        replace(second, packet_key=first.packet_key, mask_key=first.mask_key),
        *rest,
    ]


def _put_in(node: int, **changes: Any) -> Callable[[list[Advert]], list[Advert]]:
    return lambda adverts: [replace(a, **changes) if a.node == node else a for a in adverts]


SERVERS_KEY = public_key(bytes(range(32)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (_swap_keys, SignatureError, "advert of node 1 is not signed"),
        (_put_in(5, mask_key=SERVERS_KEY), SignatureError, "advert of node 5 is not signed"),
        (_put_in(5, commitment=bytes(32)), SignatureError, "advert of node 5 is not signed"),
        (_put_in(5, signature=bytes(64)), SignatureError, "advert of node 5 is not signed"),
        (_put_in(VICTIM, mask_key=SERVERS_KEY), AdvertError, "own advert is not in the list"),
        (_put_in(VICTIM, commitment=bytes(32)), AdvertError, "own advert is not in the list"),
        (lambda adverts: [a for a in adverts if a.node != VICTIM], PolicyViolationError, "degree 6"),
        (lambda adverts: [*adverts[:-1], replace(adverts[-1], node=6)], AdvertError, "distinct nodes"),
        (lambda adverts: adverts[::-1], AdvertError, "distinct nodes"),
        (lambda adverts: [*adverts, adverts[-1]], PolicyViolationError, "ring is sized for 7"),
        (
            lambda adverts: [replace(a, identity=b"", signature=b"") for a in adverts],
            AdvertError,
            "own advert",
        ),
        (
            lambda adverts: [adverts[0], replace(adverts[1], mask_key=adverts[0].mask_key), *adverts[2:]],
            AdvertError,
            "advertised twice",
        ),
    ],
)
def test_swapped_forged_or_missing_adverts_are_refused(
    change: Callable[[list[Advert]], list[Advert]], error: type[SecureAggregationError], match: str
) -> None:
    federation = until(_federation(), Stage.SHARE)
    _refused(federation, Stage.SHARE, _with_adverts(_share_request(federation), change), error, match)


def test_keys_replayed_from_another_attempt_are_refused() -> None:
    earlier = until(_federation(), Stage.SHARE)
    later = Federation(
        parameters(7, tier=Tier.MALICIOUS, attempt=1),
        NODES,
        policy=earlier.policy,
        identities=earlier.identities,
    )
    until(later, Stage.SHARE)
    old = Advert.from_bytes(_share_request(earlier).adverts[0])
    request = _with_adverts(_share_request(later), lambda adverts: [old, *adverts[1:]])
    error = _refused(later, Stage.SHARE, request, SignatureError, "advert of node 1 is not signed")
    assert error.suspects == (1,)


def test_a_node_outside_the_roster_is_refused_even_with_a_good_signature() -> None:
    federation = until(_federation(), Stage.SHARE)
    sybil = Identity.generate()

    def change(adverts: list[Advert]) -> list[Advert]:
        fake = replace(adverts[0], packet_key=SERVERS_KEY, identity=sybil.public)
        signature = sybil.sign(fake.signed_part(federation.parameters.context))
        return [replace(fake, signature=signature), *adverts[1:]]

    request = _with_adverts(_share_request(federation), change)
    _refused(federation, Stage.SHARE, request, SignatureError, "not in this node's roster")


def test_one_identity_for_two_nodes_is_refused() -> None:
    federation = until(_federation(), Stage.SHARE)
    colluder = federation.identities[1]

    def change(adverts: list[Advert]) -> list[Advert]:
        fake = replace(adverts[1], identity=colluder.public)
        signature = colluder.sign(fake.signed_part(federation.parameters.context))
        return [adverts[0], replace(fake, signature=signature), *adverts[2:]]

    request = _with_adverts(_share_request(federation), change)
    _refused(federation, Stage.SHARE, request, SignatureError, "nodes 1 and 2 have one identity")


def test_a_low_order_key_is_refused_without_signatures_too() -> None:
    federation = until(_federation(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)
    request = _with_adverts(_share_request(federation), _put_in(5, packet_key=bytes(32)))
    _refused(federation, Stage.SHARE, request, AdvertError, "node 5 advertised a public key of low order")


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("topology", [Topology(degree=6, threshold=2), Topology(degree=6, threshold=7)])
def test_another_threshold_is_refused(tier: Tier, topology: Topology) -> None:
    federation = until(_federation(tier), Stage.SHARE)
    request = replace(_share_request(federation), topology=topology).to_bytes()
    _refused(federation, Stage.SHARE, request, PolicyViolationError, "have degree 6 and threshold 5")


@pytest.mark.parametrize("degree", [0, 2, 5, 7])
def test_another_graph_is_refused(degree: int) -> None:
    federation = until(_federation(), Stage.SHARE)
    request = replace(_share_request(federation), topology=Topology(degree=degree, threshold=5)).to_bytes()
    _refused(federation, Stage.SHARE, request, PolicyViolationError, f"degree {degree} and threshold 5")


def test_too_few_adverts_are_refused() -> None:
    federation = until(_federation(), Stage.SHARE)
    request = _share_request(federation)
    few = ShareRequest(topology=Topology(degree=1, threshold=2), adverts=request.adverts[1:3]).to_bytes()
    _refused(federation, Stage.SHARE, few, PolicyViolationError, "a sum of 2 nodes, but 3 are needed")


def test_a_model_of_ones_own_gives_masks_that_cancel_with_nobodys() -> None:
    # The server tells the victim that everyone has the victim's model: its context differs from the others'.
    federation = _federation()
    for node, request in federation.server.requests().items():
        parameters_ = replace(federation.parameters, model=bytes(32)) if node == VICTIM else None
        session, reply = federation.begin(
            node,
            parameters_.to_bytes() if parameters_ else request,
            **({"model": bytes(32)} if parameters_ else {"model": MODEL}),
        )
        federation.saved[node] = session.to_bytes()
        federation.server.receive(node, reply.body)
    federation.server.advance()
    request = federation.server.requests()[VICTIM]
    _refused(
        federation, Stage.SHARE, request, SignatureError, "node 1 is not signed by its identity for this"
    )


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK])
def test_no_stage_is_answered_twice(stage: Stage) -> None:
    federation = until(_federation(), stage)
    request = federation.server.requests()[VICTIM]
    session = federation.restore(VICTIM)
    session.answer(stage, request)
    with pytest.raises(StageError, match="answered once and in order"):
        session.answer(stage, request)
    assert session.stage is Stage.CLOSED


@pytest.mark.parametrize("asked", list(Stage))
def test_no_stage_is_skipped(asked: Stage) -> None:
    federation = until(_federation(), Stage.SHARE)
    if asked is not Stage.SHARE:
        _refused(federation, asked, b"", StageError, "share is what it answers next")


def _mask_request(federation: Federation) -> MaskRequest:
    return MaskRequest.from_bytes(federation.server.requests()[VICTIM])


def test_shares_of_another_round_do_not_open() -> None:
    earlier, later = until(_federation(), Stage.MASK), until(_federation(attempt=1), Stage.MASK)
    old = dict(_mask_request(earlier).packets)
    request = _mask_request(later)
    packets = [(node, old[node] if node == 1 else packet) for node, packet in request.packets]
    error = _refused(
        later, Stage.MASK, replace(request, packets=packets).to_bytes(), PacketError, "node 1 for node 3"
    )
    assert error.suspects == (1,)


def _packets_of(
    change: Callable[[dict[int, bytes]], list[tuple[int, bytes]]],
) -> Callable[[MaskRequest], Any]:
    return lambda request: replace(request, packets=change(dict(request.packets)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_packets_of(lambda p: [*{**p, 1: p[2], 2: p[1]}.items()]), "do not open"),
        (_packets_of(lambda p: [*{**p, 1: bytes(82)}.items()]), "do not open"),
        (_packets_of(lambda p: [*p.items(), (1, p[1])]), "one of each"),
        (_packets_of(lambda p: [*p.items(), (VICTIM, p[1])]), "one of each"),
        (_packets_of(lambda p: [item for item in p.items() if item[0] != 1]), "one of each"),
    ],
)
def test_swapped_forged_doubled_or_missing_packets_are_refused(
    change: Callable[[MaskRequest], MaskRequest], match: str
) -> None:
    federation = until(_federation(), Stage.MASK)
    _refused(federation, Stage.MASK, change(_mask_request(federation)).to_bytes(), PacketError, match)


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
    federation = until(_federation(), stage)
    if stage is Stage.MASK:
        packets = [item for item in _mask_request(federation).packets if item[0] in nodes]
        request = MaskRequest(nodes=nodes, packets=packets).to_bytes()
    else:
        request = Writer().ids(nodes).done()
    _refused(federation, stage, request, SurvivorError, match)


def _unmask(federation: Federation) -> UnmaskRequest:
    return UnmaskRequest.from_bytes(federation.server.requests()[VICTIM])


def test_other_survivors_than_the_confirmed_are_refused() -> None:
    federation = until(_federation(), Stage.UNMASK)
    request = replace(_unmask(federation), survivors=(1, 2, 3, 4, 5, 6)).to_bytes()
    _refused(federation, Stage.UNMASK, request, SurvivorError, "not the survivors that this node confirmed")


def test_inconsistent_survivor_sets_are_never_both_confirmed() -> None:
    """Two groups are told different survivors; each signs what it saw, and no set gets t signatures."""
    federation = until(_federation(), Stage.CONFIRM)
    everyone, without_seven = NODES, NODES[:-1]
    signatures: dict[tuple[int, ...], list[tuple[int, bytes]]] = {everyone: [], without_seven: []}
    for node in NODES:
        told = everyone if node in (1, 2, VICTIM, 7) else without_seven
        reply = federation.answer(node, Stage.CONFIRM, Writer().ids(told).done())
        signatures[told].append((node, reply.body))
    request = UnmaskRequest(survivors=everyone, signatures=signatures[everyone]).to_bytes()
    _refused(federation, Stage.UNMASK, request, SignatureError, "4 confirmations, but 5 are needed")
    mixed = sorted(signatures[everyone] + signatures[without_seven])
    until_again = until(_federation(), Stage.UNMASK)
    forged = UnmaskRequest(survivors=NODES, signatures=mixed).to_bytes()
    _refused(until_again, Stage.UNMASK, forged, SignatureError, "did not sign this set")


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
    federation = until(_federation(), Stage.UNMASK)
    request = _unmask(federation)
    request = replace(request, signatures=change(list(request.signatures)))
    _refused(federation, Stage.UNMASK, request.to_bytes(), SignatureError, match)


def test_a_confirmation_of_another_transcript_is_no_confirmation() -> None:
    federation = until(_federation(), Stage.UNMASK)
    request = _unmask(federation)
    other = confirmed_part(bytes(32), NODES, NODES)
    signatures = [(node, federation.identities[node].sign(other)) for node in NODES]
    _refused(
        federation,
        Stage.UNMASK,
        replace(request, signatures=signatures).to_bytes(),
        SignatureError,
        "did not sign",
    )


@pytest.mark.parametrize("tier", Tier)
def test_of_no_node_both_secrets_are_given(tier: Tier) -> None:
    federation = until(_federation(tier), Stage.MASK)
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
        federation = until(_federation(Tier.HONEST_BUT_CURIOUS), Stage.UNMASK)
        request = UnmaskRequest(survivors=survivors).to_bytes()
        _refused(federation, Stage.UNMASK, request, SurvivorError, match)


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK])
def test_bytes_that_are_no_message_are_refused(stage: Stage) -> None:
    federation = until(_federation(), stage)
    good = federation.server.requests()[VICTIM]
    for bad in (b"", good[:-1], good + b"\x00", b"\xff" * len(good)):
        _refused(federation, stage, bad, SecureAggregationError, "secagg: ")


def test_a_sybil_majority_needs_its_places_in_the_roster() -> None:
    """Flower's secagg: 98 of 100 nodes are the server's own. Here every one of them must be listed."""
    federation = _federation()
    roster = frozenset(federation.identities[node].public for node in (1, 2, VICTIM))
    federation.policy = replace(federation.policy, roster=roster)
    for node, request in federation.server.requests().items():
        if node in (1, 2, VICTIM):
            federation.answer(node, Stage.ADVERTISE, request)
    honest = federation.saved
    others = Federation(federation.parameters, NODES, identities=federation.identities)
    others.policy = replace(others.policy, roster=frozenset(i.public for i in others.identities.values()))
    until(others, Stage.SHARE)
    own = Advert.from_bytes(federation.restore(VICTIM)._memory.advert)
    request = _with_adverts(
        _share_request(others), lambda adverts: [own if a.node == VICTIM else a for a in adverts]
    )
    assert VICTIM in honest
    _refused(federation, Stage.SHARE, request, SignatureError, "not in this node's roster")


def test_an_advert_of_another_tier_is_refused() -> None:
    federation = until(_federation(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)
    request = _with_adverts(_share_request(federation), _put_in(5, identity=bytes(32), signature=bytes(64)))
    _refused(federation, Stage.SHARE, request, AdvertError, "advert of node 5 is of another tier")


def test_too_few_neighbors_who_shared_secrets_are_refused_on_a_sparse_graph() -> None:
    federation = until(Federation(parameters(100), tuple(range(1, 101))), Stage.MASK)
    request = _mask_request(federation)
    peers = [sender for sender, _ in request.packets]
    without = tuple(node for node in request.nodes if node not in peers[4:])  # four are left, five are needed
    few = MaskRequest(nodes=without, packets=request.packets[:4]).to_bytes()
    _refused(federation, Stage.MASK, few, SurvivorError, "4 neighbors shared secrets, but 5 are needed")


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
    federation = until(_federation(), Stage.CONFIRM)
    session = ClientSession.from_bytes(federation.saved[VICTIM], policy=federation.policy)
    with pytest.raises(PolicyViolationError, match="without its identity"):
        session.answer(Stage.CONFIRM, federation.server.requests()[VICTIM])


@pytest.mark.parametrize("spelling", [lambda key: key[:-1] + bytes([key[-1] | 0x80])])
def test_a_key_in_another_spelling_is_the_same_key(spelling: Callable[[bytes], bytes]) -> None:
    """X25519 ignores the highest bit: whoever sets it in another node's key has not made a key."""
    federation = until(_federation(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)

    def copy(adverts: list[Advert]) -> list[Advert]:
        return [adverts[0], replace(adverts[1], mask_key=spelling(adverts[0].mask_key)), *adverts[2:]]

    request = _with_adverts(_share_request(federation), copy)
    error = _refused(federation, Stage.SHARE, request, AdvertError, "advertised twice")
    assert error.suspects == (1, 2)


def test_an_advert_has_one_encoding_and_a_reply_one_share_of_an_owner() -> None:
    federation = until(_federation(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)
    advert = _share_request(federation).adverts[0]
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
    session = until(_federation(), Stage.SHARE).restore(VICTIM)
    vector = session._memory.vector
    assert vector is not None
    assert vector.any()
    session.close()
    assert not vector.any()
