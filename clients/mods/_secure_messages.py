"""What a node reads in messages of secure rounds, in its app's replies to them, and keeps in its state."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.additive_round import LAYER as ADDITIVE
from fl_plugins.apps.layers import message_config
from fl_plugins.ckks_round import LAYER as CKKS
from fl_plugins.errors import EncodingError, MessageFormatError, PolicyViolationError
from fl_plugins.node_policy import announcement
from fl_plugins.records import Layout, to_named
from fl_plugins.secagg import Progress, RoundParameters
from fl_plugins.secure_round import DISTRIBUTED, LAYER
from fl_plugins.training import NamedArrays

_LAYERS = frozenset({LAYER, DISTRIBUTED, ADDITIVE, CKKS})
"""Of these exactly one is announced, as the outermost."""

_PROGRESS = f"{wire.SECAGG}.progress"
"""Record in the node's state that stays: the last attempt that this node began."""

_SLICE = 1 << 20
"""Entries of an update that are computed at a time."""


def is_evaluation(message: Message) -> bool:
    """Whether a message begins an evaluation."""
    return message.metadata.message_type == MessageType.EVALUATE


def check_kind(message: Message, *, layer: str, evaluates: bool) -> None:
    """Refuse everything whose reply would show this client's numbers.

    Parameters
    ----------
    message : Message
        Any but a roll call.
    layer : str
        Who refuses.
    evaluates : bool
        Whether the layer sums evaluations too.

    Raises
    ------
    PolicyViolationError
        If it is neither training nor such an evaluation, or something else would come after the masks.
    """
    kind = message.metadata.message_type
    config = message_config(message)
    if kind != MessageType.TRAIN and not (evaluates and is_evaluation(message) and wire.STAGE not in config):
        raise PolicyViolationError(
            f"{layer}: a {kind!r} message, but what is summed is training, and evaluation if the layer's "
            'evaluate=["loss"] names metrics; name them, or evaluate at the server.'
        )
    names = [spec.name for spec in announcement(config, wire.LAYERS)]
    if not set(names[:1]) <= _LAYERS or sum(name in _LAYERS for name in names) != 1:
        raise PolicyViolationError(
            f"{layer}: the message announces the layers {names}, but secure aggregation must be there once, "
            "as the outermost; nothing was sent."
        )


def body_of(message: Message, *, layer: str) -> bytes:
    """Return the protocol's bytes in a message."""
    record = message.content.config_records.get(wire.SECAGG, ConfigRecord())
    body = record.get(wire.SECAGG_BODY)
    if not isinstance(body, bytes):
        raise MessageFormatError(
            f"{layer}: the message has no {wire.SECAGG} record with {wire.SECAGG_BODY}; use the strategy "
            f"{layer} of the same fl-plugins version."
        )
    return body


def received(message: Message, *, layer: str) -> NamedArrays:
    """Return the global parameters."""
    arrays = to_named(only(message.content.array_records.values(), "ArrayRecord", layer=layer))
    if others := Layout.of(arrays).other_keys:
        raise PolicyViolationError(
            f"{layer}: array {others[0]!r} is of integers, which are not summed; keep it out of the model."
        )
    return arrays


def only(records: Any, kind: str, *, layer: str) -> Any:
    """Return the only record of a kind."""
    found = list(records)
    if len(found) != 1:
        raise MessageFormatError(f"{layer}: {len(found)} {kind}s, but exactly one is expected.")
    return found[0]


def number(name: str, value: Any, *, layer: str) -> float:
    """Return a single number."""
    if isinstance(value, list):
        raise EncodingError(f"{layer}: metric {name!r} is a list, but one number is expected.")
    return float(value)


def update(arrays: NamedArrays, base: NamedArrays, layout: Layout) -> Iterator[NDArray[Any]]:
    """Yield reply − global in float64, in the layout's order, a slice at a time."""
    for key in layout.float_keys:
        after, before = np.asarray(arrays[key]).reshape(-1), np.asarray(base[key]).reshape(-1)
        for start in range(0, after.size, _SLICE):
            part = slice(start, start + _SLICE)
            yield after[part].astype(np.float64) - before[part].astype(np.float64)


def last_progress(context: Context) -> Progress | None:
    """Return the last attempt that this node began."""
    record = context.state.config_records.get(_PROGRESS)
    return None if record is None else Progress.from_bytes(bytes(record[wire.SECAGG_BODY]))  # type: ignore[arg-type]


def keep_progress(context: Context, parameters: RoundParameters) -> None:
    """Note that this node has begun an attempt."""
    context.state[_PROGRESS] = ConfigRecord({wire.SECAGG_BODY: Progress.of(parameters).to_bytes()})
