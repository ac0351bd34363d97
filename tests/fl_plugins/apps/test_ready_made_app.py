"""The ready-made app, server and clients, through the in-process Grid: real Messages, no engine."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import Result

from fl_plugins import wire
from fl_plugins.apps import server_app
from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import FINAL_MODEL, only_writer, run_app
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.errors import (
    CheckpointError,
    ConfigError,
    ConfigTypeError,
    ContractError,
    DivergenceError,
    FLPluginsError,
    PreconditionError,
    QuorumError,
    UnknownPluginError,
)
from fl_plugins.records import from_named
from fl_plugins.testing import InProcessGrid

FAST: dict[str, Any] = {"task": "digits(model='mlp')", "num_rounds": 2, "client_evaluation": False}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def run(*, num_nodes: int = 5, overrides: Any = None, **config: Any) -> Result:
    given = {**FAST, **config}
    run_config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in given.items()}}
    with InProcessGrid(client_app, num_nodes, run_config=run_config, overrides=overrides) as grid:
        return run_app(grid, RunConfig(**given))


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def final_accuracy(result: Result) -> float:
    return float(result.evaluate_metrics_serverapp[max(result.evaluate_metrics_serverapp)]["accuracy"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "attack", "least", "most"),
    [
        ("fedavg", "", 0.95, 1.0),
        ("krum(num_byzantine=2)", "sign_flip(num_byzantine=2, scale=10.0)", 0.9, 1.0),
        ("trimmed_mean(fraction=0.2)", "sign_flip(num_byzantine=2, scale=10.0)", 0.9, 1.0),
    ],
)
def test_headline_accuracies_on_digits_with_ten_clients_and_twenty_rounds(
    strategy: str, attack: str, least: float, most: float
) -> None:
    result = run(
        strategy=strategy, attack=attack, task="digits", num_nodes=10, num_rounds=20, evaluate_every=20
    )
    assert least <= final_accuracy(result) <= most


def test_fedavg_collapses_under_the_same_attack_and_the_error_says_so() -> None:
    attack = "sign_flip(num_byzantine=2, scale=10.0)"
    with pytest.raises(DivergenceError, match="robust strategy") as caught:
        run(strategy="fedavg", attack=attack, task="digits", num_nodes=10, num_rounds=20)
    assert final_accuracy(caught.value.result) < 0.5


def test_run_dir_holds_events_checkpoints_and_the_final_model(tmp_path: Path) -> None:
    result = run(
        run_dir=str(tmp_path), client_evaluation=True, attack="gaussian_noise(num_byzantine=1, stddev=1.0)"
    )
    names = [event["event"] for event in events_of(tmp_path)]
    assert names[0] == "run_started"
    assert names[-1] == "run_finished"
    assert {"round_started", "reply", "aggregated", "evaluated", "checkpoint_saved", "round_finished"} <= set(
        names
    )
    sampled = next(event for event in events_of(tmp_path) if event["event"] == "round_started")["sampled"]
    assert sampled == ["0", "1", "2", "3", "4"]
    final = load_checkpoint(tmp_path / FINAL_MODEL)
    for key, array in result.arrays.items():
        np.testing.assert_array_equal(final.arrays["model"][key], array.numpy())


def test_same_seed_same_bits_and_another_seed_another_model() -> None:
    one, two, other = (run(seed=seed).arrays for seed in (3, 3, 4))
    assert all(one[key].data == two[key].data for key in one)
    assert any(one[key].data != other[key].data for key in one)


def test_resume_continues_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = run(num_rounds=4).arrays
    run(num_rounds=2, run_dir=str(tmp_path))
    resumed = run(num_rounds=4, run_dir=str(tmp_path), resume=True).arrays
    assert all(undisturbed[key].data == resumed[key].data for key in undisturbed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "digits(model='cnn')"}, r"has task=\"digits"),
        ({"task": "breast_cancer"}, r"has task=\"digits"),
        ({"strategy": "trimmed_mean(fraction=0.2)"}, "has strategy='fedavg"),
        ({"client": "supervised(learning_rate=0.5)"}, "has client='supervised"),
        ({"attack": "zero(num_byzantine=1)"}, "has attack=''"),
        ({"seed": 1}, "has seed='0'"),
        ({"num_nodes": 4}, r"dealt among \[5\] clients.*num-partitions=4"),
    ],
)
def test_resume_as_another_run_is_refused_and_nothing_is_lost(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run(num_rounds=1, run_dir=str(tmp_path))
    kept = [*(tmp_path / "checkpoints").iterdir(), tmp_path / FINAL_MODEL]
    before = [load_checkpoint(path).arrays["model"] for path in kept]
    with pytest.raises(CheckpointError, match=message):
        run(num_rounds=2, run_dir=str(tmp_path), resume=True, **change)
    for path, arrays in zip(kept, before, strict=True):
        np.testing.assert_equal(load_checkpoint(path).arrays["model"], arrays)


def test_two_server_apps_never_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was given up may still run: the next one waits a moment for it, and then refuses."""
    monkeypatch.setattr(server_app, "WRITER_TIMEOUT_S", 0.2)
    with only_writer(tmp_path), pytest.raises(ConfigError, match="another ServerApp writes into it"):
        run(num_rounds=1, run_dir=str(tmp_path))
    assert not (tmp_path / "checkpoints").exists()
    run(num_rounds=1, run_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"strategy": "krumm"}, UnknownPluginError, "krum"),
        ({"strategy": "krum"}, ConfigError, "num_byzantine"),
        ({"strategy": "krum(num_byzantine='2')"}, ConfigTypeError, "num_byzantine"),
        ({"strategy": "krum(num_byzantine=2, quorom=1)"}, ConfigError, "quorum"),
        ({"strategy": "krum(num_byzantine=2)"}, PreconditionError, "2f"),
        ({"client": "supervised(learning_rate=-1.0)"}, ConfigError, "learning_rate"),
        ({"task": "digitz"}, UnknownPluginError, "digits"),
        ({"attack": "sign_flip"}, ConfigError, "num_byzantine"),
        ({"stop": "target(metric='accuracy')"}, ConfigError, "value"),
        ({"plugins": "no_such_module"}, FLPluginsError, "no_such_module"),
    ],
)
def test_bad_input_is_a_clear_error_before_round_one(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {**FAST, **config}
    with InProcessGrid(client_app, 5, run_config=RunConfig.defaults()) as grid:
        with pytest.raises(error, match=message):
            run_app(grid, RunConfig(**given))
        assert [sent for sent in grid.sent if sent.metadata.message_type == "train"] == []


def test_a_plugin_of_the_wrong_interface_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_interface_plugin.py").write_text(
        "from fl_plugins.registry import Kind, register\n"
        "register(Kind.STRATEGY, 'not_a_strategy')(lambda: 42)\n"
        "register(Kind.TASK, 'not_a_task')(lambda: 42)\n"
        "register(Kind.CLIENT, 'not_a_trainer')(lambda task: 42)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for kind, name in (("strategy", "not_a_strategy"), ("task", "not_a_task"), ("client", "not_a_trainer")):
        with pytest.raises(ContractError, match="int"):
            run(plugins="wrong_interface_plugin", **{kind: name})


@pytest.mark.parametrize("examples", [0, 1])
def test_a_client_with_no_or_one_example_does_not_stop_the_others(
    examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uneven_task_plugin.py").write_text(
        "from dataclasses import replace\n"
        "from clients.tasks.digits import digits\n"
        "from fl_plugins.registry import Kind, register\n"
        "from fl_plugins.training import ClientData\n"
        "@register(Kind.TASK, 'uneven')\n"
        "def uneven(*, examples: int):\n"
        "    task = digits(model='mlp')\n"
        "    def load(partition, count):\n"
        "        data = task.load_partition(partition, count)\n"
        "        if partition:\n"
        "            return data\n"
        "        import numpy as np\n"
        "        few, none = np.arange(examples), np.arange(0)\n"
        "        return ClientData(data.train.take(few), data.validation.take(none))\n"
        "    return replace(task, load_partition=load)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    result = run(
        task=f"uneven(examples={examples})",
        plugins="uneven_task_plugin",
        run_dir=str(folder),
        client_evaluation=True,
    )
    assert final_accuracy(result) > 0.2
    replies = [event for event in events_of(folder) if event["event"] == "reply" and event["client"] == "0"]
    trained = [event for event in replies if event["phase"] == "train"]
    assert all(event["status"] == ("accepted" if examples else "failed") for event in trained)
    if not examples:
        assert "0 examples" in trained[0]["reason"]
    assert all(event["status"] == "failed" for event in replies if event["phase"] == "evaluate")


def test_early_stop_by_spec_ends_the_run_and_says_why(tmp_path: Path) -> None:
    run(stop="target(metric='accuracy', value=0.01)", run_dir=str(tmp_path), num_rounds=9)
    stopped = [event for event in events_of(tmp_path) if event["event"] == "run_stopped"]
    assert stopped[0]["round"] == 0
    assert "accuracy" in stopped[0]["reason"]


def test_crashing_clients_beyond_the_quorum_end_the_run_and_keep_the_model(tmp_path: Path) -> None:
    def crash(message: Message, context: Context) -> Message:
        if (
            message.metadata.message_type == "train"
            and message.content.config_records["config"]["server-round"] == 2
        ):
            raise MemoryError("out of memory")
        return client_app(message, context)

    with pytest.raises(QuorumError, match="0 of 5"):
        run(run_dir=str(tmp_path), num_rounds=3, overrides=dict.fromkeys(range(1, 6), crash))
    assert load_checkpoint(tmp_path / FINAL_MODEL).round == 1
    assert events_of(tmp_path)[-1]["event"] == "run_failed"


def _context(**node_config: Any) -> Context:
    return Context(
        run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config=RunConfig.defaults()
    )


@pytest.mark.usefixtures("task_identity")
def test_a_node_without_partition_id_answers_with_the_remedy() -> None:
    reply = client_app(Message(RecordDict(), 1, "train"), _context())
    assert reply.has_error()
    message = Message(RecordDict(), 1, wire.ROLL_CALL)
    assert "--node-config" in str(client_app(message, _context()).error.reason)


@pytest.mark.usefixtures("task_identity")
def test_a_message_of_a_newer_schema_is_refused_by_the_client() -> None:
    content = RecordDict({"config": ConfigRecord({wire.SCHEMA: 99}), "arrays": ArrayRecord()})
    reply = client_app(Message(content, 1, "train"), _context(**{"partition-id": 0, "num-partitions": 2}))
    assert "99" in str(reply.error.reason)


@pytest.mark.usefixtures("task_identity")
def test_parameters_of_another_model_are_refused_by_the_client_by_name() -> None:
    content = RecordDict(
        {"config": ConfigRecord({}), "arrays": from_named({"params/odd": np.zeros(3, np.float32)})}
    )
    reply = client_app(Message(content, 1, "train"), _context(**{"partition-id": 0, "num-partitions": 5}))
    assert "StructureError" in str(reply.error.reason)


def test_run_config_refuses_wrong_types_and_accepts_an_int_for_a_float() -> None:
    assert RunConfig.from_run_config({"round-timeout-s": 5, "someone-elses-key": 1}).round_timeout_s == 5.0
    with pytest.raises(ConfigTypeError, match="num-rounds='5'"):
        RunConfig.from_run_config({"num-rounds": "5"})
    with pytest.raises(ConfigError, match="strategy is empty"):
        RunConfig.from_run_config({"strategy": " "})


def test_a_stock_flwr_strategy_as_plugin_runs_its_own_loop_but_cannot_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stock_strategy_plugin.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "from fl_plugins.registry import Kind, register\n"
        "register(Kind.STRATEGY, 'stock_fedavg')(FedAvg)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = {"strategy": "stock_fedavg(fraction_evaluate=0.5)", "plugins": "stock_strategy_plugin"}
    result = run(**given, run_dir=str(tmp_path / "run"))
    assert final_accuracy(result) > 0.2
    assert load_checkpoint(tmp_path / "run" / FINAL_MODEL).round == 2
    with pytest.raises(ConfigError, match="neither resume nor stop"):
        run(**given, run_dir=str(tmp_path / "run"), resume=True)
