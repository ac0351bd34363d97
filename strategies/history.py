"""Metrics by round, and Flower's ``Result`` made from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.serverapp.strategy import Result

from fl_plugins.records import from_named
from fl_plugins.training import NamedArrays

from .replies import Metrics, to_metric_record

ByRound = dict[int, Metrics]


@dataclass(frozen=True, kw_only=True)
class MetricsHistory:
    """What was measured in each round; replaced, never changed."""

    train: ByRound = field(default_factory=dict)
    clients: ByRound = field(default_factory=dict)
    server: ByRound = field(default_factory=dict)

    def with_metrics(self, where: str, number: int, metrics: Metrics | None) -> "MetricsHistory":
        """Return a history with ``metrics`` of round ``number`` under ``where`` (a field's name)."""
        if metrics is None:
            return self
        return replace(self, **{where: {**getattr(self, where), number: metrics}})

    def evaluated(self) -> list[tuple[int, dict[str, float]]]:
        """Return the scalar metrics of the evaluations: the server's, or the clients' if there are none."""
        rounds = self.server or self.clients
        return [
            (number, {key: value for key, value in metrics.items() if not isinstance(value, list)})
            for number, metrics in sorted(rounds.items())
        ]

    def to_facts(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {name: list(getattr(self, name).items()) for name in ("train", "clients", "server")}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "MetricsHistory":
        """Return what :meth:`to_facts` wrote."""
        return cls(
            **{name: {number: dict(metrics) for number, metrics in pairs} for name, pairs in facts.items()}
        )


def to_result(arrays: NamedArrays, history: MetricsHistory) -> Result:
    """Return Flower's result object."""
    return Result(
        arrays=from_named(arrays),
        train_metrics_clientapp={n: to_metric_record(m) for n, m in history.train.items()},
        evaluate_metrics_clientapp={n: to_metric_record(m) for n, m in history.clients.items()},
        evaluate_metrics_serverapp={n: to_metric_record(m) for n, m in history.server.items()},
    )
