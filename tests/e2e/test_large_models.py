"""A model of a million parameters on real SuperNodes: what a message may hold, by every backend."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.runlog.events import read_events
from fl_plugins.simulation.session import load_bundle
from fl_plugins.testing.deployment import local_deployment

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]

SIZE, NUM_CLIENTS = 1_000_000, 3

PYPROJECT = """
[project]
name = "large"
version = "1.0.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "large_app:server"
clientapp = "large_app:client"
[tool.flwr.app.config]
run-dir = ""
strategy = ""
size = 0
"""

APP = '''
"""Every client adds its partition's number to a large array."""

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from clients.mods.secure_aggregation import secure_aggregation_mod
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.runlog.events import EventLog
from fl_plugins.spec import build

server = ServerApp()
client = ClientApp(mods=[secure_aggregation_mod])


@client.train()
def train(message, context):
    added = np.float32(context.node_config["partition-id"])
    trained = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + added)})
    record = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": trained, "metrics": record}), reply_to=message)


@server.main()
def main(grid, context):
    config, folder = context.run_config, Path(context.run_config["run-dir"])
    initial = ArrayRecord({"w": Array(np.zeros(config["size"], np.float32))})
    emit = EventLog(folder / "events.jsonl")
    options = RunOptions(num_rounds=1, timeout_s=120.0, checkpoint_dir=folder, emit=emit)
    build(Kind.STRATEGY, config["strategy"]).run(grid, initial, options)
'''

STRATEGIES = {
    "pairwise": "secure_aggregation({})",
    "helpers": "additive_aggregation({}, helpers=2)",
    "encrypted": "ckks_aggregation({})",
}
INNER = "fedavg(weighting='uniform', min_available_nodes={}), clip=4.0"


def test_a_million_parameters_are_summed_by_every_backend(tmp_path: Path) -> None:
    pytest.importorskip("tenseal", reason="the extra he is not installed")
    from fl_plugins.ckks_round import write_key

    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "large_app.py").write_text(APP)
    bundle = load_bundle(app)
    write_key(tmp_path / "sum.key")
    own = f'num-partitions={NUM_CLIENTS} secagg-sum-key="{tmp_path}/sum.key" secagg-state="{tmp_path}/state"'
    configs = [f"partition-id={i} {own}" for i in range(NUM_CLIENTS)]
    configs += [f'partition-id={i} {own} secagg-role="helper"' for i in range(NUM_CLIENTS, NUM_CLIENTS + 2)]
    with local_deployment(tmp_path, node_configs=configs, command="fl-plugins-supernode") as deployment:
        for name, strategy in STRATEGIES.items():
            # Helpers are helpers of one backend only; the others have five clients.
            clients = range(NUM_CLIENTS if name == "helpers" else NUM_CLIENTS + 2)
            spec = strategy.format(INNER.format(len(clients)))
            given: dict[str, Any] = {"run-dir": str(tmp_path / name), "strategy": spec, "size": SIZE}
            started = time.monotonic()
            status = deployment.run(bundle, given, timeout_s=240)
            events = read_events(tmp_path / name / "events.jsonl")
            assert status.sub_status == "completed", (status, events[-1])
            (secure,) = [event for event in events if event["event"] == "secure_aggregation"]
            print(
                f"{name}: {time.monotonic() - started:.1f} s, {secure['seconds']:.1f} of them after training"
            )
            assert secure["survivors"] == len(clients)
            (path,) = tmp_path.joinpath(name).glob("*1.ckpt")
            kept = load_checkpoint(path).arrays["model"]["w"]
            # All counted the same: the sum's rounding is at most clip/levels, far below float32's.
            assert np.abs(kept - np.mean(clients)).max() < 1e-6
