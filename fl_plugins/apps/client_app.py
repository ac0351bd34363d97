"""The ready-made ClientApp: trains and evaluates the task that the run config names.

An expected failure (an empty partition, a parameter out of range, parameters of another model) is answered
with an error reply that says what is wrong in one line; the server goes on with the other clients.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .. import wire
from .._flower import CLIENT_APP_ERROR
from ..errors import ConfigError, FLPluginsError, ReplyError
from ..records import Layout, from_named, to_named
from ..seeds import derive_seed
from ..training import Dataset, NamedArrays, SharesIdentity, TrainResult, TrainsVirtualClients
from .config import RunConfig
from .stack import ClientStack, client_stack, partition

Handler = Callable[[Message, Context], RecordDict]


def _answer(handler: Handler, message: Message, context: Context) -> Message:
    """Run ``handler``; turn an expected failure into an error reply."""
    try:
        return Message(handler(message, context), reply_to=message)
    except FLPluginsError as error:
        return Message(Error(CLIENT_APP_ERROR, f"{type(error).__name__}: {error}"), reply_to=message)


def _who_am_i(_: Message, context: Context) -> RecordDict:
    """Tell the server this node's stable name."""
    partition_id, _num = _partition_of(context)
    return RecordDict({wire.CONFIG: ConfigRecord({wire.CLIENT_ID: str(partition_id)})})


def _train(message: Message, context: Context) -> RecordDict:
    """Train from the received parameters and reply with the new ones."""
    config = RunConfig.from_run_config(context.run_config)
    number, received = _read(message)
    stack = client_stack(config)
    partition_id, num_partitions = _partition_of(context)
    hostile = stack.attack is not None and partition_id < stack.attack.num_byzantine
    if hostile and isinstance(stack.attack, SharesIdentity):
        partition_id = stack.attack.acts_as(partition_id)
    data = partition(config, partition_id, num_partitions).train
    seed = derive_seed(config.seed, "train", partition_id, number)
    result = (_train_hostile if hostile else _train_honest)(stack, received, data, seed=seed)
    metrics = MetricRecord({wire.NUM_EXAMPLES: result.num_examples, **result.metrics})
    return RecordDict({wire.ARRAYS: from_named(result.arrays), wire.METRICS: metrics})


def _evaluate(message: Message, context: Context) -> RecordDict:
    """Evaluate the received parameters on the client's validation data."""
    config = RunConfig.from_run_config(context.run_config)
    _, received = _read(message)
    stack = client_stack(config)
    data = partition(config, *_partition_of(context)).validation
    metrics = stack.trainer.evaluate(received, data)
    return RecordDict({wire.METRICS: MetricRecord({wire.NUM_EXAMPLES: len(data), **metrics})})


def _read(message: Message) -> tuple[int, NamedArrays]:
    """Return the round and the parameters of a train or evaluate message."""
    content = message.content
    config = content.config_records.get(wire.CONFIG, ConfigRecord())
    wire.check_schema(config)
    if len(content.array_records) != 1:
        raise ReplyError(
            f"the message has {len(content.array_records)} ArrayRecords, but exactly one is expected; use a "
            "strategy that sends the global parameters."
        )
    number = config.get(wire.SERVER_ROUND, 0)
    arrays = to_named(next(iter(content.array_records.values())))
    return int(number) if isinstance(number, int | float) else 0, arrays


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


def _train_honest(stack: ClientStack, received: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
    """Return what the trainer makes of ``data``."""
    return stack.trainer.train(received, data, seed=seed)


def _train_hostile(stack: ClientStack, received: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
    """Return what a hostile client sends: received + poisoned update, integer arrays as trained."""
    attack = stack.attack
    assert attack is not None
    keys = Layout.of(received).float_keys
    attack_seed = derive_seed(seed, "attack")
    data = attack.poison_data(data, num_classes=stack.task.num_classes)
    parts = attack.split_data(data, seed=attack_seed) if isinstance(attack, TrainsVirtualClients) else [data]
    results = [stack.trainer.train(received, part, seed=seed) for part in parts]
    updates = [
        {key: np.asarray(result.arrays[key]) - np.asarray(received[key]) for key in keys}
        for result in results
    ]
    if isinstance(attack, TrainsVirtualClients):
        update = attack.combine_updates(updates, seed=attack_seed)
    else:
        (update,) = updates
    poisoned = attack.poison_update(update, seed=attack_seed)
    arrays = {key: (received[key] + poisoned[key]).astype(received[key].dtype) for key in keys}
    return replace(results[0], arrays={**results[0].arrays, **arrays}, num_examples=len(data))


app = ClientApp()


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
