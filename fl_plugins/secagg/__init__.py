"""Secure aggregation without Flower: bytes, integers and NumPy arrays in and out.

The server learns the sum of integer vectors modulo 2^b and nothing else. What drives a round are two state
machines, :class:`ClientSession` and :class:`ServerSession`; ``docs/secure-aggregation.md`` has the protocol.
With helper nodes: :func:`mask_for_helpers`, :class:`HelperSession` and :class:`AdditiveServerSession`.
"""

from .additive import HelperSession, mask_for_helpers
from .additive_server import AdditiveServerSession
from .answers import SecureSum
from .client import ClientSession, Reply
from .fixed_point import DecodedSum, Encoded, FixedPoint
from .graph import Topology
from .keys import Identity, public_identity_from_pem
from .messages import Stage
from .parameters import Progress, RoundParameters, Tier
from .policy import ClientPolicy
from .server import ServerSession

__all__ = [
    "AdditiveServerSession",
    "ClientPolicy",
    "ClientSession",
    "DecodedSum",
    "Encoded",
    "FixedPoint",
    "HelperSession",
    "Identity",
    "Progress",
    "Reply",
    "RoundParameters",
    "SecureSum",
    "ServerSession",
    "Stage",
    "Tier",
    "Topology",
    "mask_for_helpers",
    "public_identity_from_pem",
]
