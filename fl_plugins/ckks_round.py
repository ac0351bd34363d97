"""What server and clients must agree on in a round of encrypted summing, and the clients' key file."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from .errors import ConfigError
from .secagg import Tier
from .secagg.ckks import SumKey
from .secure_round import SecureSettings
from .spec import Spec

LAYER = "ckks_aggregation"
"""Name of the strategy, of the nodes' mod and of the announced layer."""

KEY = "secagg-sum-key"
"""Key of a node's own config: the file with the secret key that all clients have, and no server."""

_UNUSED = ("corrupt", "dropout")


@dataclass(frozen=True, kw_only=True)
class CkksSettings(SecureSettings):
    """The settings of the layer, as they are announced.

    Parameters
    ----------
    key : str
        Fingerprint of the clients' key, as ``fl-plugins secagg key`` prints it; a client with another one
        takes no part. Empty: nobody compares.
    tier : str
        ``"honest-but-curious"``: there is no other.
    """

    layer: ClassVar[str] = LAYER

    key: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tier != Tier.HONEST_BUT_CURIOUS.value:
            raise ConfigError(
                f"{LAYER}: tier={self.tier!r}, but a server that computes something else than the sum is not "
                "withstood; use secure_aggregation or additive_aggregation."
            )

    def spec(self) -> str:
        """Return the announcement."""
        kept = {name: value for name, value in asdict(self).items() if name not in _UNUSED}
        return str(Spec(LAYER, kwargs=tuple(kept.items())))


def write_key(path: Path) -> SumKey:
    """Write a fresh key that only this user can read.

    Raises
    ------
    ConfigError
        If there is such a file already, or TenSEAL is not installed.
    """
    key = SumKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"secagg key {path}: cannot be made ({error.strerror}); give another file."
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.to_bytes())
    return key


def read_key(path: Path) -> SumKey:
    """Read what :func:`write_key` wrote.

    Raises
    ------
    ConfigError
        If it cannot be read or is none; the message does not show it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"secagg key {path}: cannot be read ({error.strerror}).") from None
    return SumKey(data)
