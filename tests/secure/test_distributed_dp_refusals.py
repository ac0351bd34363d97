"""Noise that clients add, on Flower: what a client refuses, what is refused at once, and a node's account."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from fl_plugins.apps.client_app import app as ready_made
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.errors import ConfigError, ContractError, PreconditionError, QuorumError
from fl_plugins.local_privacy import LOCAL
from fl_plugins.privacy import Accountant
from fl_plugins.records import Layout
from fl_plugins.run_options import RunOptions
from fl_plugins.runlog.events import read_events
from fl_plugins.secagg import Stage
from fl_plugins.secagg import server as protocol
from strategies import FedAvg, Krum, RootTrust, SecureAggregation

from .federation import MODEL, WatchedGrid, run, secure, stock_app, trainer
from .lies import VICTIM, announced, assert_refused, attack, lowered, operators, other_layers
from .private_federation import GIVEN, Events, N, fix_noise, ledger_lines, of, private


@pytest.fixture(autouse=True)
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_noise(monkeypatch)


# -- What a client refuses -----------------------------------------------------------------------------

LIES = {
    "a noise multiplier that only this client is told": (announced(noise_multiplier=0.5), "layout is not"),
    "another clip norm": (announced(clip=0.25, clip_norm=0.25), "clip=0.5, but the message announces 0.25"),
    "another mechanism": (announced(mechanism="skellam"), "layout is not that of the message"),
    "another adjacency": (announced(adjacency="replace"), "layout is not that of the message"),
    "an adjacency without accounting": (announced(adjacency="add_remove"), "'zero_out', 'replace'"),
    "fewer clients than announced": (lowered(min_clients=4), "min_clients=4, but the message announces 5"),
    "more clients than the ring holds": (lowered(cohort=7), "the message announces max_cohort=6"),
    "noise of less than two steps": (announced(noise_multiplier=1e-5), "below 2 the sum of shares is no"),
    "no honest share": (announced(corrupt=0.5, min_clients=4), "at least 2 must be left whose noise"),
    "weights": (announced(weighting="examples"), "every client counts the same"),
    "a metric slipped in": (announced(metrics=("loss",)), "nothing but the noisy update is released"),
    "the plain layer around it": (other_layers("secure_aggregation()", "own"), "must be there once"),
    "the plain layer inside": (other_layers("own", "secure_aggregation()"), "must be there once"),
    "a longer vector": (lowered(length=9000), "length is not that of the message"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_the_noise_is_refused_before_anything_is_trained(lie: str) -> None:
    change, said = LIES[lie]
    trained: list[int] = []

    def train(message: Message, context: Any) -> Message:
        trained.append(context.node_id)
        return trainer()(message, context)  # type: ignore[no-any-return]

    grid, replies = attack(
        Stage.ADVERTISE, change, client_app=stock_app(train), strategy=private(), num_nodes=N
    )
    assert_refused(grid, replies[Stage.ADVERTISE], said)
    assert set(trained) == set(range(1, N + 1)) - {VICTIM}


def test_a_sum_of_fewer_than_was_charged_is_not_unmasked_by_the_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's own check is out of the way here: seven of nine would do for the graph."""
    strategy = private(population=9, min_clients=9, corrupt=0.05)
    grid = WatchedGrid(num_nodes=9, silent_at={Stage.MASK: [2]})
    monkeypatch.setattr(protocol.ServerSession, "_least", 7)
    with pytest.raises(QuorumError):
        run(strategy, grid)
    refusals = [reply.error.reason for reply in grid.replies if reply.has_error()]
    assert refusals
    assert all("has 8 nodes, but 9 are needed" in reason for reason in refusals)


def with_policy(tmp_path: Path, text: str) -> WatchedGrid:
    policy = tmp_path / "policy.toml"
    policy.write_text(text)
    return WatchedGrid(ready_made, N, node_configs={VICTIM: {"policy": str(policy)}}, run_config=APP)


APP = RunConfig.defaults() | {"task": "digits(model='mlp')"}
RUN: dict[str, Any] = {"task": "digits(model='mlp')", "num_rounds": 1, "client_evaluation": False}


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        ("[layers.distributed_dp]\nmin_noise_multiplier = 2.0", "noise_multiplier >= 2.0, announced is 1.0"),
        ("[layers.distributed_dp]\nadjacency = 'replace'", "adjacency = 'replace', announced is 'zero_out'"),
        ("[layers.distributed_dp]\nmax_clip_norm = 0.1", "clip_norm <= 0.1, announced is 0.5"),
        ("[layers.secure_aggregation]\nmin_min_clients = 6", "min_clients >= 6, announced is 5"),
        ("[layers.distributed_dp]\nmin_noise_multiplier = 1.0\n[layers.secure_aggregation]", None),
    ],
)
def test_a_nodes_policy_can_demand_the_noise(tmp_path: Path, demand: str, said: str | None) -> None:
    grid = with_policy(tmp_path, demand)
    text = (
        "distributed_dp(fedavg(weighting='uniform'), unit='client', adjacency='zero_out', population=6, "
        "min_clients=5, delta=1e-5, clip_norm=0.5, noise_multiplier=1.0)"
    )
    with grid:
        run_app(grid, RunConfig(strategy=text, run_dir=str(tmp_path / "run"), **RUN))
    events = read_events(tmp_path / "run" / "events.jsonl")
    reasons = [event["reason"] for event in events if event["event"] == "reply" and event["reason"]]
    assert len(reasons) == (said is not None)
    assert said is None or said in reasons[0]


def test_a_node_whose_demand_for_noise_names_the_malicious_tier_needs_a_roster(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[layers.distributed_dp]\ntier = 'malicious'")
    configs = {**operators(tmp_path, N), VICTIM: {"policy": str(policy)}}
    grid = WatchedGrid(num_nodes=N, node_configs=configs)
    run(private(tier="malicious"), grid)
    (error,) = [reply.error.reason for reply in grid.replies if reply.has_error()]
    assert "required_tier is malicious, but the roster is empty" in error


def test_a_node_that_demands_noise_takes_part_in_no_secure_round_without(tmp_path: Path) -> None:
    grid = with_policy(tmp_path, "[layers.distributed_dp]\nmin_noise_multiplier = 0.5")
    with grid:
        strategy = "secure_aggregation(fedavg(weighting='uniform'))"
        run_app(grid, RunConfig(strategy=strategy, run_dir=str(tmp_path / "run"), **RUN))
    events = read_events(tmp_path / "run" / "events.jsonl")
    (reason,) = [event["reason"] for event in events if event["event"] == "reply" and event["reason"]]
    assert "demands the layer distributed_dp" in reason


# -- What is refused at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (Krum(num_byzantine=1), "distributed_dp: krum must see every client's update"),
        (RootTrust(train=lambda a, _: a), "of its own"),
        (FedAvg(), 'weighting="examples", but a weight moves the sum'),
        (secure(FedAvg(weighting="uniform"), max_weight=None), "SecureAggregation has a"),
        (private(), "DistributedDp has a"),
    ],
    ids=["krum", "root_trust", "weights", "secure aggregation", "itself"],
)
def test_what_has_no_known_sensitivity_or_would_be_lost_is_refused(inner: Any, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        private(inner)
    with pytest.raises(ContractError, match="DistributedDp has a"):
        SecureAggregation(private())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unit": "record"}, "unit='record', but it is one of"),
        ({"adjacency": "add_remove"}, "takes its share of the noise along"),
        ({"mechanism": "laplace"}, "mechanism='laplace'"),
        ({"num_bits": 24}, "num_bits=24"),
        ({"population": 1}, "population=1"),
        ({"population": 5, "min_clients": 6}, "a cohort has at most 5 clients of population=5"),
        ({"min_clients": 2}, r"min_clients=2 with 1 colluders.*raise min_clients, or lower corrupt"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 0.2}, "delta=0.2, but it must be a finite number in"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"clip_norm": math.inf}, "clip_norm=inf"),
        ({"noise_multiplier": 0.0}, "noise_multiplier=0.0"),
        ({"noise_multiplier": None}, "give either noise_multiplier, or target_epsilon with num_rounds"),
        ({"target_epsilon": 2.0, "num_rounds": 3}, "give either noise_multiplier"),
        ({"noise_multiplier": 1e-8}, "below 2 the sum of shares is no noise that is accounted for"),
        ({"population": 4000, "min_clients": 3000}, "use 32 bits or at most 3640 clients"),
        ({"corrupt": 0.7}, "corrupt=0.7"),
        ({"stage_timeout_s": 0.0}, "stage_timeout_s=0.0"),
        (
            {"noise_multiplier": None, "target_epsilon": 1e-5, "num_rounds": 1000},
            "is not reached by any noise in a ring of 16 bits; use 32 bits",
        ),
    ],
)
def test_settings_that_promise_nothing_are_refused_when_the_stack_is_built(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        private(**options)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ({**MODEL, "state/n": np.array(1, np.int64)}, {}, "state/n"),
        ({**MODEL, "state/mean": np.zeros(4, np.float32)}, {}, "GroupNorm or LayerNorm for BatchNorm"),
        ({"params/w": np.zeros(2)}, {"noise_multiplier": 0.001}, "below 2 the sum of shares is no noise"),
    ],
    ids=["integers", "statistics", "a ring too small for this model"],
)
def test_a_model_that_is_not_protected_is_refused_before_anything_is_sent(
    model: Any, options: dict[str, Any], said: str
) -> None:
    grid = WatchedGrid(num_nodes=N)
    record = ArrayRecord({key: Array(value) for key, value in model.items()})
    with grid, pytest.raises((ConfigError, ContractError), match=said):
        private(**options).run(grid, record, RunOptions(num_rounds=1))
    assert grid.sent == []


def test_a_run_waits_for_as_many_clients_as_a_sum_needs() -> None:
    assert private().settings.min_available_nodes == GIVEN["min_clients"]
    inner = FedAvg(weighting="uniform", min_available_nodes=N)
    assert private(inner).settings.min_available_nodes == N


def test_more_clients_than_were_declared_are_refused() -> None:
    grid = WatchedGrid(num_nodes=N + 1)
    with pytest.raises(PreconditionError, match="7 clients are connected, but the ring and the ledger"):
        run(private(), grid)
    assert grid.sent == []


def test_a_sampled_cohort_sizes_ring_and_mean_and_is_charged_without_amplification() -> None:
    inner = FedAvg(weighting="uniform", fraction_train=0.5, quorum=0.4)
    strategy = private(inner, population=16, min_clients=6)
    assert strategy.secure.max_cohort == 8
    events: Events = []
    run(strategy, WatchedGrid(num_nodes=16), events=events)
    assert len(of(events, "round_started")[0]["sampled"]) == 8
    assert of(events, "privacy")[0]["epsilon"] == pytest.approx(4.73, rel=0.01), "of z = 1 and everyone"


# -- The node's own account ----------------------------------------------------------------------------


def test_a_node_keeps_an_account_of_its_own_which_no_server_can_reset(tmp_path: Path) -> None:
    """Attempt 1 gives no sum, 2 does; another run is refused, for the node's limit is two attempts."""
    release = replace(private().secure.release(Layout.of(MODEL).size), relation=LOCAL)
    accountant = Accountant(LOCAL)
    accountant.compose(release, 2)
    limit = 1.001 * accountant.report(1e-5).epsilon
    ledger = tmp_path / "node.jsonl"
    own = {VICTIM: {"privacy-ledger": str(ledger), "max-epsilon": limit}}
    grid = WatchedGrid(num_nodes=N, silent_at={Stage.SHARE: [3, 4, 5]}, attempts_cut=1, node_configs=own)
    run(private(), grid)
    assert len(ledger_lines(ledger, "reserved")) == 2
    assert len(ledger_lines(ledger, "committed")) == 1
    (charged,) = ledger_lines(ledger, "release")
    assert charged["release"]["adjacency"] == "replace"
    assert charged["release"]["mechanism"]["num_shares"] == 4
    again = WatchedGrid(num_nodes=N, node_configs=own)
    events: Events = []
    run(private(), again, events=events)
    (failed,) = [event for event in of(events, "reply") if event["status"] == "failed"]
    assert "this node's privacy account" in failed["reason"]
    assert "would exceed max_epsilon" in failed["reason"]
    assert len(ledger_lines(ledger, "reserved")) == 2


def test_a_node_without_a_file_counts_this_runs_attempts() -> None:
    grid = WatchedGrid(num_nodes=N, node_configs={VICTIM: {"max-epsilon": 12.0}})
    events: Events = []
    run(private(), grid, events=events, num_rounds=3)
    refused = [event["round"] for event in of(events, "reply") if event["status"] == "failed"]
    assert refused == [2, 3], "ε = 10.7 for one sum under replace at z = 1, and more for two"
