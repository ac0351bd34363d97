"""What server, clients and helpers must agree on in a round of additive sharing over helper nodes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from .checks import check_int
from .errors import ConfigError
from .secure_round import SecureSettings
from .spec import Spec

LAYER = "additive_aggregation"
"""Name of the strategy, of the nodes' mod and of the announced layer."""

ROLE = "secagg-role"
"""Key of a node's own config: :data:`HELPER`, or none for a node that is a client."""

HELPER = "helper"

_UNUSED = ("corrupt", "dropout")
"""Settings of the graph of the other protocol; here there is none."""


@dataclass(frozen=True, kw_only=True)
class AdditiveSettings(SecureSettings):
    """The settings of the layer, as they are announced.

    Parameters
    ----------
    helpers : int
        How many helper nodes there are; all of them must answer, and one must be honest.
    tier : str
        ``"honest-but-curious"``: the server passes helpers' and clients' keys on as they are.
        ``"malicious"``: every key is signed, and checked against the rosters of clients and helpers.
    """

    layer: ClassVar[str] = LAYER

    helpers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int(LAYER, "helpers", self.helpers, minimum=1)

    def spec(self) -> str:
        """Return the announcement."""
        kept = {name: value for name, value in asdict(self).items() if name not in _UNUSED}
        return str(Spec(LAYER, kwargs=tuple(kept.items())))


def is_helper(node_config: Mapping[str, Any]) -> bool:
    """Whether this node's operator made it a helper.

    Raises
    ------
    ConfigError
        If its role is none that there is.
    """
    role = node_config.get(ROLE, "client")
    if role not in ("client", HELPER):
        raise ConfigError(f"node config: {ROLE}={role!r}, but it is {HELPER!r} or 'client'.")
    return bool(role == HELPER)
