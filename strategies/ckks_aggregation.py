"""Secure aggregation by homomorphic encryption: the server adds up ciphertexts that it cannot read.

Cheon, Kim, Kim & Song, "Homomorphic encryption for arithmetic of approximate numbers" (ASIACRYPT 2017).
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from flwr.serverapp import Grid

from fl_plugins.ckks_round import LAYER, CkksSettings
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.secagg import RoundParameters
from fl_plugins.secagg.ckks import tenseal
from fl_plugins.secagg.ckks_session import EncryptedServerSession

from .base import FederatedStrategy
from .opening_exchange import OpeningExchange
from .secure_aggregation import SecureAggregation
from .secure_exchange import ExchangeOptions


@register(
    Kind.STRATEGY,
    LAYER,
    paper="Cheon, Kim, Kim & Song 2017, Homomorphic Encryption for Arithmetic of Approximate Numbers",
    contract=Contract(access=Access.SUM, weighting=Weighting.EXAMPLES),
)
class CkksAggregation(SecureAggregation):
    """Run a linear strategy over updates that are encrypted under a key which only the clients have.

    ``ckks_aggregation(fedavg(), max_weight=1000)``; every client's own config has ``secagg-sum-key``, a file
    that ``fl-plugins secagg key`` makes. Needs the extra ``he``.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy whose rule needs the sum only, with its weighting, settings and server optimizer.
    key : str
        Fingerprint of the clients' key: who has another takes no part.
    num_bits, clip, max_weight, min_clients, metrics, evaluate, max_metric, stage_timeout_s
        As in ``secure_aggregation``; a ciphertext is as long at 16 bits as at 32.

    Guarantees
    ----------
    - A server that only adds, and has no client's key, learns the sum over at least ``min_clients`` clients,
      and nothing else of the updates. One client in the sum learns it too: it decrypts.
    - None against a server that computes something else, or that any one client shares the key with.
    - A client that drops out, answers late or sends nonsense is left out, and has cost nobody anything.
    - What is in the sum, and what becomes of it, is as in ``secure_aggregation``, to the last bit.

    Raises
    ------
    ContractError
        If the inner strategy must see every update, or does more than choose a rule.
    ConfigError
        If TenSEAL is not installed.
    """

    layer = LAYER
    secure: CkksSettings

    def __init__(
        self,
        inner: Annotated[FederatedStrategy, PluginKind(Kind.STRATEGY)],
        *,
        key: str = "",
        num_bits: Literal[16, 32] = 32,
        clip: float = 1.0,
        max_weight: float | None = None,
        min_clients: int = 3,
        metrics: tuple[str, ...] = (),
        evaluate: tuple[str, ...] = (),
        max_metric: float = 100.0,
        stage_timeout_s: float = 120.0,
    ) -> None:
        tenseal()
        super().__init__(
            inner,
            num_bits=num_bits,
            clip=clip,
            max_weight=max_weight,
            min_clients=min_clients,
            metrics=metrics,
            evaluate=evaluate,
            max_metric=max_metric,
            stage_timeout_s=stage_timeout_s,
        )
        self.secure = CkksSettings(**vars(self.secure), key=key)

    def trusts(self) -> str:
        """Return whom the clients are safe from, and on what that rests."""
        return (
            "safe from a server that adds up what it gets and does nothing else with it, while no client "
            "shares the key; one client of each round sees the sum too"
        )

    def _begin_exchange(
        self,
        parameters: RoundParameters,
        options: ExchangeOptions,
        grid: Grid,  # noqa: ARG002
    ) -> tuple[OpeningExchange, Mapping[int, bytes]]:
        """Return this attempt's conversation, and what goes to each client beside the model."""
        session = EncryptedServerSession(parameters, options["cohort"].clients.values())
        return OpeningExchange(session, facts={}, **options), session.requests()
