"""Secure aggregation in Flower's own engines: simulation, and SuperNodes of which some are killed."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import FINAL_MODEL, run_app
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.deployment import drive, processes
from fl_plugins.deployment.create import create
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in
from fl_plugins.records import to_named
from fl_plugins.runlog.events import read_events
from fl_plugins.testing import InProcessGrid

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TASK = "digits(model='mlp')"


def test_five_simulated_nodes_give_the_result_of_plain_averaging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    strategy = "secure_aggregation(fedavg(), max_weight=400, clip=2.0, metrics=['loss'])"
    options = ("--task", TASK, "--num-rounds", "2", "--seed", "5", "--strategy", strategy, "--name", "x")
    code = "import sys; from fl_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    runs = str(tmp_path / "runs")
    done = subprocess.run(
        [sys.executable, "-c", code, "simulate", *options, "--num-supernodes", "5", "--runs-dir", runs],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "x"
    events = read_events(folder / "events.jsonl")
    secure = [event for event in events if event["event"] == "secure_aggregation"]
    assert [(e["survivors"], e["dropped"], e["tier"]) for e in secure] == [(5, {}, "honest-but-curious")] * 2
    config = RunConfig(task=TASK, num_rounds=2, seed=5, client_evaluation=False)
    run_config = {**RunConfig.defaults(), "task": TASK, "num-rounds": 2, "seed": 5}
    with InProcessGrid(client_app, 5, run_config=run_config) as grid:
        plain = to_named(run_app(grid, config).arrays)
    kept = load_checkpoint(folder / FINAL_MODEL).arrays["model"]
    for key, array in plain.items():
        assert np.abs(kept[key] - array).max() < 2e-6, key


STAGE_TIMEOUT_S = float(os.environ.get("FL_PLUGINS_STAGE_TIMEOUT_S", "12"))
"""Long enough for a process of every node on two quiet cores; training gets twice as long."""


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    ports = free_ports(7)
    task = "breast_cancer(model='logistic')"
    made = create(
        tmp_path / "d",
        Settings(host="127.0.0.1", port=ports[0], num_nodes=6, runtime_port=ports[1], task=task),
    )
    for node in made.nodes:  # two are left for the last unmasking
        script, given = node.start_script.read_text(), "num-partitions=$NUM_PARTITIONS"
        assert given in script
        node.start_script.write_text(script.replace(given, f"{given} secagg-min-clients=2"))
    yield made
    drive.down(made)


def kill_at(role: Role, message: int, gone: dict[int, float], number: int) -> None:
    """Kill a SuperNode as soon as it has received its ``message``-th training message."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        if role.log.exists() and role.log.read_text().count("Receiving: train message") >= message:
            processes.kill(role)
            gone[number] = time.monotonic()
            return
        time.sleep(0.05)


def test_one_node_is_killed_in_each_stage_and_every_round_ends_with_the_others(layout: Layout) -> None:
    drive.up(layout)
    # Of round 1: node 0 while training, node 1 while sharing. Of round 2: node 2 while masking. Of round 3:
    # node 3 while unmasking. Four messages a round.
    gone: dict[int, float] = {}
    for number, message in enumerate((1, 2, 4 + 3, 8 + 4)):
        arguments = (layout.node(number), message, gone, number)
        threading.Thread(target=kill_at, args=arguments, daemon=True).start()
    started = time.monotonic()
    events = run_in(
        layout,
        {
            "strategy": "secure_aggregation(fedavg(quorum=0.1, min_available_nodes=3), max_weight=1000, "
            f"clip=4.0, min_clients=2, stage_timeout_s={STAGE_TIMEOUT_S})",
            "num-rounds": 3,
            "evaluate-every": 3,
            "round-timeout-s": 2 * STAGE_TIMEOUT_S,
            "seed": 7,
        },
        name="killed",
    )
    print(f"three rounds took {time.monotonic() - started:.0f} s")
    assert sorted(gone) == [0, 1, 2, 3]
    secure = [event for event in events if event["event"] == "secure_aggregation" and not event["reason"]]
    dropped = [event["dropped"] for event in secure]
    assert dropped[0] == {"advertise": ["0"], "share": ["1"]}
    assert dropped[1]["mask"] == ["2"]
    assert dropped[2]["unmask"] == ["3"]
    assert [event["survivors"] for event in secure] == [4, 3, 3]
    assert load_checkpoint(layout.runs / "killed" / "final_model.ckpt").round == 3


def test_supernodes_add_the_noise_themselves_and_one_that_is_killed_costs_only_itself(layout: Layout) -> None:
    """Node 0 is killed when it is to send its masked vector, the third message of the only round."""
    drive.up(layout)
    gone: dict[int, float] = {}
    threading.Thread(target=kill_at, args=(layout.node(0), 3, gone, 0), daemon=True).start()
    started = time.monotonic()
    events = run_in(
        layout,
        {
            "strategy": "distributed_dp(fedavg(weighting='uniform', quorum=0.1, min_available_nodes=6), "
            "unit='client', adjacency='zero_out', population=6, min_clients=5, clip_norm=1.0, "
            f"noise_multiplier=1.0, delta=1e-5, stage_timeout_s={STAGE_TIMEOUT_S})",
            "num-rounds": 1,
            "round-timeout-s": 2 * STAGE_TIMEOUT_S,
            "seed": 7,
        },
        name="noisy",
    )
    print(f"one round took {time.monotonic() - started:.0f} s")
    (secure,) = [event for event in events if event["event"] == "secure_aggregation"]
    assert (secure["dropped"], secure["survivors"]) == ({"mask": ["0"]}, 5)
    (spent,) = [event for event in events if event["event"] == "privacy"]
    assert 4.7 < spent["epsilon"] < 4.8, "z = 1 at four shares of six clients, of whom one may collude"
    ledger = (layout.runs / "noisy" / "privacy_ledger.jsonl").read_text()
    assert ledger.count('"line":"reserved"') == ledger.count('"line":"committed"') == 1
