"""Pure aggregation kernels: the rows of an ``(n, d)`` matrix of updates to one ``(d,)`` update.

Nothing here knows Flower. One algorithm a file; each file has the rule as a plugin (a frozen dataclass, for
example :class:`Krum`) and as a plain function of the same name as the module
(``fl_plugins.aggregation.krum.krum``). Rules read a block of columns at a time from any :class:`Rows`, so
the matrix need not exist.
"""

from .core import Aggregate, Aggregator
from .distances import pairwise_squared_distances
from .krum import Krum, MultiKrum
from .mean import Mean
from .median import Median
from .rows import DenseRows, Rows, canonical_order, non_finite_rows
from .trimmed_mean import TrimmedMean

__all__ = [
    "Aggregate",
    "Aggregator",
    "DenseRows",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "Rows",
    "TrimmedMean",
    "canonical_order",
    "non_finite_rows",
    "pairwise_squared_distances",
]
