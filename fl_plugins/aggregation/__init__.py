"""Pure aggregation kernels: the rows of an ``(n, d)`` matrix of updates to one ``(d,)`` update.

Nothing here knows Flower. One algorithm a file; each file has the rule as a plugin (a frozen dataclass, for
example :class:`Krum`) and as a plain function of the same name as the module
(``fl_plugins.aggregation.krum.krum``). Rules read a block of columns at a time from any :class:`Rows`, so
the matrix need not exist.

Names are imported when they are first asked for: a process that serves one message imports one rule, and two
threads that enter the package by different modules (Flower imports a run's two apps at once) do not wait for
each other.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .arc import Arc
    from .bucketing import Bucketing
    from .bulyan import Bulyan
    from .caf import Caf
    from .centered_clipping import CenteredClipping
    from .chain import Chain
    from .clipping import Clip
    from .core import Aggregate, Aggregator, Stateful
    from .distances import pairwise_squared_distances
    from .geometric_median import GeometricMedian
    from .krum import Krum, MultiKrum
    from .mda import Mda
    from .meamed import MeaMed
    from .mean import Mean
    from .median import Median
    from .mixing import Mixed, PreAggregator
    from .nearest_neighbor_mixing import NearestNeighborMixing
    from .norm_bounded_mean import NormBoundedMean
    from .root_trust import RootTrust
    from .rows import DenseRows, Rows, canonical_order, non_finite_rows
    from .sign_majority import SignMajority
    from .trimmed_mean import TrimmedMean

__all__ = [
    "Aggregate",
    "Aggregator",
    "Arc",
    "Bucketing",
    "Bulyan",
    "Caf",
    "CenteredClipping",
    "Chain",
    "Clip",
    "DenseRows",
    "GeometricMedian",
    "Krum",
    "Mda",
    "MeaMed",
    "Mean",
    "Median",
    "Mixed",
    "MultiKrum",
    "NearestNeighborMixing",
    "NormBoundedMean",
    "PreAggregator",
    "RootTrust",
    "Rows",
    "SignMajority",
    "Stateful",
    "TrimmedMean",
    "canonical_order",
    "non_finite_rows",
    "pairwise_squared_distances",
]

_HOMES = {
    "Aggregate": "core",
    "Aggregator": "core",
    "Arc": "arc",
    "Bucketing": "bucketing",
    "Bulyan": "bulyan",
    "Caf": "caf",
    "CenteredClipping": "centered_clipping",
    "Chain": "chain",
    "Clip": "clipping",
    "DenseRows": "rows",
    "GeometricMedian": "geometric_median",
    "Krum": "krum",
    "Mda": "mda",
    "MeaMed": "meamed",
    "Mean": "mean",
    "Median": "median",
    "Mixed": "mixing",
    "MultiKrum": "krum",
    "NearestNeighborMixing": "nearest_neighbor_mixing",
    "NormBoundedMean": "norm_bounded_mean",
    "PreAggregator": "mixing",
    "RootTrust": "root_trust",
    "Rows": "rows",
    "SignMajority": "sign_majority",
    "Stateful": "core",
    "TrimmedMean": "trimmed_mean",
    "canonical_order": "rows",
    "non_finite_rows": "rows",
    "pairwise_squared_distances": "distances",
}
"""The module that each name is from."""

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
