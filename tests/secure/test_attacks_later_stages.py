"""A server that lies in a later stage: each lie ends in a refusal, and with the state erased."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fl_plugins import wire
from fl_plugins._flower import server_identity
from fl_plugins.errors import QuorumError
from fl_plugins.secagg import Stage
from fl_plugins.secagg.messages import Advert, UnmaskReply, UnmaskRequest
from fl_plugins.secure_round import STAGES
from strategies import FedAvg

from .federation import (
    WatchedGrid,
    config_of,
    distance,
    plain_mean,
    run,
    secure,
    stage_of,
)
from .lies import (
    VICTIM,
    adverts,
    assert_refused,
    attack,
    body_of,
    with_body,
    without,
)

# -- Later stages --------------------------------------------------------------------------------------


def test_every_stage_is_answered_once() -> None:
    grid = WatchedGrid(num_nodes=4)
    run(secure(), grid)
    grid._identity = server_identity()
    with grid:
        for message in [m for m in grid.sent if m.metadata.dst_node_id == VICTIM]:
            if wire.STAGE in config_of(message):
                (reply,) = grid.send_and_receive([message])
                assert_refused(grid, reply, "this node has nothing under way")


@pytest.mark.parametrize(
    ("now", "then"),
    [pair for pair in itertools.product(STAGES, STAGES) if pair[0] not in (Stage.ADVERTISE, pair[1])],
)
def test_a_stage_out_of_order_is_refused_and_ends_the_attempt(now: Stage, then: Stage) -> None:
    def change(message: Message) -> Message:
        config_of(message)[wire.STAGE] = STAGES.index(then)
        return message

    grid, replies = attack(now, change)
    if now is Stage.CONFIRM:
        assert now not in replies, "there is none in this tier"
        return
    reply = next(reply for reply in replies.values() if reply.has_error())
    assert not reply.content.array_records if reply.has_content() else True
    assert wire.SECAGG not in grid._contexts[VICTIM].state
    expected = (
        "no parameters of a round" if then is Stage.ADVERTISE else "a stage is answered once and in order"
    )
    assert expected in reply.error.reason


@pytest.mark.parametrize("number", [-1, 5, 10**6, True, "mask", 1.0])
def test_a_stage_that_does_not_exist_is_refused(number: Any) -> None:
    def change(message: Message) -> Message:
        config_of(message)[wire.STAGE] = number
        return message

    def on_request(message: Message) -> Message:
        hit = message.metadata.dst_node_id == VICTIM and config_of(message).get(wire.STAGE) == 2
        return change(message) if hit else message

    answers: list[Message] = []
    grid = WatchedGrid(on_request=on_request)
    grid._serve, serve = lambda m: answers.append(serve(m)) or answers[-1], grid._serve  # type: ignore[method-assign, func-returns-value]
    run(secure(), grid)
    refused = [reply for reply in answers if reply.has_error()]
    assert len(refused) == 1
    assert_refused(grid, refused[0], "answers next")


def test_a_stage_without_the_layer_reaches_no_app() -> None:
    _, replies = attack(Stage.MASK, without(wire.LAYERS))
    assert replies[Stage.MASK].has_error()
    assert "announces the layers []" in replies[Stage.MASK].error.reason


def swapped(own: bool) -> Callable[[list[bytes]], list[bytes]]:
    """Put the server's keys in the place of the victim's own, or of another's."""

    def change(items: list[bytes]) -> list[bytes]:
        index = next(i for i, item in enumerate(items) if (Advert.from_bytes(item).node == VICTIM) is own)
        advert = Advert.from_bytes(items[index])
        forged = Advert(
            node=advert.node,
            packet_key=b"\x09" + bytes(31),
            mask_key=b"\x0a" + bytes(31),
            commitment=bytes(32),
        )
        return [*items[:index], forged.to_bytes(), *items[index + 1 :]]

    return change


def test_a_victims_own_keys_cannot_be_replaced() -> None:
    grid, replies = attack(Stage.SHARE, adverts(swapped(own=True)))
    assert_refused(grid, replies[Stage.SHARE], "own advert is not in the list")


def test_keys_of_others_shown_to_one_client_only_end_at_the_packets() -> None:
    grid, replies = attack(Stage.SHARE, adverts(swapped(own=False)))
    assert not replies[Stage.SHARE].has_error(), "in this tier the lie shows one stage later"
    assert_refused(grid, replies[Stage.MASK], "do not open")
    assert not any(
        reply.content.array_records
        for reply in grid.replies
        if reply.has_content() and reply.metadata.src_node_id == VICTIM
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda items: items[:2], "a sum of 2 nodes, but 3 are needed", id="too few"),
        pytest.param(lambda items: [*items, items[-1]], "a sum of 6 nodes", id="one twice"),
        pytest.param(
            lambda items: [items[0], items[1], items[1], *items[3:]], "distinct nodes", id="doubled"
        ),
    ],
)
def test_a_list_of_keys_that_cannot_be_right_is_refused(change: Any, said: str) -> None:
    grid, replies = attack(Stage.SHARE, adverts(change))
    assert_refused(grid, replies[Stage.SHARE], said)


def test_no_client_ever_gives_both_secrets_of_another() -> None:
    """The server asks for one set of survivors, then for another: the second is never answered."""
    target = 5

    def fewer(body: bytes) -> bytes:
        request = UnmaskRequest.from_bytes(body)
        return UnmaskRequest(survivors=[n for n in request.survivors if n != target]).to_bytes()

    seeds: set[int] = set()
    keys: set[int] = set()

    def learn(reply: Message) -> None:
        if not reply.has_error():
            shares = UnmaskReply.from_bytes(body_of(reply))
            (seeds.add if target in shares.seed_shares else keys.add)(reply.metadata.src_node_id)

    grid = WatchedGrid(num_nodes=5)

    def on_reply(message: Message, reply: Message) -> Message:
        if stage_of(message) is Stage.UNMASK:
            learn(reply)
            again = RecordDict(
                {
                    "config": ConfigRecord(dict(config_of(message))),
                    wire.SECAGG: ConfigRecord({wire.SECAGG_BODY: fewer(body_of(message))}),
                }
            )
            node = message.metadata.dst_node_id
            message.content = again
            learn(grid._apps[node](message, grid._contexts[node]))
        return reply

    grid.on_reply = on_reply
    run(secure(), grid)
    assert len(seeds) == 5
    assert keys == set()


@pytest.mark.parametrize(
    ("survivors", "said"),
    [
        ([2, 3, 4, 5], "must contain node 1"),
        ([1, 2], "has 2 nodes, but 4 are needed"),
        ([1, 2, 2, 3, 4], "distinct nodes"),
        ([1, 2, 3, 4, 9], "of those that came this far"),
    ],
)
def test_a_list_of_survivors_that_cannot_be_right_is_refused(survivors: list[int], said: str) -> None:
    grid, replies = attack(
        Stage.UNMASK,
        lambda m: with_body(m, lambda _: UnmaskRequest(survivors=survivors).to_bytes()),
    )
    assert_refused(grid, replies[Stage.UNMASK], said)


def test_a_node_goes_by_its_own_id_whatever_a_message_claims() -> None:
    grid, replies = attack(
        Stage.ADVERTISE, lambda m: m.metadata.__dict__.update(_dst_node_id=VICTIM, _src_node_id=77) or m
    )
    assert Advert.from_bytes(body_of(replies[Stage.ADVERTISE])).node == VICTIM
    grid._contexts[VICTIM].node_id = 2
    assert distance(run(secure(), WatchedGrid(num_nodes=5)), plain_mean(range(1, 6))) < 2e-6


def test_a_plain_strategy_gets_nothing_from_a_node_with_the_mod() -> None:
    grid = WatchedGrid()
    with pytest.raises(QuorumError):
        run(FedAvg(max_attempts=1), grid)
    assert all(reply.has_error() for reply in grid.replies)
    assert len(grid.replies) == 5


def test_a_client_that_many_blame_is_left_out_of_the_next_attempt() -> None:
    """Node 3 seals packets that do not open, at everyone: without it the round goes through."""

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == 3 and stage_of(message) is Stage.SHARE:
            body = bytearray(body_of(reply))
            for at in range(4 + 8, len(body), 8 + 82):
                body[at] ^= 1
            reply.content.config_records[wire.SECAGG][wire.SECAGG_BODY] = bytes(body)
        return reply

    events: list[dict[str, Any]] = []
    strategy = secure(FedAvg(quorum=0.4, max_attempts=2))
    result = run(strategy, WatchedGrid(num_nodes=6, on_reply=on_reply), events=events)
    assert distance(result, plain_mean([1, 2, 4, 5, 6])) < 2e-6
    first, second = [event for event in events if event["event"] == "secure_aggregation"]
    assert first["suspects"] == ["node-3"]
    assert (second["cohort"], second["survivors"]) == (5, 5)
