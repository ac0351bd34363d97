"""Min-max and min-sum with what one client knows: several trainings on parts of its own data."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.attacks.min_max import Direction, min_max, min_sum
from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register

from ._checks import check_num_byzantine
from ._virtual import FromVirtualClients, check_virtual_clients

_PAPER = "Shejwalkar and Houmansadr 2021, NDSS, Manipulating the Byzantine, §IV-B"


@register(Kind.ATTACK, "min_max", paper=_PAPER)
@dataclass(frozen=True, kw_only=True)
class MinMax(FromVirtualClients):
    """Send mean + γ·p of several honest trainings, not farther from any of them than two of them are.

    One client's parts are more alike than different clients are: on heterogeneous clients it is weaker than
    the attack of ``benchmarks/robustness.py``, which knows the honest updates.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    direction : {"std", "unit", "sign"}
        p: minus the standard deviations, minus the mean's unit vector, or minus the mean's signs.
    virtual_clients : int
        Parts of the client's data, each trained on alone; >= 2, and at most its number of examples.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    direction: Direction = "std"
    virtual_clients: int = 4

    name: ClassVar[str] = "min_max"

    def __post_init__(self) -> None:
        check_num_byzantine(self.name, self.num_byzantine)
        check_virtual_clients(self.name, self.virtual_clients)
        if self.direction not in ("std", "unit", "sign"):
            raise ConfigError(
                f"{self.name}: direction={self.direction!r} must be one of std, unit, sign; choose one."
            )

    def _attack(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is sent, ``(d,)``, for the parts' updates, ``(m, d)``."""
        return np.asarray(min_max(rows, 1, direction=self.direction)[0])


@register(Kind.ATTACK, "min_sum", paper=_PAPER)
@dataclass(frozen=True, kw_only=True)
class MinSum(MinMax):
    """As :class:`MinMax`, with the sum of squared distances at most the largest that one of them has."""

    name: ClassVar[str] = "min_sum"

    def _attack(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is sent, ``(d,)``, for the parts' updates, ``(m, d)``."""
        return np.asarray(min_sum(rows, 1, direction=self.direction)[0])
