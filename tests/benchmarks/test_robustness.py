"""The robustness benchmark runs, resumes, and shows only what it measured. A few rounds a run."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from strategies import Robust

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("robustness")


def cell(benchmark: ModuleType, defence: str, attack: str, **changed: object) -> object:
    fields = {
        "dataset": "digits",
        "heterogeneity": "Dirichlet 0.1",
        "num_clients": 11,
        "num_byzantine": 2,
        "seed": 0,
        "rounds": 3,
        "local_steps": 2,
        "learning_rate": 0.3,
    }
    return benchmark.Cell(defence=defence, attack=attack, **{**fields, **changed})


def test_every_attack_runs_against_the_recommended_rule(benchmark: ModuleType) -> None:
    for attack in benchmark.ATTACKS:
        record = benchmark.run(cell(benchmark, benchmark.RECOMMENDED, attack))
        assert 0 <= record["accuracy"] <= 1
        assert ("success" in record) == (attack == "backdoor")


def test_every_defence_runs_or_says_what_it_needs(benchmark: ModuleType) -> None:
    for defence in benchmark.DEFENCES:
        enough = benchmark.run(cell(benchmark, defence, "sign flip ×10"))
        assert "accuracy" in enough
    refused = benchmark.run(cell(benchmark, "Bulyan", "none", num_byzantine=3))
    assert "n >= 4f+3" in refused["refused"]


def test_a_mean_is_ruined_by_what_the_recommended_rule_bears(benchmark: ModuleType) -> None:
    def accuracy(defence: str, attack: str) -> float:
        return benchmark.run(cell(benchmark, defence, attack, heterogeneity="IID", rounds=20, local_steps=5))[
            "accuracy"
        ]

    assert accuracy("mean", "sign flip ×10") < 0.3
    assert accuracy(benchmark.RECOMMENDED, "sign flip ×10") > accuracy("mean", "none") - 0.05 > 0.7


@pytest.mark.parametrize("attack", ["none", "sign flip ×10", "IPM*"])
def test_a_model_that_diverges_has_accuracy_0_and_stops_nothing(benchmark: ModuleType, attack: str) -> None:
    assert benchmark.run(cell(benchmark, "mean", attack, learning_rate=1e25, rounds=6))["accuracy"] == 0.0


def test_the_searched_attack_does_at_least_the_damage_of_its_grid(benchmark: ModuleType) -> None:
    attacks = importlib.import_module("robustness_attacks")
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(8, 30)).astype(np.float32) + 0.5
    rule = benchmark.rule_of("median", n=10, f=2)

    def aggregate(rows: np.ndarray) -> np.ndarray:
        return rule(rows).value

    now = attacks.Round(honest, honest[:2], aggregate, None, [], rng)

    def damage(sent: np.ndarray) -> float:
        return float(np.linalg.norm(aggregate(np.concatenate([honest, sent])) - honest.mean(axis=0)))

    worst = damage(attacks.ATTACKS["IPM*"](now, 2))
    for epsilon in attacks.EPSILON_GRID:
        assert worst >= damage(np.repeat(-epsilon * honest.mean(axis=0)[None], 2, axis=0)) - 1e-6


def test_the_recommended_rule_is_the_strategy_robust(benchmark: ModuleType) -> None:
    assert benchmark.rule_of(benchmark.RECOMMENDED, n=20, f=4) == Robust(num_byzantine=4).aggregator


def test_the_command_resumes_where_it_was_cut_off_and_writes_its_table(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    out, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    done = {**vars(cell(benchmark, "mean", "none", heterogeneity="IID")), "accuracy": 0.123, "seconds": 1.0}
    out.write_text(json.dumps(done) + "\n" + json.dumps({**done, "attack": "zero"})[:50])
    arguments = ["--datasets", "digits", "--heterogeneity", "IID", "--fractions", "0.2", "--seeds", "1"]
    arguments += ["--num-clients", "11", "--rounds", "3", "--local-steps", "2", "--jobs", "1"]
    arguments += ["--defences", "mean", "--attacks", "none", "zero", "--out", out, "--write", page]
    ended = subprocess.run(
        [sys.executable, BENCHMARKS / "robustness.py", *arguments],
        env={**os.environ, "FL_PLUGINS_DATA": str(tmp_path)},  # no MNIST here
        capture_output=True,
        text=True,
        check=True,
    )
    assert "digits stands in for MNIST-10k" in ended.stderr
    assert "2 cells, 1 of them done" in ended.stderr
    assert len(benchmark.read(out)) == 2
    assert "### digits, IID, f = 2 of 11" in page.read_text()
    assert "| mean | 12.3 |" in page.read_text()


def test_tables_are_replaced_and_what_stands_above_them_stays(benchmark: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.md"
    benchmark.write(page, "first")
    assert page.read_text().startswith("# Robustness\n\nSetting: n clients")
    page.write_text("# Said by a person\n\n" + page.read_text()[page.read_text().index(benchmark.MARKER) :])
    benchmark.write(page, "second")
    assert page.read_text() == f"# Said by a person\n\n{benchmark.MARKER}\n\nsecond"


def test_a_worst_case_of_fewer_cells_than_the_table_is_marked(benchmark: ModuleType) -> None:
    def record(defence: str, attack: str, seed: int, accuracy: float) -> dict[str, object]:
        return {**vars(cell(benchmark, defence, attack, seed=seed)), "accuracy": accuracy}

    records = [
        *(record("mean", attack, seed, 0.5) for attack in ("none", "zero", "IPM") for seed in (0, 1)),
        *(record("median", attack, 0, 0.25) for attack in ("none", "zero")),
    ]
    text = benchmark.report(records, defences=["mean", "median"], recommended="median")
    assert "| mean | 50.0 | 50.0 | 50.0 | 50.0 | zero |" in text
    partly = "25.0 (1 of 2 seeds)"
    assert f"| **median** | {partly} | {partly} | – | <= {partly} | zero |" in text
