"""Rounds of a private strategy with scripted clients: what is released, and what one client changes in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import DpFedAvg, FedAvg

Behaviour = Callable[[dict[str, NDArray[Any]]], "dict[str, Any] | None"]
"""From the received parameters to those that are sent; ``None``: the client fails."""

MODEL: dict[str, NDArray[Any]] = {
    "params/b": np.array([1.0, -2.0, 0.5], np.float32),
    "params/scale": np.array(3.0, np.float32),
    "params/w": np.linspace(-1.0, 1.0, 12).reshape(4, 3),
}
"""float32, float64 and an array without axes; names are not in the order of sizes."""


QUIET = 1e-6
"""What the noise of :func:`make` is shrunk by."""


def plain(weighting: str = "uniform", **options: Any) -> FedAvg:
    return FedAvg(weighting=weighting, **options)


def make(inner: Any = None, **given: Any) -> DpFedAvg:
    """Return a private strategy whose randomness is a seed, and whose sums are not rounded visibly."""
    defaults: dict[str, Any] = {
        "unit": "client",
        "adjacency": "zero_out",
        "population": 6,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "insecure_seed": 7,
    }
    if "clip" in given:
        del defaults["clip_norm"]
    grid = given.pop("grid", False)
    strategy = DpFedAvg(plain() if inner is None else inner, **{**defaults, **given})
    if not grid:
        # The noise is on a grid of a thousandth of its size, which would hide how exact a shift is.
        strategy.mean = replace(strategy.mean, update_noise=strategy.mean.update_noise * QUIET)
    return strategy


def moving(direction: Mapping[str, Any] | float, *, norm: float) -> Behaviour:
    """Return a client whose update has that direction and norm."""

    def behave(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
        steps = {
            key: np.broadcast_to(
                np.float64(direction if isinstance(direction, float) else direction.get(key, 0.0)),
                value.shape,
            )
            for key, value in received.items()
            if value.dtype.kind == "f"
        }
        length = np.sqrt(sum(float((step**2).sum()) for step in steps.values()))
        return {
            # float64 replies: what is checked is the clipping, not what float32 rounds away.
            key: value + steps[key] * (norm / length) if key in steps else value
            for key, value in received.items()
        }

    return behave


def still(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Reply with the received parameters: a zero update."""
    return received


def failing(_: dict[str, NDArray[Any]]) -> None:
    """Reply with an error."""


@dataclass
class Round:
    """What one round released."""

    arrays: dict[str, NDArray[Any]]
    metrics: dict[str, Any]
    sent: list[Message] = field(default_factory=list)


def play(
    strategy: DpFedAvg,
    clients: Mapping[int, Behaviour],
    *,
    model: Mapping[str, NDArray[Any]] = MODEL,
    number: int = 1,
    silent: tuple[int, ...] = (),
    examples: Mapping[int, float] | None = None,
) -> Round:
    """Run one round in which the node with partition p behaves as ``clients[p]``, else as :func:`still`."""

    def app(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        received = to_named(next(iter(message.content.array_records.values())))
        sent = clients.get(partition, still)(received)
        if sent is None:
            raise ValueError("no data")
        arrays = ArrayRecord({key: Array(np.asarray(value)) for key, value in sent.items()})
        claimed = (examples or {}).get(partition, 10)
        metrics = MetricRecord({"num-examples": claimed, "loss": 0.125 * partition})
        return Message(RecordDict({"a": arrays, "m": metrics}), reply_to=message)

    if number == 1:
        strategy.begin(RunOptions(num_rounds=1), seed=0)
    record = ArrayRecord({key: Array(value) for key, value in model.items()})
    num_nodes = max([*clients, strategy.given.population - 1]) + 1
    with InProcessGrid(app, num_nodes, silent=silent) as grid:
        messages = list(strategy.configure_train(number, record, ConfigRecord(), grid))
        replies = grid.send_and_receive(messages)
        arrays, metrics = strategy.aggregate_train(number, replies)
    assert arrays is not None
    assert metrics is not None
    return Round(to_named(arrays), dict(metrics), messages)


def shift(one: Round, other: Round, strategy: DpFedAvg) -> float:
    """Return by how much the *sums* differ, given the same noise: the means times the denominator."""
    squares = [
        float(((one.arrays[key].astype(np.float64) - other.arrays[key].astype(np.float64)) ** 2).sum())
        for key in one.arrays
        if one.arrays[key].dtype.kind == "f"
    ]
    return float(np.sqrt(sum(squares))) * strategy.expected_cohort * strategy.given.mean_weight
