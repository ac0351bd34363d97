"""The ServerApp of the stock Flower contestants: ``flwr``'s own FedAvg, which says when its rounds end."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .marks import MarkWriter
from .workload import NUM_CLIENTS, SAMPLED, initial_parameters, test_data

app = ServerApp()


class MarkedFedAvg(FedAvg):
    """FedAvg; a round ends when its replies are aggregated."""

    def __init__(self, marks: MarkWriter, **options: Any) -> None:
        super().__init__(**options)
        self._marks, self.steps = marks, 0

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Aggregate; then mark."""
        replies = list(replies)
        self.steps += sum(int(r.content["metrics"]["steps"]) for r in replies if r.has_content())
        result = super().aggregate_train(server_round, replies)
        self._marks.round_ended()
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run; at the end, report the last model's loss."""
    config = context.run_config
    model, marks = str(config["model"]), MarkWriter(str(config["marks"]))
    strategy = MarkedFedAvg(
        marks,
        fraction_train=SAMPLED / NUM_CLIENTS,
        fraction_evaluate=0.0,
        min_available_nodes=NUM_CLIENTS,
        train_metrics_aggr_fn=lambda *_: None,
    )
    initial_arrays, final_loss = (_torch if config["framework"] == "torch" else _jax)(model)
    result = strategy.start(
        grid=grid,
        initial_arrays=initial_arrays,
        train_config=ConfigRecord({"model": model}),
        num_rounds=int(config["rounds"]),
    )
    marks.done(steps=strategy.steps, loss=final_loss(result.arrays))


Ends = tuple[ArrayRecord, Callable[[ArrayRecord], float]]
"""The initial model, and what gives the last one's loss."""


def _torch(model: str) -> Ends:
    # Not from the client's module: Flower loads both apps in one process at once, and a module that is still
    # being imported by one of them has no ``app`` for the other.
    from . import torch_models

    module = torch_models.make_module(model)

    def final_loss(arrays: ArrayRecord) -> float:
        module.load_state_dict(arrays.to_torch_state_dict())
        return torch_models.test_loss(model, module, test_data(model))

    return ArrayRecord(module.state_dict()), final_loss


def _jax(model: str) -> Ends:
    from . import jax_models

    loss, data = jax_models.make_loss(jax_models.make_apply(model)), test_data(model)

    def final_loss(arrays: ArrayRecord) -> float:
        return float(loss({name: array.numpy() for name, array in arrays.items()}, data.x, data.y))

    initial = {name: Array(values) for name, values in initial_parameters(model).items()}
    return ArrayRecord(initial), final_loss
