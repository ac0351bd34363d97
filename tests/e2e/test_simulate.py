"""`fl-plugins simulate` and `compare` with a real SuperLink and Ray, and an app that learns nothing."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import FINAL_MODEL, run_app
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.runlog.events import read_events
from fl_plugins.simulation.keeper import descendants
from fl_plugins.testing import InProcessGrid

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]

PYPROJECT = """
[project]
name = "stub"
version = "1.0.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "stub_app:server"
clientapp = "stub_app:client"
[tool.flwr.app.config]
run-dir = ""
resume = false
num-rounds = 2
strategy = "good"
pause = 0.0
text = ""
"""

STUB_APP = '''
"""Asks every client for its partition, writes events, and fails if its strategy is "broken"."""

import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl_plugins.runlog.events import EventLog, read_events

server = ServerApp()
client = ClientApp()


@client.train()
def train(message, context):
    record = MetricRecord({"id": context.node_config["partition-id"]})
    return Message(RecordDict({"metrics": record}), reply_to=message)


@server.main()
def main(grid, context):
    config = context.run_config
    path = Path(config["run-dir"]) / "events.jsonl"
    done = sum(event["event"] == "round_finished" for event in read_events(path)) if config["resume"] else 0
    emit = EventLog(path)
    emit("run_started", strategy=config["strategy"], num_rounds=config["num-rounds"], seed=0,
         resumed_from=done if config["resume"] else None, text=config["text"])
    for number in range(done + 1, config["num-rounds"] + 1):
        while len(nodes := list(grid.get_node_ids())) < 2:  # they connect after the ServerApp has begun
            time.sleep(0.05)
        emit("round_started", round=number, attempt=1, sampled=nodes, available=len(nodes))
        messages = [Message(RecordDict({"c": ConfigRecord({})}), node, "train") for node in nodes]
        for reply in grid.send_and_receive(messages):
            emit("reply", round=number, phase="train", client=str(reply.content["metrics"]["id"]),
                 status="accepted")
        if config["strategy"] == "broken":
            raise ValueError("the stub was told to break")
        emit("evaluated", round=number, where="server", metrics={"accuracy": number / 4})
        emit("round_finished", round=number, seconds=0.1, metrics={})
        time.sleep(config["pause"])
    emit("run_finished", rounds=config["num-rounds"], seconds=1.0, metrics={})
'''


@pytest.fixture
def temp(monkeypatch):
    """Return a temporary folder of this test alone, short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "stub"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "stub_app.py").write_text(STUB_APP)
    return folder


def start(tmp_path, *arguments, nodes=2):
    """Start ``fl-plugins`` as it is when the virtual environment is not activated."""
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    environment.pop("VIRTUAL_ENV", None)
    # A shell's job in the background, as these tests may be, ignores Ctrl-C, and so would all that it starts.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fl_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            *arguments,
            "--num-supernodes",
            str(nodes),
            "--runs-dir",
            str(tmp_path / "runs"),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )


def is_running(pid):
    """Whether a process runs; a zombie that the machine's first process must bury does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_nothing_is_left(tree, temp, *, seconds):
    deadline = time.monotonic() + seconds
    while left := [*filter(is_running, tree), *temp.glob("flp-*"), *temp.glob("ray*")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def read_until(process, text):
    """Return the lines up to the first one with ``text``."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if text in line:
            return lines
    raise AssertionError(f"{text!r} never came: {lines} {process.stderr.read()}")


def test_compare_shows_what_worked_and_what_failed_and_leaves_nothing_behind(app, tmp_path, temp):
    text = """a "b" 'c' = \\ end"""
    (tmp_path / "c.toml").write_text(f"text = '''{text}\n'''\n")
    process = start(
        tmp_path,
        *(
            "compare",
            "--app",
            str(app),
            "--strategies",
            "broken; good",
            "--name",
            "x",
            "--run-config",
            "c.toml",
        ),
    )
    read_until(process, "[1/2] broken")
    tree = descendants(process.pid)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 1, errors
    assert "the run of broken failed: " in errors
    assert "ValueError: the stub was told to break" in errors
    assert "server.log" in errors
    assert "round 2 of 2 · accuracy 0.5000 · 2 sampled, 2 answered, 0 quarantined · " in output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.strip()}
    assert rows["broken"][-1] == "failed"
    assert rows["good"][1] == "0.5000"
    assert rows["good"][-1] == "finished"
    folder = tmp_path / "runs" / "x"
    events = read_events(folder / "02-good" / "events.jsonl")
    assert events[0]["text"] == text + "\n"
    assert sorted(event["client"] for event in events if event["event"] == "reply") == ["0", "0", "1", "1"]
    assert read_events(folder / "01-broken" / "events.jsonl")[-1]["event"] == "run_failed"
    wait_until_nothing_is_left(tree, temp, seconds=0.1)


@pytest.mark.parametrize(
    ("nodes", "ray"), [(1, False), pytest.param(1, True, marks=pytest.mark.long), (2, True)]
)
def test_nodes_host_six_virtual_clients_with_the_bits_of_six_nodes_in_one_process(tmp_path, temp, nodes, ray):
    """A node alone has all cores and a JAX device for each; the engine serves it, unless told not to."""
    task = "digits(model='mlp')"
    options = ("--name", "x", "--task", task, "--num-rounds", "2", "--seed", "5", "--virtual-clients", "6")
    if nodes == 1 and ray:
        options += ("--run-config", "in-process-cores=0")
    process = start(tmp_path, "simulate", *options, nodes=nodes)
    read_until(process, "round 1 of 2")
    seen = {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)}
    assert any(b"default_worker.py" in command for command in seen) is ray
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    folder = tmp_path / "runs" / "x"
    replies = [event for event in read_events(folder / "events.jsonl") if event["event"] == "reply"]
    assert len({event["node"] for event in replies}) == nodes
    assert {event["status"] for event in replies} == {"accepted"}
    assert {event["client"] for event in replies} == {"0", "1", "2", "3", "4", "5"}
    config = RunConfig(task=task, num_rounds=2, seed=5)
    run_config = {**RunConfig.defaults(), "task": task, "num-rounds": 2, "seed": 5}
    with InProcessGrid(client_app, 6, run_config=run_config) as grid:
        alone = run_app(grid, config)
    kept = load_checkpoint(folder / FINAL_MODEL).arrays["model"]
    for key, array in alone.arrays.items():
        assert kept[key].tobytes() == array.numpy().tobytes(), key


def test_ctrl_c_leaves_nothing_behind_and_the_run_can_be_resumed(app, tmp_path, temp):
    config = ("--app", str(app), "--name", "x", "--run-config", "num-rounds=3 pause=10.0")
    process = start(tmp_path, "simulate", *config)
    read_until(process, "round 1 of 3")
    tree = descendants(process.pid)
    assert len(tree) > 5, "Ray runs"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--name x --resume" in output
    wait_until_nothing_is_left(tree, temp, seconds=0.1)
    resumed = start(tmp_path, "simulate", "--name", "x", "--resume", "--run-config", "pause=0.0")
    output, errors = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, errors
    assert "resumed after round 1" in output
    assert "round 1 of 3" not in output
    assert "round 3 of 3" in output


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_killed_outright_everything_ends_a_moment_later(app, tmp_path, temp):
    process = start(tmp_path, "simulate", "--app", str(app), "--run-config", "num-rounds=3 pause=60.0")
    read_until(process, "round 1 of 3")
    tree = descendants(process.pid)
    process.kill()
    process.communicate(timeout=60)
    # The keeper's grace period of 2 s, and the killing, on a machine that is busy.
    wait_until_nothing_is_left(tree, temp, seconds=30)
