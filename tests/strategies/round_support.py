"""A run with stock clients in this process, and the events of it."""

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Context, Message

from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import FederatedStrategy

Client = Callable[[Message, Context], Message]
MakeClient = Callable[..., Client]


class Events(list[dict[str, Any]]):
    """An event log in memory."""

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.append({"event": event, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self if entry["event"] == event]


def run_in_process(
    strategy: FederatedStrategy,
    client: Client,
    initial: ArrayRecord,
    *,
    num_nodes: int = 5,
    overrides: dict[int, Client] | None = None,
    silent: tuple[int, ...] = (),
    **options: Any,
) -> tuple[Any, Events]:
    events = Events()
    given = {"num_rounds": 2, "timeout_s": 5.0, "seed": 1, "emit": events, **options}
    with InProcessGrid(client, num_nodes, overrides=overrides, silent=silent) as grid:
        return strategy.run(grid, initial, RunOptions(**given)), events
