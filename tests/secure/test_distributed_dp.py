"""Noise that clients add, on Flower: what is released, and how it is charged."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from clients.mods import secure_aggregation as mod
from fl_plugins import distributed_privacy, wire
from fl_plugins.apps.client_app import app as ready_made
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.errors import CheckpointError, ConfigError
from fl_plugins.privacy import Accountant
from fl_plugins.records import Layout, to_named
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.runlog.events import FIELDS, read_events
from fl_plugins.secagg import Stage
from fl_plugins.spec import build
from strategies import DistributedDp, FedAvg

from .federation import LOSS, MODEL, WatchedGrid, initial, run, stage_of, stock_app, trainer
from .lies import operators
from .private_federation import GIVEN, Events, N, fix_noise, ledger_lines, of, private


@pytest.fixture(autouse=True)
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_noise(monkeypatch)


# -- What is released ----------------------------------------------------------------------------------

D = 1 << 15
"""A power of two, so that turning the vector keeps its length exactly."""

Z = 0.1
"""So little noise that the sum of eight updates stands out of it."""


def pattern(node: int) -> Any:
    """Return an update with twice the clip norm, most of it in the direction (1, 1, …)."""
    drawn = np.random.default_rng(node).normal(3.0, 1.0, size=D)
    return drawn * (2 * GIVEN["clip_norm"] / np.linalg.norm(drawn))


def wide(message: Message, context: Any) -> Message:
    metrics = MetricRecord({"num-examples": 10 * context.node_id, "loss": LOSS})
    arrays = ArrayRecord({"params/w": Array(pattern(context.node_id))})
    return Message(RecordDict({"a": arrays, "m": metrics}), reply_to=message)


def released(silent: Mapping[Stage, Any], num_nodes: int = 8, **options: Any) -> tuple[Any, Events]:
    """Return the mean that one round of wide clients releases."""
    events: Events = []
    strategy = private(population=8, min_clients=6, noise_multiplier=Z, **options)
    grid = WatchedGrid(stock_app(wide), num_nodes, silent_at=silent)
    with grid:
        start = ArrayRecord({"params/w": Array(np.zeros(D))})

        def emit(event: str, /, **fields: Any) -> None:
            events.append({"event": event, **fields})

        result = strategy.run(grid, start, RunOptions(num_rounds=1, timeout_s=60.0, seed=1, emit=emit))
    return to_named(result.arrays)["params/w"], events


@pytest.mark.parametrize("mechanism", ["discrete_gaussian", "skellam"])
@pytest.mark.parametrize(
    "silent",
    [
        pytest.param({}, id="everyone"),
        pytest.param({Stage.ADVERTISE: [3], Stage.MASK: [5]}, id="the fewest"),
        pytest.param({Stage.SHARE: [1], Stage.UNMASK: [7]}, id="one short, one late"),
    ],
)
def test_the_released_mean_is_the_sum_of_the_clipped_updates_with_the_noise_of_the_survivors(
    mechanism: str, silent: Mapping[Stage, Any]
) -> None:
    """z·C·√(n/m)/N: n survivors, m = 6 − 1 shares that are counted on, N = 8 the largest cohort."""
    gone = {node for stage, nodes in silent.items() if stage is not Stage.UNMASK for node in nodes}
    survivors = set(range(1, 9)) - gone
    mean, events = released(silent, mechanism=mechanism)
    (event,) = of(events, "secure_aggregation")
    assert event["survivors"] == len(survivors)
    noise = mean - sum(pattern(node) / 2 for node in survivors) / 8
    clip_norm = GIVEN["clip_norm"]
    expected = Z * clip_norm * math.sqrt(len(survivors) / 5) / 8
    five_errors = 5 / math.sqrt(2 * D)
    assert noise.std() == pytest.approx(expected, rel=five_errors)
    assert abs(noise.mean()) < 5 * expected / math.sqrt(D)
    tails = np.mean(np.abs(noise) > 2 * expected)
    assert tails == pytest.approx(0.0455, abs=5 * math.sqrt(0.0455 / D)), "a normal distribution's"
    # The controls: one share more would be seen, and so would another sum than that of the updates.
    assert math.sqrt((len(survivors) + 1) / len(survivors)) > 1 + 2 * five_errors
    along = np.full(D, 1 / math.sqrt(D))
    assert mean @ along > 20 * expected
    assert abs(noise @ along) < 6 * expected


def test_what_is_charged_is_the_noise_of_the_fewest_without_the_colluders() -> None:
    """ε by hand: αΔ²/(2mσ²) over the integers that are sent, and the conversion of Canonne et al. 2020."""
    strategy, events = private(), []
    run(strategy, WatchedGrid(num_nodes=N), events=events)
    noise = strategy.secure.noise(Layout.of(MODEL).size)
    assert (noise.num_noise_shares, noise.cohort, noise.min_survivors) == (4, N, 5)
    ratio = noise.max_squared_norm / (4 * noise.local_std**2)
    orders = np.arange(1.01, 60, 0.01)
    bounds = orders * ratio / 2 + np.log1p(-1 / orders) - (math.log(1e-5) + np.log(orders)) / (orders - 1)
    (told,) = of(events, "privacy")
    assert told["epsilon"] == pytest.approx(bounds.min(), rel=1e-3)
    assert told["epsilon"] >= bounds.min()
    assert (told["unit"], told["adjacency"], told["delta"], told["secure"]) == (
        "client",
        "zero_out",
        1e-5,
        True,
    )
    assert ratio == pytest.approx(1.0, rel=0.01), "z = 1 but for rounding"
    # With nobody colluding the same z is less noise from each.
    alone = private(corrupt=0.0).secure.noise(1000)
    assert alone.local_std / alone.scale < noise.local_std / noise.scale


def test_a_neighbour_that_is_replaced_costs_what_half_the_noise_costs_for_one_that_is_zeroed() -> None:
    size = Layout.of(MODEL).size
    spent = []
    for options in ({"adjacency": "replace", "noise_multiplier": 2.0}, {"noise_multiplier": 1.0}):
        release = private(**options, num_bits=32).secure.release(size)
        accountant = Accountant(release.relation)
        accountant.compose(release)
        spent.append(accountant.report(1e-5).epsilon)
    assert spent[0] == pytest.approx(spent[1], rel=1e-3)


@pytest.mark.parametrize("schedule", range(6))
def test_whoever_drops_out_when_the_sum_is_exactly_that_of_what_the_survivors_encoded(
    schedule: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten clients, of whom up to three drop out at random stages of two rounds; seven must be left."""
    rng = np.random.default_rng(schedule)
    encoded: list[dict[int, Any]] = []
    sums: list[tuple[bytes, Any]] = []
    begin, decode = mod.ClientSession.begin, distributed_privacy.NoisyMean.decode

    def keeping(request: bytes, vector: Any, *, node: int, **rest: Any) -> Any:
        if not encoded or node in encoded[-1]:
            encoded.append({})
        encoded[-1][node] = vector.copy()
        return begin(request, vector, node=node, **rest)

    def watching(self: Any, words: Any, num_clients: int) -> Any:
        sums.append((self.rotation_seed, words.copy()))
        return decode(self, words, num_clients)

    monkeypatch.setattr(mod.ClientSession, "begin", keeping)
    monkeypatch.setattr(distributed_privacy.NoisyMean, "decode", watching)
    leaving = rng.choice(np.arange(1, 11), size=int(rng.integers(1, 4)), replace=False).tolist()
    stages = [(Stage.SHARE, Stage.MASK, Stage.UNMASK)[int(rng.integers(3))] for _ in leaving]
    silent = {stage: [n for n, at in zip(leaving, stages, strict=True) if at is stage] for stage in stages}
    mechanism = ("discrete_gaussian", "skellam")[schedule % 2]
    strategy = private(population=10, min_clients=7, mechanism=mechanism, num_bits=(16, 32)[schedule % 2])
    run(strategy, WatchedGrid(num_nodes=10, silent_at=silent), num_rounds=2)
    late = set(silent.get(Stage.UNMASK, ()))
    survivors = set(range(1, 11)) - (set(leaving) - late)
    assert len(sums) == len(encoded) == 2
    for (_, total), vectors in zip(sums, encoded, strict=True):
        assert np.array_equal(total, sum(vectors[node] for node in survivors))
        assert not np.array_equal(total, sum(vectors[node] for node in survivors - {min(survivors)}))
    assert sums[0][0] != sums[1][0], "a fresh rotation for each attempt"


def test_nothing_of_a_client_leaves_it_but_a_masked_vector_and_no_metric_is_released() -> None:
    grid = WatchedGrid(num_nodes=N)
    result = run(private(), grid)
    for reply in grid.replies:
        assert not reply.content.metric_records
        assert list(reply.content.config_records) == [wire.SECAGG]
        assert len(reply.content.array_records) <= 1
    assert set(result.train_metrics_clientapp[1]) == {"privacy-epsilon", "privacy-delta"}
    assert {message.metadata.message_type for message in grid.sent} == {"train"}


def test_the_server_optimizer_of_the_inner_strategy_steps_with_the_noisy_mean() -> None:
    import optax

    inner = FedAvg(weighting="uniform", server_optimizer=optax.sgd(0.0), quorum=0.4)
    named = to_named(run(private(inner), WatchedGrid(num_nodes=N)).arrays)
    assert all(np.array_equal(named[key], value) for key, value in MODEL.items()), "steps of size 0"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_update_that_is_not_finite_counts_as_zero_and_brings_its_noise(value: float) -> None:
    def spoiled(node: int, arrays: Any) -> Any:
        return {**arrays, "params/b": arrays["params/b"] + value} if node == 3 else arrays

    events: Events = []
    result = run(private(), WatchedGrid(stock_app(trainer(change=spoiled)), N), events=events)
    (event,) = of(events, "secure_aggregation")
    assert (event["survivors"], event["dropped"]) == (N, {})
    assert all(np.isfinite(array).all() for array in to_named(result.arrays).values())


def test_a_node_whose_app_fails_drops_out_and_does_not_say_why() -> None:
    def failing(message: Message, context: Any) -> Message:
        if context.node_id == 2:
            raise RuntimeError("my 4711 patients")
        return trainer()(message, context)  # type: ignore[no-any-return]

    events: Events = []
    run(private(), WatchedGrid(stock_app(failing), N), events=events)
    (event,) = of(events, "secure_aggregation")
    assert (event["survivors"], event["dropped"]) == (5, {"advertise": ["node-2"]})
    (failed,) = [each for each in of(events, "reply") if each["status"] == "failed"]
    assert "4711" not in failed["reason"]


def test_the_malicious_tier_carries_the_noise_too(tmp_path: Path) -> None:
    events: Events = []
    grid = WatchedGrid(num_nodes=N, node_configs=operators(tmp_path, N), silent_at={Stage.MASK: [2]})
    run(private(tier="malicious"), grid, events=events)
    (event,) = of(events, "secure_aggregation")
    assert (event["tier"], event["survivors"]) == ("malicious", 5)
    assert of(events, "privacy")


# -- What is charged -----------------------------------------------------------------------------------


def test_an_attempt_is_on_disk_before_its_messages_leave_and_one_without_a_sum_is_spent(
    tmp_path: Path,
) -> None:
    ledger, reserved = tmp_path / "ledger.jsonl", []

    def on_request(message: Message) -> Message:
        reserved.append((stage_of(message), len(ledger_lines(ledger, "reserved"))))
        return message

    events: Events = []
    grid = WatchedGrid(num_nodes=N, silent_at={Stage.MASK: [1, 2, 3]}, attempts_cut=1, on_request=on_request)
    strategy = private()
    run(strategy, grid, events=events, privacy_ledger=ledger)
    assert [count for stage, count in reserved if stage is Stage.ADVERTISE] == [1] * N + [2] * N
    assert len(ledger_lines(ledger, "reserved")) == 2
    assert len(ledger_lines(ledger, "committed")) == 1
    assert [event["survivors"] for event in of(events, "secure_aggregation")] == [0, N]
    once: Events = []
    run(private(), WatchedGrid(num_nodes=N), events=once, num_rounds=2)
    assert [event["epsilon"] for event in of(events, "privacy")] == [of(once, "privacy")[1]["epsilon"]]
    assert of(once, "privacy")[0]["epsilon"] < of(once, "privacy")[1]["epsilon"]


def epsilon_of(num_sums: int) -> float:
    events: Events = []
    run(private(), WatchedGrid(num_nodes=N), events=events, num_rounds=num_sums)
    return float(of(events, "privacy")[-1]["epsilon"])


def test_a_budget_ends_the_run_in_good_order_and_keeps_the_model(tmp_path: Path) -> None:
    events: Events = []
    strategy = private(max_epsilon=1.001 * epsilon_of(2))
    result = run(strategy, WatchedGrid(num_nodes=N), events=events, num_rounds=5, checkpoint_dir=tmp_path)
    assert [event["round"] for event in of(events, "privacy")] == [1, 2]
    (stopped,) = of(events, "run_stopped")
    assert stopped["round"] == 2
    assert "another would exceed max_epsilon" in stopped["reason"]
    assert of(events, "run_finished")
    assert not np.array_equal(to_named(result.arrays)["params/b"], MODEL["params/b"])


def test_a_budget_that_is_too_small_for_another_attempt_ends_the_run_with_the_last_rounds_model(
    tmp_path: Path,
) -> None:
    """Round 2 loses its first attempt, which is the last that can be paid."""
    cut: list[Message] = []

    def on_request(message: Message) -> Message:
        number = message.content.config_records["config"][wire.SERVER_ROUND]
        if number == 2 and stage_of(message) is Stage.SHARE and message.metadata.dst_node_id <= 3:
            cut.append(message)
            message.content[wire.SECAGG]["body"] = b"lost"
        return message

    events: Events = []
    strategy = private(max_epsilon=1.001 * epsilon_of(2))
    grid = WatchedGrid(num_nodes=N, on_request=on_request)
    result = run(strategy, grid, events=events, num_rounds=5, checkpoint_dir=tmp_path)
    assert len(cut) == 3
    assert [event["reason"] == "" for event in of(events, "secure_aggregation")] == [True, False]
    (stopped,) = of(events, "run_stopped")
    assert stopped["round"] == 1
    assert of(events, "run_finished")[0]["rounds"] == 1
    assert [event["round"] for event in of(events, "checkpoint_saved")] == [0, 1]
    assert not of(events, "run_failed")
    assert not np.array_equal(to_named(result.arrays)["params/b"], MODEL["params/b"])
    assert strategy.budget.num_releases == 2


def test_a_run_is_resumed_with_the_same_settings_and_what_it_has_spent(tmp_path: Path) -> None:
    run(private(), WatchedGrid(num_nodes=N), num_rounds=2, checkpoint_dir=tmp_path)
    for changed in (
        {"noise_multiplier": 0.9},
        {"clip_norm": 0.6},
        {"min_clients": 4},
        {"corrupt": 0.2},
        {"mechanism": "skellam"},
        {"max_epsilon": 50.0},
    ):
        with pytest.raises(ConfigError, match="another privacy configuration"):
            run(private(**changed), WatchedGrid(num_nodes=N), checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="an ε of one does not add to another's"):
        run(private(adjacency="replace"), WatchedGrid(num_nodes=N), checkpoint_dir=tmp_path, resume=True)
    events: Events = []
    given: dict[str, Any] = {"num_rounds": 3, "checkpoint_dir": tmp_path, "resume": True}
    run(private(), WatchedGrid(num_nodes=N), events=events, **given)
    assert [event["round"] for event in of(events, "privacy")] == [3]
    assert of(events, "privacy")[0]["epsilon"] == pytest.approx(epsilon_of(3), rel=1e-9)
    (tmp_path / "privacy_ledger.jsonl").unlink()
    with pytest.raises(CheckpointError, match="the checkpoint was made after 3; restore the ledger"):
        run(private(), WatchedGrid(num_nodes=N), **{**given, "num_rounds": 4})


def test_a_target_is_kept_and_used_up_by_its_rounds() -> None:
    events: Events = []
    strategy = private(noise_multiplier=None, target_epsilon=6.0, num_rounds=3)
    run(strategy, WatchedGrid(num_nodes=N), events=events, num_rounds=5)
    spent = [event["epsilon"] for event in of(events, "privacy")]
    assert len(spent) == 3
    assert 0.99 * 6.0 < spent[-1] <= 6.0
    assert {event["noise_multiplier"] for event in of(events, "privacy")} == {strategy.noise_multiplier}
    assert f"noise_multiplier={strategy.noise_multiplier}" in strategy.describe()


# -- By text, in the ready-made apps -------------------------------------------------------------------


def test_the_stack_is_built_from_text_and_trains_in_the_ready_made_apps(tmp_path: Path) -> None:
    text = (
        "distributed_dp(fedavg(weighting='uniform'), unit='client', adjacency='replace', population=4, "
        "min_clients=4, delta=1e-5, clip_norm=2.0, noise_multiplier=0.02, num_bits=32)"
    )
    task = "digits(model='mlp')"
    built = build(Kind.STRATEGY, text)
    assert isinstance(built, DistributedDp)
    config = RunConfig(task=task, num_rounds=3, strategy=text, run_dir=str(tmp_path), client_evaluation=True)
    given = RunConfig.defaults() | {"task": task}
    with WatchedGrid(ready_made, 4, run_config=given) as grid:
        run_app(grid, config)
    events = read_events(tmp_path / "events.jsonl")
    accuracy = {event["round"]: event["metrics"]["accuracy"] for event in of(events, "evaluated")}
    assert accuracy[3] > accuracy[0] + 0.2, "with so little noise it learns"
    for event in of(events, "privacy"):
        assert set(event) >= FIELDS["privacy"]
    assert len(ledger_lines(tmp_path / "privacy_ledger.jsonl", "committed")) == 3


def test_flowers_own_start_runs_it_too() -> None:
    with WatchedGrid(num_nodes=N) as grid:
        result = private().start(grid, initial(), num_rounds=1, timeout=60.0)
    assert set(result.train_metrics_clientapp[1]) == {"privacy-epsilon", "privacy-delta"}
