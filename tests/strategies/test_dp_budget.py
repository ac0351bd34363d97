"""What a private run spends: charged before it is sent, kept on disk, never under-counted, never exceeded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fl_plugins.errors import BudgetError, CheckpointError, ConfigError, DataError, QuorumError
from fl_plugins.privacy import Accountant
from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import DpFedAvg

from .conftest import adding
from .dp_support import plain

N = 8


def record() -> ArrayRecord:
    return ArrayRecord({"params/w": Array(np.zeros(5, np.float32))})


def private(**given: Any) -> DpFedAvg:
    defaults: dict[str, Any] = {
        "unit": "client",
        "adjacency": "zero_out",
        "population": N,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "noise_multiplier": 4.0,
    }
    return DpFedAvg(plain(), **{**defaults, **given})


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, /, **fields: Any) -> None:
        self.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self if name == event]


def run(
    strategy: DpFedAvg, num_rounds: int, folder: Path | None = None, **options: Any
) -> tuple[Any, Events]:
    events = Events()
    with InProcessGrid(options.pop("client", adding(0.01)), N) as grid:
        chosen = RunOptions(num_rounds=num_rounds, seed=1, checkpoint_dir=folder, emit=events, **options)
        return strategy.run(grid, record(), chosen), events


def spent(strategy: DpFedAvg, rounds: int) -> float:
    """Return the ε of so many rounds, by another accountant."""
    accountant = Accountant(strategy.release.relation)
    accountant.compose(strategy.release, rounds)
    return accountant.report(1e-5, pld=False).epsilon


def test_every_round_tells_what_is_spent_with_unit_and_adjacency() -> None:
    strategy = private()
    result, events = run(strategy, 3)
    told = events.of("privacy")
    assert [each["epsilon"] for each in told] == pytest.approx([spent(strategy, n) for n in (1, 2, 3)])
    assert {(each["unit"], each["adjacency"], each["delta"], each["secure"]) for each in told} == {
        ("client", "zero_out", 1e-5, True)
    }
    metrics = {number: dict(values) for number, values in result.train_metrics_clientapp.items()}
    assert metrics[3]["privacy-epsilon"] == told[2]["epsilon"]


def test_d13_the_run_stops_in_good_order_before_the_round_that_would_exceed_and_keeps_the_model(
    tmp_path: Path,
) -> None:
    limit = spent(private(), 4) * 1.001
    strategy = private(max_epsilon=limit)
    result, events = run(strategy, 50, tmp_path)
    (stopped,) = events.of("run_stopped")
    assert stopped["round"] == 4
    assert f"max_epsilon={limit:g}" in stopped["reason"]
    assert "unit client, adjacency zero_out" in stopped["reason"]
    assert len(events.of("privacy")) == 4
    assert events.of("privacy")[-1]["epsilon"] <= limit
    assert len(events.of("run_finished")) == 1
    assert (to_named(result.arrays)["params/w"] != 0).all()
    assert events.of("checkpoint_saved")[-1]["round"] == 4


def test_what_is_told_never_shrinks_and_stays_within_the_budget() -> None:
    """RDP tells ε until it exceeds the budget; the tighter PLD, which goes on, may be below what was told."""
    sampled = {"population": N, "sampling": "poisson(rate=0.5)", "noise_multiplier": 2.0}
    strategy = private(**sampled, max_epsilon=3.0)
    _, events = run(strategy, 20)
    told = [each["epsilon"] for each in events.of("privacy")]
    assert told == sorted(told)
    assert told[-1] <= 3.0
    assert {each["method"] for each in events.of("privacy")} == {"rdp", "pld"}


def test_the_gate_holds_for_callers_with_a_loop_of_their_own_too() -> None:
    strategy = private(max_epsilon=spent(private(), 1) * 1.001)
    with InProcessGrid(adding(0.01), N) as grid:
        strategy.configure_train(1, record(), ConfigRecord(), grid)
        strategy.aggregate_train(1, [])
        with pytest.raises(BudgetError, match="another would exceed max_epsilon"):
            strategy.configure_train(2, record(), ConfigRecord(), grid)


def test_a_round_without_enough_replies_ends_the_run_and_is_not_tried_again() -> None:
    strategy, events = private(min_replies=5), Events()
    with InProcessGrid(adding(0.01), N, silent=range(1, 5)) as grid:
        options = RunOptions(num_rounds=3, seed=1, timeout_s=0.2, emit=events)
        with pytest.raises(QuorumError, match="4 of 8 clients sent anything"):
            strategy.run(grid, record(), options)
    assert len(events.of("round_started")) == 1
    assert strategy.budget.num_releases == 1


def test_a_target_is_kept_and_used_up() -> None:
    strategy = private(noise_multiplier=None, target_epsilon=2.0, num_rounds=10)
    assert 1.98 < spent(strategy, 10) <= 2.0
    _, events = run(strategy, 12)
    assert events.of("run_stopped")[0]["round"] == 10


def test_d22_runs_on_the_same_clients_share_what_is_spent(tmp_path: Path) -> None:
    ledger = tmp_path / "clients.jsonl"
    first, second = private(), private(noise_multiplier=2.0)
    run(first, 2, privacy_ledger=ledger)
    _, events = run(second, 1, privacy_ledger=ledger)
    accountant = Accountant(first.release.relation)
    accountant.compose(first.release, 2)
    accountant.compose(second.release, 1)
    assert events.of("privacy")[0]["epsilon"] == pytest.approx(accountant.report(1e-5, pld=False).epsilon)
    with pytest.raises(ConfigError, match="another"):
        run(private(adjacency="replace"), 1, privacy_ledger=ledger)


class Killed(BaseException):
    """The process is gone: nothing is caught, nothing is finished."""


@pytest.mark.parametrize("where", ["before any reply", "after some replies"])
def test_a_run_that_is_killed_in_a_round_has_spent_it_and_resumes(where: str, tmp_path: Path) -> None:
    """Round 3 is charged when its messages leave; the resumed run makes it anew, and pays anew."""
    answered = 0

    def dying(message: Any, context: Any) -> Any:
        nonlocal answered
        if message.content.config_records["config"]["server-round"] == 3:
            answered += 1
            if where == "before any reply" or answered == 4:
                raise Killed
        return adding(0.01)(message, context)

    with pytest.raises(Killed):
        run(private(), 5, tmp_path, client=dying)
    strategy = private()
    _, events = run(strategy, 5, tmp_path, resume=True)
    assert [each["round"] for each in events.of("privacy")] == [3, 4, 5]
    assert [each["epsilon"] for each in events.of("privacy")] == pytest.approx(
        [spent(strategy, rounds) for rounds in (4, 5, 6)]
    )


KILLED_RUN = """
import os, sys
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import DpFedAvg, FedAvg

def client(message, context):
    if message.content.config_records["config"]["server-round"] == 2:
        os.kill(os.getpid(), 9)
    raise ValueError("fails, which is no matter: it counts as zero")

strategy = DpFedAvg(
    FedAvg(weighting="uniform"), unit="client", adjacency="zero_out", population=8, delta=1e-5,
    clip_norm=0.5, noise_multiplier=4.0,
)
arrays = ArrayRecord({"params/w": Array(np.zeros(5, np.float32))})
with InProcessGrid(client, 8) as grid:
    strategy.run(grid, arrays, RunOptions(num_rounds=4, seed=1, checkpoint_dir=Path(sys.argv[1])))
"""


def test_kill_9_in_a_round_never_under_counts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    strategy = private()
    _, events = run(strategy, 4, tmp_path, resume=True)
    told = events.of("privacy")
    assert [each["round"] for each in told] == [2, 3, 4]
    assert told[-1]["epsilon"] == pytest.approx(spent(strategy, 5))


def test_a_resumed_run_with_another_configuration_is_refused(tmp_path: Path) -> None:
    run(private(), 1, tmp_path)
    for other in (private(noise_multiplier=8.0), private(clip_norm=5.0), private(population=N + 1)):
        with pytest.raises((ConfigError, CheckpointError), match=r"another|resume"):
            run(other, 2, tmp_path, resume=True)


def test_a_ledger_that_was_lost_or_edited_is_noticed(tmp_path: Path) -> None:
    run(private(), 2, tmp_path)
    ledger = tmp_path / "privacy_ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.unlink()
    with pytest.raises(CheckpointError, match="has 0 releases, but the checkpoint was made after 2"):
        run(private(), 3, tmp_path, resume=True)
    ledger.write_bytes(whole.replace(b'"noise_multiplier":4.0', b'"noise_multiplier":9.0'))
    with pytest.raises(DataError, match="was changed"):
        run(private(), 3, tmp_path, resume=True)


def test_a_round_is_on_disk_before_its_messages_leave(tmp_path: Path) -> None:
    seen: list[int] = []

    def looking(message: Any, context: Any) -> Any:
        lines = (tmp_path / "privacy_ledger.jsonl").read_text().splitlines()
        seen.append(sum(json.loads(line)["line"] == "reserved" for line in lines))
        return adding(0.01)(message, context)

    run(private(), 2, tmp_path, client=looking)
    assert seen == [1] * N + [2] * N


def test_without_a_folder_the_log_says_that_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    run(private(), 1)
    assert "is not kept" in caplog.text


def test_a_seeded_run_is_resumed_bit_by_bit_and_its_report_is_void(tmp_path: Path) -> None:
    def seeded() -> DpFedAvg:
        return private(
            insecure_seed=3,
            clip_norm=None,
            clip="adaptive(initial=0.02)",
            sampling="poisson(rate=0.5)",
        )

    whole, events = run(seeded(), 4, tmp_path / "whole")
    run(seeded(), 2, tmp_path / "parts")
    resumed, _ = run(seeded(), 4, tmp_path / "parts", resume=True)
    assert to_named(whole.arrays)["params/w"].tobytes() == to_named(resumed.arrays)["params/w"].tobytes()
    assert not events.of("privacy")[0]["secure"]


def test_d15_a_thousand_rounds_are_accounted_in_seconds() -> None:
    """Cached vectors: a round costs microseconds, however many there were; not 10 hours for 1,000."""
    import time

    strategy = private(population=1000, sampling="poisson(rate=0.01)", noise_multiplier=1.0, max_epsilon=50.0)
    strategy.budget.reserve(1)
    strategy.budget.commit(1)  # imports the library, computes the vector
    started = time.process_time()
    for number in range(2, 1001):
        assert strategy.stop_before(number) is None
        strategy.budget.reserve(number)
        strategy.budget.commit(number)
    assert time.process_time() - started < 1.0
    assert strategy.budget.report().epsilon < 2.2  # dp.md: 2.101 by RDP, 1.828 by PLD
