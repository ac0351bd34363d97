"""Backends on real SuperNodes: four clients, one of them killed while it trains, and two helpers."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_plugins.apps.server_app import FINAL_MODEL
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.deployment import drive
from fl_plugins.deployment.create import create
from fl_plugins.deployment.layout import Layout, Settings
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in
from fl_plugins.runlog.events import Event
from fl_plugins.secure_identities import make_identity, write_roster

from .one_process import in_one_process
from .test_secure_aggregation import RECEIVED, kill_at

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CLIENTS, HELPERS = range(4), range(4, 6)
VICTIM = 1

STAGE_TIMEOUT_S, LEAST_TIMEOUT_S = 15.0, 10.0
TASK = "breast_cancer(model='logistic')"


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Give every node an identity, clients the roster of the helpers and the reverse, clients a key."""
    tenseal = pytest.importorskip("tenseal", reason="the extra he is not installed")
    assert tenseal
    from fl_plugins.ckks_round import write_key

    ports = free_ports(7)
    settings = Settings(host="127.0.0.1", port=ports[0], num_nodes=6, runtime_port=ports[1], task=TASK)
    made = create(tmp_path / "d", settings)
    keys = {i: make_identity(node.folder) for i, node in enumerate(made.nodes)}
    clients, helpers, sum_key = (tmp_path / name for name in ("clients.toml", "helpers.toml", "sum.key"))
    write_roster(clients, {f"hospital-{i}": keys[i] for i in CLIENTS})
    write_roster(helpers, {f"foundation-{i}": keys[i] for i in HELPERS}, at_least=1)
    write_key(sum_key)
    for i, node in enumerate(made.nodes):
        own = f'secagg-helpers="{helpers}" secagg-sum-key="{sum_key}"'
        if i in HELPERS:
            own = f'secagg-role="helper" secagg-roster="{clients}"'
        with (node.folder / "settings.env").open("a") as file:
            file.write(f"NODE_CONFIG='{own}'\n")
    yield made
    drive.down(made)


def run_one_round(layout: Layout, strategy: str, *, name: str, timeout_s: float) -> tuple[list[Event], Event]:
    """Run one round; return its events, and that of the secure attempt."""
    chosen = {"num-rounds": 1, "round-timeout-s": timeout_s, "seed": 7}
    started = time.monotonic()
    events = run_in(layout, {**chosen, "strategy": strategy}, name=name)
    print(f"{name}: one round took {time.monotonic() - started:.0f} s")
    attempts = [event for event in events if event["event"] == "secure_aggregation"]
    (secure,) = [event for event in attempts if event["phase"] == "train"]
    return events, secure


def test_sums_are_encrypted_or_opened_by_helpers_whom_the_server_cannot_choose(layout: Layout) -> None:
    drive.up(layout)
    options = f"max_weight=1000, clip=4.0, stage_timeout_s={STAGE_TIMEOUT_S}"
    inner = "fedavg(quorum=0.5, min_available_nodes=6)"
    strategy = f"ckks_aggregation({inner}, evaluate=['accuracy'], {options})"
    events, secure = run_one_round(layout, strategy, name="encrypted", timeout_s=60.0)
    slowest_s = max(event["seconds"] for event in events if event["event"] == "reply")
    # Helpers have no key, and are clients of nothing.
    assert (secure["layer"], secure["cohort"], secure["survivors"]) == ("ckks_aggregation", 6, 4)
    evaluated = [event for event in events if event["event"] == "evaluated" and event["where"] == "clients"]
    assert [set(event["metrics"]) for event in evaluated] == [{"accuracy"}]
    plain = {"task": TASK, "strategy": "fedavg(quorum=0.5)", "num-rounds": 1, "seed": 7}
    lost = {(str(helper), 1) for helper in HELPERS}
    expected, _ = in_one_process({**plain, "client-evaluation": False}, 6, lost=lost)
    kept = load_checkpoint(layout.runs / "encrypted" / FINAL_MODEL).arrays["model"]
    for key, array in expected.items():
        assert np.abs(kept[key] - array).max() < 2e-6, key

    # The victim's next message is the question whether it helps, the one after it the round's.
    victim, gone = layout.node(VICTIM), dict[int, float]()
    message = victim.log.read_text().count(RECEIVED) + 2
    threading.Thread(target=kill_at, args=(victim, message, gone, VICTIM), daemon=True).start()
    strategy = f"additive_aggregation(fedavg(min_available_nodes=4), tier='malicious', {options})"
    # Whoever is killed costs the round its deadline; by now everything is warm.
    timeout_s = min(60.0, max(LEAST_TIMEOUT_S, 2 * slowest_s))
    events, secure = run_one_round(layout, strategy, name="helped", timeout_s=timeout_s)
    assert list(gone) == [VICTIM]
    assert (secure["layer"], secure["tier"]) == ("additive_aggregation", "malicious")
    assert (secure["cohort"], secure["survivors"], secure["reason"]) == (4, 3, "")
    assert len(secure["helpers"]) == 2
    (started,) = [event for event in events if event["event"] == "round_started"]
    # A node that is too slow for the roll call is named by Flower's number for it.
    named = {name for name in started["sampled"] if not name.startswith("node-")}
    numbered = set(started["sampled"]) - named
    assert named <= {str(number) for number in CLIENTS}, "helpers are no clients"
    assert numbered.isdisjoint(f"node-{helper}" for helper in secure["helpers"])
    ((stage, (lost_one,)),) = secure["dropped"].items()
    assert stage == "mask"
    assert lost_one == str(VICTIM) or (lost_one in numbered and str(VICTIM) not in named)
    assert load_checkpoint(layout.runs / "helped" / FINAL_MODEL).round == 1
