"""The reply of a cohort node: one message in, one judged reply per virtual client out.

Where a fault can be told to be one client's (its row is NaN, its number of examples absurd), only that client
is refused. Where it cannot (another number of rows than of names, two rows for one name), the whole node is;
and a pre-aggregated sum is always used whole or not at all, for nothing can be taken out of it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message

from fl_plugins import wire
from fl_plugins.aggregation.streaming import WeightedSum
from fl_plugins.errors import ReplyError, StructureError
from fl_plugins.finiteness import Range
from fl_plugins.records import Layout
from fl_plugins.training import NamedArrays

from .options import Settings
from .replies import (
    ClientReply,
    NonFiniteReplyError,
    check_finite,
    check_metrics,
    failed,
    only_arrays,
    only_metrics,
    take_num_examples,
)


@dataclass(frozen=True, kw_only=True)
class NodeReply:
    """What became of every client of a node: its usable reply, or why there is none."""

    outcomes: dict[str, ClientReply | ReplyError] = field(default_factory=dict)
    total: WeightedSum | None = None
    """Σ wᵢ·updateᵢ of all usable replies, whose arrays are then empty; ``None`` if each has its own."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a cohort node was asked for.

    Parameters
    ----------
    clients : Sequence[str]
        Those of its virtual clients that are in the cohort.
    form : str, optional
        :data:`fl_plugins.wire.EACH` or ``SUM``; ``None``: no arrays (evaluation).
    base, layout, ranges
        The parameters that were sent, and what is known of them.
    weighted : bool
        Whether updates are weighted by number of examples, so that every client must say its own.
    """

    clients: Sequence[str]
    form: str | None
    base: NamedArrays
    layout: Layout
    ranges: Mapping[str, Range]
    settings: Settings
    weighted: bool


def read_node_reply(message: Message, asked: Asked) -> NodeReply:
    """Judge a cohort node's reply; every client that was asked has an outcome, and no other.

    Raises
    ------
    ReplyError
        If the reply can be used for none of its clients.
    """
    if message.has_error():
        raise failed(message.error.reason)
    config = _only_config(message)
    rows = _names(config, wire.CLIENTS)
    if asked.form is not None and config.get(wire.FORM) != asked.form:
        raise ReplyError(
            f"the reply has {wire.FORM}={config.get(wire.FORM)!r}, but {asked.form!r} was asked for"
        )
    outcomes: dict[str, ClientReply | ReplyError] = dict(_failures(config))
    _check_names([*rows, *outcomes], asked.clients)
    metrics = _metric_rows(message, len(rows))
    node = message.metadata.src_node_id
    total = None
    stacked: NamedArrays = {}
    if asked.form == wire.EACH:
        stacked = _stacked(message, len(rows), asked.layout)
    elif asked.form == wire.SUM:
        total = _sum(message, asked.layout)
    for index, client in enumerate(rows):
        arrays = {key: values[index] for key, values in stacked.items()}
        try:
            outcomes[client] = _one(client, node, arrays, metrics[index], asked)
        except ReplyError as error:
            if total is not None:
                raise ReplyError(f"client {client} in the node's sum: {error}") from error
            outcomes[client] = error
    for client in asked.clients:
        outcomes.setdefault(client, ReplyError("the node's reply says nothing of this client"))
    return NodeReply(outcomes=outcomes, total=total)


def _one(
    client: str, node: int, arrays: NamedArrays, reported: Mapping[str, Any], asked: Asked
) -> ClientReply:
    """Judge one client's part."""
    if asked.form == wire.EACH:
        check_finite(arrays, asked.base, asked.ranges, asked.layout)
    metrics = check_metrics(reported)
    settings = asked.settings
    examples = take_num_examples(
        metrics, settings.weighted_by_key, settings.max_num_examples, required=asked.weighted
    )
    return ClientReply(client, node, arrays, examples, metrics)


def _only_config(message: Message) -> ConfigRecord:
    """Return the reply's only ConfigRecord."""
    records = list(message.content.config_records.values())
    if len(records) != 1:
        raise ReplyError(
            f"the cohort node's reply has {len(records)} ConfigRecords, but exactly one is expected"
        )
    return records[0]


def _names(config: ConfigRecord, key: str) -> list[str]:
    """Return a list of virtual clients as names."""
    value = config.get(key, [])
    if not isinstance(value, list) or not all(type(client) is int for client in value):
        raise ReplyError(f"the reply has {key}={str(value)[:80]}, but a list of whole numbers is expected")
    return [str(client) for client in value]


def _failures(config: ConfigRecord) -> dict[str, ReplyError]:
    """Return why clients have no result, as their node says."""
    clients, reasons = _names(config, wire.FAILED), config.get(wire.REASONS, [])
    if not isinstance(reasons, list) or len(reasons) != len(clients):
        raise ReplyError(f"the reply names {len(clients)} failed clients, but not as many reasons")
    non_finite = set(_names(config, wire.NON_FINITE))
    return {
        client: NonFiniteReplyError(str(reason)[:300]) if client in non_finite else failed(str(reason))
        for client, reason in zip(clients, reasons, strict=True)
    }


def _check_names(names: Sequence[str], asked: Sequence[str]) -> None:
    """Raise unless every name was asked for and comes once."""
    if surplus := set(names).difference(asked):
        raise ReplyError(f"the reply speaks for client {min(surplus)}, which this node was not asked for")
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ReplyError(f"the reply names client {twice} twice")


def _metric_rows(message: Message, m: int) -> list[dict[str, Any]]:
    """Return every client's metrics."""
    columns: dict[str, list[Any]] = {}
    for key, values in only_metrics(message).items():
        if not isinstance(values, list) or len(values) != m:
            raise ReplyError(f"metric {key!r} is not a list of {m} numbers, one for each client of the reply")
        columns[key] = values
    return [{key: values[index] for key, values in columns.items()} for index in range(m)]


def _stacked(message: Message, m: int, layout: Layout) -> NamedArrays:
    """Return the arrays with their leading client axis, checked against the model."""
    try:
        arrays = only_arrays(message)
        for key, values in arrays.items():
            if values.ndim == 0 or len(values) != m:
                raise ReplyError(
                    f"array {key!r} has shape {values.shape}, but its first axis must be the {m} clients "
                    "of the reply"
                )
        # A row's shape and dtype are every row's; with no row at all there is nothing to check.
        if m:
            layout.check({key: values[0] for key, values in arrays.items()}, owner="the cohort's reply")
    except StructureError as error:
        raise ReplyError(str(error)) from error
    return arrays


def _sum(message: Message, layout: Layout) -> WeightedSum:
    """Return the node's sum, which must be finite."""
    try:
        arrays = only_arrays(message)
        if set(arrays) != {wire.HIGH, wire.LOW}:
            raise ReplyError(
                f"a sum has the arrays {wire.HIGH!r} and {wire.LOW!r}, but {sorted(arrays)} came"
            )
        total = WeightedSum(arrays[wire.HIGH], arrays[wire.LOW])
    except StructureError as error:
        raise ReplyError(str(error)) from error
    if total.high.shape != (layout.size,):
        raise ReplyError(f"the sum has {total.high.size} elements, but the model has {layout.size}")
    if not (np.isfinite(total.high).all() and np.isfinite(total.low).all()):
        raise NonFiniteReplyError("the node's sum is NaN or infinite")
    return total
