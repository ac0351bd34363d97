"""What a node does with a train or evaluate message, in the ClientApp's process or in its node's worker.

Everything that takes long to import is imported from here, so :mod:`.client_app` imports it only where it is
needed (:mod:`fl_plugins.resident`).
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from .. import wire
from ..errors import ReplyError
from ..records import from_named, to_named
from ..training import NamedArrays, SeesParameters
from .cohort_node import clients_in, evaluate_cohort, train_cohort
from .config import hosted
from .cores import one_device_per_core
from .layers import config_here
from .one_client import train_one
from .simulated import data_of
from .stack import client_stack, partition


def train(message: Message, context: Context) -> RecordDict:
    """Train from the received parameters and reply with the new ones."""
    config = config_here(context)
    asked, received = _read(message)
    number = _round_in(asked)
    if config.virtual_clients:
        one_device_per_core(config.in_process_cores)
    stack = client_stack(config)
    partition_id, num_partitions = data_of(context)
    if isinstance(stack.attack, SeesParameters):
        stack.attack.observe(received, number=number)
    if config.virtual_clients:
        clients = clients_in(asked, hosted(config, partition_id, num_partitions))
        return train_cohort(config, stack, received, clients, number=number, asked=asked)
    result = train_one(config, stack, received, partition_id, num_partitions, number=number)
    metrics = MetricRecord({wire.NUM_EXAMPLES: result.num_examples, **result.metrics})
    return RecordDict({wire.ARRAYS: from_named(result.arrays), wire.METRICS: metrics})


def evaluate(message: Message, context: Context) -> RecordDict:
    """Evaluate the received parameters on the client's validation data."""
    config = config_here(context)
    asked, received = _read(message)
    stack = client_stack(config)
    partition_id, num_partitions = data_of(context)
    if config.virtual_clients:
        clients = clients_in(asked, hosted(config, partition_id, num_partitions))
        return evaluate_cohort(config, stack, received, clients)
    data = partition(config, partition_id, num_partitions).validation
    metrics = stack.trainer.evaluate(received, data)
    return RecordDict({wire.METRICS: MetricRecord({wire.NUM_EXAMPLES: len(data), **metrics})})


def _read(message: Message) -> tuple[ConfigRecord, NamedArrays]:
    """Return the config and the parameters of a train or evaluate message."""
    content = message.content
    config = content.config_records.get(wire.CONFIG, ConfigRecord())
    wire.check_schema(config)
    if len(content.array_records) != 1:
        raise ReplyError(
            f"the message has {len(content.array_records)} ArrayRecords, but exactly one is expected; use a "
            "strategy that sends the global parameters."
        )
    return config, to_named(next(iter(content.array_records.values())))


def _round_in(config: ConfigRecord) -> int:
    """Return the round that a message is of."""
    number = config.get(wire.SERVER_ROUND, 0)
    return int(number) if isinstance(number, int | float) else 0


def prepare(context: Context) -> None:
    """Build what the run needs before its first message comes; no client's data are read."""
    client_stack(config_here(context))


HANDLERS: dict[str, Callable[[Message, Context], RecordDict]] = {"train": train, "evaluate": evaluate}
"""What a worker may be asked for, by name."""
