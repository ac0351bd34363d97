"""The server's half of additive sharing: what it takes, what it drops, and when there is no sum."""

from collections.abc import Callable
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
from fl_plugins.secagg import AdditiveServerSession, Identity, Stage, Tier
from fl_plugins.secagg.additive_messages import Attempt, ClientMessage, KeyAdvert
from fl_plugins.secagg.keys import new_secret

from .helpers import HelpedFederation


def message(change: Callable[[ClientMessage], ClientMessage]) -> Callable[[bytes], bytes]:
    return lambda body: change(ClientMessage.from_bytes(body)).to_bytes()


MALFORMED: dict[str, tuple[Any, Any, type[SecureAggregationError]]] = {
    "a short vector": (None, lambda v: v[:-1], MessageFormatError),
    "another dtype": (None, lambda v: v.astype(np.uint64), MessageFormatError),
    "no vector": (None, lambda v: None, MessageFormatError),
    "no bytes": (lambda body: b"", None, MessageFormatError),
    "bytes cut off": (lambda body: body[:-1], None, MessageFormatError),
    "another node's key": (
        message(lambda m: replace(m, advert=replace(m.advert, node=3))),
        None,
        AdvertError,
    ),
    "a seed less": (message(lambda m: replace(m, packets=m.packets[:1])), None, MessageFormatError),
    "a seed for another node": (
        message(lambda m: replace(m, packets=[m.packets[0], (77, m.packets[1][1])])),
        None,
        MessageFormatError,
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_message_is_left_out_and_costs_nobody_else_anything(what: str) -> None:
    change_body, change_vector, kind = MALFORMED[what]
    federation = HelpedFederation()
    for node, request in federation.take_keys().items():
        reply = federation.client(node, request)
        body = change_body(reply.body) if change_body and node == 2 else reply.body
        words = change_vector(reply.vector) if change_vector and node == 2 else reply.vector
        if node == 2:
            with pytest.raises(kind):
                federation.server.receive(node, body, words)
            assert 2 in federation.server.refusals
        else:
            federation.server.receive(node, body, words)
    federation.server.advance()
    for node, request in federation.server.requests().items():
        reply = federation.open(node, request)
        federation.server.receive(node, reply.body, reply.vector)
    federation.server.advance()
    assert federation.server.result.survivors == (1, 3, 4, 5)
    assert np.array_equal(federation.server.result.vector, federation.expected([1, 3, 4, 5]))


def test_nobody_is_heard_twice_or_without_being_asked() -> None:
    federation = HelpedFederation()
    requests = federation.take_keys()
    reply = federation.client(1, requests[1])
    federation.server.receive(1, reply.body, reply.vector)
    for node in (1, 90, 77):
        with pytest.raises(StageError, match=f"node {node} was not asked"):
            federation.server.receive(node, reply.body, reply.vector)
    assert 1 not in federation.server.refusals


def test_too_few_clients_end_the_attempt_with_the_reasons() -> None:
    federation = HelpedFederation()
    federation.take_keys()
    federation.server.refuse(4, "it has no data")
    with pytest.raises(
        RoundAbortedError, match=r"0 of 5 nodes .* 3 are needed\. Refusals: 4: it has no data"
    ):
        federation.server.advance()
    assert federation.server.stage is Stage.CLOSED
    with pytest.raises(StageError):
        federation.server.requests()
    with pytest.raises(StageError):
        federation.server.advance()
    with pytest.raises(StageError, match="no sum"):
        _ = federation.server.result


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.UNMASK])
def test_without_each_helper_there_is_no_sum_and_whom_they_blame_is_named(stage: Stage) -> None:
    federation = HelpedFederation()
    requests = federation.take_vectors() if stage is Stage.UNMASK else federation.server.requests()
    for node in federation.helpers[:1]:
        answer = federation.open if stage is Stage.UNMASK else federation.begin_helper
        reply = answer(node, requests[node])
        federation.server.receive(node, reply.body, reply.vector)
    federation.server.refuse(91, "node 3 sealed nonsense", suspects=[3])
    with pytest.raises(
        RoundAbortedError, match=r"1 of 2 helpers gave no answer .* 91: node 3 sealed"
    ) as ended:
        federation.server.advance()
    assert ended.value.suspects == (3,)


def test_helpers_that_answer_with_something_else_are_refused() -> None:
    federation = HelpedFederation()
    (request, _) = federation.server.requests().values()
    body = federation.begin_helper(90, request).body
    with pytest.raises(AdvertError, match="node 91 sent a key of node 90"):
        federation.server.receive(91, body)
    with pytest.raises(MessageFormatError, match="vector too many"):
        federation.server.receive(90, body, np.zeros(5, "<u4"))
    federation = HelpedFederation()
    requests = federation.take_vectors()
    words = federation.open(90, requests[90]).vector
    assert words is not None
    for sent, bad in ((b"!", words), (b"", words[:-1]), (b"", None)):
        with pytest.raises(MessageFormatError):
            federation.server.receive(90, sent, bad)


def test_a_client_with_anothers_identity_or_without_a_signature_is_left_out_before_helpers_see_it() -> None:
    federation = HelpedFederation(tier=Tier.MALICIOUS)
    requests = federation.take_keys()
    for node in (1, 3, 4, 5):
        reply = federation.client(node, requests[node])
        federation.server.receive(node, reply.body, reply.vector)
    twin = federation.client(2, requests[2], identity=federation.identities[1])
    with pytest.raises(SignatureError, match="nodes 1 and 2 have one identity"):
        federation.server.receive(2, twin.body, twin.vector)
    forged = ClientMessage.from_bytes(federation.client(2, requests[2]).body)
    forged = replace(forged, advert=replace(forged.advert, signature=bytes(64)))
    with pytest.raises(SignatureError, match="not signed by its identity"):
        federation.server.receive(2, forged.to_bytes(), twin.vector)
    federation.server.advance()
    for node, request in federation.server.requests().items():
        federation.open(node, request)


def test_helpers_that_are_not_in_the_servers_own_roster_are_refused_there() -> None:
    federation = HelpedFederation(tier=Tier.MALICIOUS)
    known = frozenset({federation.identities[90].public})
    server = AdditiveServerSession(
        federation.parameters, federation.clients, federation.helpers, roster=known
    )
    for node, request in server.requests().items():
        body = federation.begin_helper(node, request).body
        if node == 90:
            server.receive(node, body)
        else:
            with pytest.raises(SignatureError, match="not in this node's roster"):
                server.receive(node, body)
    context = Attempt.from_bytes(server.requests()[90]).context
    stranger = KeyAdvert.make(91, new_secret(), context, Identity.generate())
    with pytest.raises(SignatureError):
        server.receive(91, stranger.to_bytes())
