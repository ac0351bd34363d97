"""A server that lies in a round's first message: a refusal before anything is trained, and nothing kept."""

from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Message

from fl_plugins import wire
from fl_plugins._flower import server_identity
from fl_plugins.secagg import Stage

from .federation import (
    WatchedGrid,
    config_of,
    run,
    secure,
    stock_app,
    trainer,
)
from .lies import VICTIM, announced, assert_refused, attack, lowered, other_layers, with_body, without

# -- The first message ---------------------------------------------------------------------------------


def another_model(message: Message) -> Message:
    arrays = {key: array.numpy().copy() for key, array in message.content["arrays"].items()}  # type: ignore[union-attr]
    arrays["params/b"][0] += 1e-9
    message.content["arrays"] = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    return message


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
