"""What server and clients must agree on in a secure round: settings, encoding, hashes, numbers of stages.

The settings travel as the layer's announcement (:data:`fl_plugins.wire.LAYERS`), the parameters of one
attempt (:class:`fl_plugins.secagg.RoundParameters`) beside the model; a client checks that the two are the
same.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from . import wire
from .checks import check_int, check_number
from .contracts import Weighting
from .errors import ConfigError, PolicyViolationError
from .records import Layout
from .secagg import DecodedSum, FixedPoint, RoundParameters, Stage, Tier
from .secagg.keys import tagged_hash
from .spec import Spec
from .training import NamedArrays

LAYER = "secure_aggregation"
"""Name of the strategy, of the client's mod and of the announced layer."""

DISTRIBUTED = "distributed_dp"
"""The same for secure aggregation of vectors with noise: :mod:`fl_plugins.distributed_privacy`."""

STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK)
"""A stage's place is its number on the wire; the first travels with the model and has none."""

EVALUATIONS = 1 << 32
"""An evaluation's attempt is numbered from here: after every attempt at training the same round."""


class Encoding(Protocol):
    """How the ring words of a sum are read."""

    @property
    def length(self) -> int:
        """Words of a vector."""
        ...

    def decode(self, words: NDArray[Any], num_clients: int) -> DecodedSum:
        """Read the sum of ``num_clients`` vectors."""
        ...


class Contents(Protocol):
    """What the vectors of one exchange hold."""

    def num_words(self, cohort: int, layout: Layout) -> int:
        """Return how many ring words a client's vector has."""
        ...

    def encoding(self, parameters: RoundParameters, layout: Layout) -> Encoding:
        """Return how the sum of one attempt is read."""
        ...

    def layout_digest(self, layout: Layout) -> bytes:
        """Return the hash of what a vector holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class SecureSettings:
    """The settings of the layer, as they are announced.

    Parameters
    ----------
    tier : str
        ``"honest-but-curious"``: the server keeps to the protocol. ``"malicious"``: it may send anything;
        every node has an identity and a roster of the others', and a stage more is played.
    num_bits : int
        The ring: 32 bits an entry, or 16.
    clip : float
        Largest magnitude of an entry of an update; what is beyond is clipped, counted and warned about.
    max_weight : float
        Largest weight: the most examples that a client may count for.
    min_clients : int
        Fewest clients in a sum.
    corrupt, dropout : float
        Part of the cohort that may collude with the server, and that may drop out.
    weighting : str
        ``"examples"`` or ``"uniform"``, of the inner strategy.
    metrics : tuple of str
        Metrics of the clients that are averaged inside the masked vector; all others are withheld.
    evaluate : tuple of str
        The same for evaluations; with none, clients do not evaluate.
    max_metric : float
        The largest magnitude of both.
    """

    layer: ClassVar[str] = LAYER

    tier: Literal["honest-but-curious", "malicious"] = "honest-but-curious"
    num_bits: Literal[16, 32] = 32
    clip: float = 1.0
    max_weight: float = 1.0
    min_clients: int = 3
    corrupt: float = 0.05
    dropout: float = 0.05
    weighting: Literal["examples", "uniform"] = "uniform"
    metrics: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    max_metric: float = 100.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("tier", [tier.value for tier in Tier]),
            ("num_bits", [16, 32]),
            ("weighting", [weighting.value for weighting in Weighting]),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{self.layer}: {name}={getattr(self, name)!r}, but it is one of {choices}."
                )
        for name in ("clip", "max_weight", "max_metric"):
            check_number(self.layer, name, getattr(self, name), minimum=0.0, open_below=True)
        for name in ("corrupt", "dropout"):
            check_number(self.layer, name, getattr(self, name), minimum=0.0, maximum=0.5)
        # Two is a sum in which everyone sees the other: the protocol's own least, not a recommendation.
        check_int(self.layer, "min_clients", self.min_clients, minimum=2)
        for name in ("metrics", "evaluate"):
            names = getattr(self, name)
            if len(set(names)) != len(names) or wire.NUM_EXAMPLES in names:
                raise ConfigError(
                    f"{self.layer}: {name}={names!r}, but each is named once, and {wire.NUM_EXAMPLES!r} is "
                    "the weight, which travels anyway."
                )

    def spec(self) -> str:
        """Return the announcement."""
        return str(Spec(self.layer, kwargs=tuple(asdict(self).items())))

    @property
    def bounds(self) -> dict[str, float]:
        """The metrics with their bounds."""
        return dict.fromkeys(self.metrics, float(self.max_metric))

    def contents(self, phase: str) -> "Contents":
        """Return what the vectors of an exchange hold: ``"train"`` or ``"evaluate"``."""
        return self if phase == "train" else EvaluationContents(settings=self)

    def fixed_point(self, cohort: int, layout: Layout) -> FixedPoint:
        """Return the encoding for a cohort and a model.

        Raises
        ------
        EncodingError
            If the cohort's sum would wrap.
        """
        return _fixed_point(self, cohort, layout.size, self.bounds)

    def num_words(self, cohort: int, layout: Layout) -> int:
        """Return how many ring words a client's vector has."""
        return self.fixed_point(cohort, layout).length

    def encoding(self, parameters: RoundParameters, layout: Layout) -> Encoding:
        """Return how the sum of one attempt is read."""
        return self.fixed_point(parameters.cohort, layout)

    def layout_digest(self, layout: Layout) -> bytes:
        """Return the hash of what a vector holds: the model's arrays, the weights, the metrics."""
        meaning = json.dumps([self.weighting, self.bounds], sort_keys=True)
        return tagged_hash(b"flower-layout", layout.fingerprint.encode(), meaning.encode())

    def check_announces(self, parameters: RoundParameters) -> None:
        """Refuse parameters of an attempt that are not those announced, on which nodes' policies are.

        Raises
        ------
        PolicyViolationError
            If one differs, or ``min_clients`` is lower.
        """
        for name in ("tier", "num_bits", "clip", "max_weight", "corrupt", "dropout"):
            if getattr(parameters, name) != getattr(self, name):
                raise PolicyViolationError(
                    f"{self.layer}: the round has {name}={getattr(parameters, name)!r}, but the message "
                    f"announces {getattr(self, name)!r}; nothing was sent."
                )
        if parameters.min_clients < self.min_clients:
            raise PolicyViolationError(
                f"{self.layer}: the round has min_clients={parameters.min_clients}, but the message "
                f"announces {self.min_clients}; nothing was sent."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationContents:
    """What the vectors of an evaluation hold: the weight and the metrics, and nothing else."""

    settings: SecureSettings

    def fixed_point(self, cohort: int) -> FixedPoint:
        """Return the encoding for a cohort."""
        bounds = dict.fromkeys(self.settings.evaluate, float(self.settings.max_metric))
        return _fixed_point(self.settings, cohort, 0, bounds)

    def num_words(self, cohort: int, layout: Layout) -> int:  # noqa: ARG002  no word is of the model
        """Return how many ring words a client's vector has."""
        return self.fixed_point(cohort).length

    def encoding(self, parameters: RoundParameters, layout: Layout) -> Encoding:  # noqa: ARG002
        """Return how the sum of one attempt is read."""
        return self.fixed_point(parameters.cohort)

    def layout_digest(self, layout: Layout) -> bytes:
        """Return the hash of what a vector holds: no sum of training has it."""
        settings = self.settings
        meaning = json.dumps([settings.weighting, settings.evaluate, float(settings.max_metric)])
        return tagged_hash(b"flower-evaluation", layout.fingerprint.encode(), meaning.encode())


def _fixed_point(
    settings: SecureSettings, cohort: int, num_entries: int, bounds: Mapping[str, float]
) -> FixedPoint:
    """Return an encoding with the settings' ring, clip and largest weight."""
    return FixedPoint(
        num_bits=settings.num_bits,
        cohort=cohort,
        clip=float(settings.clip),
        max_weight=float(settings.max_weight),
        num_entries=num_entries,
        metrics=bounds,
    )


def model_digest(parameters: NamedArrays) -> bytes:
    """Return the hash of the global parameters, in whatever order they came: all keys are bound to it."""
    layout = Layout.of(parameters)
    flat = (np.ascontiguousarray(parameters[entry.key]).reshape(-1) for entry in layout.entries)
    parts = (cast(bytes, values.view(np.uint8).data) for values in flat)  # hashed in place
    return tagged_hash(b"flower-model", layout.fingerprint.encode(), *parts)


def stage_in(config: Mapping[str, Any]) -> Stage:
    """Return which stage a message is of; ``CLOSED``, which nobody answers, if there is no such stage."""
    number = config.get(wire.STAGE, 0)
    known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(STAGES)
    return STAGES[number] if known else Stage.CLOSED
