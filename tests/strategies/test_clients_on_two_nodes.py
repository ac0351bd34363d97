"""A client that runs two nodes is one client for what bounds its influence, whatever the sampling."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from fl_plugins.wire import CLIENT_ID, ROLL_CALL
from strategies import DistributedDp, FedAvg
from strategies.roster import one_node_each

from .dp_support import MODEL, make

SAYS = ("0", "1", "0", "2")
"""What the nodes 1 to 4 say that they are."""


def app(message: Message, context: Context) -> Message:
    """Say a name, or send an update of ones."""
    if message.metadata.message_type == ROLL_CALL:
        name = SAYS[int(context.node_config["partition-id"])]
        return Message(RecordDict({"c": ConfigRecord({CLIENT_ID: name})}), reply_to=message)
    received = to_named(next(iter(message.content.array_records.values())))
    arrays = ArrayRecord({key: Array(np.asarray(value + 1)) for key, value in received.items()})
    return Message(RecordDict({"a": arrays, "m": MetricRecord({"num-examples": 1})}), reply_to=message)


@pytest.mark.parametrize(
    ("sampling", "given", "drawn"),
    [
        ("everyone", {"population": 4}, 3),
        ("poisson(rate=0.999999)", {"population": 4, "adjacency": "add_remove"}, 3),
        ("fixed_size(size=2)", {"population": 3, "adjacency": "replace"}, 2),
        ("min_separation(size=2, rounds=2)", {"population": 4}, 2),
    ],
)
def test_central_noise_is_for_one_node_of_each_client(sampling, given, drawn, caplog):
    strategy = make(sampling=sampling, **given)
    strategy.begin(RunOptions(num_rounds=1, roll_call=True), seed=0)
    model = ArrayRecord({key: Array(value) for key, value in MODEL.items()})
    with InProcessGrid(app, len(SAYS)) as grid:
        asked = [
            message.metadata.dst_node_id
            for message in strategy.configure_train(1, model, ConfigRecord(), grid)
            if message.metadata.message_type != ROLL_CALL
        ]
    assert set(asked) <= {1, 2, 4}
    assert len(asked) == drawn
    assert "1 nodes (the first is 3) say the name" in caplog.text


def test_noise_of_the_clients_is_for_one_node_of_each_client():
    strategy = DistributedDp(
        FedAvg(weighting="uniform"),
        unit="client",
        adjacency="zero_out",
        clip_norm=1.0,
        noise_multiplier=2.0,
        population=len(SAYS),
        delta=1e-5,
        min_clients=3,
    )
    strategy.begin(RunOptions(num_rounds=1, roll_call=True), seed=0)
    with InProcessGrid(app, len(SAYS)) as grid:
        clients, _ = strategy.draw(grid, "train", 1, 0)
    assert clients == {"0": 1, "1": 2, "2": 4}


def test_the_first_that_had_the_name_is_the_client_and_a_name_that_only_looks_alike_is_another():
    assert one_node_each({"0@7": 7, "0": 3, "ward@5": 8, "ward": 9}) == {"0": 3, "ward": 9, "ward@5": 8}
    assert one_node_each({"0@7": 7}) == {"0": 7}
