"""The ready-made app without Flower's processes: nothing is lost, so disturbed runs are compared with it."""

from collections.abc import Callable, Collection
from typing import Any

from flwr.app import Context, Message

from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.records import to_named
from fl_plugins.testing import InProcessGrid
from fl_plugins.training import NamedArrays


def in_one_process(
    chosen: dict[str, Any], num_nodes: int, *, lost: Collection[tuple[str, int]] = ()
) -> tuple[NamedArrays, dict[str, float]]:
    """Return the parameters and the last metrics of a run.

    ``lost`` has the updates that never come: the client, and which of its training messages.
    """
    run_config = {**RunConfig.defaults(), **chosen}

    def losing(client: str) -> Callable[[Message, Context], Message]:
        trained = 0

        def serve(message: Message, context: Context) -> Message:
            nonlocal trained
            if message.metadata.message_type == "train":
                trained += 1
                if (client, trained) in lost:
                    raise RuntimeError("lost")
            return client_app(message, context)

        return serve

    apps = {client + 1: losing(str(client)) for client in range(num_nodes)}
    with InProcessGrid(client_app, num_nodes, run_config=run_config, overrides=apps) as grid:
        result = run_app(grid, RunConfig.from_run_config(run_config))
    _, metrics = max(result.evaluate_metrics_serverapp.items())
    return to_named(result.arrays), {key: float(value) for key, value in metrics.items()}  # type: ignore[arg-type]
