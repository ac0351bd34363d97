"""The server: Flower's own ServerApp, a strategy from fl-plugins."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

import strategies

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    initial = ArrayRecord({"weights": Array(np.zeros((64, 10))), "bias": Array(np.zeros(10))})
    strategy = strategies.Krum(num_byzantine=int(context.run_config["num-byzantine"]), min_available_nodes=5)
    result = strategy.start(grid, initial, num_rounds=int(context.run_config["num-rounds"]))
    print(
        "final accuracy",
        round(result.evaluate_metrics_clientapp[max(result.evaluate_metrics_clientapp)]["accuracy"], 3),
    )
