"""Correlated noise in private rounds: who rests, what is charged, worst pairs, and what a restart does."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.checkpoints import latest_checkpoint, load_checkpoint
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError
from fl_plugins.node_policy import announcement
from fl_plugins.privacy import Accountant, BandedMatrix, Gaussian, NoiseSource, Release
from fl_plugins.privacy.noise import grid_for
from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import DpFedAvg

from .conftest import adding
from .dp_support import MODEL, Behaviour, Round, failing, make, moving, play, still

C = 0.5
F64 = {key: value.astype(np.float64) for key, value in MODEL.items()}
HUGE, OPPOSITE = moving(1.0, norm=1e6), moving(-1.0, norm=1e6)
APART = {"sampling": "min_separation(size=2, rounds=3)", "noise": "banded_matrix(rounds=7)"}
"""Six clients, two a round, each in every third one; a stream of seven rounds: blocks of 3, 3 and 1."""


def train(strategy: DpFedAvg, clients: Mapping[int, Behaviour], rounds: int, **options: Any) -> list[Round]:
    """Return so many rounds, each from the parameters of the one before."""
    model: Mapping[str, NDArray[Any]] = options.pop("model", F64)
    played = []
    for number in range(1, rounds + 1):
        played.append(play(strategy, clients, model=model, number=number, **options))
        model = played[-1].arrays
    return played


def sums(played: list[Round], strategy: DpFedAvg, model: Mapping[str, NDArray[Any]] = F64) -> NDArray[Any]:
    """Return the released sum of every round, as one row."""
    rows, before = [], model
    for each in played:
        moved = [(each.arrays[key] - before[key]).ravel() for key in sorted(model)]
        rows.append(np.concatenate(moved) * strategy.expected_cohort)
        before = each.arrays
    return np.stack(rows)


def dense(matrix: BandedMatrix) -> NDArray[np.float64]:
    """Return C, entry by entry."""
    c = np.zeros((matrix.rounds, matrix.rounds))
    for t in range(matrix.rounds):
        for j in range(min(t + 1, matrix.rows.shape[1])):
            c[t, t - j] = matrix.rows[t, j]
    return c


def cost(strategy: DpFedAvg, counts: Mapping[Release, int]) -> float:
    """Return μ² of what was charged: (sensitivity over standard deviation)² summed."""
    return sum(count * release.effective_noise_multiplier**-2 for release, count in counts.items())


@pytest.mark.parametrize(
    ("adjacency", "other", "clip_norms"),
    [("zero_out", still, 1), ("zero_out", failing, 1), ("replace", OPPOSITE, 2)],
)
@pytest.mark.parametrize("others", [still, HUGE], ids=["zeros", "large"])
def test_one_client_moves_the_whole_run_by_what_was_charged_in_every_prefix(
    adjacency: str, other: Behaviour, clip_norms: int, others: Behaviour
) -> None:
    """The released sums are x + C⁻¹z: with the same z two runs differ by Δ, in units of z by C·Δ."""
    runs, charged = [], []
    for behaviour in (HUGE, other):
        strategy = make(**APART, adjacency=adjacency)
        model, clients = F64, {**dict.fromkeys(range(1, 6), others), 0: behaviour}
        played, costs = [], []
        for number in range(1, 8):
            played.append(play(strategy, clients, model=model, number=number))
            model = played[-1].arrays
            costs.append(cost(strategy, strategy.budget._account.counts))
        runs.append(sums(played, strategy))
        charged.append(costs)
    c = dense(BandedMatrix(rounds=7, bands=3))
    shifts = np.sum((c @ (runs[0] - runs[1])) ** 2, axis=1) / C**2
    assert charged[0] == charged[1]
    for upto in range(1, 8):
        assert np.sum(shifts[:upto]) <= charged[0][upto - 1] * (1 + 1e-6)
    taken = [number for number, nodes in enumerate(drawn_in(played)) if 1 in nodes]
    assert len(taken) >= 2
    weights = BandedMatrix(rounds=7, bands=3).block_weights[[number // 3 for number in taken]]
    assert np.sum(shifts) == pytest.approx(clip_norms**2 * np.sum(weights), rel=1e-6)


def test_the_noise_of_a_run_is_c_inverse_times_independent_noise_of_the_planned_size() -> None:
    strategy = make(**APART, noise_multiplier=1.5, grid=True)
    noise = sums(train(strategy, {}, 7), strategy)
    whitened = dense(BandedMatrix(rounds=7, bands=3)) @ noise
    for number in range(1, 8):
        fresh = strategy.noise_source("noise", number).normal(noise.shape[1], std=1.5 * C)
        np.testing.assert_allclose(whitened[number - 1], fresh, atol=3 * grid_for(1.5 * C))


def test_the_model_has_less_noise_than_with_independent_noise_by_the_gain_that_is_claimed() -> None:
    """16 rounds, 4 bands, 3,000 values: the ratio's standard error is near 2 %."""
    model, errors = {"params/w": np.zeros(3000)}, {}
    for noise in ("independent", "banded_matrix(rounds=16)"):
        sampling = "min_separation(size=1, rounds=4)"
        strategy = make(population=4, sampling=sampling, noise=noise, grid=True)
        played = train(strategy, {}, 16, model=model)
        errors[noise] = math.sqrt(np.mean([each.arrays["params/w"] ** 2 for each in played]))
        counted = strategy.budget._account.counts
        assert cost(strategy, counted) == pytest.approx(4.0, rel=1e-9)
    ratio = errors["independent"] / errors["banded_matrix(rounds=16)"]
    assert ratio == pytest.approx(BandedMatrix(rounds=16, bands=4).gain, rel=0.1)
    assert ratio > 1.4


def drawn_in(played: list[Round]) -> list[set[int]]:
    return [{message.metadata.dst_node_id for message in each.sent} for each in played]


def check_apart(rounds: list[Any], gap: int) -> None:
    """Check that nobody takes part again within ``gap`` rounds."""
    for first in range(len(rounds)):
        for later in range(first + 1, min(first + gap, len(rounds))):
            assert not set(rounds[first]) & set(rounds[later]), (first, later)


@pytest.mark.parametrize("noise", ["independent", "banded_matrix(rounds=9)"])
def test_no_client_returns_too_soon_and_every_cohort_is_full(noise: str) -> None:
    given = {"population": 7, "sampling": "min_separation(size=2, rounds=3)", "noise": noise}
    drawn = drawn_in(train(make(**given, insecure_seed=None), {2: failing}, 9))
    assert [len(each) for each in drawn] == [2] * 9
    check_apart(drawn, 3)
    assert set.union(*drawn) == set(range(1, 8))


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=20), st.integers(0, 100))
def test_no_client_returns_too_soon_whoever_is_there(present: list[set[int]], seed: int) -> None:
    strategy = make(population=8, sampling="min_separation(size=2, rounds=4)")
    drawn = []
    for number, there in enumerate(present, start=1):
        names = [str(client) for client in sorted(there)]
        source = NoiseSource(insecure_seed=seed + number)
        drawn.append(strategy.rounds.draw(names, number, source))
        assert set(drawn[-1]) <= set(names)
        assert len(drawn[-1]) <= 2
        strategy.rounds.close()
    check_apart(drawn, 4)


def test_a_client_that_comes_back_under_another_name_rests_too_or_is_one_too_many() -> None:
    strategy, source = make(population=4, sampling="min_separation(size=2, rounds=2)"), NoiseSource()
    first = strategy.rounds.draw(["0", "1"], 1, source)
    strategy.rounds.close()
    assert sorted(first) == ["0", "1"]
    assert strategy.rounds.draw(["0@17", "1@23", "2", "3"], 2, source) == ["2", "3"]
    strategy.rounds.close()
    with pytest.raises(PreconditionError, match=r"5 clients were seen.*population=4.*stable names"):
        strategy.rounds.draw(["0", "1", "2", "node-99"], 3, source)


@pytest.mark.parametrize("names", [["0", "0@5"], ["0@5", "0@7"]])
def test_two_names_of_one_client_are_not_drawn_together(names: list[str]) -> None:
    strategy = make(population=4, sampling="min_separation(size=2, rounds=2)")
    assert len(strategy.rounds.draw(names, 1, NoiseSource())) == 1


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
    strategy = make(**APART)
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
    assert kept["strategy"]["dp_fedavg/state"].tolist() == [C, 0.0, 1.0]
    strategy = make(**RUN, noise="banded_matrix(rounds=8)")
    _, events = run(strategy, 8, tmp_path, resume=True)
    assert reserved(tmp_path) == [1, 4, 8]
    weights = [
        BandedMatrix(rounds=8, bands=4).block_weights[0],
        *BandedMatrix(rounds=5, bands=4).block_weights,
    ]
    assert events.of("privacy")[-1]["epsilon"] == pytest.approx(gaussians(strategy, sum(weights)))


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


def test_messages_promise_the_noise_of_their_block() -> None:
    strategy = make(
        **{**RUN, "population": 6, "sampling": "min_separation(size=2, rounds=3)"},
        **{"noise": "banded_matrix(rounds=7)"},
    )
    weights = BandedMatrix(rounds=7, bands=3).block_weights
    for number, each in enumerate(train(strategy, {}, 7)):
        config = each.sent[0].content.config_records[wire.CONFIG]
        (promise,) = announcement(config, wire.PROMISES)
        told = dict(promise.kwargs)
        assert told["noise_multiplier"] == pytest.approx(4.0 / math.sqrt(weights[number // 3]))
        assert (told["expected_cohort"], told["population"]) == (2.0, 6)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sampling": "everyone"}, r"rounds that are close; give sampling=min_separation"),
        ({"sampling": "poisson(rate=0.5)"}, r"noise=banded_matrix.*give sampling=min_separation"),
        ({"sampling": "fixed_size(size=2)", "adjacency": "replace"}, "give sampling=min_separation"),
        (
            {"adjacency": "add_remove"},
            "no accounting under adjacency='add_remove'",
        ),
        ({"clip": "adaptive(initial=1.0)"}, "clip norm, and so the noise, has changed since"),
        ({"sampling": "min_separation(size=3, rounds=3)"}, "more than population=6.*come back too soon"),
        ({"sampling": "min_separation(size=2, rounds=1)"}, "rounds=1, but it must be >= 2"),
        ({"sampling": "min_separation(size=2)"}, "rounds"),
        ({"noise": "banded_matrix"}, "give rounds"),
        ({"noise": "banded_matrix(rounds=0)"}, "rounds=0"),
        ({"noise": "banded_matrix(rounds=5000)"}, "at most 1024"),
        ({"noise": "banded_matrix(rounds=9, bands=3)"}, r"banded_matrix\(rounds=…\)"),
        ({"noise": "tree()"}, r"independent\(\), banded_matrix"),
        ({"noise": BandedMatrix(rounds=9, bands=2)}, "give bands=3"),
        (
            {
                "noise": "banded_matrix(rounds=4)",
                "noise_multiplier": None,
                "target_epsilon": 1.0,
                "num_rounds": 9,
            },
            "num_rounds=9 is no multiple of the noise's rounds=4",
        ),
    ],
)
def test_noise_over_the_rounds_is_refused_at_construction_where_it_does_not_hold(
    given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(**{**APART, **given})


def test_what_is_no_noise_is_refused() -> None:
    with pytest.raises(ConfigTypeError, match="noise=3"):
        make(**{**APART, "noise": 3})
