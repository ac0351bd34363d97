"""A server that lies, in Flower messages: each lie ends in a refusal, and with the client's state erased."""

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_plugins import wire
from fl_plugins._flower import server_identity
from fl_plugins.errors import QuorumError
from fl_plugins.secagg import RoundParameters, Stage
from fl_plugins.secagg.codec import Reader, Writer
from fl_plugins.secagg.messages import Advert, ShareRequest, UnmaskReply, UnmaskRequest
from fl_plugins.secure_identities import PRIVATE_KEY, make_identity, write_roster
from fl_plugins.secure_round import STAGES
from fl_plugins.spec import Spec, parse
from strategies import FedAvg

from .federation import (
    WatchedGrid,
    config_of,
    distance,
    initial,
    plain_mean,
    run,
    secure,
    stage_of,
    stock_app,
    trainer,
)

VICTIM = 1
Body = Callable[[bytes], bytes]


def body_of(message: Message) -> bytes:
    return message.content.config_records[wire.SECAGG][wire.SECAGG_BODY]  # type: ignore[return-value]


def with_body(message: Message, change: Body) -> Message:
    message.content.config_records[wire.SECAGG][wire.SECAGG_BODY] = change(body_of(message))
    return message


def attack(
    at: Stage, change: Callable[[Message], Message | None], *, num_nodes: int = 5, **options: Any
) -> tuple[WatchedGrid, dict[Stage, Message]]:
    """Run a round in which the victim's message of one stage is changed; return its replies by stage."""

    def on_request(message: Message) -> Message | None:
        if message.metadata.dst_node_id == VICTIM and stage_of(message) is at:
            return change(message)
        return message

    replies: dict[Stage, Message] = {}

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == VICTIM:
            replies[stage_of(message)] = reply
        return reply

    strategy = options.pop("strategy", None) or secure()
    grid = WatchedGrid(num_nodes=num_nodes, on_request=on_request, on_reply=on_reply, **options)
    with suppress(QuorumError):
        run(strategy, grid)
    return grid, replies


def assert_refused(grid: WatchedGrid, reply: Message, said: str) -> None:
    assert reply.has_error()
    assert said in reply.error.reason, reply.error.reason
    assert wire.SECAGG not in grid._contexts[VICTIM].state, "nothing is kept"


# -- The first message ---------------------------------------------------------------------------------


def lowered(**changes: Any) -> Callable[[Message], Message]:
    """Change parameters of the attempt, not the announcement."""

    def change(message: Message) -> Message:
        parameters = RoundParameters.from_bytes(body_of(message))
        values = {**vars(parameters), **changes}
        return with_body(message, lambda _: RoundParameters(**values).to_bytes())

    return change


def announced(**changes: Any) -> Callable[[Message], Message]:
    """Change the announcement, not the parameters."""

    def change(message: Message) -> Message:
        [text] = config_of(message)[wire.LAYERS]  # type: ignore[misc]
        spec = parse(str(text))
        config_of(message)[wire.LAYERS] = [str(Spec(spec.name, kwargs={**dict(spec.kwargs), **changes}))]  # type: ignore[arg-type]
        return message

    return change


def another_model(message: Message) -> Message:
    arrays = {key: array.numpy().copy() for key, array in message.content["arrays"].items()}  # type: ignore[union-attr]
    arrays["params/b"][0] += 1e-9
    message.content["arrays"] = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    return message


def other_layers(*names: str) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        [own] = config_of(message)[wire.LAYERS]  # type: ignore[misc]
        config_of(message)[wire.LAYERS] = [str(own) if name == "own" else name for name in names]
        return message

    return change


def without(key: str) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        del config_of(message)[key]
        return message

    return change


FIRST = {
    "fewer clients than announced": (lowered(min_clients=2), "min_clients=2, but the message announces 3"),
    "another clip than announced": (lowered(clip=0.5), "clip=0.5, but the message announces 0.6"),
    "a smaller ring than announced": (lowered(num_bits=16), "num_bits=16"),
    "no colluders reckoned with": (announced(corrupt=0.0), "corrupt="),
    "a model that only this client has": (another_model, "model is not that of the message"),
    "another run": (lowered(run_id=9), "run_id is not that of the message"),
    "another meaning of the vector": (announced(weighting="uniform"), "layout is not that"),
    "a metric slipped in": (announced(metrics=("loss",)), "layout is not that"),
    "no layer announced": (without(wire.LAYERS), "announces the layers []"),
    "another layer outside": (other_layers("recorder()", "own"), "must be there once, as the outermost"),
    "the layer twice": (other_layers("own", "own"), "must be there once"),
    "an unknown layer inside": (other_layers("own", "no_such_layer()"), "no_such_layer"),
    "no parameters": (lambda m: with_body(m, lambda _: b""), "no parameters of a round"),
}


@pytest.mark.parametrize("lie", FIRST)
def test_a_lie_in_the_first_message_is_refused_before_anything_is_trained(lie: str) -> None:
    change, said = FIRST[lie]
    trained: list[int] = []

    def train(message: Message, context: Any) -> Message:
        trained.append(context.node_id)
        return trainer()(message, context)  # type: ignore[no-any-return]

    grid, replies = attack(Stage.ADVERTISE, change, client_app=stock_app(train))
    assert_refused(grid, replies[Stage.ADVERTISE], said)
    assert VICTIM not in trained
    assert set(trained) == {2, 3, 4, 5}


def test_a_nodes_own_minimum_of_clients_cannot_be_lowered() -> None:
    grid, replies = attack(Stage.ADVERTISE, lambda m: m, node_configs={VICTIM: {"secagg-min-clients": 4}})
    assert_refused(grid, replies[Stage.ADVERTISE], "min_clients=3, but this node wants >= 4")
    grid, replies = attack(
        Stage.ADVERTISE,
        lambda m: m,
        strategy=secure(min_clients=2),
        node_configs={node: {"secagg-min-clients": 2} for node in (2, 3, 4, 5)},
    )
    assert_refused(grid, replies[Stage.ADVERTISE], "min_clients=2, but this node wants >= 3")


def test_a_round_is_never_begun_twice_and_never_goes_back() -> None:
    trained: list[int] = []

    def train(message: Message, context: Any) -> Message:
        trained.append(context.node_id)
        return trainer()(message, context)  # type: ignore[no-any-return]

    grid = WatchedGrid(stock_app(train), 4)
    run(secure(), grid, num_rounds=2)
    assert trained.count(VICTIM) == 2
    grid._identity = server_identity()
    with grid:
        for message in [m for m in grid.sent if m.metadata.dst_node_id == VICTIM]:
            if wire.STAGE not in config_of(message):
                (reply,) = grid.send_and_receive([message])
                assert_refused(grid, reply, "an attempt is never repeated")
    assert trained.count(VICTIM) == 2, "and it is not trained in vain"


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


def adverts(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Message], Message]:
    def on(body: bytes) -> bytes:
        request = ShareRequest.from_bytes(body)
        topology, items = request.topology, change(list(request.adverts))
        return ShareRequest(topology=topology, adverts=tuple(items)).to_bytes()

    return lambda message: with_body(message, on)


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


# -- The malicious tier --------------------------------------------------------------------------------


def operators(tmp_path: Path, listed: int, *, num_nodes: int | None = None) -> Mapping[int, dict[str, Any]]:
    """Return the nodes' own configs: an identity each, and one roster of the first ``listed``."""
    nodes = range(1, (num_nodes or listed) + 1)
    keys = {node: make_identity(tmp_path / f"node-{node}") for node in nodes}
    write_roster(tmp_path / "roster.toml", {f"node-{node}": keys[node] for node in range(1, listed + 1)})
    return {
        node: {
            "secagg-identity": str(tmp_path / f"node-{node}" / PRIVATE_KEY),
            "secagg-roster": str(tmp_path / "roster.toml"),
        }
        for node in nodes
    }


def malicious(**options: Any) -> Any:
    return secure(tier="malicious", **options)


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
