"""SuperNodes are started until they are let in; a run is resumed with what it had, or refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fl_plugins.deployment import joining, processes, run
from fl_plugins.deployment.drive import DeployedSuperLink
from fl_plugins.deployment.joining import join
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.runlog.events import EventLog
from fl_plugins.simulation.session import RunRequest

REFUSED = (
    "Failed to initialize the connection to the SuperLink.\n[code: 2004] Failed to activate SuperNode.\n"
)
LET_IN = "\x1b[92mINFO \x1b[0m:      SuperNode ID: 7\n"


def layout_of(folder: Path, *, num_nodes: int = 2) -> Layout:
    layout = Layout(folder, Settings(host="127.0.0.1", num_nodes=num_nodes, task="breast_cancer"))
    for node in layout.nodes:
        node.state.mkdir(parents=True, exist_ok=True)
    return layout


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, list[str]]], list[str]]:
    """Let each start of a role write the next of its texts; a role that is let in goes on running."""
    started: list[str] = []
    running: set[str] = {"server"}

    def play(texts: Mapping[str, list[str]]) -> list[str]:
        left = {name: list(said) for name, said in texts.items()}

        def start(role: Role, *_: str) -> int:
            started.append(role.name)
            text = left[role.name].pop(0)
            with role.log.open("a") as file:
                file.write(text)
            if "SuperNode ID" in text or text == "":
                running.add(role.name)
            return 1

        def check_alive(role: Role) -> None:
            if role.name not in running:
                raise RunFailedError(f"{role.name}: it has ended")

        monkeypatch.setattr(processes, "start", start)
        monkeypatch.setattr(processes, "is_running", lambda role: role.name in running)
        monkeypatch.setattr(processes, "check_alive", check_alive)
        return started

    monkeypatch.setattr(joining, "_POLL_S", 0.001)
    monkeypatch.setattr(joining, "_PAUSE_S", 0.001)
    return play


def test_a_node_that_flower_still_believes_online_is_started_until_it_is_let_in(
    starts: Any, tmp_path: Path
) -> None:
    layout = layout_of(tmp_path)
    layout.node(1).log.write_text(LET_IN)  # of its earlier life
    started = starts({"node 0": [LET_IN], "node 1": [REFUSED, REFUSED, LET_IN]})
    join(layout, layout.nodes, timeout_s=10)
    assert sorted(started) == ["node 0", "node 1", "node 1", "node 1"]


def test_a_node_that_ends_for_another_reason_is_not_started_again(starts: Any, tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    started = starts({"node 0": ["CERTIFICATE_VERIFY_FAILED\n"], "node 1": [LET_IN]})
    with pytest.raises(RunFailedError, match="node 0: it has ended"):
        join(layout, layout.nodes, timeout_s=10)
    assert started.count("node 0") == 1


@pytest.mark.parametrize("said", [[REFUSED] * 100_000, [""]])
def test_waiting_for_a_node_ends_with_its_log(said: list[str], starts: Any, tmp_path: Path) -> None:
    layout = layout_of(tmp_path, num_nodes=1)
    starts({"node 0": said})
    with pytest.raises(RunFailedError, match=r"not let in by the SuperLink within 0\.05 s; is its key"):
        join(layout, layout.nodes, timeout_s=0.05)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, control: "Control") -> list[RunRequest]:
    made: list[RunRequest] = []

    def run_app(_: object, request: RunRequest, __: object) -> list[Any]:
        made.append(request)
        EventLog(request.run_dir / "events.jsonl")("run_failed", error="interrupted")
        return []

    monkeypatch.setattr(run, "run_app", run_app)
    monkeypatch.setattr(DeployedSuperLink, "control", lambda _: control)
    return made


class Control:
    """A SuperLink with unfinished runs."""

    def __init__(self) -> None:
        self.runs: dict[int, dict[str, Any]] = {}
        self.stopped: list[int] = []

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def unfinished_runs(self) -> dict[int, dict[str, Any]]:
        return self.runs

    def stop_run(self, run_id: int) -> None:
        self.stopped.append(run_id)


@pytest.fixture
def control() -> Control:
    return Control()


def test_a_run_that_is_resumed_is_no_longer_under_way_and_others_are_left_alone(
    requests: list[RunRequest], control: Control, tmp_path: Path
) -> None:
    layout = layout_of(tmp_path)
    folder = str(layout.runs / "one")
    control.runs = {1: {"run-dir": folder}, 2: {"run-dir": f"{folder}x"}, 3: {}, 4: {"run-dir": folder}}
    run.run_in(layout, {"seed": 5}, name="one")
    assert control.stopped == []
    run.run_in(layout, {}, name="one", resume=True)
    assert control.stopped == [1, 4]
    assert len(requests) == 2


def test_a_resumed_run_keeps_what_it_had_and_may_run_longer(
    requests: list[RunRequest], tmp_path: Path
) -> None:
    layout = layout_of(tmp_path)
    run.run_in(layout, {"strategy": "krum(num_byzantine=1)", "seed": 5, "num-rounds": 3}, name="one")
    run.run_in(layout, {"num-rounds": 9}, name="one", resume=True)
    first, second = (dict(request.run_config) for request in requests)
    assert (first["resume"], second["resume"]) == (False, True)
    assert second["num-rounds"] == 9
    for key in ("strategy", "seed", "task", "run-dir"):
        assert second[key] == first[key]


@pytest.mark.parametrize(
    ("change", "num_nodes", "named"),
    [
        ({"seed": 6}, 2, "seed=6"),
        ({"strategy": "krum(num_byzantine=2)"}, 2, "strategy='krum"),
        ({"task": "digits"}, 2, "task='digits'"),
        ({}, 3, "num-supernodes=3"),
    ],
)
def test_another_run_is_not_resumed(
    change: Mapping[str, Any], num_nodes: int, named: str, requests: list[RunRequest], tmp_path: Path
) -> None:
    run.run_in(layout_of(tmp_path), {"strategy": "krum(num_byzantine=1)", "seed": 5}, name="one")
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        run.run_in(layout_of(tmp_path, num_nodes=num_nodes), change, name="one", resume=True)
    assert len(requests) == 1
