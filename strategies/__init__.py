"""The server's wing: strategies for a Flower ServerApp.

>>> import strategies
>>> strategies.Krum(num_byzantine=2).settings.quorum
0.5
"""

from .base import FederatedStrategy
from .fedavg import FedAvg
from .krum import Krum, MultiKrum
from .median import Median
from .options import Settings, StrategyOptions
from .trimmed_mean import TrimmedMean

__all__ = [
    "FedAvg",
    "FederatedStrategy",
    "Krum",
    "Median",
    "MultiKrum",
    "Settings",
    "StrategyOptions",
    "TrimmedMean",
]
