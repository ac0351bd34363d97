"""A Little Is Enough with what one client knows: the spread of several trainings on parts of its own data."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation.core import Aggregator
from fl_plugins.attacks.little_is_enough import little_is_enough
from fl_plugins.registry import Kind, PluginKind, register

from ._checks import check_num_byzantine, check_number
from ._search import simulated_rule, worst_parameter
from ._virtual import FromVirtualClients, check_virtual_clients

_GRID = (-1.5, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)


@register(
    Kind.ATTACK, "little_is_enough", paper="Baruch et al. 2019, NeurIPS, A Little Is Enough, Algorithm 3"
)
@dataclass(frozen=True, kw_only=True)
class LittleIsEnough(FromVirtualClients):
    """Send mean − z · standard deviation, per coordinate, of several honest trainings on parts of the data.

    The paper's attackers, too, estimate both from the data that they control. One client's parts are more
    alike than different clients are: on heterogeneous clients it underestimates the spread, and is weaker
    than the attack of ``benchmarks/robustness.py``, which knows the honest updates.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    z : float
        Standard deviations away from the mean; finite. ``fl_plugins.attacks.z_max(n, f)`` is the paper's.
        With ``against`` it is searched, and this is one of the values tried.
    virtual_clients : int
        Parts of the client's data, each trained on alone; >= 2, and at most its number of examples.
    against : Aggregator, optional
        The server's rule, for example ``krum(num_byzantine=2)``: z does the greatest damage through it, the
        distance from the mean of the virtual clients. The rule is shown a cohort in small, the virtual
        clients' updates and ``num_byzantine`` hostile ones; a rule with a memory is asked as in its first
        round.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    PreconditionError
        If ``virtual_clients + num_byzantine`` updates are too few for ``against``.
    """

    num_byzantine: int
    z: float = 1.5
    virtual_clients: int = 4
    against: Annotated[Aggregator | None, PluginKind(Kind.AGGREGATOR)] = None

    name: ClassVar[str] = "little_is_enough"

    def __post_init__(self) -> None:
        check_num_byzantine(self.name, self.num_byzantine)
        check_number(self.name, "z", self.z)
        check_virtual_clients(self.name, self.virtual_clients)
        if self.against is not None:
            simulated_rule(self.name, self.against, self.virtual_clients, self.num_byzantine)

    def _attack(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return mean − z · standard deviation of the rows."""
        z = worst_parameter(
            self.name,
            rows,
            lambda value: little_is_enough(rows, self.num_byzantine, z=value),
            against=self.against,
            num_byzantine=self.num_byzantine,
            grid=_GRID,
            default=float(self.z),
        )
        return np.asarray(little_is_enough(rows, 1, z=z)[0])
