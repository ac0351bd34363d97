"""What the secure layers share says in its errors which of them it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message

from fl_plugins import wire
from fl_plugins.errors import ConfigError, ContractError, QuorumError
from fl_plugins.run_options import RunOptions
from strategies import AdditiveAggregation, CkksAggregation, DistributedDp, FedAvg, SecureAggregation

from .additive import HelpedGrid
from .federation import WatchedGrid, run

UNIFORM: dict[str, Any] = {"max_attempts": 1, "quorum": 0.4, "weighting": "uniform"}
NOISY = {"unit": "client", "adjacency": "zero_out", "population": 6, "min_clients": 4, "delta": 1e-5}

LAYERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "secure_aggregation": (SecureAggregation, {}),
    "additive_aggregation": (AdditiveAggregation, {}),
    "ckks_aggregation": (CkksAggregation, {}),
    "distributed_dp": (DistributedDp, {**NOISY, "clip_norm": 1.0, "noise_multiplier": 1.0}),
}


def made(layer: str, inner: Any = None, **options: Any) -> Any:
    if layer == "ckks_aggregation":
        pytest.importorskip("tenseal", reason="the extra he is not installed")
    factory, given = LAYERS[layer]
    return factory(inner or FedAvg(**UNIFORM), **{**given, **options})


def grid_of(layer: str, **options: Any) -> WatchedGrid:
    """Return six nodes, of which two are helpers where there are any."""
    own = {node: {"secagg-role": "helper"} for node in (5, 6)} if layer == "additive_aggregation" else {}
    return HelpedGrid(num_nodes=6, node_configs=own, **options)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_strategy_refuses_names_its_layer(layer: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{layer}: stage_timeout_s"):
        made(layer, stage_timeout_s=0.0)
    with pytest.raises(ContractError, match=rf"^{layer}: virtual-clients"):
        made(layer).begin(RunOptions(num_rounds=1, roll_call=True, virtual_clients=9), seed=1)
    if layer != "distributed_dp":
        with pytest.raises(ConfigError, match=rf"^{layer}: clients are weighted"):
            made(layer, FedAvg())
    initial = ArrayRecord({"n": Array(np.ones(3, np.int32)), "params/w": Array(np.ones(3))})
    options = RunOptions(num_rounds=1, timeout_s=60.0, seed=1)
    with grid_of(layer) as grid, pytest.raises(ValueError, match=rf"^{layer}: .*'n'"):
        made(layer).run(grid, initial, options)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_node_refuses_names_the_layer_that_was_announced(layer: str) -> None:
    def without_body(message: Message) -> Message:
        first = wire.STAGE not in message.content.config_records["config"]
        if first and wire.SECAGG in message.content.config_records:
            message.content[wire.SECAGG] = ConfigRecord({"nothing": b""})
        return message

    with pytest.raises(QuorumError, match=layer):
        run(made(layer), grid := grid_of(layer, on_request=without_body))
    reasons = [reply.error.reason for reply in grid.replies if reply.has_error()]
    assert len(reasons) >= 4
    # A client of encrypted sums looks for its key first.
    said = "needs secagg-sum-key" if layer == "ckks_aggregation" else "the message has no"
    assert all(layer in reason and said in reason for reason in reasons)
    others = {"secure_aggregation", *LAYERS} - {layer}
    assert not any(other in reason for other in others for reason in reasons)


def test_a_reply_that_is_none_of_the_layers_is_refused_in_its_name() -> None:
    events: list[dict[str, Any]] = []

    def plain(message: Message, reply: Message) -> Message:
        if wire.STAGE not in message.content.config_records["config"] and not reply.has_error():
            reply.content["surplus"] = ConfigRecord({})
        return reply

    with pytest.raises(QuorumError, match="additive_aggregation: the reply of stage mask"):
        run(made("additive_aggregation"), grid_of("additive_aggregation", on_reply=plain), events=events)
    reasons = [event["reason"] for event in events if event["event"] == "reply"]
    assert len(reasons) == 4
    assert all(reason.startswith("additive_aggregation: the reply of stage mask") for reason in reasons)
