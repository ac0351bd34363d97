"""What a stream of correlated noise costs, and what remains of it after a kill or a round given up."""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from fl_plugins.checkpoints import latest_checkpoint, load_checkpoint
from fl_plugins.errors import ConfigError
from fl_plugins.privacy import Accountant, BandedMatrix, Gaussian, Release
from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from fl_plugins.wire import CLIENT_ID, ROLL_CALL
from strategies import DpFedAvg

from .conftest import adding
from .dp_support import make, play


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, /, **fields: Any) -> None:
        self.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self if name == event]


N = 8
RUN = {
    "population": N,
    "sampling": "min_separation(size=2, rounds=4)",
    "noise_multiplier": 4.0,
    "insecure_seed": None,
    "grid": True,
}


def run(strategy: DpFedAvg, rounds: int, folder: Path | None = None, **options: Any) -> tuple[Any, Events]:
    events = Events()
    record = ArrayRecord({"params/w": Array(np.zeros(5, np.float32))})
    with InProcessGrid(options.pop("client", adding(0.01)), N) as grid:
        chosen = RunOptions(num_rounds=rounds, seed=1, checkpoint_dir=folder, emit=events, **options)
        return strategy.run(grid, record, chosen), events


def reserved(folder: Path) -> list[int]:
    """Return the rounds that the ledger charged."""
    lines = [json.loads(line) for line in (folder / "privacy_ledger.jsonl").read_text().splitlines()]
    return [line["round"] for line in lines if line["line"] == "reserved"]


def gaussians(strategy: DpFedAvg, count: float) -> float:
    """Return ε of so many Gaussian releases of weight 1, by another accountant."""
    release = Release(
        mechanism=Gaussian(noise_multiplier=4.0 / math.sqrt(count)),
        sampling=strategy.release.sampling,
        relation=strategy.release.relation,
    )
    accountant = Accountant(release.relation)
    accountant.compose(release)
    return accountant.report(1e-5).epsilon


def test_a_block_is_charged_before_its_first_round_and_a_stream_costs_one_release_per_block(
    tmp_path: Path,
) -> None:
    strategy = make(**RUN, noise="banded_matrix(rounds=10)")
    _, events = run(strategy, 20, tmp_path)
    assert reserved(tmp_path) == [1, 5, 9, 11, 15, 19]
    told = [each["epsilon"] for each in events.of("privacy")]
    weights = BandedMatrix(rounds=10, bands=4).block_weights
    expected = np.cumsum([*weights, *weights])
    blocks = np.repeat([0, 1, 2, 3, 4, 5], [4, 4, 2, 4, 4, 2])
    assert told == pytest.approx([gaussians(strategy, expected[block]) for block in blocks])
    assert told[-1] == pytest.approx(gaussians(strategy, 6), rel=1e-6)
    noise = [each["noise_multiplier"] for each in events.of("privacy")]
    assert noise == pytest.approx((4.0 / np.sqrt([*weights, *weights]))[blocks])


def test_a_target_is_kept_and_used_up_and_the_run_stops_between_blocks() -> None:
    given = {**RUN, "noise_multiplier": None, "target_epsilon": 2.0, "num_rounds": 8}
    for noise in ("independent", "banded_matrix", "banded_matrix(rounds=4)"):
        strategy = make(**given, noise=noise)
        _, events = run(strategy, 12)
        assert events.of("run_stopped")[0]["round"] == 8
        assert 1.98 < events.of("privacy")[-1]["epsilon"] <= 2.0


def test_a_target_counts_a_block_that_the_last_round_begins() -> None:
    """Nine rounds of which a client may take part in three: 1, 5 and 9."""
    strategy = make(
        population=N,
        sampling="min_separation(size=2, rounds=4)",
        noise_multiplier=None,
        target_epsilon=2.0,
        num_rounds=9,
    )
    _, events = run(strategy, 20)
    assert events.of("run_stopped")[0]["round"] == 12
    assert 1.98 < events.of("privacy")[8]["epsilon"] <= 2.0


def test_a_round_that_was_drawn_and_not_released_ends_its_stream() -> None:
    strategy = make(**RUN, noise="banded_matrix(rounds=8)")
    record = ArrayRecord({"params/w": Array(np.zeros(5, np.float32))})
    with InProcessGrid(adding(0.01), N) as grid:
        strategy.begin(RunOptions(num_rounds=8), seed=0)
        for number, released in ((1, True), (2, False), (2, True), (3, True)):
            strategy.configure_train(number, record, ConfigRecord(), grid)
            if released:
                strategy.aggregate_train(number, [])
        noise = strategy.rounds._stream
        assert noise is not None
        assert (noise.first, noise.done) == (2, 2)
        assert noise.noise is not None
        assert noise.noise.matrix == BandedMatrix(rounds=7, bands=4)
    assert strategy.budget.num_releases == 2


def test_noise_without_a_round_is_refused() -> None:
    strategy = make(sampling="min_separation(size=2, rounds=3)", noise="banded_matrix(rounds=7)")
    with pytest.raises(ConfigError, match="no round is drawn"):
        strategy.rounds.noise()
    play(strategy, {})
    with pytest.raises(ConfigError, match="no round is drawn"):
        strategy.rounds.noise()


def test_a_resumed_run_begins_a_stream_and_is_charged_for_it_as_no_noise_is_on_the_disk(
    tmp_path: Path,
) -> None:
    run(make(**RUN, noise="banded_matrix(rounds=8)"), 3, tmp_path)
    path = latest_checkpoint(tmp_path)
    assert path is not None
    kept = load_checkpoint(path).arrays
    assert {group: list(arrays) for group, arrays in kept.items()} == {
        "model": ["params/w"],
        "strategy": ["dp_fedavg/state"],
    }
    assert kept["strategy"]["dp_fedavg/state"].tolist() == [0.5, 0.0, 1.0]
    strategy = make(**RUN, noise="banded_matrix(rounds=8)")
    _, events = run(strategy, 8, tmp_path, resume=True)
    assert reserved(tmp_path) == [1, 4, 8]
    weights = [
        BandedMatrix(rounds=8, bands=4).block_weights[0],
        *BandedMatrix(rounds=5, bands=4).block_weights,
    ]
    assert events.of("privacy")[-1]["epsilon"] == pytest.approx(gaussians(strategy, sum(weights)))


def test_a_strategy_that_runs_again_begins_a_stream() -> None:
    strategy = make(**RUN, noise="banded_matrix(rounds=8)")
    for _ in range(2):
        run(strategy, 3)
        stream = strategy.rounds._stream
        assert stream is not None
        assert (stream.first, stream.done, stream.open) == (1, 3, False)
        strategy.restore({}, strategy.state())
        assert strategy.rounds._stream is None
    assert strategy.budget.num_releases == 2


def test_a_resumed_run_does_not_repeat_a_row_of_noise(tmp_path: Path) -> None:
    """Round 3 is done twice: with the noise of the first time, the two results would differ by data only."""
    results = []

    class Killed(BaseException):
        """The process is gone, after the result of round 3 was seen and before it was saved."""

    class Dying(DpFedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            released = super().aggregate_train(server_round, replies)
            if server_round == 3 and released[0] is not None:
                results.append(to_named(released[0])["params/w"])
                if len(results) == 1:
                    raise Killed
            return released

    def dying() -> DpFedAvg:
        strategy = make(**RUN, noise="banded_matrix(rounds=8)")
        strategy.__class__ = Dying
        return strategy

    identity = make(**RUN, noise="banded_matrix(rounds=8)").describe()
    first, second = dying(), dying()
    for strategy in (first, second):
        strategy.describe = lambda: identity  # type: ignore[method-assign]  # the class' name is part of it
    with pytest.raises(Killed):
        run(first, 4, tmp_path)
    _, events = run(second, 4, tmp_path, resume=True)
    assert len(results) == 2
    assert (results[0] != results[1]).all()
    assert [each["round"] for each in events.of("privacy")] == [3, 4]
    assert reserved(tmp_path) == [1, 3]


KILLED_RUN = """
import os, sys
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from fl_plugins.wire import CLIENT_ID, ROLL_CALL
from strategies import DpFedAvg, FedAvg

def client(message, context):
    if message.content.config_records["config"]["server-round"] == 6:
        os.kill(os.getpid(), 9)
    raise ValueError("fails, which is no matter: it counts as zero")

strategy = DpFedAvg(
    FedAvg(weighting="uniform"), unit="client", adjacency="zero_out", population=8, delta=1e-5,
    clip_norm=0.5, noise_multiplier=4.0, sampling="min_separation(size=2, rounds=4)",
    noise="banded_matrix(rounds=8)",
)
arrays = ArrayRecord({"params/w": Array(np.zeros(5, np.float32))})
with InProcessGrid(client, 8) as grid:
    strategy.run(grid, arrays, RunOptions(num_rounds=8, seed=1, checkpoint_dir=Path(sys.argv[1])))
"""


def test_kill_9_within_a_block_never_under_counts(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert reserved(tmp_path) == [1, 5]
    strategy = make(**RUN, noise="banded_matrix(rounds=8)")
    _, events = run(strategy, 8, tmp_path, resume=True)
    assert [each["round"] for each in events.of("privacy")] == [6, 7, 8]
    assert reserved(tmp_path) == [1, 5, 6]
    assert events.of("privacy")[-1]["epsilon"] == pytest.approx(gaussians(strategy, 2 + 1), rel=1e-6)


def test_another_number_of_rounds_or_other_noise_is_another_configuration(tmp_path: Path) -> None:
    run(make(**RUN, noise="banded_matrix(rounds=8)"), 1, tmp_path)
    for noise in ("independent", "banded_matrix(rounds=12)"):
        with pytest.raises(ConfigError, match="another privacy configuration"):
            run(make(**RUN, noise=noise), 2, tmp_path, resume=True)


class LateName(InProcessGrid):
    """Node 3 is asked who it is at the beginning, and answers once round 2 has begun."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        began = any(message.metadata.group_id == "2" for message in self.sent)
        held = {
            identifier
            for identifier, message in self._waiting.items()
            if message.metadata.message_type == ROLL_CALL and message.metadata.dst_node_id == 3 and not began
        }
        return super().pull_messages(set(message_ids) - held)


def test_a_node_that_gets_its_name_in_mid_stream_takes_part_as_often_as_any_other() -> None:
    """By node ids, whatever the names: once in any four rounds, and it is not counted as a ninth client."""

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == ROLL_CALL:
            told = ConfigRecord({CLIENT_ID: str(context.node_config["partition-id"])})
            return Message(RecordDict({"config": told}), reply_to=message)
        return adding(0.01)(message, context)

    events = Events()
    with LateName(client, N) as grid:
        options = RunOptions(num_rounds=8, seed=1, emit=events, roll_call=True, timeout_s=0.5)
        make(**RUN).run(grid, ArrayRecord({"params/w": Array(np.zeros(5, np.float32))}), options)
        turns = [
            (int(message.metadata.group_id), message.metadata.dst_node_id)
            for message in grid.sent
            if message.metadata.message_type == MessageType.TRAIN
        ]
    for first in range(1, 6):
        nodes = sorted(node for number, node in turns if first <= number < first + 4)
        assert nodes == list(range(1, N + 1))
    sampled = [name for event in events.of("round_started") for name in event["sampled"]]
    assert set(sampled[8:]) == {str(client) for client in range(N)}, "it has its name"
