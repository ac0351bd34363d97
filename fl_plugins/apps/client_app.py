"""The ready-made ClientApp: trains and evaluates the task that the run config names.

An expected failure (an empty partition, a parameter out of range, parameters of another model) is answered
with an error reply that says what is wrong in one line; the server goes on with the other clients.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .. import wire
from ..errors import ConfigError, FLPluginsError, ReplyError
from ..records import from_named, to_named
from ..training import NamedArrays, SeesParameters
from .cohort_node import clients_in, evaluate_cohort, hosted, train_cohort
from .config import RunConfig
from .layers import layers_mod, refuse
from .one_client import train_one
from .stack import client_stack, partition

Handler = Callable[[Message, Context], RecordDict]


def _answer(handler: Handler, message: Message, context: Context) -> Message:
    """Run ``handler``; turn an expected failure into an error reply."""
    try:
        return Message(handler(message, context), reply_to=message)
    except FLPluginsError as error:
        return refuse(message, error)


def _who_am_i(_: Message, context: Context) -> RecordDict:
    """Tell the server this node's stable name, or the names of the virtual clients that it hosts."""
    config = RunConfig.from_run_config(context.run_config)
    partition_id, num_partitions = _partition_of(context)
    told: ConfigRecord = ConfigRecord({wire.CLIENT_ID: str(partition_id)})
    if config.virtual_clients:
        told = ConfigRecord({wire.CLIENT_IDS: hosted(config, partition_id, num_partitions)})
    return RecordDict({wire.CONFIG: told})


def _train(message: Message, context: Context) -> RecordDict:
    """Train from the received parameters and reply with the new ones."""
    config = RunConfig.from_run_config(context.run_config)
    asked, received = _read(message)
    number = _round_in(asked)
    stack = client_stack(config)
    partition_id, num_partitions = _partition_of(context)
    if isinstance(stack.attack, SeesParameters):
        stack.attack.observe(received, number=number)
    if config.virtual_clients:
        clients = clients_in(asked, hosted(config, partition_id, num_partitions))
        return train_cohort(config, stack, received, clients, number=number, asked=asked)
    result = train_one(config, stack, received, partition_id, num_partitions, number=number)
    metrics = MetricRecord({wire.NUM_EXAMPLES: result.num_examples, **result.metrics})
    return RecordDict({wire.ARRAYS: from_named(result.arrays), wire.METRICS: metrics})


def _evaluate(message: Message, context: Context) -> RecordDict:
    """Evaluate the received parameters on the client's validation data."""
    config = RunConfig.from_run_config(context.run_config)
    asked, received = _read(message)
    stack = client_stack(config)
    partition_id, num_partitions = _partition_of(context)
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


def _partition_of(context: Context) -> tuple[int, int]:
    """Return this node's partition id and the number of partitions, from the node's own config."""
    node_config = context.node_config
    try:
        partition_id, num_partitions = node_config[wire.PARTITION_ID], node_config[wire.NUM_PARTITIONS]
    except KeyError as error:
        raise ConfigError(
            f"node config: {error.args[0]!r} is missing, but the client must know its data; start the "
            "SuperNode with --node-config 'partition-id=0 num-partitions=4'."
        ) from None
    return int(partition_id), int(num_partitions)


app = ClientApp(mods=[layers_mod])


@app.query("roll_call")
def roll_call(message: Message, context: Context) -> Message:
    """Serve ``query.roll_call``."""
    return _answer(_who_am_i, message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Serve ``train``."""
    return _answer(_train, message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Serve ``evaluate``."""
    return _answer(_evaluate, message, context)
