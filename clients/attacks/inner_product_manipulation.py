"""Inner-product manipulation with what one client knows: the mean of several trainings on its own data."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation.core import Aggregator
from fl_plugins.attacks.inner_product_manipulation import inner_product_manipulation
from fl_plugins.registry import Kind, PluginKind, register

from ._checks import check_num_byzantine, check_number
from ._search import simulated_rule, worst_parameter
from ._virtual import FromVirtualClients, check_virtual_clients

_GRID = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 8.0)


@register(Kind.ATTACK, "inner_product_manipulation", paper="Xie et al. 2020, UAI, Fall of Empires, §3")
@dataclass(frozen=True, kw_only=True)
class InnerProductManipulation(FromVirtualClients):
    """Send −ε times the mean of several honest trainings on parts of the data.

    A small ε stays among the honest updates and turns the aggregate's inner product with their mean; a large
    one is a sign flip. Where a client's one training is estimate enough, ``sign_flip(scale=ε)`` is cheaper.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    epsilon : float
        Factor of the negated mean; finite and >= 0. With ``against`` it is searched, and this is one of the
        values tried.
    virtual_clients : int
        Parts of the client's data, each trained on alone; >= 2, and at most its number of examples.
    against : Aggregator, optional
        The server's rule, for example ``krum(num_byzantine=2)``: ε does the greatest damage through it, the
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
    epsilon: float = 0.5
    virtual_clients: int = 4
    against: Annotated[Aggregator | None, PluginKind(Kind.AGGREGATOR)] = None

    name: ClassVar[str] = "inner_product_manipulation"

    def __post_init__(self) -> None:
        check_num_byzantine(self.name, self.num_byzantine)
        check_number(self.name, "epsilon", self.epsilon, minimum=0)
        check_virtual_clients(self.name, self.virtual_clients)
        if self.against is not None:
            simulated_rule(self.name, self.against, self.virtual_clients, self.num_byzantine)

    def _attack(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return −ε times the rows' mean."""
        epsilon = worst_parameter(
            self.name,
            rows,
            lambda value: inner_product_manipulation(rows, self.num_byzantine, epsilon=value),
            against=self.against,
            num_byzantine=self.num_byzantine,
            grid=_GRID,
            default=float(self.epsilon),
        )
        return np.asarray(inner_product_manipulation(rows, 1, epsilon=epsilon)[0])
