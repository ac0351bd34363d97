"""Every exception that fl-plugins raises on purpose.

Each one is also a built-in exception, so that callers need not know this module::

    FLPluginsError
    ├── PluginError                      finding and loading plugins
    │   ├── UnknownPluginError           LookupError
    │   ├── DuplicatePluginError         ValueError
    │   ├── PluginLoadError              ImportError
    │   └── ShadowedPackageError         ImportError
    ├── SpecError                        ValueError: the text does not parse
    ├── ConfigError                      ValueError: a parameter breaks its rule
    │   └── ConfigTypeError              TypeError: a parameter has the wrong type
    ├── ContractError                    ValueError: layers that may not be stacked
    ├── PolicyError                      ValueError: a node's operator does not allow what a message asks for
    ├── BudgetError                      RuntimeError: a privacy budget that is spent
    ├── PreconditionError                ValueError: too few updates for the guarantee asked for
    ├── StructureError                   ValueError: arrays with other keys, shapes or dtypes
    ├── ReplyError                       ValueError: one client's reply is unusable
    ├── QuorumError                      RuntimeError: too few usable replies
    ├── DivergenceError                  ArithmeticError: the aggregated parameters are not finite
    ├── DataError                        ValueError: a partition or data set that cannot be trained on
    ├── CheckpointError                  ValueError: damaged, or of another run
    ├── SecureAggregationError           a protocol check that did not hold
    │   ├── PolicyViolationError         ValueError: parameters that the node's own policy forbids
    │   ├── StageError                   RuntimeError: out of order, repeated, of another round
    │   ├── MessageFormatError           ValueError: bytes or arrays that are no message of this stage
    │   ├── AdvertError                  ValueError: a list of public keys that cannot be right
    │   ├── SignatureError               ValueError: not signed by who must have signed
    │   ├── PacketError                  ValueError: an encrypted share that does not open
    │   ├── SurvivorError                ValueError: a list of survivors that cannot be right
    │   ├── EncodingError                ValueError: an update or sum that does not fit the ring
    │   └── RoundAbortedError            RuntimeError: too few clients are left, or the sum is wrong
    ├── CheckpointWriteError             OSError: could not be written; those before it are as they were
    └── RunFailedError                   RuntimeError: a run that Flower reports as failed

A message says name, value, rule, remedy. Secrets never appear in one.
"""

from collections.abc import Iterable
from typing import Any


class FLPluginsError(Exception):
    """Root of the tree: ``except FLPluginsError`` catches everything raised here on purpose.

    An error that ends a run carries what was reached until then as ``result`` (a Flower ``Result``).
    """

    result: Any = None


class PluginError(FLPluginsError):
    """A plugin could not be found, told apart or loaded."""


class UnknownPluginError(PluginError, LookupError):
    """No plugin of that kind has that name."""


class DuplicatePluginError(PluginError, ValueError):
    """Two owners claim the same kind and name."""


class PluginLoadError(PluginError, ImportError):
    """The plugin exists but its module cannot be imported."""


class ShadowedPackageError(PluginError, ImportError):
    """A folder on ``sys.path`` hides the distribution that should have been imported."""


class SpecError(FLPluginsError, ValueError):
    """A plugin spec that does not parse."""


class ConfigError(FLPluginsError, ValueError):
    """A parameter whose value breaks its rule."""


class ConfigTypeError(ConfigError, TypeError):
    """A parameter of the wrong type."""


class ContractError(FLPluginsError, ValueError):
    """Layers whose needs and promises do not fit together."""


class PolicyError(FLPluginsError, ValueError):
    """A message asks for less protection than the node's operator demands, or more than he allows."""


class BudgetError(FLPluginsError, RuntimeError):
    """What is asked for would spend more than the privacy budget."""


class PreconditionError(FLPluginsError, ValueError):
    """Too few updates for the guarantee that was asked for."""


class StructureError(FLPluginsError, ValueError):
    """Arrays with other keys, shapes or dtypes than the model has."""


class ReplyError(FLPluginsError, ValueError):
    """One client's reply is unusable; the reason is the message."""


class QuorumError(FLPluginsError, RuntimeError):
    """Too few usable replies to go on."""


class DivergenceError(FLPluginsError, ArithmeticError):
    """The aggregated parameters are no longer finite numbers."""


class DataError(FLPluginsError, ValueError):
    """A partition or data set that cannot be used."""


class CheckpointError(FLPluginsError, ValueError):
    """A checkpoint that is damaged or belongs to another run."""


class SecureAggregationError(FLPluginsError):
    """A check of the secure aggregation protocol that did not hold.

    ``suspects`` are the node ids that the check points at; empty if it points at nobody, or at the server.
    """

    def __init__(self, *args: object, suspects: Iterable[int] = ()) -> None:
        super().__init__(*args)
        self.suspects = tuple(sorted(set(suspects)))


class PolicyViolationError(SecureAggregationError, ValueError):
    """The server asks for something that the node's own policy forbids."""


class StageError(SecureAggregationError, RuntimeError):
    """A message out of order, a second time, or of another round."""


class MessageFormatError(SecureAggregationError, ValueError):
    """Bytes or arrays that are no message of this stage."""


class AdvertError(SecureAggregationError, ValueError):
    """A list of public keys that cannot be right."""


class SignatureError(SecureAggregationError, ValueError):
    """Not signed by who must have signed, or by too few."""


class PacketError(SecureAggregationError, ValueError):
    """An encrypted share that does not open, or is not for this node."""


class SurvivorError(SecureAggregationError, ValueError):
    """A list of survivors that cannot be right."""


class EncodingError(SecureAggregationError, ValueError):
    """An update that does not fit the ring, or a sum that is not what was put in."""


class RoundAbortedError(SecureAggregationError, RuntimeError):
    """The round cannot give a sum: too few clients are left, or what they sent does not fit together."""


class CheckpointWriteError(FLPluginsError, OSError):
    """A checkpoint could not be written, for example on a full disk; those before it are as they were."""


class RunFailedError(FLPluginsError, RuntimeError):
    """Flower reports the run as failed."""
