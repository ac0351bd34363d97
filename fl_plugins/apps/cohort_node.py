"""One node that is many clients: trains and evaluates the virtual clients that a message names.

Honest clients are trained together, in blocks that fit in memory, by a trainer that can
(:class:`fl_plugins.training.TrainsCohorts`); else, and if a block fails, one by one, so that a failure is
that of one client. Every client has the seeds and the data that it would have on a node of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from .. import wire
from ..aggregation.streaming import WeightedSum
from ..contracts import Weighting
from ..errors import FLPluginsError, ReplyError
from ..finiteness import find_non_finite, float_ranges, not_finite
from ..records import Layout, UpdateRows, from_named
from ..training import (
    ClientData,
    Dataset,
    NamedArrays,
    SumsCohorts,
    Trainer,
    TrainResult,
    TrainsCohorts,
)
from ._partition_cache import size_of
from .config import RunConfig
from .one_client import is_hostile, train_one, train_seed
from .stack import ClientStack, partition

BLOCK_BYTES = 128 << 20
"""What the models and the data of the clients that are trained together may take."""

_MODELS_PER_CLIENT = 4
"""Parameters, gradients, an optimizer's state and the result."""


@dataclass
class Outcome:
    """What a node has of its clients: their rows in order of ``clients``, and why others have none."""

    clients: list[int] = field(default_factory=list)
    num_examples: list[int] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    non_finite: list[int] = field(default_factory=list)

    def add(self, client: int, num_examples: int, metrics: Mapping[str, float]) -> None:
        """Take up one client's numbers."""
        self.clients.append(client)
        self.num_examples.append(int(num_examples))
        self.metrics.append(metrics)

    def fail(self, client: int, error: Exception) -> None:
        """Note why a client has no result."""
        self.failed[client] = f"{type(error).__name__}: {error}"

    def records(self, config: Mapping[str, Any]) -> dict[str, MetricRecord | ConfigRecord]:
        """Return what goes into the reply beside arrays; a metric that not all clients report is left out."""
        metrics: dict[str, int | float | list[int] | list[float]] = {wire.NUM_EXAMPLES: self.num_examples}
        for key in self.metrics[0] if self.metrics else ():
            if all(key in reported for reported in self.metrics):
                metrics[key] = [float(reported[key]) for reported in self.metrics]
        told = {
            wire.CLIENTS: self.clients,
            wire.FAILED: list(self.failed),
            wire.REASONS: list(self.failed.values()),
            wire.NON_FINITE: self.non_finite,
            **config,
        }
        return {wire.METRICS: MetricRecord(metrics), wire.CONFIG: ConfigRecord(told)}


def clients_in(asked: Mapping[str, Any], ours: Sequence[int]) -> list[int]:
    """Return the virtual clients that a message names.

    Raises
    ------
    ReplyError
        If it names none, or one that this node does not host.
    """
    clients = asked.get(wire.CLIENTS)
    if not isinstance(clients, list) or not clients:
        raise ReplyError(
            "this node hosts virtual clients, but the message does not say which to train; use a strategy of "
            "fl-plugins, or set virtual-clients=0."
        )
    if unknown := set(clients).difference(ours):
        raise ReplyError(
            f"virtual client {min(unknown)} is asked for, but this node hosts {ours[:3]}… ({len(ours)} "
            "in all); give all SuperNodes the same num-partitions and virtual-clients."
        )
    return clients


def train_cohort(
    config: RunConfig,
    stack: ClientStack,
    received: NamedArrays,
    clients: Sequence[int],
    *,
    number: int,
    asked: Mapping[str, Any],
) -> RecordDict:
    """Train ``clients`` from the received parameters and reply in the form that was asked for.

    Raises
    ------
    ReplyError
        If the form is unknown, or a sum is asked for of a model with integer arrays.
    """
    form = asked.get(wire.FORM, wire.EACH)
    outcome = Outcome()
    results = partial(_results, config, stack, received, clients, number, outcome)
    if form == wire.EACH:
        arrays = _stack_each(results(), received, outcome, len(clients))
    elif form == wire.SUM:
        weighting = Weighting(asked.get(wire.WEIGHTING, Weighting.UNIFORM))
        arrays = _sum_up(results, stack.trainer, received, outcome, weighting)
    else:
        raise ReplyError(
            f"the message asks for {wire.FORM}={form!r}, but it is {wire.EACH!r} or {wire.SUM!r}."
        )
    return RecordDict({wire.ARRAYS: from_named(arrays), **outcome.records({wire.FORM: form})})


def evaluate_cohort(
    config: RunConfig, stack: ClientStack, received: NamedArrays, clients: Sequence[int]
) -> RecordDict:
    """Evaluate the received parameters on the validation data of ``clients``."""
    outcome = Outcome()
    trainer = stack.trainer
    for block in _blocks(config, clients, received, outcome, lambda data: data.validation):
        together: Mapping[str, NDArray[Any]] | None = None
        if isinstance(trainer, TrainsCohorts):
            try:
                together = trainer.evaluate_cohort(received, list(block.values()))
            except FLPluginsError:
                together = None  # one client's fault: find out whose
        for index, (client, data) in enumerate(block.items()):
            try:
                if together is None:
                    metrics = trainer.evaluate(received, data)
                else:
                    metrics = {key: float(values[index]) for key, values in together.items()}
                outcome.add(client, len(data), metrics)
            except Exception as error:
                outcome.fail(client, error)
    return RecordDict(dict(outcome.records({})))


Results = Iterator[list[tuple[int, TrainResult]]]

TakesUp = Callable[[dict[int, Dataset], Sequence[int]], bool]
"""Trains clients, given with their seeds, and takes up what comes of it; false if it does not."""


def _results(
    config: RunConfig,
    stack: ClientStack,
    received: NamedArrays,
    clients: Sequence[int],
    number: int,
    outcome: Outcome,
    take_up: TakesUp = lambda *_: False,
) -> Results:
    """Yield the clients' results, block by block, which are views of a cohort's; not of what is taken up."""
    trainer = stack.trainer
    honest = [client for client in clients if not is_hostile(stack, client)]
    for block in _blocks(config, honest, received, outcome, lambda data: data.train):
        seeds = [train_seed(config, client, number) for client in block]
        if isinstance(trainer, TrainsCohorts):
            try:
                if take_up(block, seeds):
                    continue
                result = trainer.train_cohort(received, list(block.values()), seeds=seeds)
            except FLPluginsError:
                pass  # one client's fault: find out whose
            else:
                yield [
                    (
                        client,
                        TrainResult(
                            arrays={key: values[index] for key, values in result.arrays.items()},
                            num_examples=int(result.num_examples[index]),
                            metrics={key: float(values[index]) for key, values in result.metrics.items()},
                        ),
                    )
                    for index, client in enumerate(block)
                ]
                continue
        yield [pair for one in block for pair in _alone(config, stack, received, one, number, outcome)]
    for client in clients:
        if is_hostile(stack, client):
            yield _alone(config, stack, received, client, number, outcome)


def _alone(
    config: RunConfig, stack: ClientStack, received: NamedArrays, client: int, number: int, outcome: Outcome
) -> list[tuple[int, TrainResult]]:
    """Return one client's result, if it has one: whatever goes wrong is that client's failure alone."""
    try:
        result = train_one(config, stack, received, client, config.virtual_clients, number=number)
        Layout.of(received).check(result.arrays, owner="the trainer's result")
    except Exception as error:
        outcome.fail(client, error)
        return []
    return [(client, result)]


def _blocks(
    config: RunConfig,
    clients: Sequence[int],
    received: NamedArrays,
    outcome: Outcome,
    part: Callable[[ClientData], Dataset],
) -> Iterator[dict[int, Dataset]]:
    """Yield clients with their data, as many together as :data:`BLOCK_BYTES` allow; at least one."""
    model = _MODELS_PER_CLIENT * sum(values.nbytes for values in received.values())
    block: dict[int, Dataset] = {}
    used = 0
    for client in clients:
        try:
            data = part(partition(config, client, config.virtual_clients))
        except Exception as error:
            outcome.fail(client, error)
            continue
        if not len(data):  # it will fail, but not with all the others
            yield {client: data}
            continue
        needs = model + size_of(data)
        if block and used + needs > BLOCK_BYTES:
            yield block
            block, used = {}, 0
        block[client] = data
        used += needs
    if block:
        yield block


def _stack_each(results: Results, received: NamedArrays, outcome: Outcome, most: int) -> NamedArrays:
    """Return every client's parameters with the clients as first axis."""
    stacked: NamedArrays = {}
    for block in results:
        for client, result in block:
            if not stacked:
                stacked = {
                    key: np.empty((most, *values.shape), np.asarray(result.arrays[key]).dtype)
                    for key, values in received.items()
                }
            for key, rows in stacked.items():
                rows[len(outcome.clients)] = result.arrays[key]
            outcome.add(client, result.num_examples, result.metrics)
    if not stacked:
        stacked = {key: np.empty((0, *values.shape), values.dtype) for key, values in received.items()}
    return {key: rows[: len(outcome.clients)] for key, rows in stacked.items()}


def _sum_up(
    results: Callable[[TakesUp], Results],
    trainer: Trainer,
    received: NamedArrays,
    outcome: Outcome,
    weighting: Weighting,
) -> NamedArrays:
    """Return the weighted sum of all finite updates; clients with others are named instead."""
    layout = Layout.of(received)
    if layout.other_keys:
        raise ReplyError(
            f"a sum is asked for, but {layout.other_keys[0]!r} is of integers, which are not summed; ask for "
            f"{wire.EACH!r}."
        )
    ranges = float_ranges(received)
    total = WeightedSum.zeros(layout.size)
    weighted = weighting is Weighting.EXAMPLES

    def take_up(block: dict[int, Dataset], seeds: Sequence[int]) -> bool:
        if not isinstance(trainer, SumsCohorts):
            return False
        result = trainer.sum_cohort(received, list(block.values()), seeds=seeds, weighted=weighted)
        if result is None:
            return False
        for index, client in enumerate(block):
            if (key := result.not_finite.get(index)) is not None:
                outcome.failed[client] = not_finite(key, received[key].dtype)
                outcome.non_finite.append(client)
                continue
            metrics = {name: float(values[index]) for name, values in result.metrics.items()}
            outcome.add(client, int(result.num_examples[index]), metrics)
        for high, low in result.parts:
            vectors = (
                np.concatenate([half[name].reshape(-1) for name in layout.float_keys]) for half in (high, low)
            )
            total.merge(WeightedSum(*vectors))
        return True

    for block in results(take_up):
        usable = []
        for client, result in block:
            if (problem := find_non_finite(result.arrays, received, layout, ranges=ranges)) is None:
                usable.append(result)
                outcome.add(client, result.num_examples, result.metrics)
            else:
                outcome.failed[client] = problem
                outcome.non_finite.append(client)
        if usable:
            rows = UpdateRows(layout, received, [result.arrays for result in usable])
            weights = [float(result.num_examples) if weighted else 1.0 for result in usable]
            total.add_rows(rows, np.array(weights))
    return {wire.HIGH: total.high, wire.LOW: total.low}
