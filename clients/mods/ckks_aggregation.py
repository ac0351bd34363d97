"""A client's part of encrypted summing, as a Flower mod: its update leaves under the clients' key."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fl_plugins import wire
from fl_plugins.apps.layers import message_config
from fl_plugins.apps.simulated import SIMULATED_SUM_KEY, own_config
from fl_plugins.ckks_round import KEY, LAYER, CkksSettings, read_key
from fl_plugins.errors import ConfigError, PolicyViolationError
from fl_plugins.registry import Kind, register
from fl_plugins.secagg import Reply, RoundParameters
from fl_plugins.secagg.ckks import SumKey
from fl_plugins.secagg.ckks_session import EncryptedClientSession
from fl_plugins.secure_round import stage_in

from ._answered import Answered
from ._node_security import NodeSecurity
from ._secure_messages import body_of, keep_progress
from .secure_aggregation import SecureAggregation, Session


@register(
    Kind.MOD,
    LAYER,
    paper="Cheon, Kim, Kim & Song 2017, Homomorphic Encryption for Arithmetic of Approximate Numbers",
)
@dataclass(frozen=True, kw_only=True)
class CkksAggregation(CkksSettings, SecureAggregation):
    """Answer rounds of encrypted summing: train, send the update encrypted, decrypt one sum if asked to.

    The parameters are what the server announces; what this node allows is in its own config and policy.
    """

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
        security, key = NodeSecurity.of(context.node_config), self._key(own_config(context))
        body, config = body_of(message, layer=LAYER), message_config(message)
        if wire.STAGE in config:

            def restore(data: bytes) -> EncryptedClientSession:
                return EncryptedClientSession.from_bytes(data, key=key, policy=security.policy)

            return self._go_on(restore, stage_in(config), body, context, saved, earlier)
        earlier.forget()
        parameters = RoundParameters.from_bytes(body)
        words, _ = self.take_part(message, context, call_next, parameters, security)
        session = EncryptedClientSession(
            parameters=parameters, node=context.node_id, key=key, policy=security.policy
        )
        reply = session.begin(words)
        self._answered(context, parameters.sid).begin()
        keep_progress(context, parameters)
        return session, reply

    def _key(self, node_config: Mapping[str, Any]) -> SumKey:
        """Return this node's key, if it is the one that is meant."""
        path = node_config.get(KEY)
        if not path:
            raise ConfigError(
                f"node config: {LAYER} needs {KEY}, the file with the clients' key; name it (a simulation: "
                f"{SIMULATED_SUM_KEY} in the run config)."
            )
        key = read_key(Path(str(path)))
        if self.key and key.fingerprint != self.key:
            raise PolicyViolationError(
                f"{LAYER}: this node's key is not the one that the server announces; nothing was sent."
            )
        return key
