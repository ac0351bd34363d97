"""One reply at a time: read it, check it against the model, say what is wrong with it.

Flower checks all replies together and ends the run when one is malformed. Here each is judged alone and
an unusable one is refused with its reason; the round goes on with the others.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord
from numpy.typing import NDArray

from fl_plugins.errors import ReplyError, StructureError
from fl_plugins.finiteness import Range, find_non_finite, float_ranges
from fl_plugins.records import Layout, to_named
from fl_plugins.training import NamedArrays


class NonFiniteReplyError(ReplyError):
    """The reply's parameters are not finite: a broken client, or a model that has diverged for everyone."""


class FailedReplyError(ReplyError):
    """The client says itself that it has no result, and why."""


Metrics = dict[str, float | list[float]]


@dataclass(frozen=True)
class ClientReply:
    """A usable reply: ``arrays`` are the client's *parameters* (empty for an evaluation)."""

    client: str
    node: int
    arrays: NamedArrays
    num_examples: float | None
    metrics: Metrics


def read_reply(
    message: Message,
    client: str,
    *,
    base: NamedArrays | None,
    layout: Layout,
    examples_key: str,
    examples_required: bool,
    max_num_examples: int,
    ranges: Mapping[str, Range] | None = None,
) -> ClientReply:
    """Check one reply against the global parameters ``base``; ``None``: no arrays are expected (evaluation).

    ``ranges`` are those of ``base`` (:func:`float_ranges`), if the caller has them: they are the same for
    every reply of a round.

    Raises
    ------
    ReplyError
        With the reason: an error reply, a missing or surplus record, other keys, shapes or kinds of
        dtype, a non-finite value, or a number of examples that is not in ``(0, max_num_examples]``.
    """
    if message.has_error():
        raise failed(message.error.reason)
    arrays: NamedArrays = {}
    if base is not None:
        arrays = _read_arrays(message, base, float_ranges(base) if ranges is None else ranges, layout)
    metrics = check_metrics(only_metrics(message))
    num_examples = take_num_examples(metrics, examples_key, max_num_examples, required=examples_required)
    return ClientReply(client, message.metadata.src_node_id, arrays, num_examples, metrics)


def claimed_examples(replies: Sequence[ClientReply]) -> NDArray[np.float64]:
    """Return how many examples the clients say they have; all must say (float64, one a reply)."""
    return np.array([reply.num_examples for reply in replies], dtype=np.float64)


def mean_metrics(replies: Sequence[ClientReply], weights: Iterable[float] | None = None) -> Metrics:
    """Return the weighted mean of every metric over the replies that report it (in the commonest shape)."""
    counted = np.ones(len(replies)) if weights is None else weights
    return _combine(replies, lambda values, share: np.average(values, axis=0, weights=share), counted)


def median_metrics(replies: Sequence[ClientReply]) -> Metrics:
    """Return the median of every metric that at least half of the replies report: no minority decides one."""
    return _combine(
        replies,
        lambda values, _: np.median(values, axis=0),
        np.ones(len(replies)),
        least_reports=(len(replies) + 1) // 2,
    )


def to_metric_record(metrics: Mapping[str, float | list[float]]) -> MetricRecord:
    """Return Flower's record of ``metrics``."""
    return MetricRecord(dict(metrics))


def _combine(
    replies: Sequence[ClientReply],
    combine: Callable[[NDArray[np.float64], NDArray[np.float64]], Any],
    weights: Iterable[float],
    *,
    least_reports: int = 1,
) -> Metrics:
    """Combine metric by metric, over the replies whose value has the shape that most of them give it.

    A privacy loss is not combined by ``combine``: the largest counts, whoever reports it.
    """
    combined: Metrics = {}
    for key in dict.fromkeys(key for reply in replies for key in reply.metrics):
        shapes = Counter(np.shape(reply.metrics[key]) for reply in replies if key in reply.metrics)
        shape, _ = max(shapes.items(), key=lambda item: (item[1], item[0] == ()))
        reports = [
            (reply.metrics[key], weight)
            for reply, weight in zip(replies, weights, strict=True)
            if key in reply.metrics and np.shape(reply.metrics[key]) == shape
        ]
        largest = _is_privacy_loss(key)
        if largest or len(reports) >= least_reports:
            values = np.array([value for value, _ in reports], dtype=np.float64)
            share = np.array([weight for _, weight in reports])
            combined[key] = (values.max(axis=0) if largest else combine(values, share)).tolist()
    return combined


def _is_privacy_loss(key: str) -> bool:
    """Return whether a metric bounds what a client loses: only its maximum holds for all of them."""
    return key == "delta" or key.startswith("epsilon")


def failed(reason: str | None) -> FailedReplyError:
    """Return the error of a client that says that it has failed."""
    return FailedReplyError(f"the client failed: {_short(reason or 'no reason given')}")


def only_metrics(message: Message) -> MetricRecord:
    """Return the reply's only MetricRecord."""
    records = list(message.content.metric_records.values())
    if len(records) != 1:
        raise ReplyError(f"the reply has {len(records)} MetricRecords, but exactly one is expected")
    return records[0]


def check_metrics(reported: Mapping[str, Any]) -> Metrics:
    """Return one client's metrics as floats."""
    metrics: Metrics = {}
    for key, value in reported.items():
        numbers = [float(v) for v in value] if isinstance(value, list) else [float(value)]
        if not all(math.isfinite(number) for number in numbers):
            raise ReplyError(f"metric {key!r} is not finite ({value!r})")
        metrics[key] = numbers if isinstance(value, list) else numbers[0]
    return metrics


def take_num_examples(metrics: Metrics, key: str, most: int, *, required: bool) -> float | None:
    """Take the claimed number of examples out of ``metrics`` and check it."""
    value = metrics.pop(key, None)
    if value is None:
        if required:
            raise ReplyError(f"metric {key!r} is missing, but the updates are weighted by it")
        return None
    if isinstance(value, list) or not 0 < value <= most:
        raise ReplyError(f"metric {key!r} is {value!r}, but one number in (0, {most}] is expected")
    return value


def _read_arrays(
    message: Message, base: NamedArrays, ranges: Mapping[str, Range], layout: Layout
) -> NamedArrays:
    """Return the reply's only ArrayRecord, checked against the model; its update must be finite."""
    try:
        arrays = only_arrays(message)
        layout.check(arrays, owner="the reply")
    except StructureError as error:
        raise ReplyError(str(error)) from error
    check_finite(arrays, base, ranges, layout)
    return arrays


def only_arrays(message: Message) -> NamedArrays:
    """Return the reply's only ArrayRecord as views; raises ``StructureError`` if it is malformed."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise ReplyError(f"the reply has {len(records)} ArrayRecords, but exactly one is expected")
    return to_named(records[0])


def check_finite(arrays: NamedArrays, base: NamedArrays, ranges: Mapping[str, Range], layout: Layout) -> None:
    """Raise ``NonFiniteReplyError`` unless one client's parameters and their update are finite."""
    problem = find_non_finite(arrays, base, layout, ranges=ranges)
    if problem is not None:
        raise NonFiniteReplyError(problem)


def _short(reason: str) -> str:
    """Return the last line of a reason (Flower puts whole tracebacks there), at most 300 characters."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else reason)[:300]
