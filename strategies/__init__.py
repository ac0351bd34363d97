"""The server's wing: strategies for a Flower ServerApp.

>>> import strategies
>>> strategies.Krum(num_byzantine=2).settings.quorum
0.5
"""

from .additive_aggregation import AdditiveAggregation
from .base import FederatedStrategy
from .bulyan import Bulyan
from .caf import Caf
from .centered_clipping import CenteredClipping
from .ckks_aggregation import CkksAggregation
from .distributed_dp import DistributedDp
from .dp_fedavg import DpFedAvg
from .fedavg import FedAvg
from .geometric_median import GeometricMedian
from .krum import Krum, MultiKrum
from .local_dp import LocalDp
from .mda import Mda
from .meamed import MeaMed
from .median import Median
from .norm_bounded_mean import NormBoundedMean
from .options import Settings, StrategyOptions
from .robust import Robust
from .root_trust import RootTrust
from .secure_aggregation import SecureAggregation
from .sign_majority import SignMajority
from .trimmed_mean import TrimmedMean

__all__ = [
    "AdditiveAggregation",
    "Bulyan",
    "Caf",
    "CenteredClipping",
    "CkksAggregation",
    "DistributedDp",
    "DpFedAvg",
    "FedAvg",
    "FederatedStrategy",
    "GeometricMedian",
    "Krum",
    "LocalDp",
    "Mda",
    "MeaMed",
    "Median",
    "MultiKrum",
    "NormBoundedMean",
    "Robust",
    "RootTrust",
    "SecureAggregation",
    "Settings",
    "SignMajority",
    "StrategyOptions",
    "TrimmedMean",
]
