"""Workers on really deployed nodes: who served what, by process id; none is left in the end."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from fl_plugins.resident.lifetime import ProcessId
from fl_plugins.simulation.app_template import write_app
from fl_plugins.simulation.session import load_bundle
from fl_plugins.testing.deployment import Deployment, local_deployment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NUM_ROUNDS = 5
ALONE = "fedavg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)"
SERVED = re.compile(r"\[resident worker (\d+)\] (train|evaluate) in")


def served_by(log: Path, kind: str = "train") -> list[int]:
    """Return which worker served each message, in order."""
    return [int(pid) for pid, what in SERVED.findall(log.read_text(errors="replace")) if what == kind]


def kill_after(log: Path, messages: int, killed: list[int]) -> None:
    """Kill the worker of a node as soon as it has served so many."""
    while len(served := served_by(log)) < messages:
        time.sleep(0.1)
    os.kill(served[-1], signal.SIGKILL)
    killed.append(served[-1])


def run(deployment: Deployment, folder: Path, **run_config: bool | int | str) -> list[dict[str, object]]:
    config = {"task": "breast_cancer", "client-evaluation": False, "run-dir": str(folder / "run")}
    bundle = load_bundle(write_app(folder / "app"))
    status = deployment.run(bundle, {**config, **run_config}, timeout_s=200)
    assert status.is_completed, status
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


def test_one_worker_serves_all_rounds_and_another_goes_on_when_it_is_killed(tmp_path: Path) -> None:
    configs = [f"partition-id={number} num-partitions=2" for number in range(2)]
    with local_deployment(tmp_path, node_configs=configs) as deployment:
        killed: list[int] = []
        log = tmp_path / "node-0.log"
        killer = threading.Thread(target=kill_after, args=(log, 2, killed), daemon=True)
        killer.start()
        events = run(deployment, tmp_path, **{"num-rounds": NUM_ROUNDS})

        undisturbed = served_by(tmp_path / "node-1.log")
        assert len(undisturbed) == NUM_ROUNDS
        assert len(set(undisturbed)) == 1
        served = served_by(log)
        assert len(served) == NUM_ROUNDS
        assert served[:2] == [killed[0]] * 2
        assert len(set(served[2:])) == 1
        assert served[2] != killed[0]

        replies = [event for event in events if event["event"] == "reply"]
        assert [event["status"] for event in replies] == ["accepted"] * 2 * NUM_ROUNDS  # nothing was lost
        workers = {*served, *undisturbed} - {killed[0]}
        assert all(ProcessId.of(pid) is not None for pid in workers)
    assert not any(ProcessId.of(pid) for pid in workers)


def test_our_supernode_forks_its_clientapps_and_leaves_nothing(tmp_path: Path) -> None:
    config = "partition-id=0 num-partitions=1"
    with local_deployment(tmp_path, node_configs=[config], command="fl-plugins-supernode") as deployment:
        events = run(deployment, tmp_path, **{"num-rounds": 3, "strategy": ALONE})
        log = (tmp_path / "node-0.log").read_text(errors="replace")
        (starter,) = {int(pid) for pid in re.findall(r"Started starter for this node: process (\d+)", log)}
        assert ProcessId.of(starter) is not None
        assert len(set(served_by(tmp_path / "node-0.log"))) == 1
    assert [event["event"] for event in events].count("reply") == 3
    assert log.count("Start `flwr-clientapp` process") == 4
    assert len(set(re.findall(rf"\[starter {starter}\] forked process (\d+)", log))) == 3  # all but the first
    assert ProcessId.of(starter) is None


def test_a_node_that_wants_no_worker_serves_its_messages_itself(tmp_path: Path) -> None:
    config = "partition-id=0 num-partitions=1 resident-worker=false"
    with local_deployment(tmp_path, node_configs=[config]) as deployment:
        events = run(
            deployment,
            tmp_path,
            **{
                "num-rounds": 1,
                "strategy": ALONE,
            },
        )
    assert [event["event"] for event in events].count("reply") == 1
    assert "resident worker" not in (tmp_path / "node-0.log").read_text(errors="replace")
