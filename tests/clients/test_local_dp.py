"""Local differential privacy at the node: what leaves, what is charged, and what no server can make it do."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.mods.local_dp import LocalDp
from fl_plugins import wire
from fl_plugins.apps.client_app import app as ready_made
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.layers import layers_mod
from fl_plugins.apps.server_app import run_app
from fl_plugins.errors import ConfigError, ContractError, PreconditionError
from fl_plugins.local_privacy import local_release
from fl_plugins.records import to_named
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.spec import build
from fl_plugins.testing import InProcessGrid

GIVEN: dict[str, Any] = {"clip_norm": 0.5, "epsilon": 8.0, "delta": 1e-5, "max_rounds": 3}
LAYER = "local_dp(clip_norm=0.5, delta=1e-05, epsilon=8.0, max_rounds=3)"
SIZE = 20_000


def stock(step: float = 1.0, **layer: Any) -> ClientApp:
    """A stock app that knows nothing of fl-plugins but the mod."""
    app = ClientApp(mods=[LocalDp(**{**GIVEN, **layer})])

    @app.train()
    def train(message: Message, _: Context) -> Message:
        received = message.content.array_records["arrays"]
        values = {key: value.numpy() for key, value in received.items()}
        arrays = {key: Array(np.asarray(value + value.dtype.type(step))) for key, value in values.items()}
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 17, "loss": 0.25})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        metrics = MetricRecord({"num-examples": 17, "accuracy": 0.75})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def ask(
    app: Any,
    times: int = 1,
    *,
    kind: str = "train",
    node_config: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> list[Message]:
    """Send messages to one node, which keeps its context, and return its replies."""
    arrays = {"params/w": np.zeros(SIZE, np.float32)} if model is None else model
    with InProcessGrid(app, 1, node_configs={1: dict(node_config or {})}) as grid:
        replies = []
        for _ in range(times):
            record = ArrayRecord({key: Array(value) for key, value in arrays.items()})
            content = RecordDict({"arrays": record, "config": ConfigRecord(dict(config or {}))})
            replies.extend(grid.send_and_receive([Message(content, 1, kind)]))
    return replies


def reason(reply: Message) -> str:
    assert reply.has_error()
    return str(reply.error.reason)


def values(reply: Message) -> Any:
    return to_named(reply.content.array_records["arrays"])["params/w"].astype(np.float64)


def test_d11_the_noise_covers_any_two_updates_over_all_rounds_exactly() -> None:
    """Claims 1, 2, 8 and 50 rounds: σ = 2C·√T/μ with δ = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ)."""

    def delta_of(epsilon: float, mu: float) -> float:
        def below(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2.0))

        return below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)

    for epsilon, rounds in ((1.0, 1), (8.0, 1), (8.0, 50), (0.1, 3)):
        mod = LocalDp(clip_norm=0.5, epsilon=epsilon, delta=1e-5, max_rounds=rounds)
        mu = 2.0 * 0.5 * math.sqrt(rounds) / mod.noise_std
        assert delta_of(epsilon, mu) == pytest.approx(1e-5, rel=0.05)
        assert delta_of(epsilon, mu) <= 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"delta": 0.0},
        {"delta": 2.0},
        {"delta": 1.0},
        {"max_rounds": 0},
        {"clip_norm": -1.0},
    ],
)
def test_d11_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LocalDp(**{**GIVEN, **wrong})


@pytest.mark.parametrize("step", [1.0, 0.0, math.nan])
def test_an_update_leaves_clipped_and_with_the_noise_that_is_accounted(step: float) -> None:
    """20,000 normals: their mean square has a standard error of 1 %; without the noise nothing would pass."""
    (reply,) = ask(stock(step))
    noise_std = LocalDp(**GIVEN).noise_std
    assert np.sqrt(np.mean(values(reply) ** 2)) == pytest.approx(noise_std, rel=5 * math.sqrt(0.5 / SIZE))
    # The clipped update adds 0.5/√20000 to every value, 1.0 would stand out.
    assert abs(values(reply).mean()) < 6 * noise_std / math.sqrt(SIZE)


def test_the_clipped_part_is_there_below_the_noise() -> None:
    """Mean over many replies: the update's direction survives, with the clip norm's length."""
    app = stock(1.0, epsilon=1e4, max_rounds=1)
    noise_std = LocalDp(**{**GIVEN, "epsilon": 1e4, "max_rounds": 1}).noise_std
    (reply,) = ask(app)
    length = values(reply).sum() / math.sqrt(SIZE)
    assert length == pytest.approx(0.5, abs=5 * noise_std)


def test_the_noise_is_another_one_every_time_whatever_numpy_is_seeded_with() -> None:
    replies = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002  what must not matter
        replies += [values(reply) for reply in ask(stock(0.0))]
    # Not never: the noise is on a grid of a thousandth of its size.
    assert np.isclose(*replies).mean() < 0.01


def test_metrics_and_the_number_of_examples_stay_at_the_node() -> None:
    (reply,) = ask(stock())
    assert [dict(record) for record in reply.content.metric_records.values()] == [{"num-examples": 1}]
    (unprotected,) = ask(stock(unprotected_metrics=True))
    assert dict(unprotected.content.metric_records["metrics"]) == {"num-examples": 17, "loss": 0.25}


def test_a10_evaluations_are_answered_without_metrics_or_pass_untouched_by_request() -> None:
    (withheld,) = ask(stock(), kind="evaluate")
    assert not withheld.has_error()
    assert [dict(record) for record in withheld.content.metric_records.values()] == [{"num-examples": 1}]
    (passed,) = ask(stock(unprotected_metrics=True), kind="evaluate")
    assert dict(passed.content.metric_records["metrics"]) == {"num-examples": 17, "accuracy": 0.75}


def test_arrays_that_are_not_trained_go_back_as_they_came() -> None:
    model = {
        "params/w": np.zeros(4, np.float32),
        "batch_stats/mean": np.full(2, 3.0, np.float32),
        "state/n": np.array(5),
    }
    (reply,) = ask(stock(), model=model)
    sent = to_named(reply.content.array_records["arrays"])
    np.testing.assert_array_equal(sent["batch_stats/mean"], model["batch_stats/mean"])
    assert (sent["state/n"], sent["state/n"].dtype) == (5, np.int64)
    assert (sent["params/w"] != 0).all()


def test_why_training_failed_stays_at_the_node(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp(mods=[LocalDp(**GIVEN)])

    @app.train()
    def train(message: Message, _: Context) -> Message:
        raise ValueError("patient 4711 has no label")

    (reply,) = ask(app)
    assert "4711" not in reason(reply)
    assert "training failed" in reason(reply)
    assert "4711" in caplog.text


def test_a_run_has_its_rounds_and_no_more() -> None:
    replies = ask(stock(), 4)
    assert [reply.has_error() for reply in replies] == [False, False, False, True]
    assert "max_rounds=3" in reason(replies[3])


def test_the_nodes_own_limit_holds_over_runs_and_a_server_cannot_reset_it(tmp_path: Path) -> None:
    """Every InProcessGrid is another run with a fresh context; the ledger is the node's."""
    ledger = tmp_path / "privacy.jsonl"
    own = {"privacy-ledger": str(ledger), "max-epsilon": 8.01, "privacy-delta": 1e-5}
    first, second = ask(stock(), 2, node_config=own), ask(stock(), 2, node_config=own)
    assert [reply.has_error() for reply in (*first, *second)] == [False, False, False, True]
    assert "max_epsilon=8.01" in reason(second[1])
    assert "unit client, adjacency replace" in reason(second[1])
    lines = [json.loads(line)["line"] for line in ledger.read_text().splitlines()]
    assert lines.count("reserved") == lines.count("committed") == 3
    greedy = ask(stock(epsilon=1e6, max_rounds=1), node_config=own)
    assert "max_epsilon=8.01" in reason(greedy[0])


def test_a_crash_between_charge_and_reply_is_spent(tmp_path: Path) -> None:
    own = {"privacy-ledger": str(tmp_path / "privacy.jsonl"), "max-epsilon": 8.01}
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_local_dp as t
from flwr.clientapp import ClientApp
app = ClientApp(mods=[t.LocalDp(**t.GIVEN)])
@app.train()
def train(message, _):
    os.kill(os.getpid(), 9)
t.ask(app, node_config={own!r})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    replies = ask(stock(), 3, node_config=own)
    assert [reply.has_error() for reply in replies] == [False, False, True]


def test_without_a_ledger_the_context_counts_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="flwr.fl_plugins")
    replies = ask(stock(max_rounds=9), 3, node_config={"max-epsilon": 5.0})
    assert [reply.has_error() for reply in replies] == [False, False, False]
    more = ask(stock(max_rounds=9), 9, node_config={"max-epsilon": 5.0})
    allowed = sum(not reply.has_error() for reply in more)
    assert 3 <= allowed < 9
    assert "only this run is counted" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"), [("max-epsilon", 0.0), ("max-epsilon", "8"), ("privacy-delta", -1.0)]
)
def test_a_limit_that_is_none_refuses_everything(key: str, value: Any) -> None:
    (reply,) = ask(stock(), node_config={key: value})
    assert key in reason(reply)


def test_the_dispatcher_runs_it_as_announced_and_leaves_other_layers_stages_alone() -> None:
    app = ClientApp(mods=[layers_mod])

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return Message(message.content, reply_to=message)

    (plain,), (protected,) = ask(app), ask(app, config={wire.LAYERS: [LAYER]})
    assert not values(plain).any()
    assert np.std(values(protected)) == pytest.approx(LocalDp(**GIVEN).noise_std, rel=0.05)
    (stage,) = ask(app, config={wire.LAYERS: [LAYER], wire.STAGE: 2})
    assert "no layer that it announces has such a stage" in reason(stage)


def test_the_strategy_announces_the_layer_and_the_ready_made_app_obeys() -> None:
    strategy = (
        f'local_dp(fedavg(weighting="uniform", server_optimizer=sgd(learning_rate=0.5)), {_arguments()})'
    )
    config = {"strategy": strategy, "task": "digits(model='mlp')", "num_rounds": 5}
    run_config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in config.items()}}
    with InProcessGrid(ready_made, 4, run_config=run_config) as grid:
        result = run_app(grid, RunConfig(**config))  # type: ignore[arg-type]
        kinds = [message.metadata.message_type for message in grid.sent]
    assert kinds.count("train") == 3 * 4  # stopped: every client has replied in max_rounds rounds
    assert "evaluate" not in kinds
    assert dict(result.train_metrics_clientapp[3]) == {}
    announced = [
        m.content.config_records["config"][wire.LAYERS]
        for m in grid.sent
        if "train" in m.metadata.message_type
    ]
    assert announced[0] == [f"local_dp({_arguments()}, unprotected_metrics=False)"]


def _arguments() -> str:
    return "clip_norm=0.5, delta=1e-05, epsilon=8.0, max_rounds=3"


@pytest.mark.parametrize("inner", ["krum(num_byzantine=1)", "median()", 'fedavg(weighting="uniform")'])
def test_it_goes_around_any_rule_for_what_the_rule_sees_is_protected_already(inner: str) -> None:
    build(Kind.STRATEGY, f"local_dp({inner}, {_arguments()})")


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("fedavg()", "clients withhold how many they have"),
        (f'local_dp(fedavg(weighting="uniform"), {_arguments()})', "of its own"),
    ],
)
def test_stacks_that_cannot_hold_are_refused(inner: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        build(Kind.STRATEGY, f"local_dp({inner}, {_arguments()})")


def test_nodes_that_host_virtual_clients_are_refused_by_server_and_node() -> None:
    (reply,) = ask(stock(), config={wire.CLIENTS: [0, 1]})
    assert "hosts virtual clients" in reason(reply)
    strategy = build(Kind.STRATEGY, f'local_dp(fedavg(weighting="uniform"), {_arguments()})')
    run_config = {**RunConfig.defaults(), "virtual-clients": 4}
    with InProcessGrid(ready_made, 2, run_config=run_config) as grid:
        options = RunOptions(num_rounds=1, roll_call=True, virtual_clients=4)
        with pytest.raises(PreconditionError, match="hosts virtual clients"):
            strategy.run(grid, ArrayRecord({"params/w": Array(np.zeros(3, np.float32))}), options)


def test_a_model_with_statistics_is_refused_before_anything_is_sent() -> None:
    strategy = build(Kind.STRATEGY, f'local_dp(fedavg(weighting="uniform"), {_arguments()})')
    model = ArrayRecord({k: Array(np.zeros(3, np.float32)) for k in ("params/w", "batch_stats/m")})
    with InProcessGrid(stock(), 3) as grid:
        with pytest.raises(ConfigError, match="batch_stats/m"):
            strategy.run(grid, model, RunOptions(num_rounds=1))
        assert grid.sent == []


def test_the_release_is_for_any_two_data_sets_of_a_client() -> None:
    release = local_release(epsilon=8.0, delta=1e-5, max_rounds=3)
    assert str(release.relation) == "unit client, adjacency replace"
