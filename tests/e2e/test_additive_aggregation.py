"""Additive sharing on real SuperNodes: four clients, one of them killed while it trains, and two helpers."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.deployment import drive
from fl_plugins.deployment.create import create
from fl_plugins.deployment.layout import Layout, Settings
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in

from .test_secure_aggregation import kill_at

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CLIENTS, HELPERS = range(4), range(4, 6)

STAGE_TIMEOUT_S = 15.0


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    ports = free_ports(7)
    task = "breast_cancer(model='logistic')"
    made = create(
        tmp_path / "d",
        Settings(host="127.0.0.1", port=ports[0], num_nodes=6, runtime_port=ports[1], task=task),
    )
    for number in HELPERS:
        node = made.node(number)
        script, given = node.start_script.read_text(), "num-partitions=$NUM_PARTITIONS"
        assert given in script
        role = r"secagg-role=\"helper\""
        node.start_script.write_text(script.replace(given, f"{given} {role}"))
    yield made
    drive.down(made)


def test_a_client_that_is_killed_while_training_costs_only_itself(layout: Layout) -> None:
    drive.up(layout)
    # Its first message is the question whether it helps, its second the round's.
    gone: dict[int, float] = {}
    threading.Thread(target=kill_at, args=(layout.node(1), 2, gone, 1), daemon=True).start()
    started = time.monotonic()
    events = run_in(
        layout,
        {
            "strategy": "additive_aggregation(fedavg(min_available_nodes=4), helpers=2, max_weight=1000, "
            f"clip=4.0, stage_timeout_s={STAGE_TIMEOUT_S})",
            "num-rounds": 1,
            "round-timeout-s": 2 * STAGE_TIMEOUT_S,
            "seed": 7,
        },
        name="helped",
    )
    print(f"one round took {time.monotonic() - started:.0f} s")
    assert list(gone) == [1]
    (secure,) = [event for event in events if event["event"] == "secure_aggregation"]
    assert (secure["layer"], len(secure["helpers"])) == ("additive_aggregation", 2)
    assert (secure["cohort"], secure["survivors"], secure["reason"]) == (4, 3, "")
    (started_,) = [event for event in events if event["event"] == "round_started"]
    # A node that is too slow for the roll call is named by Flower's number for it.
    named = {name for name in started_["sampled"] if not name.startswith("node-")}
    numbered = set(started_["sampled"]) - named
    assert named <= {str(number) for number in CLIENTS}, "helpers are no clients"
    assert numbered.isdisjoint(f"node-{helper}" for helper in secure["helpers"])
    ((stage, (lost,)),) = secure["dropped"].items()
    assert stage == "mask"
    assert lost == "1" or (lost in numbered and "1" not in named)
    assert load_checkpoint(layout.runs / "helped" / "final_model.ckpt").round == 1
