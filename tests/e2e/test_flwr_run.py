"""Apps through Flower's real simulation engine (Ray), started by Flower's own command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_plugins.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Run = Callable[..., Any]


def _events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == name]


def test_the_repository_is_an_app_and_the_run_config_chooses_everything(
    flwr_run: Run, tmp_path: Path
) -> None:
    run = flwr_run(
        ROOT,
        num_supernodes=7,
        strategy="krum(num_byzantine=2, fraction_evaluate=0.5)",
        task="digits(model='mlp')",
        client="supervised(optimizer='sgd', learning_rate=0.1, local_epochs=1, batch_size=32)",
        attack="sign_flip(num_byzantine=2)",
        num_rounds=2,
        run_dir=str(tmp_path / "run"),
    )
    assert run.status == "finished:completed", run.output
    assert [event["round"] for event in _events(tmp_path / "run", "round_finished")] == [1, 2]
    kept = _events(tmp_path / "run", "aggregated")[0]["contribution"]
    assert sum(kept.values()) == pytest.approx(1.0)
    assert kept["0"] == kept["1"] == 0.0  # the two hostile partitions
    assert _events(tmp_path / "run", "evaluated")


def test_a_misspelt_strategy_fails_the_run_with_the_nearest_name(flwr_run: Run) -> None:
    run = flwr_run(ROOT, num_supernodes=2, strategy="krumm(num_byzantine=2)")
    assert run.status == "finished:failed"
    assert "UnknownPluginError" in run.output
    assert re.search(r"krum\b", run.output)


def test_strategies_krum_in_an_app_with_stock_clients_survives_a_hostile_one(flwr_run: Run) -> None:
    run = flwr_run(ROOT / "examples" / "stock_app", num_supernodes=7)
    assert run.status == "finished:completed", run.output
    accuracy = float(re.findall(r"final accuracy ([0-9.]+)", run.output)[-1])
    # One model trained on a seventh of the data: chance is 0.1, an undisturbed run reaches about 0.93.
    assert accuracy > 0.8


def test_an_app_brings_its_own_strategy_and_task_inside_its_bundle(flwr_run: Run, tmp_path: Path) -> None:
    run = flwr_run(ROOT / "examples" / "in_app_plugin", num_supernodes=4, run_dir=str(tmp_path / "run"))
    assert run.status == "finished:completed", run.output
    assert _events(tmp_path / "run", "run_started")[0]["strategy"] == "midrange"
    assert _events(tmp_path / "run", "evaluated")[-1]["metrics"]["accuracy"] > 0.8


def test_a_client_whose_process_dies_does_not_end_the_run(flwr_run: Run, tmp_path: Path) -> None:
    app = tmp_path / "dying"
    app.mkdir()
    (app / "dying_client.py").write_text(
        "import os\n"
        "from flwr.clientapp import ClientApp\n"
        "from fl_plugins.apps.client_app import app as inner\n"
        "app = ClientApp()\n"
        "def serve(message, context):\n"
        "    if context.node_config['partition-id'] == 0 and message.metadata.message_type == 'train':\n"
        "        os._exit(1)\n"
        "    return inner(message, context)\n"
        "app.train()(serve)\n"
        "app.evaluate()(serve)\n"
        "app.query('roll_call')(serve)\n"
    )
    source = (ROOT / "examples" / "in_app_plugin" / "pyproject.toml").read_text()
    source = source.replace("fl_plugins.apps.client_app:app", "dying_client:app")
    source = re.sub(r'(plugins|strategy|task|client) = ".*"\n', "", source)
    (app / "pyproject.toml").write_text(
        source + 'task = "digits(model=\'mlp\')"\nstrategy = "fedavg(quorum=0.2)"\n'
    )
    run = flwr_run(app, num_supernodes=4, num_rounds=1, run_dir=str(tmp_path / "run"))
    assert run.status == "finished:completed", run.output
    training = [event for event in _events(tmp_path / "run", "reply") if event["phase"] == "train"]
    replies = {event["client"]: event["status"] for event in training}
    assert replies["0"] == "failed"
    assert "accepted" in replies.values()


def test_a_resumed_run_ends_with_the_same_bits_as_an_undisturbed_one(flwr_run: Run, tmp_path: Path) -> None:
    def final_model(folder: Path) -> dict[str, bytes]:
        model = load_checkpoint(folder / "final_model.ckpt").arrays["model"]
        return {key: value.tobytes() for key, value in model.items()}

    # A sampled cohort of clients with node ids that Flower draws anew for every run.
    given = {
        "num_supernodes": 5,
        "strategy": "trimmed_mean(num_byzantine=1, num_train_nodes=4, fraction_evaluate=0.0)",
        "task": "digits(model='mlp')",
        "seed": 3,
    }
    undisturbed = flwr_run(ROOT, **given, num_rounds=3, run_dir=str(tmp_path / "a"))
    flwr_run(ROOT, **given, num_rounds=2, run_dir=str(tmp_path / "b"))
    resumed = flwr_run(ROOT, **given, num_rounds=3, run_dir=str(tmp_path / "b"), resume=True)
    assert (undisturbed.status, resumed.status) == ("finished:completed", "finished:completed"), (
        resumed.output
    )
    assert _events(tmp_path / "b", "run_started")[-1]["resumed_from"] == 2
    assert final_model(tmp_path / "a") == final_model(tmp_path / "b")
