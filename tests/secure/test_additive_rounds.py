"""Rounds with helpers in one process: the result, who may drop out, and what leaves a client."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto

from clients.mods import secure_aggregation as mod
from fl_plugins import wire
from fl_plugins.apps.client_app import app as ready_made
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.errors import ConfigError, ContractError, QuorumError
from fl_plugins.records import to_named
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.runlog.events import FIELDS
from fl_plugins.secagg import Stage
from fl_plugins.spec import build
from strategies import AdditiveAggregation, FedAvg, Krum, Median
from strategies.secure_attempt import SecureAttempt

from .additive import HELPERS, grid_of, helped, is_client_message, operators
from .federation import (
    EXAMPLES,
    LOSS,
    WatchedGrid,
    config_of,
    distance,
    plain_mean,
    run,
    stage_of,
    stock_app,
)

Events = list[dict[str, Any]]
TIERS = ["honest-but-curious", "malicious"]


def of(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def configs(tier: str, tmp_path: Path, num_clients: int = 5) -> Mapping[int, dict[str, Any]]:
    return operators(tmp_path, num_clients) if tier == "malicious" else {}


def test_a_round_with_helpers_gives_the_result_of_plain_averaging(tier: str, tmp_path: Path) -> None:
    events: Events = []
    grid = grid_of(configs=configs(tier, tmp_path))
    result = run(helped(tier=tier), grid, events=events, num_rounds=1)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6
    (event,) = of(events, "secure_aggregation")
    assert (event["layer"], event["tier"], event["helpers"]) == ("additive_aggregation", tier, list(HELPERS))
    assert (event["cohort"], event["threshold"], event["survivors"]) == (5, 3, 5)
    assert (event["dropped"], event["reason"]) == ({}, "")
    assert [e["status"] for e in of(events, "reply")] == ["accepted"] * 5
    (aggregated,) = of(events, "aggregated")
    assert aggregated["accepted"] == 5
    for kind in {e["event"] for e in events}:
        assert set(of(events, kind)[0]) >= FIELDS[kind] - {"client", "task", "attack"}


def test_the_sum_is_exactly_that_of_what_the_clients_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []
    original, decode = mod.SecureAggregation._encode, SecureAttempt._decode

    def keeping(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        encoded.append(result.copy())
        return result

    sums: list[Any] = []

    def watching(self: Any, total: Any) -> Any:
        sums.append(total.vector.copy())
        return decode(self, total)

    monkeypatch.setattr(mod.SecureAggregation, "_encode", keeping)
    monkeypatch.setattr(SecureAttempt, "_decode", watching)
    for num_bits in (16, 32):
        encoded.clear()
        run(helped(num_bits=num_bits), grid_of())
        assert len(encoded) == 5
        assert np.array_equal(sums[-1], np.sum(encoded, axis=0, dtype=encoded[0].dtype))


def test_metrics_and_several_rounds_and_one_or_many_helpers() -> None:
    for num_helpers in (1, 3):
        strategy = helped(helpers=num_helpers, metrics=("loss",), max_metric=2.0)
        result = run(strategy, grid_of(num_helpers=num_helpers), num_rounds=3)
        weights = np.array([EXAMPLES[node] for node in range(1, 6)], float)
        expected = np.average([LOSS * node for node in range(1, 6)], weights=weights)
        assert {n: dict(m) for n, m in result.train_metrics_clientapp.items()} == {
            n: {"loss": pytest.approx(expected, abs=1e-9)} for n in (1, 2, 3)
        }


def test_a_client_answers_one_message_a_round_and_a_helper_two() -> None:
    grid = grid_of()
    run(helped(), grid, num_rounds=2)
    asked = [m.metadata.dst_node_id for m in grid.sent if wire.SECAGG in m.content.config_records]
    assert {node: asked.count(node) for node in range(1, 8)} == {**dict.fromkeys(range(1, 6), 2), 6: 4, 7: 4}
    questions = [m for m in grid.sent if wire.SECAGG not in m.content.config_records]
    assert sorted(m.metadata.dst_node_id for m in questions) == list(range(1, 8)), "once in a run"
    for message in grid.sent:
        if message.metadata.dst_node_id in HELPERS:
            assert not message.content.array_records, "a helper sees no model"


# -- Dropouts ------------------------------------------------------------------------------------------


def test_clients_that_fall_silent_cost_only_themselves(tier: str, tmp_path: Path) -> None:
    events: Events = []
    grid = grid_of(num_clients=7, configs=configs(tier, tmp_path, 7), lost_clients={2, 5})
    result = run(helped(tier=tier), grid, events=events)
    assert distance(result, plain_mean({1, 3, 4, 6, 7})) < 2e-6
    (event,) = of(events, "secure_aggregation")
    assert event["survivors"] == 5
    assert event["dropped"] == {"mask": ["node-2", "node-5"]}
    (missing,) = of(events, "missing")
    assert missing["clients"] == ["node-2", "node-5"]


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.UNMASK])
def test_without_one_of_the_helpers_the_round_is_tried_again_with_fresh_keys(stage: Stage) -> None:
    events: Events = []
    grid = grid_of(lost_helpers={(HELPERS[0], stage, 1)})
    result = run(helped(FedAvg(quorum=0.4, max_attempts=2)), grid, events=events)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6
    (retried,) = of(events, "round_retried")
    assert f"1 of 2 helpers gave no answer (stage {stage})" in retried["reason"]
    first, second = of(events, "secure_aggregation")
    assert (first["survivors"], second["survivors"]) == (0, 5)
    trained = [m for m in grid.sent if is_client_message(m)]
    assert len(trained) == (5 if stage is Stage.ADVERTISE else 10), (
        "nobody trains for a helper that is not there"
    )


def test_a_helper_that_never_answers_ends_the_run_with_its_name() -> None:
    grid = grid_of(lost_helpers={(HELPERS[1], Stage.UNMASK, 1), (HELPERS[1], Stage.UNMASK, 2)})
    with pytest.raises(QuorumError, match=r"1 of 2 helpers gave no answer \(stage unmask\).* 7: silent"):
        run(helped(FedAvg(quorum=0.4, max_attempts=2)), grid)


def test_too_few_clients_end_the_attempt_before_a_helper_opens_anything() -> None:
    grid = grid_of(lost_clients={1, 2, 3})
    with pytest.raises(QuorumError, match="2 of 5 nodes sent a masked vector, but 3 are needed"):
        run(helped(), grid)
    opened = [m for m in grid.sent if m.metadata.dst_node_id in HELPERS and stage_of(m) is Stage.UNMASK]
    assert opened == []


def test_without_helpers_the_run_ends_with_what_to_do() -> None:
    with pytest.raises(
        QuorumError, match=r"1 helpers are connected .* helpers=2 are needed; start SuperNodes"
    ):
        run(helped(stage_timeout_s=0.3), grid_of(num_helpers=1))


def test_a_helper_that_does_not_say_so_in_time_is_asked_again() -> None:
    grid = grid_of(lost_questions={HELPERS[0]})
    result = run(helped(), grid)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6


# -- What leaves a client ------------------------------------------------------------------------------


def test_nothing_of_a_client_is_in_any_message_but_inside_a_masked_vector(tier: str, tmp_path: Path) -> None:
    grid = grid_of(configs=configs(tier, tmp_path))
    run(helped(tier=tier, metrics=("loss",), max_metric=2.0), grid)
    sent = [r for r in grid.replies if r.has_content() and r.metadata.src_node_id not in HELPERS]
    (own,) = {r.content.config_records[wire.SECAGG]["body"] for r in sent if not r.content.array_records}
    assert own == b"", "a client says that it is none of the helpers"
    sent = [r for r in sent if r.content.array_records]
    assert len(sent) == 5
    vectors = []
    for reply in sent:
        assert not reply.content.metric_records
        assert list(reply.content.config_records) == [wire.SECAGG]
        assert list(reply.content.config_records[wire.SECAGG]) == ["body"]
        (record,) = reply.content.array_records.values()
        vectors.append(to_named(record)["vector"])
    plain = [vector[:4].tolist() for vector in vectors]
    assert [1, 1, 1, 1] not in plain, "the check ones are masked"
    for node in range(1, 6):
        assert wire.SECAGG not in grid._contexts[node].state, "a client keeps nothing"
    for node in HELPERS:
        assert wire.SECAGG not in grid._contexts[node].state, "nor does a helper, when the attempt is over"


@pytest.mark.parametrize("num_bits", [16, 32])
def test_two_bytes_or_four_a_parameter_travel_up(num_bits: int) -> None:
    d = 200_000

    def train(message: Message, _: Any) -> Message:
        arrays = ArrayRecord({"params/w": Array(np.full(d, 0.25, np.float32))})
        return Message(RecordDict({"a": arrays, "m": MetricRecord({"num-examples": 10})}), reply_to=message)

    grid = grid_of(app=stock_app(train))
    with grid:
        arrays = ArrayRecord({"params/w": Array(np.zeros(d, np.float32))})
        helped(num_bits=num_bits).run(grid, arrays, RunOptions(num_rounds=1, timeout_s=5.0))
    sent = [r for r in grid.replies if r.has_content() and r.metadata.src_node_id not in HELPERS]
    size = sum(len(message_to_proto(reply).SerializeToString()) for reply in sent)
    assert size <= 1.05 * num_bits / 8 * d * 5


# -- What it can be put around, and the ready-made app -------------------------------------------------


@pytest.mark.parametrize("inner", [Krum(num_byzantine=1), Median()])
def test_rules_that_need_individual_updates_are_refused_when_the_stack_is_built(inner: Any) -> None:
    with pytest.raises(ContractError, match=r"additive_aggregation: .* must see every client's update"):
        AdditiveAggregation(inner)


def test_other_stacks_and_settings_that_cannot_hold_are_refused() -> None:
    with pytest.raises(ContractError, match="fallback"):
        AdditiveAggregation(FedAvg(weighting="uniform", fallback=Median().aggregator))
    with pytest.raises(ConfigError, match="max_weight"):
        AdditiveAggregation(FedAvg())
    with pytest.raises(ConfigError, match="helpers=0"):
        AdditiveAggregation(FedAvg(), max_weight=1.0, helpers=0)
    with pytest.raises(ConfigError, match="it is for tier='malicious'"):
        AdditiveAggregation(FedAvg(), max_weight=1.0, roster="helpers.toml")
    with pytest.raises(ContractError, match="virtual-clients=4"):
        run(helped(), grid_of(), virtual_clients=4, roll_call=True)


def test_it_is_named_in_a_run_config() -> None:
    spec = "additive_aggregation(fedavg(), helpers=3, max_weight=64)"
    strategy = build(Kind.STRATEGY, spec)
    assert isinstance(strategy, AdditiveAggregation)
    assert strategy.describe().startswith("additive_aggregation(")
    assert "helpers=3" in strategy.describe()
    assert "corrupt" not in strategy.describe(), "there is no graph"


def test_the_ready_made_app_serves_clients_and_helpers(tmp_path: Path) -> None:
    config = RunConfig(
        strategy="additive_aggregation(fedavg(), max_weight=400, clip=2.0)",
        task="breast_cancer(model='logistic')",
        num_rounds=1,
        seed=5,
        client_evaluation=False,
    )
    run_config = {**RunConfig.defaults(), "task": config.task, "num-rounds": 1, "seed": 5}
    own: dict[int, dict[str, Any]] = {node: {"num-partitions": 4} for node in range(1, 7)}
    for node in (5, 6):
        own[node]["secagg-role"] = "helper"
    grid = WatchedGrid(ready_made, 6, run_config=run_config, node_configs=own)
    with grid:
        secure = to_named(run_app(grid, config).arrays)
    assert not any(is_client_message(m) for m in grid.sent if m.metadata.dst_node_id in (5, 6)), (
        "no helper trains"
    )
    plain_grid = WatchedGrid(ready_made, 4, run_config=run_config)
    with plain_grid:
        plain = to_named(run_app(plain_grid, RunConfig(task=config.task, num_rounds=1, seed=5)).arrays)
    for key, array in plain.items():
        assert np.abs(secure[key] - array).max() < 2e-6, key


def test_everything_says_what_the_clients_rely_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="flwr.fl_plugins"):
        run(helped(), grid_of())
    assert "while one of 2 helpers is honest and does not collude with it" in caplog.text
    assert "it passes their keys on as they are" in caplog.text


def test_messages_carry_the_size_of_the_cohort_that_policies_go_by() -> None:
    grid = grid_of()
    run(helped(), grid)
    sizes = {config_of(m)[wire.COHORT_SIZE] for m in grid.sent if wire.SECAGG in m.content.config_records}
    assert sizes == {5}
