"""A server that lies to helpers and their clients: each lie ends in a named refusal."""

from dataclasses import replace
from typing import Any

import pytest

from fl_plugins.errors import (
    AdvertError,
    MessageFormatError,
    PacketError,
    PolicyViolationError,
    SecureAggregationError,
    StageError,
    SurvivorError,
)
from fl_plugins.secagg import ClientPolicy, HelperSession, Progress, Stage
from fl_plugins.secagg.additive_messages import Attempt, ClientMessage, UnmaskRequest
from fl_plugins.secagg.keys import new_secret, public_key

from .additive_lies import HELPER, LOW_ORDER, Change, adverts, asked, packets, to_client
from .helpers import HelpedFederation


def attempt(change: Change) -> Change:
    return lambda request: replace(request, attempt=change(Attempt.from_bytes(request.attempt)).to_bytes())


def with_parameters(**changes: Any) -> Change:
    return attempt(lambda a: replace(a, parameters=replace(a.parameters, **changes)))


def another_key(place: int) -> Change:
    """Put a key of the server's in the place of a helper's."""

    def change(a: Attempt) -> Attempt:
        adverts = list(a.adverts)
        adverts[place] = replace(adverts[place], key=public_key(new_secret()))
        return replace(a, adverts=tuple(adverts))

    return attempt(change)


def under(node: int, other: int) -> Change:
    """Give one client's key and packet as another's."""

    def change(items: list[Any]) -> list[Any]:
        by_node = {advert.node: (advert, packet) for advert, packet in items}
        advert, packet = by_node[other]
        by_node[node] = (replace(advert, node=node), packet)
        return [by_node[key] for key in sorted(by_node)]

    return packets(change)


LIES: dict[str, tuple[Change, type[SecureAggregationError], str]] = {
    "fewer than the minimum": (packets(lambda p: p[:2]), SurvivorError, "2 clients, but 3 are needed"),
    "nobody": (packets(lambda p: []), SurvivorError, "0 clients"),
    "a client twice": (packets(lambda p: [*p, p[-1]]), SurvivorError, "distinct clients of the cohort"),
    "in another order": (packets(lambda p: p[::-1]), SurvivorError, "ascending order"),
    "a client that is not in the cohort": (
        packets(lambda p: [*p, (replace(p[0][0], node=77), p[0][1])]),
        SurvivorError,
        "distinct clients of the cohort",
    ),
    "one client's seed as another's": (under(2, 1), PacketError, "node 2 for node 90 do not open"),
    "a seed that was changed": (
        packets(lambda p: [(p[0][0], bytes(48)), *p[1:]]),
        PacketError,
        "node 1 for node 90",
    ),
    "a client's key that was changed": (
        packets(lambda p: [(replace(p[0][0], key=public_key(new_secret())), p[0][1]), *p[1:]]),
        PacketError,
        "node 1 for node 90",
    ),
    "a client's key of low order": (
        packets(lambda p: [(replace(p[0][0], key=LOW_ORDER), p[0][1]), *p[1:]]),
        AdvertError,
        "low order",
    ),
    "a signed key in the other tier": (
        packets(lambda p: [(replace(p[0][0], identity=bytes(32), signature=bytes(64)), p[0][1]), *p[1:]]),
        AdvertError,
        "another tier",
    ),
    "a lower minimum than at first": (
        with_parameters(min_clients=2),
        PolicyViolationError,
        "not the attempt",
    ),
    "another round": (with_parameters(round=4), PolicyViolationError, "not the attempt"),
    "another session": (with_parameters(sid=bytes(16)), PolicyViolationError, "not the attempt"),
    "another model": (with_parameters(model=bytes(32)), PolicyViolationError, "not the attempt"),
    "another cohort": (
        attempt(lambda a: replace(a, cohort=(*a.cohort[:-1], 6))),
        PolicyViolationError,
        "not the attempt",
    ),
    "another key for this helper": (another_key(0), AdvertError, "own key is not in the list"),
    "another key for the other helper": (another_key(1), PacketError, "shown different keys"),
    "a helper less": (
        attempt(lambda a: replace(a, adverts=a.adverts[:1])),
        PacketError,
        "shown different keys",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_helper_refuses_every_other_set_than_one_that_its_clients_meant(lie: str) -> None:
    change, kind, said = LIES[lie]
    with pytest.raises(kind, match=said):
        asked(HelpedFederation(), change)
    assert asked(HelpedFederation(), lambda request: request)


def test_a_helper_opens_one_set_of_an_attempt_and_never_a_second() -> None:
    federation = HelpedFederation()
    request = federation.take_vectors()[HELPER]
    session = federation.helper(HELPER)
    session.answer(Stage.UNMASK, request)
    for stage in Stage:
        with pytest.raises(StageError, match="one set of clients is opened, once"):
            session.answer(stage, request)
    with pytest.raises(StageError, match="nothing to save"):
        session.to_bytes()


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.CLOSED])
def test_a_helper_answers_no_other_stage(stage: Stage) -> None:
    federation = HelpedFederation()
    request = federation.take_vectors()[HELPER]
    session = federation.helper(HELPER)
    with pytest.raises(StageError):
        session.answer(stage, request)
    with pytest.raises(StageError):
        session.answer(Stage.UNMASK, request)


def test_a_helpers_own_minimum_holds_even_if_the_attempts_is_lower() -> None:
    policies = {HELPER: ClientPolicy(min_clients=5)}
    federation = HelpedFederation(policies=policies)
    (request, _) = federation.server.requests().values()
    with pytest.raises(PolicyViolationError, match="min_clients=3, but this node wants >= 5"):
        federation.begin_helper(HELPER, request)
    federation = HelpedFederation(changes={"min_clients": 5})
    federation.take_keys()
    federation.policies[HELPER] = ClientPolicy(min_clients=6)
    session = federation.helper(HELPER)
    for node, request in federation.server.requests().items():
        reply = federation.client(node, request)
        federation.server.receive(node, reply.body, reply.vector)
    federation.server.advance()
    with pytest.raises(SurvivorError, match="5 clients, but 6 are needed"):
        session.answer(Stage.UNMASK, federation.server.requests()[HELPER])


def test_the_minimum_that_clients_were_told_holds_even_if_the_helpers_own_is_lower() -> None:
    federation = HelpedFederation(changes={"min_clients": 5}, policies={HELPER: ClientPolicy(min_clients=3)})
    with pytest.raises(SurvivorError, match="4 clients, but 5 are needed"):
        asked(federation, packets(lambda p: p[:4]))


def test_seeds_of_another_attempt_do_not_open() -> None:
    """Same clients, parameters and even session id: the helper's key is another, and so is the transcript."""
    one = HelpedFederation()
    other = HelpedFederation(changes={"sid": one.parameters.sid})
    assert one.parameters == other.parameters
    replayed = UnmaskRequest.from_bytes(one.take_vectors()[HELPER]).packets
    with pytest.raises(PacketError, match="belong to another round"):
        asked(other, packets(lambda _: replayed))


def test_seeds_for_another_helper_do_not_open() -> None:
    federation = HelpedFederation()
    requests = federation.take_vectors()
    with pytest.raises(PacketError):
        federation.open(90, requests[91])


def test_a_client_that_seals_nonsense_is_named() -> None:
    federation = HelpedFederation()
    with pytest.raises(PacketError) as refused:
        asked(federation, packets(lambda p: [*p[:2], (p[2][0], bytes(48)), *p[3:]]))
    assert refused.value.suspects == (3,)


@pytest.mark.parametrize(
    ("changes", "given", "kind", "said"),
    [
        (
            {"num_bits": 16},
            {"policy": ClientPolicy(num_bits=frozenset({32}))},
            PolicyViolationError,
            "16 bits",
        ),
        ({"length": 9}, {"policy": ClientPolicy(max_length=8)}, PolicyViolationError, "at most 8 words"),
        ({}, {"run_id": 8}, PolicyViolationError, "another run"),
        ({}, {"previous": Progress(run_id=7, round=3, attempt=0)}, StageError, "never repeated"),
        ({}, {"previous": Progress(run_id=7, round=4, attempt=0)}, StageError, "never repeated"),
    ],
)
def test_a_helper_makes_no_key_for_what_it_does_not_allow(
    changes: dict[str, Any], given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    federation = HelpedFederation(changes=changes)
    with pytest.raises(kind, match=said):
        federation.begin_helper(HELPER, federation.server.requests()[HELPER], **given)


def test_a_helper_is_no_client_of_its_own_attempt_and_is_asked_before_the_clients() -> None:
    federation = HelpedFederation()
    requests = federation.take_keys()
    with pytest.raises(MessageFormatError, match="asked first"):
        federation.begin_helper(HELPER, requests[1])
    with pytest.raises(MessageFormatError, match="no client"):
        HelperSession.begin(
            HelpedFederation().server.requests()[HELPER], node=1, run_id=7, policy=ClientPolicy()
        )


SHOWN: dict[str, tuple[Change, type[SecureAggregationError], str]] = {
    "fewer helpers than announced": (
        adverts(lambda a: a[:1]),
        AdvertError,
        "1 helpers, but 2 were announced",
    ),
    "no helpers": (adverts(lambda a: []), AdvertError, "0 helpers"),
    "one helper twice": (adverts(lambda a: [a[0], a[0]]), AdvertError, "distinct nodes"),
    "one key under two names": (
        adverts(lambda a: [a[0], replace(a[1], key=a[0].key)]),
        AdvertError,
        "two helpers advertised one key",
    ),
    "one key in two spellings": (
        adverts(lambda a: [a[0], replace(a[1], key=a[0].key[:31] + bytes([a[0].key[31] | 128]))]),
        AdvertError,
        "two helpers advertised one key",
    ),
    "a client as a helper": (
        adverts(lambda a: [replace(a[0], node=2), a[1]]),
        AdvertError,
        "none of the cohort",
    ),
    "a key of low order": (
        adverts(lambda a: [replace(a[0], key=LOW_ORDER), a[1]]),
        AdvertError,
        "low order",
    ),
    "a signed key in this tier": (
        adverts(lambda a: [replace(a[0], identity=bytes(32), signature=bytes(64)), a[1]]),
        AdvertError,
        "another tier",
    ),
    "a cohort without this client": (
        lambda a: replace(a, cohort=(2, 3, 4, 5, 6)),
        SurvivorError,
        "not in the cohort",
    ),
    "a client twice in the cohort": (
        lambda a: replace(a, cohort=(1, 1, 2, 3, 4)),
        SurvivorError,
        "distinct ones in ascending order",
    ),
    "a cohort larger than the ring is sized for": (
        lambda a: replace(a, cohort=(1, 2, 3, 4, 5, 6)),
        SurvivorError,
        "cohort of 6 nodes, but it is of 5",
    ),
    "too few clients": (
        lambda a: replace(a, parameters=replace(a.parameters, min_clients=2)),
        PolicyViolationError,
        "min_clients=2",
    ),
    "another model": (
        lambda a: replace(a, parameters=replace(a.parameters, model=bytes(32))),
        PolicyViolationError,
        "model is not this node's",
    ),
    "another run": (
        lambda a: replace(a, parameters=replace(a.parameters, run_id=8)),
        PolicyViolationError,
        "run_id is not this node's",
    ),
    "a longer vector": (
        lambda a: replace(a, parameters=replace(a.parameters, length=6)),
        MessageFormatError,
        "vector has shape",
    ),
}


@pytest.mark.parametrize("lie", SHOWN)
def test_a_client_refuses_what_it_cannot_be_meant_to_answer(lie: str) -> None:
    change, kind, said = SHOWN[lie]
    with pytest.raises(kind, match=said):
        to_client(change)


def test_a_client_begins_no_attempt_twice_and_none_that_is_longer_than_it_allows() -> None:
    with pytest.raises(StageError, match="never repeated"):
        to_client(lambda a: a, previous=Progress(run_id=7, round=3, attempt=0))
    with pytest.raises(PolicyViolationError, match="at most 4 words"):
        to_client(lambda a: a, policy=ClientPolicy(max_length=4))
    to_client(lambda a: a, previous=Progress(run_id=7, round=2, attempt=9))


def test_keys_of_the_servers_own_for_one_helper_end_at_the_other() -> None:
    """It would know one mask; the other helper then opens nothing for it."""
    federation = HelpedFederation()
    requests = federation.take_keys()
    mine = new_secret()
    true = Attempt.from_bytes(requests[1])
    shown = replace(true, adverts=(replace(true.adverts[0], key=public_key(mine)), true.adverts[1]))
    sent = [ClientMessage.from_bytes(federation.client(node, shown.to_bytes()).body) for node in requests]
    opened = [(message.advert, message.packets[1][1]) for message in sent]
    with pytest.raises(PacketError, match="shown different keys"):
        federation.open(91, UnmaskRequest(attempt=true.to_bytes(), packets=opened).to_bytes())
    # Told the same lie, it opens what it always does: the set that its clients meant, and no smaller one.
    request = UnmaskRequest(attempt=shown.to_bytes(), packets=opened)
    assert federation.open(91, request.to_bytes()).vector is not None
    with pytest.raises(SurvivorError):
        federation.open(91, replace(request, packets=opened[:2]).to_bytes())
