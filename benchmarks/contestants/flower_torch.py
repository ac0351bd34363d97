"""A PyTorch client for Flower, written as Flower's quickstart writes it, without a DataLoader's cost.

Module and data are kept per process, which is kinder than the quickstart.
"""

import functools
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from . import torch_models
from .workload import BATCH, EXAMPLES, LEARNING_RATE, client_data

app = ClientApp()


@functools.cache
def _module(model: str) -> Any:
    torch.set_num_threads(1)  # one per actor, as many actors as cores: more of them slow each other down
    return torch_models.make_module(model)


@functools.cache
def _data(model: str, partition: int) -> tuple[Any, Any]:
    return torch_models.tensors(model, client_data(model, partition))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one epoch."""
    model = str(message.content["config"]["model"])
    module, (x, y) = _module(model), _data(model, int(context.node_config["partition-id"]))
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE[model])
    running_loss, steps = 0.0, 0
    for rows in torch.randperm(EXAMPLES).split(BATCH):
        optimizer.zero_grad()
        loss = torch_models.loss_of(module(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        steps += 1
    metrics = MetricRecord({"num-examples": EXAMPLES, "train_loss": running_loss / steps, "steps": steps})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
