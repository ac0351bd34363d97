"""Every record key, message type and schema version that crosses the network.

Train and evaluate messages look exactly like Flower's own (one ``ArrayRecord``, one ``ConfigRecord``;
replies with one ``ArrayRecord`` and one ``MetricRecord``), so that stock Flower clients and servers work
with ours. What we add rides in the ``ConfigRecord`` under keys that begin with ``fl-plugins.``. Between a
ServerApp of ours and nodes that say that they understand it, arrays travel packed (:mod:`.packing`).

A *cohort node* hosts many virtual clients. It is sent one message for all of those that are sampled, which
names them, and answers with one reply, in which every metric is a list: item i is that of client i.
"""

from collections.abc import Mapping
from typing import Any

from .errors import ReplyError

SCHEMA_VERSION = 1
"""Version of what this module describes; a client refuses a message with a newer one."""

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
"""Record keys; Flower's own defaults."""

NUM_EXAMPLES = "num-examples"
"""Metric in every reply: the number of examples that the client says it used."""

SERVER_ROUND = "server-round"
"""Config key in every train and evaluate message: the round, from 1."""

SCHEMA = "fl-plugins.schema"
"""Config key: :data:`SCHEMA_VERSION` of the sender."""

CLIENT_ID = "fl-plugins.client-id"
"""Config key in a roll-call reply: the client's stable name (its partition id)."""

PARTITIONS = "fl-plugins.partitions"
"""Config key in a roll-call reply: among how many clients this one's data were dealt (its num-partitions)."""

CLIENT_IDS = "fl-plugins.client-ids"
"""Config key in a cohort node's roll-call reply: its virtual clients, a list of whole numbers."""

CLIENTS = "fl-plugins.clients"
"""Config key to and from a cohort node: the virtual clients to serve; those that row i of the reply is of."""

FORM = "fl-plugins.form"
"""Config key to a cohort node: :data:`EACH` or :data:`SUM`; its reply says which it is."""

EACH = "each"
"""Every client's parameters: the model's arrays with one more axis in front, a row for each client."""

SUM = "sum"
"""Only Σ wᵢ·(parametersᵢ − global): the arrays :data:`HIGH` and :data:`LOW`."""

WEIGHTING = "fl-plugins.weighting"
"""Config key to a cohort node that is to sum: a value of :class:`fl_plugins.contracts.Weighting`."""

HIGH = "high"
LOW = "low"
"""Keys of a sum's two arrays, ``(d,)`` float64 each, the floats in the layout's order: see
:mod:`fl_plugins.aggregation.streaming`."""

FAILED = "fl-plugins.failed"
REASONS = "fl-plugins.reasons"
"""Config keys in a cohort node's reply: virtual clients without a result, and why, in the same order."""

NON_FINITE = "fl-plugins.non-finite"
"""Config key in a cohort node's reply: those of the failed whose update is NaN or infinite."""

LAYERS = "fl-plugins.layers"
"""Config key: the layers whose part the client must do (secure aggregation, local differential privacy), a
list of specs, the outermost first. A client that can or may not do one of them answers with an error."""

PROMISES = "fl-plugins.promises"
"""Config key: what the server says that it does on its own (noise on the sum), a list of specs. A node may
demand a promise; it cannot see whether it is kept."""

STAGE = "fl-plugins.stage"
"""Config key of the train messages that a layer sends after a round's first one: its stage, from 1."""

SECAGG = "fl-plugins.secagg"
"""Record key of secure aggregation: a ConfigRecord with :data:`SECAGG_BODY` in every message and reply of it,
an ArrayRecord with :data:`SECAGG_VECTOR` in the reply of the mask stage; in a node's state, the session."""

SECAGG_BODY = "body"
"""The stage's bytes, as :mod:`fl_plugins.secagg.messages` defines them."""

SECAGG_VECTOR = "vector"
"""The masked vector, one axis of uint16 or uint32."""

COHORT_SIZE = "fl-plugins.cohort-size"
"""Config key in train and evaluate messages: how many clients the server says it asked in this exchange."""

PACKED = "fl-plugins.packed"
"""Beginning of a record's key, and config key in it: arrays in few objects, see :mod:`fl_plugins.packing`."""

PACKS = "fl-plugins.packs"
"""Config key in a roll-call reply, true: this node understands packed arrays, and answers with such."""

ROLL_CALL = "query.roll_call"
"""Message type: the server asks a node who it is."""

PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"
"""Keys of a node's own config; Flower's simulation sets both."""


def check_schema(config: Mapping[str, Any]) -> None:
    """Refuse a message that is newer than this code; one without a schema is a stock Flower message.

    Raises
    ------
    ReplyError
        If the message's schema version is not a whole number from 1 to :data:`SCHEMA_VERSION`.
    """
    version = config.get(SCHEMA, SCHEMA_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise ReplyError(
            f"wire: the message has {SCHEMA}={version!r}, but this node understands 1 to {SCHEMA_VERSION}; "
            "install the same fl-plugins version on server and nodes."
        )
