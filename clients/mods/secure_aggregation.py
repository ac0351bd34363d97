"""The client's part of secure aggregation, as a Flower mod: what leaves the node is masked.

The first message of a round is a training message with the parameters of the attempt beside the model, or an
evaluation message, if the layer says which metrics of evaluations are summed. The app trains, or evaluates;
its reply stays here. What is answered are public keys. Every later stage is a training message without a
model, which is answered from what waits in the node's state and never reaches the app: deployed, each of them
is served by a fresh process.

**Fail closed.** Only the records of the protocol leave the node, on any path. What the app replied, or why it
failed, goes to the node's own log: an error text can hold a number of examples or a loss.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.apps.layers import layers_mod, message_config, refuse
from fl_plugins.contracts import Weighting
from fl_plugins.errors import (
    EncodingError,
    FLPluginsError,
    PolicyViolationError,
    SecureAggregationError,
    StageError,
)
from fl_plugins.records import Layout, from_ndarray, to_named
from fl_plugins.registry import Kind, register
from fl_plugins.secagg import ClientSession, Encoded, Reply, RoundParameters, Stage
from fl_plugins.secure_round import LAYER, EvaluationContents, SecureSettings, model_digest, stage_in
from fl_plugins.training import NamedArrays

from ._answered import Answered
from ._node_security import NodeSecurity
from ._secure_messages import (
    body_of,
    check_kind,
    is_evaluation,
    keep_progress,
    last_progress,
    number,
    only,
    received,
    update,
)

if TYPE_CHECKING:
    from fl_plugins.secagg.distributed_noise import EncodedShare

logger = logging.getLogger("flwr.fl_plugins")

_SID = "sid"
"""Beside a saved session: which attempt it is of."""


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
        saved, earlier = self._take(context)
        try:
            session, reply = self._serve(message, context, call_next, saved, earlier)
        except SecureAggregationError as error:
            earlier.forget()
            blamed = f" [suspects: {', '.join(map(str, error.suspects))}]" if error.suspects else ""
            logger.warning("%s", error)
            return refuse(message, type(error)(f"{error}{blamed}"))
        except FLPluginsError as error:
            earlier.forget()
            logger.warning("%s", error)
            return refuse(message, error)
        except Exception:
            earlier.forget()
            logger.exception("%s: the node could not answer", self.layer)
            return refuse(message, self._withheld("this node could not answer"))
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
        self._check_kind(message)
        security = NodeSecurity.of(context.node_config)
        stage, body = stage_in(message_config(message)), body_of(message, layer=self.layer)
        if stage is Stage.ADVERTISE:
            earlier.forget()
            return self._begin(message, context, call_next, body, security)

        def restore(data: bytes) -> ClientSession:
            return ClientSession.from_bytes(data, policy=security.policy, identity=security.identity)

        return self._go_on(restore, stage, body, context, saved, earlier)

    def _check_kind(self, message: Message) -> None:
        """Refuse everything whose reply would show this client's numbers."""
        check_kind(message, layer=self.layer, evaluates=bool(self.evaluate))

    def _answered(self, context: Context, sid: bytes) -> Answered:
        """Return the file that says which stages of an attempt this node has answered."""
        return Answered(context.node_config, node=context.node_id, sid=sid, layer=self.layer)

    def _take(self, context: Context) -> tuple[bytes, Answered]:
        """Return and remove the session that waits in the node's state (empty: none), with its file."""
        record = context.state.config_records.get(wire.SECAGG, ConfigRecord())
        context.state.pop(wire.SECAGG, None)
        body, sid = record.get(wire.SECAGG_BODY, b""), record.get(_SID, b"")
        assert isinstance(body, bytes)
        assert isinstance(sid, bytes)
        return body, self._answered(context, sid)

    def _withheld(self, what: str) -> SecureAggregationError:
        """Return an error that shows nothing of the client."""
        reason = "the reason is in the node's own log, and nothing was sent."
        return EncodingError(f"{self.layer}: {what}; {reason}")

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
                f"{self.layer}: a message of stage {stage}, but this node has nothing under way: it "
                "answered, refused or never began this attempt."
            )
        session = restore(saved)
        if session.node != context.node_id:
            raise StageError(
                f"{self.layer}: what this node has saved is of another node id; begin a new round."
            )
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
        words, known = self.take_part(message, context, call_next, parameters, security)
        session, reply = ClientSession.begin(body, words, **known)
        self._answered(context, parameters.sid).begin()
        keep_progress(context, parameters)
        return session, reply

    def take_part(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        parameters: RoundParameters,
        security: NodeSecurity,
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Check the attempt, and train or evaluate.

        Returns what the app replied as ring words, and what this node itself knows.
        """
        self.check_announces(parameters)
        security.policy.check(parameters)
        previous = last_progress(context)
        if previous is not None:
            previous.check_later(parameters)
        base = received(message, layer=self.layer)
        layout, model = Layout.of(base), model_digest(base)
        evaluation = is_evaluation(message)
        contents = self.contents("evaluate" if evaluation else "train")
        digest = contents.layout_digest(layout)
        # Before training: a round that this node refuses should not cost it an hour.
        for name, ours in (
            ("run_id", context.run_id),
            ("model", model),
            ("layout", digest),
            ("length", contents.num_words(parameters.cohort, layout)),
        ):
            if getattr(parameters, name) != ours:
                raise PolicyViolationError(
                    f"{self.layer}: the round's {name} is not that of the message; this node was given "
                    "something else than the others; nothing was sent."
                )
        if not evaluation:
            self._before_training(context, layout)
        words = self._encode(call_next(message, context), base, layout, parameters, evaluation=evaluation)
        return words, {
            "node": context.node_id,
            "run_id": context.run_id,
            "model": model,
            "layout": digest,
            "policy": security.policy,
            "previous": previous,
            "identity": security.identity,
        }

    def _before_training(self, context: Context, layout: Layout) -> None:
        """Do what a layer that is more than this one must before the app sees the model."""

    def _vector_leaves(self, context: Context) -> None:
        """Do what a layer that is more than this one must when the masked vector leaves."""

    def _encode(
        self,
        answered: Message,
        base: NamedArrays,
        layout: Layout,
        parameters: RoundParameters,
        *,
        evaluation: bool,
    ) -> NDArray[Any]:
        """Return what the app replied as ring words; errors do not say what was wrong with it."""
        if answered.has_error():
            logger.warning("%s: the app failed: %s", self.layer, answered.error.reason)
            raise self._withheld("the app of this node failed")
        try:
            if evaluation:
                return self._numbers(answered, parameters.cohort).words
            arrays = to_named(only(answered.content.array_records.values(), "ArrayRecord", layer=self.layer))
            layout.check(arrays, owner="the app's reply")
            return self._words(answered, update(arrays, base, layout), layout, parameters).words
        except (FLPluginsError, KeyError) as error:
            logger.warning("%s: the app's reply cannot be encoded: %r", self.layer, error)
            raise self._withheld(
                "the reply of this node's app does not fit the round's public bounds"
            ) from None

    def _numbers(self, answered: Message, cohort: int) -> Encoded:
        """Return weight and metrics of an evaluation as ring words."""
        weight, metrics = self._weight_and(self.evaluate, answered)
        encoded = (
            EvaluationContents(settings=self).fixed_point(cohort).encode((), weight=weight, metrics=metrics)
        )
        if encoded.clipped_metrics:
            names = ", ".join(encoded.clipped_metrics)
            logger.warning("%s: beyond max_metric=%g: %s", self.layer, self.max_metric, names)
        return encoded

    def _weight_and(self, names: tuple[str, ...], answered: Message) -> tuple[float, dict[str, float]]:
        """Return this client's weight, and its metrics of these names."""
        record = only(answered.content.metric_records.values(), "MetricRecord", layer=self.layer)
        weight = record[wire.NUM_EXAMPLES] if self.weighting == Weighting.EXAMPLES.value else 1.0
        metrics = {name: number(name, record[name], layer=self.layer) for name in names}
        return number(wire.NUM_EXAMPLES, weight, layer=self.layer), metrics

    def _words(
        self,
        trained: Message,
        entries: Iterator[NDArray[Any]],
        layout: Layout,
        parameters: RoundParameters,
    ) -> "Encoded | EncodedShare":
        """Return update, weight and metrics as ring words."""
        weight, metrics = self._weight_and(self.metrics, trained)
        encoded = self.fixed_point(parameters.cohort, layout).encode(entries, weight=weight, metrics=metrics)
        if encoded.num_clipped or encoded.clipped_metrics:
            logger.warning(
                "%s: %d of %d entries were beyond clip=%g and have been clipped; metrics too: %s",
                self.layer,
                encoded.num_clipped,
                layout.size,
                self.clip,
                ", ".join(encoded.clipped_metrics) or "none",
            )
        return encoded


def secure_aggregation_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let nothing but secure rounds reach an app: ``ClientApp(mods=[secure_aggregation_mod])``.

    For anyone's app. Messages that do not announce secure aggregation are refused, because their replies
    would show this client's numbers; only a roll call passes. Everything else is
    :func:`fl_plugins.apps.layers.layers_mod`, the node's policy included.
    """
    try:
        if message.metadata.message_type != wire.ROLL_CALL:
            check_kind(message, layer=LAYER, evaluates=True)
    except FLPluginsError as error:
        return refuse(message, error)
    return layers_mod(message, context, call_next)
