"""Secure aggregation in Flower's own engines: simulation, and SuperNodes of which some are killed."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_plugins.apps.server_app import FINAL_MODEL
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.ckks_round import write_key
from fl_plugins.deployment import drive, processes
from fl_plugins.deployment.create import create
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in
from fl_plugins.runlog.events import Event, read_events
from fl_plugins.secagg import Stage
from fl_plugins.secure_identities import make_identity, write_roster
from fl_plugins.secure_round import STAGES

from .one_process import in_one_process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TASK = "digits(model='mlp')"


SECURE = "secure_aggregation(fedavg(), max_weight=400, clip=2.0, evaluate=['loss', 'accuracy'])"
HELPED = "additive_aggregation(fedavg(), helpers=2, max_weight=400, clip=2.0)"
ENCRYPTED = "ckks_aggregation(fedavg(), max_weight=400, clip=2.0)"


@pytest.mark.parametrize(
    ("strategy", "num_helpers"),
    [
        pytest.param(SECURE, 0, id="pairwise"),
        pytest.param(HELPED, 2, id="helpers", marks=pytest.mark.long),
        pytest.param(ENCRYPTED, 0, id="encrypted", marks=pytest.mark.long),
    ],
)
def test_five_clients_that_flwr_run_simulates_give_the_result_of_plain_averaging(
    flwr_run: Callable[..., Any], tmp_path: Path, strategy: str, num_helpers: int
) -> None:
    num_rounds = 2 if strategy is SECURE else 1
    chosen = {"task": TASK, "num-rounds": num_rounds, "seed": 5}
    own: dict[str, Any] = {"simulated-helpers": num_helpers}
    if strategy is ENCRYPTED:
        pytest.importorskip("tenseal", reason="the extra he is not installed")
        write_key(tmp_path / "sum.key")
        own["simulated-sum-key"] = str(tmp_path / "sum.key")
    folder = tmp_path / "run"
    run = flwr_run(
        ROOT,
        num_supernodes=5 + num_helpers,
        **{**chosen, **own, "strategy": strategy, "run-dir": str(folder)},
    )
    assert run.status == "finished:completed", run.output
    events = read_events(folder / "events.jsonl")
    secure = [event for event in events if event["event"] == "secure_aggregation"]
    phases = ["train", "evaluate"] * 2 if strategy is SECURE else ["train"]
    assert [(e["phase"], e["survivors"], e["dropped"]) for e in secure] == [(p, 5, {}) for p in phases]
    told = [set(e["metrics"]) for e in events if e["event"] == "evaluated" and e["where"] == "clients"]
    assert told == ([{"loss", "accuracy"}] * 2 if strategy is SECURE else [])
    plain, _ = in_one_process({**chosen, "client-evaluation": False}, 5)
    kept = load_checkpoint(folder / FINAL_MODEL).arrays["model"]
    for key, array in plain.items():
        assert np.abs(kept[key] - array).max() < 2e-6, key


LEAST_STAGE_TIMEOUT_S, TIMES_SLOWER = 4.0, 2.5
"""A stage's deadline: so many times what it takes when nobody is killed, on this machine and now."""

RECEIVED = "Receiving: train message"
"""What a SuperNode's log says."""

CHOSEN = {"client-evaluation": False, "seed": 7}

NUM_NODES, NUM_ROUNDS, NUM_STAGES = 8, 3, len(STAGES)
WARM_ROUNDS = 2

KILLED = {
    0: (1, Stage.SHARE),
    1: (1, Stage.MASK),
    2: (2, Stage.ADVERTISE),
    3: (2, Stage.CONFIRM),
    4: (3, Stage.UNMASK),
}
"""Node → round and stage. Of those that advertise, ⌊2n/3⌋ + 1 have to answer: 6 of 8, 4 of 5, 3 of 4."""

EXACT = "secure_aggregation(fedavg(quorum=0.1, min_available_nodes=3), max_weight=128, clip=4.0, {})"
NOISY = (
    "distributed_dp(fedavg(weighting='uniform', quorum=0.1, min_available_nodes=8), unit='client', "
    "adjacency='zero_out', population=8, min_clients=6, clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, {})"
)


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Give nodes that take part in the malicious tier only: each has its identity, and the roster of all."""
    ports = free_ports(NUM_NODES + 1)
    settings = Settings(
        host="127.0.0.1",
        port=ports[0],
        num_nodes=NUM_NODES,
        runtime_port=ports[1],
        task="breast_cancer(model='logistic')",
    )
    made = create(tmp_path / "d", settings)
    identities = {f"hospital-{i}": make_identity(node.folder) for i, node in enumerate(made.nodes)}
    for node in made.nodes:
        write_roster(node.folder / "secagg_roster.toml", identities)
    yield made
    drive.down(made)


def kill_at(role: Role, message: int, gone: dict[int, float], number: int) -> None:
    """Kill a SuperNode as soon as it has received its ``message``-th training message."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        if role.log.exists() and role.log.read_text().count(RECEIVED) >= message:
            processes.kill(role)
            gone[number] = time.monotonic()
            return
        time.sleep(0.05)


def secure_run(
    layout: Layout, name: str, num_rounds: int, strategy: str, *, stage_timeout_s: float
) -> list[Event]:
    """Run rounds of the malicious tier."""
    strategy = strategy.format(f"tier='malicious', stage_timeout_s={stage_timeout_s}")
    chosen = {**CHOSEN, "num-rounds": num_rounds, "evaluate-every": num_rounds, "strategy": strategy}
    return run_in(layout, {**chosen, "round-timeout-s": 2 * stage_timeout_s}, name=name)


def check_sum(layout: Layout, name: str, num_rounds: int, lost: set[tuple[str, int]]) -> None:
    """The parameters are those of plain averaging without these clients' updates of these rounds."""
    chosen = {**CHOSEN, "task": layout.settings.task, "num-rounds": num_rounds}
    plain = {**chosen, "strategy": "fedavg(quorum=0.1)"}
    expected, _ = in_one_process(plain, NUM_NODES, lost=lost)
    kept = load_checkpoint(layout.runs / name / FINAL_MODEL).arrays["model"]
    for key, array in expected.items():
        # A round's sum is rounded by 3e-8, and the parameters themselves, near 1, by 6e-8.
        assert np.abs(kept[key] - array).max() < 2e-6, key


def check_noise(layout: Layout, name: str, events: list[Event]) -> None:
    """Every round had all clients, and is charged for the noise of the five that must be there and honest."""
    secure = [event for event in events if event["event"] == "secure_aggregation"]
    assert [(e["survivors"], e["tier"], e["reason"]) for e in secure] == [(8, "malicious", "")] * WARM_ROUNDS
    spent = [event["epsilon"] for event in events if event["event"] == "privacy"]
    assert 4.7 < spent[0] < 4.8, "z = 1, one release"
    assert spent[0] < spent[1] < 2 * spent[0]
    ledger = (layout.runs / name / "privacy_ledger.jsonl").read_text()
    assert ledger.count('"line":"reserved"') == ledger.count('"line":"committed"') == WARM_ROUNDS


@pytest.mark.long
def test_one_node_is_killed_in_each_stage_and_every_sum_is_that_of_the_others(layout: Layout) -> None:
    """The rounds before, in which nobody is killed, say how fast a stage is; their sums have noise."""
    drive.up(layout)
    warm = secure_run(layout, "warm", WARM_ROUNDS, NOISY, stage_timeout_s=100.0)
    check_noise(layout, "warm", warm)
    pace_s = [e["seconds"] for e in warm if e["event"] == "round_finished"][-1] / NUM_STAGES
    gone: dict[int, float] = {}
    for number, (server_round, stage) in KILLED.items():
        message = NUM_STAGES * (WARM_ROUNDS + server_round - 1) + STAGES.index(stage) + 1
        arguments = (layout.node(number), message, gone, number)
        threading.Thread(target=kill_at, args=arguments, daemon=True).start()
    started = time.monotonic()
    stage_timeout_s = max(LEAST_STAGE_TIMEOUT_S, TIMES_SLOWER * pace_s)
    events = secure_run(layout, "killed", NUM_ROUNDS, EXACT, stage_timeout_s=stage_timeout_s)
    print(f"{NUM_ROUNDS} rounds took {time.monotonic() - started:.0f} s, {stage_timeout_s:.1f} s a deadline")
    assert sorted(gone) == sorted(KILLED)
    secure = [event for event in events if event["event"] == "secure_aggregation"]
    assert [(event["tier"], event["reason"]) for event in secure] == [("malicious", "")] * NUM_ROUNDS
    for number, (server_round, stage) in KILLED.items():
        assert str(number) in secure[server_round - 1]["dropped"][stage]
    assert secure[0]["dropped"] == {"share": ["0"], "mask": ["1"]}
    # Whoever is killed after the mask stage is in the sum all the same.
    assert [event["survivors"] for event in secure] == [6, 5, 4]

    lost = {
        (str(number), later)
        for number, (server_round, stage) in KILLED.items()
        for later in range(server_round + (stage in (Stage.CONFIRM, Stage.UNMASK)), NUM_ROUNDS + 1)
    }
    check_sum(layout, "killed", NUM_ROUNDS, lost)
