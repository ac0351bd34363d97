"""10,000 virtual clients, 1,000 sampled per round: counts and bits, no times."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.registry import Kind, register
from fl_plugins.testing import InProcessGrid
from fl_plugins.training import ClientData, Dataset, Model, NamedArrays, Task, TrainResult

VIRTUAL, SAMPLED = 10_000, 1_000


@register(Kind.TASK, "scale_test_task")
def scale_test_task() -> Task:
    """Return a task with two numbers for each client."""

    def load(partition_id: int, _: int) -> ClientData:
        data = Dataset(
            np.full((1 + partition_id % 3, 1), partition_id, np.float32), np.zeros(1 + partition_id % 3)
        )
        return ClientData(data, data)

    def none(*_: Any) -> Any:
        raise NotImplementedError

    return Task(name="scale", model=Model(init=none, apply=none), loss=none, load_partition=load)


class _Tiny:
    def init(self, *, seed: int) -> NamedArrays:
        return {"w": np.zeros(3, np.float32)}

    def train(self, arrays: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
        return TrainResult(arrays={"w": arrays["w"] + data.x[0]}, num_examples=len(data), metrics={})

    def evaluate(self, arrays: NamedArrays, data: Dataset) -> dict[str, float]:
        return {"loss": float(data.x[0, 0])}


@register(Kind.CLIENT, "scale_test_trainer")
def scale_test_trainer(task: Task) -> _Tiny:
    """Return a trainer that adds a client's number to the parameters."""
    return _Tiny()


@pytest.mark.parametrize("nodes", [2, 5])
def test_ten_thousand_clients_and_a_thousand_sampled(
    nodes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="flwr")
    given: dict[str, Any] = {
        "task": "scale_test_task",
        "client": "scale_test_trainer",
        "strategy": f"fedavg(num_train_nodes={SAMPLED}, num_evaluate_nodes={SAMPLED})",
        "virtual_clients": VIRTUAL,
        "num_rounds": 2,
        "run_dir": str(tmp_path),
    }
    run_config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in given.items()}}
    with InProcessGrid(client_app, nodes, run_config=run_config) as grid:
        result = run_app(grid, RunConfig(**given))
        kinds = Counter(message.metadata.message_type for message in grid.sent)
    assert kinds == {"query.roll_call": nodes, "train": 2 * nodes, "evaluate": 2 * nodes}

    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    sampled = [list(map(int, e["sampled"])) for e in events if e["event"] == "round_started"]
    assert [len(set(clients)) for clients in sampled] == [SAMPLED, SAMPLED]
    assert sampled[0] != sampled[1]
    assert all(clients == sorted(clients) for clients in sampled)
    statuses = Counter((e["phase"], e["status"]) for e in events if e["event"] == "reply")
    assert statuses == {("train", "accepted"): 2 * SAMPLED, ("evaluate", "accepted"): 2 * SAMPLED}
    # The oracle: integers, so that the weighted mean is one float64 division per round.
    expected = np.zeros(3, np.float32)
    for clients in sampled:
        weights = [1 + client % 3 for client in clients]
        moved = sum(w * client for w, client in zip(weights, clients, strict=True)) / sum(weights)
        expected = expected + np.float32(moved)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-6)  # w + x is rounded to float32
