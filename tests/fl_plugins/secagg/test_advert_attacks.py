"""A server that lies about who takes part and with what keys: each lie ends in a named refusal."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fl_plugins.errors import AdvertError, PolicyViolationError, SecureAggregationError, SignatureError
from fl_plugins.secagg import Identity, Stage, Tier, Topology
from fl_plugins.secagg.keys import public_key
from fl_plugins.secagg.messages import Advert, ShareRequest

from .federation import MODEL, Federation, parameters, until
from .lies import NODES, VICTIM, assert_refused, of_seven, put_in, share_request, with_adverts


def swap_keys(adverts: list[Advert]) -> list[Advert]:
    """Give nodes 1 and 2 each other's keys: a machine in the middle of the two."""
    first, second, *rest = adverts
    return [
        replace(first, packet_key=second.packet_key, mask_key=second.mask_key),
        replace(second, packet_key=first.packet_key, mask_key=first.mask_key),
        *rest,
    ]


SERVERS_KEY = public_key(bytes(range(32)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (swap_keys, SignatureError, "advert of node 1 is not signed"),
        (put_in(5, mask_key=SERVERS_KEY), SignatureError, "advert of node 5 is not signed"),
        (put_in(5, commitment=bytes(32)), SignatureError, "advert of node 5 is not signed"),
        (put_in(5, signature=bytes(64)), SignatureError, "advert of node 5 is not signed"),
        (put_in(VICTIM, mask_key=SERVERS_KEY), AdvertError, "own advert is not in the list"),
        (put_in(VICTIM, commitment=bytes(32)), AdvertError, "own advert is not in the list"),
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
    federation = until(of_seven(), Stage.SHARE)
    assert_refused(federation, Stage.SHARE, with_adverts(share_request(federation), change), error, match)


def test_keys_replayed_from_another_attempt_are_refused() -> None:
    earlier = until(of_seven(), Stage.SHARE)
    later = Federation(
        parameters(7, tier=Tier.MALICIOUS, attempt=1),
        NODES,
        policy=earlier.policy,
        identities=earlier.identities,
    )
    until(later, Stage.SHARE)
    old = Advert.from_bytes(share_request(earlier).adverts[0])
    request = with_adverts(share_request(later), lambda adverts: [old, *adverts[1:]])
    error = assert_refused(later, Stage.SHARE, request, SignatureError, "advert of node 1 is not signed")
    assert error.suspects == (1,)


def test_a_node_outside_the_roster_is_refused_even_with_a_good_signature() -> None:
    federation = until(of_seven(), Stage.SHARE)
    sybil = Identity.generate()

    def change(adverts: list[Advert]) -> list[Advert]:
        fake = replace(adverts[0], packet_key=SERVERS_KEY, identity=sybil.public)
        signature = sybil.sign(fake.signed_part(federation.parameters.context))
        return [replace(fake, signature=signature), *adverts[1:]]

    request = with_adverts(share_request(federation), change)
    assert_refused(federation, Stage.SHARE, request, SignatureError, "not in this node's roster")


def test_one_identity_for_two_nodes_is_refused() -> None:
    federation = until(of_seven(), Stage.SHARE)
    colluder = federation.identities[1]

    def change(adverts: list[Advert]) -> list[Advert]:
        fake = replace(adverts[1], identity=colluder.public)
        signature = colluder.sign(fake.signed_part(federation.parameters.context))
        return [adverts[0], replace(fake, signature=signature), *adverts[2:]]

    request = with_adverts(share_request(federation), change)
    assert_refused(federation, Stage.SHARE, request, SignatureError, "nodes 1 and 2 have one identity")


def test_a_low_order_key_is_refused_without_signatures_too() -> None:
    federation = until(of_seven(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)
    request = with_adverts(share_request(federation), put_in(5, packet_key=bytes(32)))
    assert_refused(
        federation, Stage.SHARE, request, AdvertError, "node 5 advertised a public key of low order"
    )


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("topology", [Topology(degree=6, threshold=2), Topology(degree=6, threshold=7)])
def test_another_threshold_is_refused(tier: Tier, topology: Topology) -> None:
    federation = until(of_seven(tier), Stage.SHARE)
    request = replace(share_request(federation), topology=topology).to_bytes()
    assert_refused(federation, Stage.SHARE, request, PolicyViolationError, "have degree 6 and threshold 5")


@pytest.mark.parametrize("degree", [0, 2, 5, 7])
def test_another_graph_is_refused(degree: int) -> None:
    federation = until(of_seven(), Stage.SHARE)
    request = replace(share_request(federation), topology=Topology(degree=degree, threshold=5)).to_bytes()
    assert_refused(federation, Stage.SHARE, request, PolicyViolationError, f"degree {degree} and threshold 5")


def test_too_few_adverts_are_refused() -> None:
    federation = until(of_seven(), Stage.SHARE)
    request = share_request(federation)
    few = ShareRequest(topology=Topology(degree=1, threshold=2), adverts=request.adverts[1:3]).to_bytes()
    assert_refused(federation, Stage.SHARE, few, PolicyViolationError, "a sum of 2 nodes, but 3 are needed")


def test_a_model_of_ones_own_gives_masks_that_cancel_with_nobodys() -> None:
    # The server tells the victim that everyone has the victim's model: its context differs from the others'.
    federation = of_seven()
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
    assert_refused(
        federation, Stage.SHARE, request, SignatureError, "node 1 is not signed by its identity for this"
    )


def test_a_sybil_majority_needs_its_places_in_the_roster() -> None:
    """Flower's secagg: 98 of 100 nodes are the server's own. Here every one of them must be listed."""
    federation = of_seven()
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
    request = with_adverts(
        share_request(others), lambda adverts: [own if a.node == VICTIM else a for a in adverts]
    )
    assert VICTIM in honest
    assert_refused(federation, Stage.SHARE, request, SignatureError, "not in this node's roster")


def test_an_advert_of_another_tier_is_refused() -> None:
    federation = until(of_seven(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)
    request = with_adverts(share_request(federation), put_in(5, identity=bytes(32), signature=bytes(64)))
    assert_refused(federation, Stage.SHARE, request, AdvertError, "advert of node 5 is of another tier")


@pytest.mark.parametrize("spelling", [lambda key: key[:-1] + bytes([key[-1] | 0x80])])
def test_a_key_in_another_spelling_is_the_same_key(spelling: Callable[[bytes], bytes]) -> None:
    """X25519 ignores the highest bit: whoever sets it in another node's key has not made a key."""
    federation = until(of_seven(Tier.HONEST_BUT_CURIOUS), Stage.SHARE)

    def copy(adverts: list[Advert]) -> list[Advert]:
        return [adverts[0], replace(adverts[1], mask_key=spelling(adverts[0].mask_key)), *adverts[2:]]

    request = with_adverts(share_request(federation), copy)
    error = assert_refused(federation, Stage.SHARE, request, AdvertError, "advertised twice")
    assert error.suspects == (1, 2)
