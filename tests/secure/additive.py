"""A federation with helpers: clients are nodes 1 to n, helpers the nodes after them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message

from fl_plugins import wire
from fl_plugins.secagg import Stage
from fl_plugins.secure_identities import PRIVATE_KEY, make_identity, write_roster
from strategies import AdditiveAggregation, FedAvg

from .federation import WatchedGrid, config_of, stage_of, stock_app

HELPERS = (6, 7)
"""Of the usual five clients."""


def helped(inner: Any = None, **options: Any) -> AdditiveAggregation:
    """Return the strategy of most tests."""
    inner = inner or FedAvg(quorum=0.4, max_attempts=1)
    return AdditiveAggregation(
        inner, **{"max_weight": 1000.0, "stage_timeout_s": 60.0, "clip": 0.6, **options}
    )


def is_question(message: Message) -> bool:
    """Whether a message asks a node whether it helps."""
    return wire.SECAGG not in message.content.config_records and wire.STAGE in config_of(message)


def is_client_message(message: Message) -> bool:
    """Whether a message lets a node train."""
    return wire.STAGE not in config_of(message)


class HelpedGrid(WatchedGrid):
    """Loses chosen messages: to clients, to helpers at a stage of an attempt, or the question who helps."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.lost_clients: set[int] = options.pop("lost_clients", set())
        self.lost_helpers: set[tuple[int, Stage, int]] = options.pop("lost_helpers", set())
        self.lost_questions: set[int] = options.pop("lost_questions", set())
        super().__init__(*arguments, **options)
        self.counts: dict[tuple[int, Stage], int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages, but for those that are lost."""
        identifiers = list(super().push_messages(messages))
        for identifier in identifiers:
            if self._is_lost(self._waiting[identifier]):
                del self._waiting[identifier]
        return identifiers

    def _is_lost(self, message: Message) -> bool:
        node, stage = message.metadata.dst_node_id, stage_of(message)
        if is_question(message):
            lost = node in self.lost_questions
            self.lost_questions = self.lost_questions - {node}
            return lost
        if is_client_message(message):
            return node in self.lost_clients
        self.counts[node, stage] = self.counts.get((node, stage), 0) + 1
        return (node, stage, self.counts[node, stage]) in self.lost_helpers


def grid_of(
    *,
    num_clients: int = 5,
    num_helpers: int = 2,
    app: Any = None,
    configs: Mapping[int, Mapping[str, Any]] | None = None,
    **options: Any,
) -> HelpedGrid:
    """Return a grid of clients, then helpers; ``configs`` are put beside their roles."""
    own = {node: dict(config) for node, config in (configs or {}).items()}
    for node in range(num_clients + 1, num_clients + num_helpers + 1):
        own.setdefault(node, {})["secagg-role"] = "helper"
    return HelpedGrid(app or stock_app(), num_clients + num_helpers, node_configs=own, **options)


def operators(tmp_path: Path, num_clients: int = 5, num_helpers: int = 2) -> dict[int, dict[str, Any]]:
    """Return the nodes' own configs: an identity each, rosters of the clients and of the helpers."""
    nodes = range(1, num_clients + num_helpers + 1)
    keys = {node: make_identity(tmp_path / f"node-{node}") for node in nodes}
    clients, helpers = tmp_path / "clients.toml", tmp_path / "helpers.toml"
    write_roster(clients, {f"node-{node}": keys[node] for node in nodes if node <= num_clients})
    write_roster(helpers, {f"node-{node}": keys[node] for node in nodes if node > num_clients}, at_least=1)
    return {
        node: {
            "secagg-identity": str(tmp_path / f"node-{node}" / PRIVATE_KEY),
            **({"secagg-helpers": str(helpers)} if node <= num_clients else {"secagg-roster": str(clients)}),
        }
        for node in nodes
    }
