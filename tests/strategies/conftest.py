"""Stock Flower clients: they know nothing of fl-plugins and reply with full parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

Client = Callable[[Message, Context], Message]


def reply_with(
    message: Message, arrays: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None
) -> Message:
    """Return a reply as a stock client makes it."""
    records: dict[str, Any] = {}
    if arrays is not None:
        records["arrays"] = ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})
    if metrics is not None:
        records["metrics"] = MetricRecord(dict(metrics))
    return Message(RecordDict(records), reply_to=message)


def adding(delta: float | Callable[[int], float], *, examples: float = 10, loss: float = 1.0) -> Client:
    """Return a client that adds ``delta`` (or ``delta(partition)``) to every parameter."""

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "evaluate":
            return reply_with(message, None, {"num-examples": examples, "loss": loss})
        if message.metadata.message_type != "train":
            raise ValueError(f"No {message.metadata.message_type} function registered")
        step = delta(int(context.node_config["partition-id"])) if callable(delta) else delta
        received = next(iter(message.content.array_records.values()))
        arrays = {key: array.numpy() for key, array in received.items()}
        moved = {
            key: (value + np.asarray(step).astype(value.dtype)) if value.dtype.kind == "f" else value + 1
            for key, value in arrays.items()
        }
        return reply_with(message, moved, {"num-examples": examples, "loss": loss})

    return client


@pytest.fixture
def initial() -> ArrayRecord:
    """Two float arrays and a counter."""
    return ArrayRecord(
        {
            "params/w": Array(np.zeros((3, 2), np.float32)),
            "params/b": Array(np.ones((2,), np.float32)),
            "state/steps": Array(np.array(5, np.int64)),
        }
    )


@pytest.fixture
def make_client() -> Callable[..., Client]:
    return adding


@pytest.fixture
def make_reply() -> Callable[..., Message]:
    return reply_with
