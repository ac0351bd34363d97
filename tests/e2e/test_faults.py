"""Faults of a deployment with TLS and node authentication: real processes, killed, stopped, slow and late.

Few deployments and many faults, for bringing one up is what takes the time. Every test waits for what the
run's events or Flower say, never for a time.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.deployment import drive, processes
from fl_plugins.deployment.create import create
from fl_plugins.deployment.joining import join
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in
from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.runlog.events import Event, read_events
from fl_plugins.simulation.superlink import strip_colours
from fl_plugins.testing.slow_link import slow_link

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TASK = "breast_cancer(model='logistic')"
WORKER = "fl_plugins.resident.worker"
PATIENCE_S = 180.0
DEADLINE_S = 30.0
"""Less than the 38 s at least that Flower takes to call a node offline: so our deadline ends the round."""

CLOCK = """
import datetime, importlib.util, os, sys

class Shift:
    def find_spec(self, name, path=None, target=None):
        if name != "flwr.supercore.date":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            off = datetime.timedelta(seconds=float(os.environ["CLOCK_IS_OFF_S"]))
            real = module.now
            module.now = lambda: real() + off

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Shift())
"""
"""A ``sitecustomize`` for a node: all that Flower does there reads a clock that is wrong."""


class Interrupted(Exception):
    """What a test's listener raises when it has seen enough: as if the operator pressed Ctrl-C."""


@pytest.fixture
def make_layout(tmp_path: Path) -> Iterator[Callable[[int], Layout]]:
    made: list[Layout] = []

    def make(num_nodes: int) -> Layout:
        ports = free_ports(num_nodes + 1)
        settings = Settings(
            host="127.0.0.1", port=ports[0], num_nodes=num_nodes, runtime_port=ports[1], task=TASK
        )
        made.append(create(tmp_path / "d", settings))
        return made[-1]

    yield make
    for layout in made:
        for node in layout.nodes:
            send(node, signal.SIGCONT)
        drive.down(layout)


def set_in_settings(node: Role, **values: str) -> None:
    path = node.folder / "settings.env"
    path.write_text(path.read_text() + "".join(f"{key}={value}\n" for key, value in values.items()))


def send(role: Role, number: signal.Signals) -> None:
    for pid in processes.members(role):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, "what was waited for has not happened"
        time.sleep(0.02)
    return result


def of(events: list[Event], kind: str, **fields: Any) -> list[Event]:
    return [e for e in events if e["event"] == kind and all(e[k] == v for k, v in fields.items())]


def clients(events: list[Event], **fields: Any) -> set[str]:
    return {e["client"] for e in of(events, "reply", phase="train", **fields)}


def parameters(layout: Layout, name: str) -> dict[str, bytes]:
    return parameters_in(layout.runs / name / "final_model.ckpt")


def parameters_in(path: Path) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in load_checkpoint(path).arrays["model"].items()}


def config(strategy: str, rounds: int, *, timeout_s: float = 150.0, **more: Any) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "num-rounds": rounds,
        "evaluate-every": rounds,
        "client-evaluation": False,
        "round-timeout-s": timeout_s,
        "seed": 7,
        **more,
    }


def test_a_run_survives_the_death_of_its_server_app_and_of_its_superlink_bit_for_bit(
    make_layout: Callable[[int], Layout],
) -> None:
    layout = make_layout(2)
    drive.up(layout)
    chosen = config("fedavg(quorum=1.0, server_optimizer=adam(learning_rate=0.1))", 5)

    def kill_server_app_in_round_2(event: Event) -> None:
        if event["event"] == "round_started" and event["round"] == 2:
            (pid,) = processes.programs(layout.server, "flwr-serverapp")
            os.kill(pid, signal.SIGKILL)
            raise Interrupted

    def kill_superlink_in_round_4(event: Event) -> None:
        if event["event"] == "round_started" and event["round"] == 4:
            processes.kill(layout.server)

    with pytest.raises(Interrupted):
        run_in(layout, chosen, name="disturbed", show=kill_server_app_in_round_2)
    assert not (layout.runs / "disturbed" / "final_model.ckpt").exists()
    with pytest.raises(ConfigError, match="seed=8"):
        run_in(layout, {"seed": 8}, name="disturbed", resume=True)
    with pytest.raises(RunFailedError, match="server: it has ended"):
        run_in(layout, {}, name="disturbed", resume=True, show=kill_superlink_in_round_4)
    assert wait_until(lambda: not processes.members(layout.server))  # the ServerApp does not outlive it
    assert all(processes.is_running(node) for node in layout.nodes)
    drive.up(layout)
    events = run_in(layout, {}, name="disturbed", resume=True)
    assert [e["round"] for e in of(events, "round_finished")] == [4, 5]
    assert of(events, "run_started")[0]["resumed_from"] == 3
    started = [e["resumed_from"] for e in all_events(layout, "disturbed") if e["event"] == "run_started"]
    assert started == [None, 1, 3]

    run_in(layout, chosen, name="undisturbed")
    assert parameters(layout, "disturbed") == parameters(layout, "undisturbed")
    before_last = layout.runs / "undisturbed" / "checkpoints" / "round-000004.ckpt"
    assert parameters_in(before_last) != parameters(layout, "undisturbed")


def all_events(layout: Layout, name: str) -> list[Event]:
    return read_events(layout.runs / name / "events.jsonl")


def test_a_round_survives_the_death_of_nodes_and_clientapps_late_skewed_slow_and_silent_nodes(
    make_layout: Callable[[int], Layout], tmp_path: Path
) -> None:
    layout = make_layout(4)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    clock = {"PYTHONPATH": str(tmp_path / "clock")}
    with slow_link(("127.0.0.1", layout.settings.port), bytes_per_s=20_000) as link:
        set_in_settings(layout.node(0), SUPERLINK=f"127.0.0.1:{link.port}")
        set_in_settings(layout.node(1), CLOCK_IS_OFF_S="-120", **clock)
        processes.start(layout.server)
        drive.wait_for_superlink(drive.DeployedSuperLink(layout))
        drive.register(layout)

        # A clock that is more than 5 s ahead: Flower refuses the node's signed timestamps.
        set_in_settings(layout.node(3), CLOCK_IS_OFF_S="60", **clock)
        processes.start(layout.node(3), "--max-retries", "0")
        wait_until(lambda: not processes.is_running(layout.node(3)))
        assert "SuperNode ID" not in strip_colours(layout.node(3).log.read_text())
        set_in_settings(layout.node(3), CLOCK_IS_OFF_S="0")

        join(layout, [layout.node(i) for i in (0, 1, 2)])
        check_late(layout)
        assert link.carried > 0
        check_killed(layout)
        check_silent_and_two_at_once(layout)


def check_late(layout: Layout) -> None:
    """Node 3 starts when the run is under way; as soon as it has been used, the run is given up."""
    joining = ThreadPoolExecutor(1)
    seen: list[Event] = []

    def start_node_3(event: Event) -> None:
        seen.append(event)
        if event["event"] == "round_finished" and event["round"] == 1:
            joining.submit(join, layout, [layout.node(3)])
        if event["event"] == "reply" and (event["client"], event["status"]) == ("3", "accepted"):
            raise Interrupted

    with pytest.raises(Interrupted), joining:
        run_in(layout, config("fedavg(min_available_nodes=3)", 1000), name="late", show=start_node_3)
    # Node 0 is on a slow link, node 1 has a clock that is 2 minutes late.
    assert clients(seen, round=1, status="accepted") == {"0", "1", "2"}
    (joined,) = {e["round"] for e in of(seen, "reply", client="3", status="accepted")}
    assert of(seen, "round_started", round=joined)[0]["available"] == 4


def check_killed(layout: Layout) -> None:
    """In one round, a SuperNode and another node's ClientApp are killed; the others go on; both come back."""
    run_in(layout, config("fedavg(min_available_nodes=4)", 3), name="undisturbed")
    rejoining = ThreadPoolExecutor(1)
    node = layout.node(1)

    def kill(event: Event) -> None:
        if event["event"] == "round_finished" and event["round"] == 1:
            signal_programs(node, WORKER, signal.SIGSTOP)  # so that the ClientApp has not answered yet
        if event["event"] == "round_started" and event["round"] == 2:
            wait_until(lambda: processes.client_apps(layout.node(2)))
            processes.kill(layout.node(2))
            rejoining.submit(join, layout, [layout.node(2)])
            # A ClientApp that is killed before it has taken its message is started again by Flower.
            wait_until(lambda: asks_worker(node))
            send_signal(processes.client_apps(node), signal.SIGKILL)
            signal_programs(node, WORKER, signal.SIGCONT)

    with rejoining:
        events = run_in(
            layout, config("fedavg(min_available_nodes=4, quorum=0.5)", 3), name="killed", show=kill
        )
    assert clients(events, round=2, status="accepted") == {"0", "3"}
    told = {e["client"]: e["reason"] for e in of(events, "reply", phase="train", status="failed")}
    assert set(told) == {"1", "2"}
    assert "Node Unavailable" in told["2"]
    assert len(of(events, "round_started")) == 3  # no round was tried again
    assert clients(events, round=3, status="accepted") == {"0", "1", "2", "3"}
    accuracies = [
        of(all_events(layout, name), "evaluated")[-1]["metrics"]["accuracy"]
        for name in ("undisturbed", "killed")
    ]
    assert accuracies[0] > 0.85  # the more frequent class has 0.63
    # 114 test examples near an accuracy of 0.9: one standard error is 0.028.
    assert abs(accuracies[0] - accuracies[1]) < 3 * 0.028


def accuracy(events: list[Event]) -> float:
    return float(of(events, "evaluated")[-1]["metrics"]["accuracy"])


def asks_worker(node: Role) -> bool:
    """Whether a ClientApp has taken its message, and waits for the node's resident worker."""
    (worker,) = processes.programs(node, WORKER)
    folder = Path(f"/proc/{worker}/cmdline").read_text().split("\0")[4]
    sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if f" {folder}/" in line]
    return len(sockets) > 1  # beside the one that listens


def signal_programs(node: Role, name: str, number: signal.Signals) -> None:
    send_signal(processes.programs(node, name), number)


def send_signal(pids: set[int], number: signal.Signals) -> None:
    assert pids
    for pid in pids:
        with suppress(ProcessLookupError):  # the command that stands for a fork ends with it
            os.kill(pid, number)


def check_silent_and_two_at_once(layout: Layout) -> None:
    """Node 3 stops to answer one of two runs, which goes on at its deadline; the other loses nothing."""

    def stop(event: Event) -> None:
        if event["event"] == "round_started" and event["round"] == 2:
            send(layout.node(3), signal.SIGSTOP)
        if event["event"] == "missing":
            send(layout.node(3), signal.SIGCONT)

    with ThreadPoolExecutor(1) as other:
        patient = other.submit(
            run_in, layout, config("fedavg(min_available_nodes=4, quorum=1.0)", 3), name="patient"
        )
        events = run_in(
            layout,
            config("fedavg(min_available_nodes=4, quorum=0.5)", 3, timeout_s=DEADLINE_S),
            name="impatient",
            show=stop,
        )
        patient.result()
    missed = next(e["round"] for e in of(events, "missing", phase="train") if "3" in e["clients"])
    assert of(events, "round_finished", round=missed)[0]["seconds"] >= DEADLINE_S
    assert of(events, "run_finished")
    assert parameters(layout, "patient") == parameters(layout, "undisturbed")
