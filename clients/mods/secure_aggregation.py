"""The client's part of secure aggregation, as a Flower mod: what leaves the node is masked.

The first message of a round is a training message with the parameters of the attempt beside the model. The
app trains; its reply stays here. What is answered are public keys. Every later stage is a training message
without a model, which is answered from what waits in the node's state and never reaches the app: deployed,
each of them is served by a fresh process.

**Fail closed.** Only the records of the protocol leave the node, on any path. What the app replied, or why it
failed, goes to the node's own log: an error text can hold a number of examples or a loss.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.additive_round import LAYER as ADDITIVE
from fl_plugins.apps.layers import layers_mod, message_config, refuse
from fl_plugins.ckks_round import LAYER as CKKS
from fl_plugins.contracts import Weighting
from fl_plugins.errors import (
    EncodingError,
    FLPluginsError,
    MessageFormatError,
    PolicyViolationError,
    SecureAggregationError,
    StageError,
)
from fl_plugins.node_policy import announcement
from fl_plugins.records import Layout, from_ndarray, to_named
from fl_plugins.registry import Kind, register
from fl_plugins.secagg import ClientSession, Encoded, Progress, Reply, RoundParameters, Stage
from fl_plugins.secure_round import DISTRIBUTED, LAYER, SecureSettings, model_digest, stage_in
from fl_plugins.training import NamedArrays

from ._answered import Answered
from ._node_security import NodeSecurity

if TYPE_CHECKING:
    from fl_plugins.secagg.distributed_noise import EncodedShare

logger = logging.getLogger("flwr.fl_plugins")

_PROGRESS = f"{wire.SECAGG}.progress"
"""Record in the node's state that stays: the last attempt that this node began."""

_SID = "sid"
"""Beside a saved session: which attempt it is of."""

_LAYERS = frozenset({LAYER, DISTRIBUTED, ADDITIVE, CKKS})
"""Of these exactly one is announced, as the outermost."""

_SLICE = 1 << 20
"""Entries of an update that are computed at a time."""


class Session(Protocol):
    """What a node keeps between two stages of one attempt."""

    stage: Stage
    node: int
    parameters: RoundParameters

    def answer(self, stage: Stage, request: bytes) -> Reply: ...  # noqa: D102
    def to_bytes(self) -> bytes: ...  # noqa: D102


S = TypeVar("S", bound=Session)


@register(
    Kind.MOD,
    LAYER,
    paper="Bonawitz et al. 2017, Practical Secure Aggregation; Bell et al. 2020",
)
@dataclass(frozen=True, kw_only=True)
class SecureAggregation(SecureSettings):
    """Answer secure rounds: train, keep the update, send keys, shares and the masked update.

    The parameters are what the server announces; what this node allows is in its own config and policy.
    """

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Serve one message of the protocol; anything wrong is an error reply, and all is forgotten."""
        saved, earlier = _take(context)
        try:
            session, reply = self._serve(message, context, call_next, saved, earlier)
        except SecureAggregationError as error:
            earlier.forget()
            blamed = f" [suspects: {', '.join(map(str, error.suspects))}]" if error.suspects else ""
            logger.warning("secure aggregation: %s", error)
            return refuse(message, type(error)(f"{error}{blamed}"))
        except FLPluginsError as error:
            earlier.forget()
            logger.warning("secure aggregation: %s", error)
            return refuse(message, error)
        except Exception:
            earlier.forget()
            logger.exception("secure aggregation: the node could not answer")
            return refuse(message, _withheld("this node could not answer"))
        if session is not None and session.stage is not Stage.CLOSED:
            sid = session.parameters.sid
            context.state[wire.SECAGG] = ConfigRecord({wire.SECAGG_BODY: session.to_bytes(), _SID: sid})
        content = RecordDict({wire.SECAGG: ConfigRecord({wire.SECAGG_BODY: reply.body})})
        if reply.vector is not None:
            record = ArrayRecord({wire.SECAGG_VECTOR: from_ndarray(reply.vector)})
            content[f"{wire.SECAGG}.{wire.SECAGG_VECTOR}"] = record
        return Message(content, reply_to=message)

    def _serve(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        saved: bytes,
        earlier: Answered,
    ) -> tuple[Session | None, Reply]:
        """Return the session after this stage, and what to send."""
        config = message_config(message)
        check_kind(message)
        security = NodeSecurity.of(context.node_config)
        stage, body = stage_in(config), body_of(message)
        if stage is Stage.ADVERTISE:
            earlier.forget()
            return self._begin(message, context, call_next, body, security)

        def restore(data: bytes) -> ClientSession:
            return ClientSession.from_bytes(data, policy=security.policy, identity=security.identity)

        return self._go_on(restore, stage, body, context, saved, earlier)

    def _go_on(
        self,
        restore: Callable[[bytes], S],
        stage: Stage,
        body: bytes,
        context: Context,
        saved: bytes,
        earlier: Answered,
    ) -> tuple[S, Reply]:
        """Answer a later stage from the session that this node has saved."""
        if not saved:
            raise StageError(
                f"{LAYER}: a message of stage {stage}, but this node has nothing under way: it answered, "
                "refused or never began this attempt."
            )
        session = restore(saved)
        if session.node != context.node_id:
            raise StageError(f"{LAYER}: what this node has saved is of another node id; begin a new round.")
        self.check_announces(session.parameters)
        if stage is session.stage:  # any other is refused by the session itself
            earlier.claim(stage)
        reply = session.answer(stage, body)
        if reply.vector is not None:
            self._vector_leaves(context)
        if session.stage is Stage.CLOSED:
            earlier.forget()
        return session, reply

    def _begin(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        body: bytes,
        security: NodeSecurity,
    ) -> tuple[ClientSession, Reply]:
        """Make keys for an attempt; the update waits in the session."""
        parameters = RoundParameters.from_bytes(body)
        words, known = self.train(message, context, call_next, parameters, security)
        session, reply = ClientSession.begin(body, words, **known)
        Answered(context.node_config, node=context.node_id, sid=parameters.sid).begin()
        keep_progress(context, parameters)
        return session, reply

    def train(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        parameters: RoundParameters,
        security: NodeSecurity,
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Check the attempt and train; return the update as ring words, and what this node itself knows."""
        self.check_announces(parameters)
        security.policy.check(parameters)
        previous = last_progress(context)
        if previous is not None:
            previous.check_later(parameters)
        received = _received(message)
        layout, model = Layout.of(received), model_digest(received)
        # Before training: a round that this node refuses should not cost it an hour.
        for name, ours in (
            ("run_id", context.run_id),
            ("model", model),
            ("layout", self.layout_digest(layout)),
            ("length", self.num_words(parameters.cohort, layout)),
        ):
            if getattr(parameters, name) != ours:
                raise PolicyViolationError(
                    f"{LAYER}: the round's {name} is not that of the message; this node was given something "
                    "else than the others; nothing was sent."
                )
        self._before_training(context, layout)
        encoded = self._encode(call_next(message, context), received, layout, parameters)
        return encoded.words, {
            "node": context.node_id,
            "run_id": context.run_id,
            "model": model,
            "layout": self.layout_digest(layout),
            "policy": security.policy,
            "previous": previous,
            "identity": security.identity,
        }

    def _before_training(self, context: Context, layout: Layout) -> None:
        """Do what a layer that is more than this one must before the app sees the model."""

    def _vector_leaves(self, context: Context) -> None:
        """Do what a layer that is more than this one must when the masked vector leaves."""

    def _encode(
        self, trained: Message, received: NamedArrays, layout: Layout, parameters: RoundParameters
    ) -> "Encoded | EncodedShare":
        """Return what the app replied as ring words; errors do not say what was wrong with it."""
        if trained.has_error():
            logger.warning("secure aggregation: the app failed: %s", trained.error.reason)
            raise _withheld("the app of this node failed")
        try:
            arrays = to_named(_only(trained.content.array_records.values(), "ArrayRecord"))
            layout.check(arrays, owner="the app's reply")
            return self._words(trained, _update(arrays, received, layout), layout, parameters)
        except (FLPluginsError, KeyError) as error:
            logger.warning("secure aggregation: the app's reply cannot be encoded: %r", error)
            raise _withheld("the reply of this node's app does not fit the round's public bounds") from None

    def _words(
        self,
        trained: Message,
        update: Iterator[NDArray[Any]],
        layout: Layout,
        parameters: RoundParameters,
    ) -> "Encoded | EncodedShare":
        """Return update, weight and metrics as ring words."""
        numbers = _only(trained.content.metric_records.values(), "MetricRecord")
        weight = numbers[wire.NUM_EXAMPLES] if self.weighting == Weighting.EXAMPLES.value else 1.0
        encoded = self.fixed_point(parameters.cohort, layout).encode(
            update,
            weight=_number(wire.NUM_EXAMPLES, weight),
            metrics={name: _number(name, numbers[name]) for name in self.metrics},
        )
        if encoded.num_clipped or encoded.clipped_metrics:
            logger.warning(
                "secure aggregation: %d of %d entries were beyond clip=%g and have been clipped; metrics "
                "too: %s",
                encoded.num_clipped,
                layout.size,
                self.clip,
                ", ".join(encoded.clipped_metrics) or "none",
            )
        return encoded


def secure_aggregation_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let nothing but secure rounds reach an app: ``ClientApp(mods=[secure_aggregation_mod])``.

    For anyone's app. Messages that do not announce secure aggregation are refused, evaluations too, because
    their replies would show this client's numbers; only a roll call passes. Everything else is
    :func:`fl_plugins.apps.layers.layers_mod`, the node's policy included.
    """
    try:
        if message.metadata.message_type != wire.ROLL_CALL:
            check_kind(message)
            _check_outermost(message)
    except FLPluginsError as error:
        return refuse(message, error)
    return layers_mod(message, context, call_next)


def check_kind(message: Message) -> None:
    """Refuse everything but training: an evaluation's reply would show this client's numbers."""
    if message.metadata.message_type != MessageType.TRAIN:
        raise PolicyViolationError(
            f"{LAYER}: a {message.metadata.message_type!r} message, but only training is aggregated "
            "securely; evaluate at the server."
        )
    _check_outermost(message)


def _check_outermost(message: Message) -> None:
    """Refuse a stack in which something else would come after the masks."""
    names = [spec.name for spec in announcement(message_config(message), wire.LAYERS)]
    if not set(names[:1]) <= _LAYERS or sum(name in _LAYERS for name in names) != 1:
        raise PolicyViolationError(
            f"{LAYER}: the message announces the layers {names}, but secure aggregation must be there once, "
            "as the outermost; nothing was sent."
        )


def _withheld(what: str) -> SecureAggregationError:
    """Return an error that shows nothing of the client."""
    return EncodingError(f"{LAYER}: {what}; the reason is in the node's own log, and nothing was sent.")


def _take(context: Context) -> tuple[bytes, Answered]:
    """Return and remove the session that waits in the node's state (empty: none), with its file."""
    record = context.state.config_records.get(wire.SECAGG, ConfigRecord())
    context.state.pop(wire.SECAGG, None)
    body, sid = record.get(wire.SECAGG_BODY, b""), record.get(_SID, b"")
    assert isinstance(body, bytes)
    assert isinstance(sid, bytes)
    return body, Answered(context.node_config, node=context.node_id, sid=sid)


def last_progress(context: Context) -> Progress | None:
    """Return the last attempt that this node began."""
    record = context.state.config_records.get(_PROGRESS)
    return None if record is None else Progress.from_bytes(bytes(record[wire.SECAGG_BODY]))  # type: ignore[arg-type]


def keep_progress(context: Context, parameters: RoundParameters) -> None:
    """Note that this node has begun an attempt."""
    context.state[_PROGRESS] = ConfigRecord({wire.SECAGG_BODY: Progress.of(parameters).to_bytes()})


def body_of(message: Message) -> bytes:
    """Return the protocol's bytes in a message."""
    record = message.content.config_records.get(wire.SECAGG, ConfigRecord())
    body = record.get(wire.SECAGG_BODY)
    if not isinstance(body, bytes):
        raise MessageFormatError(
            f"{LAYER}: the message has no {wire.SECAGG} record with {wire.SECAGG_BODY}; use the strategy "
            "secure_aggregation of the same fl-plugins version."
        )
    return body


def _received(message: Message) -> NamedArrays:
    """Return the global parameters."""
    received = to_named(_only(message.content.array_records.values(), "ArrayRecord"))
    if others := Layout.of(received).other_keys:
        raise PolicyViolationError(
            f"{LAYER}: array {others[0]!r} is of integers, which are not summed; keep it out of the model."
        )
    return received


def _only(records: Any, kind: str) -> Any:
    """Return the only record of a kind."""
    found = list(records)
    if len(found) != 1:
        raise MessageFormatError(f"{LAYER}: {len(found)} {kind}s, but exactly one is expected.")
    return found[0]


def _number(name: str, value: Any) -> float:
    """Return a single number."""
    if isinstance(value, list):
        raise EncodingError(f"{LAYER}: metric {name!r} is a list, but one number is expected.")
    return float(value)


def _update(arrays: NamedArrays, received: NamedArrays, layout: Layout) -> Iterator[NDArray[Any]]:
    """Yield reply − global in float64, in the layout's order, a slice at a time."""
    for key in layout.float_keys:
        after, before = np.asarray(arrays[key]).reshape(-1), np.asarray(received[key]).reshape(-1)
        for start in range(0, after.size, _SLICE):
            part = slice(start, start + _SLICE)
            yield after[part].astype(np.float64) - before[part].astype(np.float64)
