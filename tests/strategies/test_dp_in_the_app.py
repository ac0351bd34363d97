"""Private strategies through the ready-made app: run config, cohort nodes, node policies, ledger."""

import json
from pathlib import Path
from typing import Any

import pytest

from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import FINAL_MODEL, PRIVACY_LEDGER, run_app
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.records import to_named
from fl_plugins.testing import InProcessGrid

SPEC = (
    'dp_fedavg(fedavg(weighting="uniform"), unit="client", adjacency="add_remove", population=6, delta=1e-5, '
    "clip_norm=1.0, noise_multiplier=2.0"
)


def run(num_nodes: int, *, node_config: dict[str, Any] | None = None, **config: Any) -> Any:
    given = {"task": "digits(model='mlp')", "num_rounds": 2, **config}
    run_config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in given.items()}}
    own = {node: node_config or {} for node in range(1, num_nodes + 1)}
    with InProcessGrid(client_app, num_nodes, run_config=run_config, node_configs=own) as grid:
        return run_app(grid, RunConfig(**given))


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == name]


def test_a_run_config_is_enough_and_the_ledger_is_in_the_runs_folder(tmp_path: Path) -> None:
    result = run(6, strategy=f"{SPEC}, max_epsilon=8.0)", run_dir=str(tmp_path), num_rounds=50)
    spent = [event["epsilon"] for event in events_of(tmp_path, "privacy")]
    assert len(spent) < 50
    assert spent[-1] <= 8.0
    assert "max_epsilon=8" in events_of(tmp_path, "run_stopped")[0]["reason"]
    lines = [json.loads(line)["line"] for line in (tmp_path / PRIVACY_LEDGER).read_text().splitlines()]
    assert lines.count("committed") == len(spent)
    assert load_checkpoint(tmp_path / FINAL_MODEL).arrays["model"].keys() == to_named(result.arrays).keys()
    assert set(result.train_metrics_clientapp[1]) == {"privacy-epsilon", "privacy-delta"}
    assert not result.evaluate_metrics_clientapp
    assert result.evaluate_metrics_serverapp[1]["accuracy"] >= 0.0


def test_runs_that_name_one_ledger_share_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ledger = str(tmp_path / "shared.jsonl")
        run(6, strategy=f"{SPEC})", run_dir=str(tmp_path / name), privacy_ledger=ledger, num_rounds=1)
    first, second = (events_of(tmp_path / name, "privacy")[0]["epsilon"] for name in ("one", "two"))
    assert second > first


def test_cohort_nodes_give_the_same_bits_as_one_client_per_node() -> None:
    strategy = f"{SPEC}, sampling=poisson(rate=0.6), insecure_seed=5)"
    alone = to_named(run(6, strategy=strategy).arrays)
    hosted = to_named(run(2, strategy=strategy, virtual_clients=6).arrays)
    assert {key: value.tobytes() for key, value in alone.items()} == {
        key: value.tobytes() for key, value in hosted.items()
    }


@pytest.mark.parametrize(("least", "answers"), [(2.0, 6), (2.5, 0)])
def test_a_node_that_demands_more_noise_than_is_promised_does_not_train(
    least: float, answers: int, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'[promises.central_dp]\nunit = "client"\nadjacency = "add_remove"\nmin_noise_multiplier = {least}\n'
        "max_clip_norm = 1.0\nmetrics_withheld = true\n"
    )
    run(6, strategy=f"{SPEC})", run_dir=str(tmp_path), num_rounds=1, node_config={"policy": str(policy)})
    assert events_of(tmp_path, "aggregated")[0]["accepted"] == answers


def test_what_is_learned_under_a_generous_budget_is_more_than_chance(tmp_path: Path) -> None:
    """Chance is 0.1. Six clients are few for user-level privacy: ε is in the hundreds here."""
    spec = SPEC.replace("noise_multiplier=2.0", "noise_multiplier=0.02").replace(
        "clip_norm=1.0", "clip_norm=3.0"
    )
    result = run(6, strategy=f"{spec})", num_rounds=8, evaluate_every=8)
    assert result.evaluate_metrics_serverapp[8]["accuracy"] > 0.7


BANDED = (
    "dp_fedavg(fedavg(weighting='uniform'), unit='client', adjacency='zero_out', population=6, delta=1e-5, "
    "clip_norm=1.0, noise_multiplier=2.0, sampling=min_separation(size=2, rounds=3), "
    "noise=banded_matrix(rounds=6), metrics=noised(names=('loss',), upper=(3.0,)))"
)


def test_correlated_noise_and_noised_metrics_by_a_run_config_alone(tmp_path: Path) -> None:
    result = run(6, strategy=BANDED, run_dir=str(tmp_path), num_rounds=6)
    sampled = [set(event["sampled"]) for event in events_of(tmp_path, "round_started")]
    assert [len(each) for each in sampled] == [2] * 6
    assert sampled[0] | sampled[1] | sampled[2] == {str(client) for client in range(6)}
    for earlier, later in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5)):
        assert not sampled[earlier] & sampled[later]
    lines = [json.loads(line) for line in (tmp_path / PRIVACY_LEDGER).read_text().splitlines()]
    assert [line["round"] for line in lines if line["line"] == "reserved"] == [1, 4]
    defined = [line["release"]["mechanism"] for line in lines if line["line"] == "release"]
    assert {(each["name"], each["bands"]) for each in defined} == {("banded_gaussian", 3)}
    told = [dict(metrics) for metrics in result.train_metrics_clientapp.values()]
    assert all(each.keys() == {"loss", "privacy-epsilon", "privacy-delta"} for each in told)
    assert len({each["loss"] for each in told}) == 6


def test_correlated_noise_gives_the_same_bits_on_cohort_nodes() -> None:
    strategy = f"{BANDED[:-1]}, insecure_seed=5)"
    alone = to_named(run(6, strategy=strategy, num_rounds=4).arrays)
    hosted = to_named(run(2, strategy=strategy, num_rounds=4, virtual_clients=6).arrays)
    assert {key: value.tobytes() for key, value in alone.items()} == {
        key: value.tobytes() for key, value in hosted.items()
    }
