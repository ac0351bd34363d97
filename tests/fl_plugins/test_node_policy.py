"""What a node's operator demands holds, whatever the server says."""

import fcntl
import json
import multiprocessing
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fl_plugins import wire
from fl_plugins.errors import ConfigError, FLPluginsError, PolicyError
from fl_plugins.node_policy import NodePolicy, announcement

DEMANDING = """
tasks = ["digits"]
min_cohort = 3

[layers.secure_aggregation]
tier = "malicious"
min_threshold = 4

[promises.central_dp]
unit = "client"
min_noise_multiplier = 1.0
max_clip_norm = 2
"""

LAYER = 'secure_aggregation(tier="malicious", threshold=5)'
PROMISE = 'central_dp(unit="client", noise_multiplier=1.0, clip_norm=0.5)'


def policy(tmp_path: Path, text: str) -> NodePolicy:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return NodePolicy.load(path)


def asked(**changes: Any) -> dict[str, Any]:
    config = {wire.COHORT_SIZE: 5, wire.LAYERS: [LAYER], wire.PROMISES: [PROMISE]}
    return {**config, **{getattr(wire, key): value for key, value in changes.items()}}


def test_a_message_that_meets_every_demand_is_let_through(tmp_path: Path) -> None:
    policy(tmp_path, DEMANDING).check(asked(), task="digits(alpha=0.1)")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"LAYERS": []}, r"demands the layer secure_aggregation \(the message announces none\)"),
        ({"LAYERS": ['secure_aggregation(tier="malicious")']}, "threshold >= 4, announced is None"),
        ({"LAYERS": ['secure_aggregation(tier="malicious", threshold=3)']}, "threshold >= 4, announced is 3"),
        (
            {"LAYERS": ['secure_aggregation(tier="malicious", threshold=True)']},
            "threshold >= 4, announced is True",
        ),
        ({"LAYERS": ['secure_aggregation(tier="honest-but-curious", threshold=9)']}, "tier = 'malicious'"),
        ({"LAYERS": [PROMISE]}, "demands the layer secure_aggregation"),
        ({"PROMISES": [LAYER]}, "demands the promise central_dp"),
        ({"PROMISES": [PROMISE.replace("1.0", "0.99")]}, "noise_multiplier >= 1.0, announced is 0.99"),
        ({"PROMISES": [PROMISE.replace("0.5", "2.5")]}, "clip_norm <= 2, announced is 2.5"),
        ({"PROMISES": [PROMISE.replace('"client"', '"record"')]}, "unit = 'client', announced is 'record'"),
        ({"COHORT_SIZE": 2}, "the exchange has 2 clients"),
        ({"COHORT_SIZE": "many"}, "the exchange has many clients"),
        ({"LAYERS": "secure_aggregation()"}, "it is no list"),
        ({"LAYERS": ["__import__('os')"]}, "layers"),
        ({"LAYERS": ["secure_aggregation(1)"]}, "unnamed arguments"),
    ],
)
def test_less_protection_than_demanded_is_refused_with_what_is_missing(
    tmp_path: Path, changes: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(PolicyError, match=said):
        policy(tmp_path, DEMANDING).check(asked(**changes), task="digits")


def test_a_message_without_any_announcement_is_refused_by_every_demand(tmp_path: Path) -> None:
    for text in ("min_cohort = 2", "[layers.x]", "[promises.x]", 'tasks = ["other"]'):
        with pytest.raises(PolicyError):
            policy(tmp_path, text).check({}, task="digits")


def test_one_of_two_announcements_of_a_name_must_meet_the_whole_demand(tmp_path: Path) -> None:
    halves = [
        'central_dp(unit="client", noise_multiplier=0.1, clip_norm=0.5)',
        'central_dp(unit="record", noise_multiplier=9.0, clip_norm=0.5)',
    ]
    with pytest.raises(PolicyError, match="central_dp"):
        policy(tmp_path, DEMANDING).check(asked(PROMISES=halves), task="digits")
    policy(tmp_path, DEMANDING).check(asked(PROMISES=[*halves, PROMISE]), task="digits")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_kohort = 3", "did you mean 'min_cohort'"),
        ("min_cohort = 0", "must be >= 1"),
        ("min_cohort = true", "whole number"),
        ("max_rounds = 0", "must be >= 1"),
        ("tasks = []", "list of texts"),
        ('tasks = "digits"', "list of texts"),
        ('fab_hashes = ["abc"]', "64 lower-case hexadecimal"),
        ("layers = 3", "give tables"),
        ("[layers]\nsecure_aggregation = true", "give tables"),
        ('[layers.x]\nmin_threshold = "4"', "it is a number"),
        ("[layers.x]\nnames = [1]", "a number, a text"),
        ("this is no TOML", "cannot be read"),
    ],
)
def test_a_policy_that_is_not_understood_whole_is_not_taken_at_all(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        policy(tmp_path, text)


def test_a_missing_policy_file_is_an_error_and_not_an_empty_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        NodePolicy.load(tmp_path / "none.toml")


def test_rounds_are_counted_over_processes_and_restarts_until_the_operator_raises_the_limit(
    tmp_path: Path,
) -> None:
    for _ in range(2):  # read anew, as a fresh process does
        policy(tmp_path, "max_rounds = 2").count_round()
    with pytest.raises(PolicyError, match="answered 2 training messages, its max_rounds=2"):
        policy(tmp_path, "max_rounds = 2").count_round()
    policy(tmp_path, "max_rounds = 3").count_round()
    with pytest.raises(PolicyError):
        policy(tmp_path, "max_rounds = 3").count_round()


def _count(path: str, allowed: Any) -> None:
    for _ in range(20):
        try:
            NodePolicy.load(path).count_round()
        except PolicyError:
            continue
        with allowed.get_lock():
            allowed.value += 1


def test_processes_that_count_at_once_do_not_get_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("max_rounds = 30")
    context = multiprocessing.get_context("spawn")
    allowed = context.Value("i", 0)
    workers = [context.Process(target=_count, args=(str(path), allowed)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert allowed.value == 30


def test_a_damaged_count_refuses_instead_of_starting_anew(tmp_path: Path) -> None:
    guarded = policy(tmp_path, "max_rounds = 5")
    guarded.count_round()
    (tmp_path / "policy.state.json").write_text('{"rounds": "')
    with pytest.raises(PolicyError, match="cannot be counted"):
        guarded.count_round()


def test_paths_in_a_policy_are_relative_to_it(tmp_path: Path) -> None:
    read = policy(tmp_path, 'state = "count.json"\nroster = "peers/roster.toml"')
    assert (read.state, read.roster) == (tmp_path / "count.json", tmp_path / "peers" / "roster.toml")


def test_an_announcement_is_read_in_its_order() -> None:
    specs = announcement({wire.LAYERS: ["b(x=1)", "a()"]}, wire.LAYERS)
    assert [spec.name for spec in specs] == ["b", "a"]
    with pytest.raises(FLPluginsError):
        announcement({wire.LAYERS: [3]}, wire.LAYERS)


def test_another_owners_plugin_of_an_allowed_name_is_not_the_one_that_was_meant(tmp_path: Path) -> None:
    guarded = policy(tmp_path, DEMANDING)
    guarded.check(asked(LAYERS=[f"fl-plugins:{LAYER}"]), task="fl-plugins:digits")
    with pytest.raises(PolicyError, match="task 'stranger:digits' is not allowed"):
        guarded.check(asked(), task="stranger:digits")
    with pytest.raises(PolicyError, match="demands the layer secure_aggregation"):
        guarded.check(asked(LAYERS=[f"stranger:{LAYER}"]), task="digits")
    trusting = policy(tmp_path, 'tasks = ["stranger:digits"]')
    trusting.check({}, task="stranger:digits")
    with pytest.raises(PolicyError):
        trusting.check({}, task="digits")


def test_a_node_that_is_killed_while_it_counts_does_not_begin_at_zero_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it has written by then: the power may fail before any of its system calls."""
    guarded = policy(tmp_path, "max_rounds = 10")
    for _ in range(9):
        guarded.count_round()
    state = tmp_path / "policy.state.json"
    seen = []
    for name in ("fsync", "ftruncate"):
        monkeypatch.setattr(f"os.{name}", lambda *_: seen.append(state.read_bytes()))
    real = json.dumps

    def noted(value: Any) -> str:
        seen.append(state.read_bytes())
        return real(value)

    monkeypatch.setattr("fl_plugins.node_policy.json.dumps", noted)
    guarded.count_round()
    assert len(seen) >= 2
    assert {json.loads(text)["rounds"] for text in seen} <= {9, 10}


def test_a_count_that_its_operator_has_written_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "policy.state.json").write_text('{\n    "rounds": 1\n}\n')
    policy(tmp_path, "max_rounds = 2").count_round()
    with pytest.raises(PolicyError, match="answered 2 training messages"):
        policy(tmp_path, "max_rounds = 2").count_round()


def test_a_node_that_counts_waits_for_the_other_process_that_does(tmp_path: Path) -> None:
    guarded = policy(tmp_path, "max_rounds = 5")
    guarded.count_round()
    state = tmp_path / "policy.state.json"
    with state.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=guarded.count_round)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        other.write(b'{"rounds": 4}')
    thread.join()
    assert json.loads(state.read_text()) == {"rounds": 5}


def test_secure_aggregation_with_noise_meets_a_demand_for_secure_aggregation_and_not_the_reverse(
    tmp_path: Path,
) -> None:
    secure = policy(tmp_path, '[layers.secure_aggregation]\ntier = "malicious"')
    secure.check(asked(LAYERS=['distributed_dp(tier="malicious")']), task="digits")
    secure.check(asked(LAYERS=['fl-plugins:distributed_dp(tier="malicious")']), task="digits")
    with pytest.raises(PolicyError, match="tier = 'malicious'"):
        secure.check(asked(LAYERS=['distributed_dp(tier="honest-but-curious")']), task="digits")
    with pytest.raises(PolicyError, match="the message announces none"):
        secure.check(asked(LAYERS=['other:distributed_dp(tier="malicious")']), task="digits")
    noisy = policy(tmp_path, "[layers.distributed_dp]")
    with pytest.raises(PolicyError, match="demands the layer distributed_dp"):
        noisy.check(asked(), task="digits")
