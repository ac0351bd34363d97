"""One-run audit of a layer that protects each client from the server: what the server sees is every reply.

Each of the clients is a canary of its own: a fair coin says whether its update is far in one direction or far
in the opposite one, in all rounds; that is adjacency ``replace``. Between the app that answers so and the
server is the layer, as it runs at a node. Two further runs in which nobody has an update tell whether the
noise repeats itself, see :mod:`.canaries`.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from .. import wire
from ..checks import check_int
from ..errors import ConfigError, ContractError
from ..privacy import Accountant, Adjacency, Everyone, Gaussian, NoiseSource, Release
from ..records import from_named, to_named
from ._grid import AuditGrid, quiet
from .canaries import centered, repeats
from .findings import Finding

Floats = NDArray[np.float64]

_KEY = "params/w"
_FAR = 1e9
"""Length of a client's update in clip norms, before it is clipped."""


@runtime_checkable
class PrivateLayer(Protocol):
    """What an audit asks of a layer: a Flower mod that says what one reply through it tells."""

    clip_norm: float
    delta: float

    @property
    def release(self) -> Release:
        """What one reply tells, for adjacency ``replace``."""
        ...

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Serve a message."""
        ...


def audit_layer(
    make: Callable[[], object], *, num_clients: int, num_rounds: int = 1, confidence: float = 0.95
) -> Finding:
    """Return what the server learns from every client's replies, beside what the layer accounts for them.

    Parameters
    ----------
    make : callable
        Returns the layer: ``local_dp``'s mod, for one.
    num_clients : int
        How many canaries there are; each has a node, and a state, of its own.
    num_rounds : int
        How many replies each gives.
    confidence : float
        With what probability the lower bounds are true.

    Raises
    ------
    ContractError
        If it is no layer whose release is known, or that release is for another adjacency.
    ConfigError
        If a reply does not come.
    """
    check_int("audit", "num_clients", num_clients, minimum=1)
    check_int("audit", "num_rounds", num_rounds, minimum=1)
    layer = make()
    if not isinstance(layer, PrivateLayer):
        raise ContractError(
            f"audit: {type(layer).__name__} does not say what a reply tells (release, clip_norm, delta); "
            "audit clients.mods.local_dp.LocalDp(…), or a mod with these."
        )
    release = layer.release
    if release.relation.adjacency is not Adjacency.REPLACE:
        raise ContractError(
            f"audit: {type(layer).__name__} accounts for {release.relation}, but a reply is sent in both of "
            "two neighbouring runs; account for adjacency replace."
        )
    coins = NoiseSource().bernoulli(0.5, num_clients)
    seen = _replies(layer, np.where(coins, 1.0, -1.0), num_rounds)
    first, second = (_replies(make(), np.zeros(num_clients), num_rounds) for _ in range(2))
    if repeats(first, second):
        seen = seen - first
    accountant = Accountant(release.relation)
    accountant.compose(release, num_rounds)
    report = accountant.report(layer.delta)
    return Finding.of(
        centered(seen.sum(axis=0)),
        coins,
        relation=release.relation,
        delta=layer.delta,
        confidence=confidence,
        accounted=report.epsilon,
        account=str(report),
        gaussian=isinstance(release.mechanism, Gaussian) and isinstance(release.sampling, Everyone),
    )


def _replies(layer: object, does: Floats, num_rounds: int) -> Floats:
    """Return the updates that arrive, in clip norms, ``(rounds, clients)``; client i means ``does[i]``."""
    assert isinstance(layer, PrivateLayer), "checked before"
    clip_norm = layer.clip_norm

    def train(message: Message, context: Context) -> Message:
        model = to_named(next(iter(message.content.array_records.values())))[_KEY]
        client = int(context.node_config[wire.PARTITION_ID])
        moved = from_named({_KEY: model + does[client] * _FAR * clip_norm})
        return Message(RecordDict({wire.ARRAYS: moved, wire.METRICS: MetricRecord({})}), reply_to=message)

    def serve(message: Message, context: Context) -> Message:
        return layer(message, context, train)

    def asked(node: int, number: int) -> Message:
        arrays: ArrayRecord = from_named({_KEY: np.zeros(1)})
        config = ConfigRecord({wire.SERVER_ROUND: number})
        return Message(RecordDict({wire.ARRAYS: arrays, wire.CONFIG: config}), node, MessageType.TRAIN)

    seen = np.empty((num_rounds, len(does)))
    with quiet(), AuditGrid(serve, len(does)) as grid:
        for number in range(1, num_rounds + 1):
            for reply in grid.send_and_receive([asked(node, number) for node in grid.get_node_ids()]):
                if reply.has_error():
                    raise ConfigError(f"audit: a reply of round {number} did not come: {reply.error.reason}")
                update = to_named(next(iter(reply.content.array_records.values())))[_KEY]
                seen[number - 1, reply.metadata.src_node_id - 1] = float(update[0]) / clip_norm
    return seen
