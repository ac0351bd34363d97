"""A node's part of additive sharing over helpers, as a Flower mod: a client's, or a helper's.

Which of the two is this node's own config's to say (``secagg-role = "helper"``). A client answers one
message, the one that brings the model: it trains, and sends its update under a mask for every helper and to
each helper the sealed seed of its mask. A helper trains nothing and sees no model: it makes a key, and later
adds up the masks of the one set of clients that it opens in an attempt, which it notes on its own disk first.
"""

from dataclasses import dataclass

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fl_plugins import wire
from fl_plugins.additive_round import HELPER, LAYER, AdditiveSettings, is_helper
from fl_plugins.apps.layers import message_config
from fl_plugins.apps.simulated import own_config
from fl_plugins.errors import PolicyViolationError, StageError
from fl_plugins.registry import Kind, register
from fl_plugins.secagg import HelperSession, Reply, Stage, mask_for_helpers
from fl_plugins.secagg.additive_messages import Attempt
from fl_plugins.secure_round import stage_in

from ._answered import Answered
from ._node_security import HELPERS, NodeSecurity
from ._secure_messages import body_of, keep_progress, last_progress
from .secure_aggregation import SecureAggregation, Session


@register(
    Kind.MOD,
    LAYER,
    paper="Corrigan-Gibbs & Boneh 2017, Prio",
)
@dataclass(frozen=True, kw_only=True)
class AdditiveAggregation(AdditiveSettings, SecureAggregation):
    """Answer rounds with helper nodes: as a client, train and send a masked update; as a helper, open sums.

    The parameters are what the server announces; what this node is and allows is in its own config and
    policy.
    """

    def _serve(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        saved: bytes,
        earlier: Answered,
    ) -> tuple[Session | None, Reply]:
        """Return the helper's session after this stage (a client keeps none), and what to send."""
        self._check_kind(message)
        helps, config = is_helper(own_config(context)), message_config(message)
        if wire.STAGE not in config:
            if helps:
                raise PolicyViolationError(f"{LAYER}: this node is a helper, which trains nothing.")
            return None, self._mask(message, context, call_next)
        if wire.SECAGG not in message.content.config_records and stage_in(config) is Stage.ADVERTISE:
            earlier.forget()
            return None, Reply(body=self._role(context) if helps else b"")
        if not helps:
            raise StageError(
                f"{LAYER}: this node is a client, which answers a round's first message and no other; "
                "nothing was sent."
            )
        return self._help(message, context, saved, earlier)

    def _role(self, context: Context) -> bytes:
        """Return what answers the question whether this node helps: that it does, and its identity."""
        identity = NodeSecurity.of(context.node_config).identity
        return HELPER.encode() + (b"" if identity is None else identity.public)

    def _mask(self, message: Message, context: Context, call_next: ClientAppCallable) -> Reply:
        """Check the attempt, train, and mask the update."""
        body = body_of(message, layer=LAYER)
        parameters = Attempt.from_bytes(body).parameters
        security = NodeSecurity.of(context.node_config, peers=HELPERS)
        words, known = self.take_part(message, context, call_next, parameters, security)
        reply = mask_for_helpers(body, words, num_helpers=self.helpers, **known)
        keep_progress(context, parameters)
        return reply

    def _help(
        self, message: Message, context: Context, saved: bytes, earlier: Answered
    ) -> tuple[HelperSession, Reply]:
        """Make a key, or open a set."""
        security = NodeSecurity.of(context.node_config)
        stage = stage_in(message_config(message))
        if stage is not Stage.ADVERTISE:

            def restore(data: bytes) -> HelperSession:
                return HelperSession.from_bytes(data, policy=security.policy)

            return self._go_on(restore, stage, body_of(message, layer=LAYER), context, saved, earlier)
        earlier.forget()
        session, reply = HelperSession.begin(
            body_of(message, layer=LAYER),
            node=context.node_id,
            run_id=context.run_id,
            policy=security.policy,
            previous=last_progress(context),
            identity=security.identity,
        )
        self.check_announces(session.parameters)
        self._answered(context, session.parameters.sid).begin()
        keep_progress(context, session.parameters)
        return session, reply
