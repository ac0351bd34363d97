"""The ready-made ClientApp: trains and evaluates the task that the run config names.

An expected failure (an empty partition, a parameter out of range, parameters of another model) is answered
with an error reply that says what is wrong in one line; the server goes on with the other clients.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from .. import wire
from .._flower_engine import prepare_engine
from ..errors import FLPluginsError
from ..resident.client import serve, warm_up
from ..resident.lifetime import deployed_node
from .config import RunConfig, hosted
from .layers import layers_mod, refuse
from .packed import packed_mod
from .simulated import data_of

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
    partition_id, num_partitions = data_of(context)
    warm_up(context)
    told: ConfigRecord = ConfigRecord({wire.CLIENT_ID: str(partition_id), wire.PARTITIONS: num_partitions})
    if config.virtual_clients:
        told = ConfigRecord({wire.CLIENT_IDS: hosted(config, partition_id, num_partitions)})
    told[wire.PACKS] = True
    return RecordDict({wire.CONFIG: told})


def _train(message: Message, context: Context) -> RecordDict:
    """Train from the received parameters and reply with the new ones: in the node's worker if it has one."""
    return serve("train", message, context, _here("train"))


def _evaluate(message: Message, context: Context) -> RecordDict:
    """Evaluate the received parameters on the client's validation data, like :func:`_train`."""
    return serve("evaluate", message, context, _here("evaluate"))


def _here(kind: str) -> Handler:
    """Return the handler for this process; importing it is what takes long."""

    def handle(message: Message, context: Context) -> RecordDict:
        from .serving import HANDLERS

        return HANDLERS[kind](message, context)

    return handle


if deployed_node() is None:
    # A process that stays, or has no worker to ask: it will need these, and better at once than in mid-run.
    from . import serving as serving
prepare_engine()

app = ClientApp(mods=[packed_mod, layers_mod])


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
