"""The malicious tier of additive sharing: the server's own helpers and clients are refused."""

from dataclasses import replace
from typing import Any

import pytest

from fl_plugins.errors import AdvertError, ConfigError, PolicyViolationError, SignatureError
from fl_plugins.secagg import ClientPolicy, HelperSession, Identity, Tier
from fl_plugins.secagg.additive_messages import Attempt, KeyAdvert, UnmaskRequest
from fl_plugins.secagg.keys import new_secret, public_key

from .additive_lies import HELPER, Change, adverts, asked, packets, to_client
from .helpers import HelpedFederation


def malicious(**options: Any) -> HelpedFederation:
    return HelpedFederation(tier=Tier.MALICIOUS, **options)


def test_the_servers_own_helpers_are_refused_by_every_client() -> None:
    other = Identity.generate()

    def signed_by(identity: Identity) -> Change:
        def change(a: Attempt) -> Attempt:
            own = KeyAdvert.make(90, new_secret(), a.context, identity)
            return replace(a, adverts=(own, a.adverts[1]))

        return change

    with pytest.raises(SignatureError, match="node 90 has an identity that is not in this node's roster"):
        to_client(signed_by(other), malicious())
    federation = malicious()
    with pytest.raises(SignatureError, match="nodes 90 and 91 have one identity"):
        to_client(signed_by(federation.identities[91]), federation)
    with pytest.raises(SignatureError, match="not signed by its identity for this attempt"):
        to_client(adverts(lambda a: [replace(a[0], key=public_key(new_secret())), a[1]]), malicious())


def test_a_helpers_key_of_another_attempt_is_refused() -> None:
    federation = malicious()
    earlier = HelpedFederation(tier=Tier.MALICIOUS, identities=federation.identities)
    replayed = Attempt.from_bytes(earlier.take_keys()[1]).adverts
    with pytest.raises(SignatureError, match="for this attempt"):
        to_client(adverts(lambda a: [replayed[0], a[1]]), federation)


def test_the_server_cannot_choose_among_the_helpers() -> None:
    """With one of two it would need that one only."""
    federation = malicious(helpers=(90,))
    both = frozenset({federation.identities[90].public, Identity.generate().public})
    request = federation.take_keys()[1]
    with pytest.raises(AdvertError, match="1 of the 2 helpers in this node's roster"):
        federation.client(1, request, policy=ClientPolicy(roster=both))


def sybil(identity: Identity | None) -> Change:
    """Sign the last client's key anew."""

    def change(request: UnmaskRequest) -> UnmaskRequest:
        *others, (last, packet) = request.packets
        transcript = Attempt.from_bytes(request.attempt).transcript
        own = KeyAdvert.make(last.node, new_secret(), transcript, identity)
        return replace(request, packets=[*others, (own, packet)])

    return change


def test_clients_that_the_server_invents_are_refused_by_every_helper() -> None:
    federation = malicious()
    with pytest.raises(SignatureError, match="not in this node's roster"):
        asked(federation, sybil(Identity.generate()))
    federation = malicious()
    with pytest.raises(SignatureError, match="have one identity"):
        asked(federation, sybil(federation.identities[1]))
    with pytest.raises(AdvertError, match="another tier"):
        asked(malicious(), sybil(None))
    federation = malicious()
    with pytest.raises(SignatureError, match="not signed by its identity"):
        asked(
            federation,
            packets(lambda p: [(replace(p[0][0], key=public_key(new_secret())), p[0][1]), *p[1:]]),
        )


def test_nobody_takes_part_in_the_malicious_tier_without_identity_and_roster() -> None:
    federation = malicious()
    request = federation.server.requests()[HELPER]
    with pytest.raises(PolicyViolationError, match="no identity"):
        HelperSession.begin(request, node=HELPER, run_id=7, policy=federation.policies[HELPER])
    with pytest.raises(PolicyViolationError, match="no roster"):
        federation.begin_helper(HELPER, request, policy=ClientPolicy())
    with pytest.raises(PolicyViolationError, match="no identity"):
        to_client(lambda a: a, malicious(), identity=None)
    with pytest.raises(ConfigError, match="roster is empty"):
        ClientPolicy(required_tier=Tier.MALICIOUS)
