"""A federation in one process whose messages can be watched, lost and falsified, one by one."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from clients.mods.secure_aggregation import secure_aggregation_mod
from fl_plugins import wire
from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.secagg import Stage
from fl_plugins.secure_round import STAGES
from fl_plugins.testing import InProcessGrid
from strategies import FedAvg, SecureAggregation

MODEL = {
    "params/w": np.linspace(-1, 1, 600, dtype=np.float32).reshape(30, 20),
    "params/b": np.zeros(7, np.float64),
    "params/h": np.ones((2, 3), np.float16),
}
EXAMPLES = {node: 10 * node for node in range(1, 20)}
LOSS = 0.123456789


def initial() -> ArrayRecord:
    """Return the first parameters."""
    return ArrayRecord({key: Array(value) for key, value in MODEL.items()})


def update_of(node: int, key: str, number: int = 1) -> Any:
    """Return what a node learns in a round: far from what any other learns."""
    rng = np.random.default_rng([node, number, *key.encode()])
    return rng.uniform(-0.5, 0.5, MODEL[key].shape)


def trainer(
    *, extra: Mapping[str, Any] | None = None, change: Callable[[int, Any], Any] | None = None
) -> Any:
    """Return the function of a stock app: it knows nothing of secure aggregation."""

    def train(message: Message, context: Context) -> Message:
        received = {key: array.numpy() for key, array in message.content["arrays"].items()}  # type: ignore[union-attr]
        number = int(message.content["config"]["server-round"])  # type: ignore[arg-type, index]
        node = context.node_id
        arrays = {
            key: (value + update_of(node, key, number)).astype(value.dtype) for key, value in received.items()
        }
        if change is not None:
            arrays = change(node, arrays)
        records = {
            "arrays": ArrayRecord({key: Array(value) for key, value in arrays.items()}),
            "metrics": MetricRecord({"num-examples": EXAMPLES[node], "loss": LOSS * node, **(extra or {})}),
        }
        return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]

    return train


def stock_app(train: Any = None, *, mod: bool = True) -> ClientApp:
    """Return anyone's ClientApp, with the mod."""
    app = ClientApp(mods=[secure_aggregation_mod] if mod else [])
    app.train()(train or trainer())

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        node = context.node_id
        numbers = {
            "num-examples": EXAMPLES[node],
            "loss": LOSS * node,
            "accuracy": node / 20,
            "secret": 4711.0,
        }
        record = MetricRecord(numbers)  # type: ignore[arg-type]
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return app


class Clock:
    """Stands in for ``time`` in exchanges: :meth:`skip` is an hour of waiting."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def monotonic(self) -> float:
        """Return the time with what was skipped."""
        return time.monotonic() + self.skipped

    def sleep(self, _: float) -> None:
        """Do not."""

    def skip(self) -> None:
        """Let every deadline pass."""
        self.skipped += 3600.0


CLOCK = Clock()


class WatchedGrid(InProcessGrid):
    """Keeps every reply; nodes may fall silent at a stage, and messages may be changed on their way."""

    def __init__(self, client_app: Any = None, num_nodes: int = 5, **options: Any) -> None:
        self.silent_at: Mapping[Stage, Iterable[int]] = options.pop("silent_at", {})
        self.attempts_cut: int = options.pop("attempts_cut", 10**9)
        self.on_request: Callable[[Message], Message | None] | None = options.pop("on_request", None)
        self.on_reply: Callable[[Message, Message], Message] | None = options.pop("on_reply", None)
        super().__init__(client_app or stock_app(), num_nodes, **options)
        self.replies: list[Message] = []
        self.asked: list[tuple[int, Stage]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; those to a node that is silent at their stage are lost."""
        identifiers = list(super().push_messages(messages))
        for identifier in identifiers:
            message = self._waiting[identifier]
            stage, node = stage_of(message), message.metadata.dst_node_id
            self.asked.append((node, stage))
            first_attempts = self.asked.count((node, Stage.ADVERTISE)) <= self.attempts_cut
            if first_attempts and node in self.silent_at.get(stage, ()):
                del self._waiting[identifier]
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Serve a message; if all that are asked for are lost, the deadline passes at once."""
        replies = list(super().pull_messages(message_ids))
        if not replies:
            CLOCK.skip()
        return replies

    def _serve(self, message: Message) -> Message:
        request = message if self.on_request is None else self.on_request(message)
        reply = super()._serve(request or message)
        if self.on_reply is not None:
            reply = self.on_reply(message, reply)
        self.replies.append(reply)
        return reply


def stage_of(message: Message) -> Stage:
    """Return the stage of a train message."""
    return STAGES[int(message.content.config_records["config"].get(wire.STAGE, 0))]  # type: ignore[arg-type]


def secure(inner: Any = None, **options: Any) -> SecureAggregation:
    """Return the strategy of most tests."""
    inner = inner or FedAvg(quorum=0.4, max_attempts=1)
    given = {"max_weight": 1000.0, "stage_timeout_s": 60.0, "clip": 0.6, **options}
    return SecureAggregation(inner, **given)


def run(
    strategy: Any,
    grid: Any = None,
    *,
    num_rounds: int = 1,
    events: list[dict[str, Any]] | None = None,
    **options: Any,
) -> Result:
    """Run rounds and return the result; events go into the list."""

    def emit(event: str, /, **fields: Any) -> None:
        if events is not None:
            events.append({"event": event, **fields})

    with grid or WatchedGrid() as opened:
        given = {"timeout_s": 60.0, "seed": 1, "emit": emit, **options}
        return strategy.run(opened, initial(), RunOptions(num_rounds=num_rounds, **given))


def plain_mean(nodes: Iterable[int], *, uniform: bool = False) -> dict[str, Any]:
    """Return the parameters after one plain round, in float64."""
    nodes = list(nodes)
    weights = np.array([1.0 if uniform else float(EXAMPLES[node]) for node in nodes])
    weights /= weights.sum()
    result = {}
    for key, base in MODEL.items():
        replies = [(base + update_of(node, key)).astype(base.dtype).astype(np.float64) for node in nodes]
        updates = [reply - base.astype(np.float64) for reply in replies]
        result[key] = base.astype(np.float64) + sum(w * u for w, u in zip(weights, updates, strict=True))
    return result


def distance(result: Result, expected: Mapping[str, Any]) -> float:
    """Return the largest difference of the wide arrays; half-precision ones are rounded at the end."""
    named = to_named(result.arrays)
    return max(
        float(np.abs(named[key].astype(np.float64) - expected[key]).max())
        for key in expected
        if named[key].dtype != np.float16
    )


def config_of(message: Message) -> ConfigRecord:
    """Return a message's config."""
    return message.content.config_records["config"]
