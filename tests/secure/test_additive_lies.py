"""A server that lies to clients and helpers, in Flower messages; and helpers and clients that break it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_plugins import wire
from fl_plugins._flower import server_identity, through_the_wire
from fl_plugins.errors import QuorumError
from fl_plugins.records import to_named
from fl_plugins.secagg import Stage
from fl_plugins.secagg.additive_messages import Attempt, ClientMessage, UnmaskRequest
from fl_plugins.secure_identities import PRIVATE_KEY, make_identity, write_roster
from fl_plugins.secure_round import STAGES
from fl_plugins.spec import Spec, parse
from strategies import FedAvg

from .additive import HELPERS, HelpedGrid, grid_of, helped, is_client_message, is_question, operators
from .federation import config_of, distance, plain_mean, run, stage_of, stock_app, trainer

HELPER = HELPERS[0]
VICTIM = 1
Change = Callable[[Message], Message]


def body_of(message: Message) -> bytes:
    return message.content.config_records[wire.SECAGG][wire.SECAGG_BODY]  # type: ignore[return-value]


def with_body(change: Callable[[bytes], bytes]) -> Change:
    def on(message: Message) -> Message:
        message.content.config_records[wire.SECAGG][wire.SECAGG_BODY] = change(body_of(message))
        return message

    return on


def lie(to: int, at: Stage, change: Change, **options: Any) -> tuple[HelpedGrid, list[Message]]:
    """Run a round in which the message to one node at one stage is changed; return its replies."""
    replies: list[Message] = []

    def on_request(message: Message) -> Message:
        hit = message.metadata.dst_node_id == to and stage_of(message) is at and not is_question(message)
        return change(message) if hit else message

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == to and not is_question(message):
            replies.append(reply)
        return reply

    strategy = options.pop("strategy", None) or helped()
    grid = grid_of(on_request=on_request, on_reply=on_reply, **options)
    with suppress(QuorumError):
        run(strategy, grid)
    return grid, replies


def assert_refused(grid: HelpedGrid, node: int, reply: Message, said: str) -> None:
    assert reply.has_error()
    assert said in reply.error.reason, reply.error.reason
    assert wire.SECAGG not in grid._contexts[node].state, "nothing is kept"


def lowered(**changes: Any) -> Change:
    """Change parameters of the attempt, not the announcement."""

    def change(body: bytes) -> bytes:
        attempt = Attempt.from_bytes(body)
        return replace(attempt, parameters=replace(attempt.parameters, **changes)).to_bytes()

    return with_body(change)


def announced(**changes: Any) -> Change:
    """Change the announcement, not the parameters."""

    def change(message: Message) -> Message:
        [text] = config_of(message)[wire.LAYERS]  # type: ignore[misc]
        spec = parse(str(text))
        config_of(message)[wire.LAYERS] = [str(Spec(spec.name, kwargs={**dict(spec.kwargs), **changes}))]  # type: ignore[arg-type]
        return message

    return change


def without_record(message: Message) -> Message:
    del message.content[wire.SECAGG]
    return message


def fewer_helpers(message: Message) -> Message:
    """Show one helper only, and announce one."""
    with_body(lambda body: replace(a := Attempt.from_bytes(body), adverts=a.adverts[:1]).to_bytes())(message)
    return announced(helpers=1)(message)


# -- To a client ---------------------------------------------------------------------------------------

FIRST = {
    "fewer clients than announced": (lowered(min_clients=2), "min_clients=2, but the message announces 3"),
    "a smaller ring than announced": (lowered(num_bits=16), "num_bits=16"),
    "another model": (lowered(model=bytes(32)), "model is not that of the message"),
    "another run": (lowered(run_id=9), "run_id is not that of the message"),
    "another meaning of the vector": (announced(weighting="uniform"), "layout is not that"),
    "fewer clients, and said so": (
        lambda m: announced(min_clients=2)(lowered(min_clients=2)(m)),
        "min_clients=2, but this node wants >= 3",
    ),
    "no record of the protocol": (without_record, "the message has no fl-plugins.secagg record"),
    "no parameters": (with_body(lambda _: b""), "fields need more"),
}


@pytest.mark.parametrize("what", FIRST)
def test_a_lie_to_a_client_is_refused_before_anything_is_trained(what: str) -> None:
    change, said = FIRST[what]
    trained: list[int] = []

    def train(message: Message, context: Any) -> Message:
        trained.append(context.node_id)
        return trainer()(message, context)  # type: ignore[no-any-return]

    grid, (reply,) = lie(VICTIM, Stage.ADVERTISE, change, app=stock_app(train))
    assert_refused(grid, VICTIM, reply, said)
    assert sorted(trained) == [2, 3, 4, 5]


def test_a_client_refuses_fewer_helpers_than_are_announced() -> None:
    change = with_body(lambda body: replace(a := Attempt.from_bytes(body), adverts=a.adverts[:1]).to_bytes())
    grid, (reply,) = lie(VICTIM, Stage.ADVERTISE, change)
    assert_refused(grid, VICTIM, reply, "keys of 1 helpers, but 2 were announced")


def test_a_policy_on_a_clients_own_disk_demands_how_many_helpers(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[layers.additive_aggregation]\nmin_helpers = 2\n")
    configs = {VICTIM: {"policy": str(policy)}}
    grid, (reply,) = lie(VICTIM, Stage.ADVERTISE, fewer_helpers, configs=configs)
    assert_refused(grid, VICTIM, reply, "helpers >= 2, announced is 1")
    result = run(helped(), grid_of(configs=configs))
    assert distance(result, plain_mean(range(1, 6))) < 2e-6


def test_a_client_answers_no_stage_of_a_helper() -> None:
    replies: list[Message] = []
    grid = grid_of()
    run(helped(), grid)
    grid._identity = server_identity()
    with grid:
        for stage in STAGES:
            message = next(m for m in grid.sent if m.metadata.dst_node_id == HELPER and not is_question(m))
            config = ConfigRecord({**config_of(message), wire.STAGE: STAGES.index(stage)})
            content = RecordDict({**message.content, "config": config})
            replies += grid.send_and_receive([Message(content, VICTIM, "train")])
    assert len(replies) == len(STAGES)
    for reply in replies:
        assert "this node is a client" in reply.error.reason


def test_a_round_is_never_begun_twice_by_a_client() -> None:
    grid = grid_of()
    run(helped(), grid)
    grid._identity = server_identity()
    with grid:
        message = next(m for m in grid.sent if m.metadata.dst_node_id == VICTIM and is_client_message(m))
        (reply,) = grid.send_and_receive([message])
    assert_refused(grid, VICTIM, reply, "an attempt is never repeated")


# -- To a helper ---------------------------------------------------------------------------------------


def packets(change: Callable[[list[Any]], list[Any]]) -> Change:
    def on(body: bytes) -> bytes:
        request = UnmaskRequest.from_bytes(body)
        return replace(request, packets=change(list(request.packets))).to_bytes()

    return with_body(on)


SETS = {
    "fewer than the minimum": (packets(lambda p: p[:2]), "U has 2 clients, but 3 are needed"),
    "a client twice": (packets(lambda p: [*p, p[-1]]), "distinct clients of the cohort"),
    "a client that nobody asked": (
        packets(lambda p: [*p, (replace(p[0][0], node=99), p[0][1])]),
        "distinct clients of the cohort",
    ),
    "a seed that was changed": (packets(lambda p: [(p[0][0], bytes(48)), *p[1:]]), "do not open"),
}


@pytest.mark.parametrize("what", SETS)
def test_a_set_that_a_helper_must_not_open_gives_no_sum(what: str) -> None:
    change, said = SETS[what]
    grid, replies = lie(HELPER, Stage.UNMASK, change)
    assert [reply.has_error() for reply in replies] == [False, True]
    assert_refused(grid, HELPER, replies[1], said)


def test_a_helpers_own_minimum_cannot_be_lowered() -> None:
    grid, (reply,) = lie(HELPER, Stage.ADVERTISE, lambda m: m, configs={HELPER: {"secagg-min-clients": 4}})
    assert_refused(grid, HELPER, reply, "min_clients=3, but this node wants >= 4")
    assert not any(is_client_message(m) for m in grid.sent), "and nobody trains for it"


def test_a_helper_makes_no_key_for_parameters_that_are_not_announced() -> None:
    grid, (reply,) = lie(HELPER, Stage.ADVERTISE, lowered(clip=0.5))
    assert_refused(grid, HELPER, reply, "clip=0.5, but the message announces 0.6")


def test_a_helper_trains_nothing_and_answers_no_other_layer() -> None:
    trained: list[int] = []

    def train(message: Message, context: Any) -> Message:
        trained.append(context.node_id)
        return trainer()(message, context)  # type: ignore[no-any-return]

    grid = grid_of(app=stock_app(train))
    run(helped(), grid)
    grid._identity = server_identity()
    with grid:
        message = next(m for m in grid.sent if is_client_message(m))
        (reply,) = grid.send_and_receive([Message(message.content, HELPER, "train")])
        (other,) = grid.send_and_receive([Message(message.content, HELPER, "evaluate")])
    assert_refused(grid, HELPER, reply, "a helper, which trains nothing")
    assert "what is summed is training" in other.error.reason
    assert HELPER not in trained


@pytest.mark.parametrize("which", ["the same set", "another set"])
def test_a_helper_with_a_stale_state_opens_no_second_set(tmp_path: Path, which: str) -> None:
    """A SuperNode saves the state after the reply has left: a second message can meet the old one."""
    again: list[Message] = []
    stale: list[RecordDict] = []

    def on_request(message: Message) -> Message:
        if message.metadata.dst_node_id == HELPER and stage_of(message) is Stage.UNMASK:
            state = grid._contexts[HELPER].state
            stale.append(through_the_wire(Message(state, HELPER, "train")).content)
        return message

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == HELPER and stage_of(message) is Stage.UNMASK:
            assert not reply.has_error()
            context = grid._contexts[HELPER]
            now, context.state = context.state, stale[0]
            if which == "another set":
                packets(lambda p: p[1:])(message)
            again.append(grid._apps[HELPER](message, context))
            context.state = now
        return reply

    own = {node: {"secagg-state": str(tmp_path / str(node))} for node in HELPERS}
    grid = grid_of(on_request=on_request, on_reply=on_reply, configs=own)
    run(helped(), grid)
    (second,) = again
    assert "was answered before" in second.error.reason
    assert list((tmp_path / str(HELPER)).iterdir()) == [], "nothing is left of a round that has ended"


def test_a_client_whose_seed_does_not_open_is_left_out_of_the_next_attempt() -> None:
    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == 3 and is_client_message(message):
            sent = ClientMessage.from_bytes(body_of(reply))
            spoiled = [(sent.packets[0][0], bytes(48)), *sent.packets[1:]]
            reply.content.config_records[wire.SECAGG][wire.SECAGG_BODY] = replace(
                sent, packets=spoiled
            ).to_bytes()
        return reply

    events: list[dict[str, Any]] = []
    result = run(helped(FedAvg(quorum=0.4, max_attempts=2)), grid_of(on_reply=on_reply), events=events)
    assert distance(result, plain_mean([1, 2, 4, 5])) < 2e-6
    first, second = [event for event in events if event["event"] == "secure_aggregation"]
    assert (first["suspects"], first["survivors"]) == (["node-3"], 0)
    assert (second["cohort"], second["survivors"]) == (4, 4)


def test_a_helper_that_sends_something_else_than_its_masks_is_found_out_by_the_check_ones() -> None:
    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == HELPER and stage_of(message) is Stage.UNMASK:
            [key] = reply.content.array_records
            words = to_named(reply.content.array_records[key])["vector"]
            reply.content[key] = ArrayRecord({"vector": Array(np.roll(words, 1))})
        return reply

    with pytest.raises(QuorumError, match="masks did not cancel"):
        run(helped(), grid_of(on_reply=on_reply))


# -- The malicious tier --------------------------------------------------------------------------------


def test_a_client_with_a_roster_of_helpers_takes_part_in_no_honest_but_curious_round(tmp_path: Path) -> None:
    grid = grid_of(configs={node: c for node, c in operators(tmp_path).items() if node not in HELPERS})
    with pytest.raises(QuorumError):
        run(helped(), grid)
    refused = [r for r in grid.replies if r.has_error() and "malicious-tier rounds only" in r.error.reason]
    assert len(refused) == 5


def test_nodes_without_rosters_take_part_in_no_malicious_round() -> None:
    with pytest.raises(QuorumError, match="no roster of its peers"):
        run(helped(tier="malicious"), grid_of())


def test_a_helper_of_the_servers_is_refused_by_clients_and_left_out_with_the_operators_roster(
    tmp_path: Path,
) -> None:
    configs = operators(tmp_path, 5, 2)
    make_identity(tmp_path / "own")
    configs[6] = {**configs[6], "secagg-identity": str(tmp_path / "own" / PRIVATE_KEY)}
    with pytest.raises(QuorumError, match="node 6 has an identity that is not in this node's roster"):
        run(helped(tier="malicious"), grid_of(configs=configs))
    configs[8] = {**operators(tmp_path / "more", 5, 3)[8], "secagg-role": "helper"}
    known = tmp_path / "known.toml"
    keys = {n: (tmp_path / f"node-{n}" / "secagg_identity.pub").read_text() for n in (7,)}
    keys[8] = (tmp_path / "more" / "node-8" / "secagg_identity.pub").read_text()
    write_roster(known, {f"h{n}": bytes.fromhex(key.strip()) for n, key in keys.items()})
    for node in range(1, 6):
        configs[node] = {**configs[node], "secagg-helpers": str(known)}
    configs[8]["secagg-roster"] = configs[7]["secagg-roster"]
    grid = grid_of(num_helpers=3, configs=configs)
    result = run(helped(tier="malicious", roster=str(known)), grid)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6


def test_a_client_that_the_helpers_do_not_know_ends_an_attempt_and_is_left_out_of_the_next(
    tmp_path: Path,
) -> None:
    configs = operators(tmp_path)
    make_identity(tmp_path / "sybil")
    configs[4]["secagg-identity"] = str(tmp_path / "sybil" / PRIVATE_KEY)
    strategy = helped(FedAvg(quorum=0.4, max_attempts=2), tier="malicious")
    result = run(strategy, grid_of(configs=configs))
    assert distance(result, plain_mean([1, 2, 3, 5])) < 2e-6
