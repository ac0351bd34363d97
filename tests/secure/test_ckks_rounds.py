"""Rounds of encrypted summing in one process: the result, who decrypts, and what leaves a client."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fl_plugins import wire
from fl_plugins.cli import main
from fl_plugins.errors import ConfigError, ContractError, QuorumError
from fl_plugins.records import to_named
from fl_plugins.registry import Kind
from fl_plugins.secagg import Stage
from fl_plugins.spec import build
from strategies import CkksAggregation, FedAvg, Krum

from .federation import WatchedGrid, distance, plain_mean, run, stage_of

pytest.importorskip("tenseal", reason="the extra he is not installed")

from fl_plugins.ckks_round import read_key, write_key

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "sum.key"
    write_key(path)
    return path


def grid_of(key_file: Path, num_nodes: int = 5, **options: Any) -> WatchedGrid:
    own = {node: {"secagg-sum-key": str(key_file)} for node in range(1, num_nodes + 1)}
    own.update(options.pop("configs", {}))
    return WatchedGrid(num_nodes=num_nodes, node_configs=own, **options)


def encrypted(inner: Any = None, **options: Any) -> CkksAggregation:
    given = {"max_weight": 1000.0, "stage_timeout_s": 60.0, "clip": 0.6, **options}
    return CkksAggregation(inner or FedAvg(quorum=0.4, max_attempts=1), **given)


def test_an_encrypted_round_gives_the_result_of_plain_averaging(key_file: Path) -> None:
    events: Events = []
    grid = grid_of(key_file)
    strategy = encrypted(key=read_key(key_file).fingerprint, metrics=("loss",), max_metric=2.0)
    result = run(strategy, grid, events=events, num_rounds=2)
    assert list(result.train_metrics_clientapp[1]) == ["loss"]
    first, _ = [event for event in events if event["event"] == "secure_aggregation"]
    assert (first["layer"], first["survivors"], first["reason"]) == ("ckks_aggregation", 5, "")
    assert distance(run(encrypted(), grid_of(key_file)), plain_mean(range(1, 6))) < 2e-6
    decrypted = [m for m in grid.sent if stage_of(m) is Stage.UNMASK]
    assert len(decrypted) == 2, "one client, in each round"


def test_clients_that_fall_silent_cost_only_themselves_and_another_decrypts(key_file: Path) -> None:
    events: Events = []
    grid = grid_of(key_file, silent_at={Stage.ADVERTISE: [2]})
    assert distance(run(encrypted(), grid, events=events), plain_mean([1, 3, 4, 5])) < 2e-6
    for silent in ([1, 2], [3, 4], [5, 1], [2, 3], [4, 5]):
        grid = grid_of(key_file, silent_at={Stage.UNMASK: silent})
        assert distance(run(encrypted(), grid), plain_mean(range(1, 6))) < 2e-6
    with pytest.raises(QuorumError, match="3 nodes were asked to decrypt"):
        run(encrypted(), grid_of(key_file, silent_at={Stage.UNMASK: range(1, 6)}))


def test_no_vector_leaves_a_client_but_encrypted_and_no_sum_but_once(key_file: Path) -> None:
    grid = grid_of(key_file)
    run(encrypted(), grid)
    sums = []
    for reply in grid.replies:
        assert not reply.content.metric_records
        (record,) = reply.content.array_records.values()
        vector = to_named(record)["vector"]
        if vector.dtype != np.uint8:
            sums.append(vector)
    assert len(grid.replies) == 6
    assert len(sums) == 1
    assert sums[0][:4].tolist() == [5, 5, 5, 5], "what is decrypted is the sum of all five"


def test_a_client_with_another_key_or_none_takes_no_part(key_file: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "other.key")
    configs = {1: {"secagg-sum-key": str(tmp_path / "other.key")}, 2: {}}
    grid = grid_of(key_file, configs=configs)
    strategy = encrypted(key=read_key(key_file).fingerprint)
    assert distance(run(strategy, grid), plain_mean([3, 4, 5])) < 2e-6
    reasons = {r.metadata.src_node_id: r.error.reason for r in grid.replies if r.has_error()}
    assert "key is not the one" in reasons[1]
    assert "needs secagg-sum-key" in reasons[2]
    with pytest.raises(QuorumError, match="decrypt"):
        run(encrypted(), grid_of(key_file, configs={1: configs[1]}))


def test_a_client_decrypts_no_single_vector_for_the_server(key_file: Path) -> None:
    from fl_plugins.secagg.codec import Reader, Writer

    kept: list[bytes] = []

    def on_reply(message: Message, reply: Message) -> Message:
        if stage_of(message) is Stage.ADVERTISE and message.metadata.dst_node_id == 2:
            (record,) = reply.content.array_records.values()
            kept.append(to_named(record)["vector"].tobytes())
        return reply

    def on_request(message: Message) -> Message:
        if stage_of(message) is Stage.UNMASK:
            record = message.content.config_records[wire.SECAGG]
            nodes = Reader(record["body"], "a request").ids()  # type: ignore[arg-type]
            record["body"] = Writer().ids(nodes).sized(kept[0]).done()
        return message

    grid = grid_of(key_file, on_request=on_request, on_reply=on_reply)
    with pytest.raises(QuorumError, match="check ones add up to"):
        run(encrypted(), grid)


def test_stacks_and_settings_that_cannot_hold_are_refused() -> None:
    with pytest.raises(ContractError, match=r"ckks_aggregation: .* must see every client's update"):
        CkksAggregation(Krum(num_byzantine=1))
    strategy = build(Kind.STRATEGY, "ckks_aggregation(fedavg(), max_weight=64)")
    assert isinstance(strategy, CkksAggregation)
    assert strategy.describe().startswith("ckks_aggregation(")


def test_the_command_makes_a_key_once_for_its_user_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sum.key"
    assert main(["secagg", "key", str(path)]) == 0
    assert path.stat().st_mode & 0o077 == 0
    assert read_key(path).fingerprint in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give another file"):
        write_key(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "none.key")
