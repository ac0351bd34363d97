"""What the two commands refuse before any process is started, and what they make of a run's end."""

from contextlib import contextmanager

import pytest

from fl_plugins.cli import _runs, main
from fl_plugins.cli._preflight import check_cohorts
from fl_plugins.errors import RunFailedError
from fl_plugins.runlog.events import EventLog
from fl_plugins.simulation.run_directory import read_config


@pytest.fixture
def no_flower(monkeypatch):
    """Fail if a SuperLink is started."""
    monkeypatch.setattr(_runs, "local_superlink", lambda log: pytest.fail("a SuperLink was started"))


@pytest.fixture
def flower(monkeypatch):
    """Record the runs that would be made, and let those of strategies named ``median`` fail."""
    requests = []

    @contextmanager
    def superlink(log):
        log.touch()
        requests.append("start")
        yield "superlink"
        requests.append("end")

    def run_app(link, request, show):
        assert link == "superlink"
        requests.append(request)
        log = EventLog(request.run_dir / "events.jsonl")
        strategy = request.run_config.get("strategy", "fedavg")
        log("run_started", strategy=strategy, num_rounds=1)
        if strategy in ("median", "multi_krum(num_byzantine=1)"):
            error = "boom" if strategy == "median" else "DivergenceError: NaN"
            log("run_failed", error=error)
            raise RunFailedError(f"{error}\n(the log)")
        log("evaluated", round=1, where="server", metrics={"accuracy": 0.9})
        log("run_finished", rounds=1, seconds=1.0, metrics={})

    monkeypatch.setattr(_runs, "local_superlink", superlink)
    monkeypatch.setattr(_runs, "run_app", run_app)
    return requests


def run(tmp_path, *arguments):
    return main([*arguments, "--runs-dir", str(tmp_path / "runs")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "krumm"], "krum"),
        (["--strategy", "krum(num_byzantin=2)"], "num_byzantine"),
        (["--strategy", "krum(num_byzantine='two')"], "num_byzantine"),
        (["--client", "nobody"], "nobody"),
        (["--task", "digts"], "digits"),
        (["--attack", "sign_flp()"], "sign_flip"),
        (["--attack", "sign_flip(num_byzantine=11)"], "makes 11 clients hostile, but there are 10"),
        (["--num-rounds", "0"], "num-rounds=0"),
        (["--run-config", "num-round=3"], "did you mean num-rounds"),
        (["--run-config", "num-rounds=3.5"], "num-rounds"),
        (["--run-config", "stop='plateu()'"], "plateau"),
        (["--num-supernodes", "0"], "num_supernodes=0"),
        (["--virtual-clients", "-1"], "virtual-clients=-1"),
        (["--virtual-clients", "3", "--num-supernodes", "4"], "virtual-clients=3 leaves some"),
        (["--virtual-clients", "3", "--run-config", "virtual-clients=3"], "virtual-clients is also given"),
        (["--name", "../x"], "not the name of a folder"),
        (["--resume"], "--resume needs --name"),
        (["--resume", "--name", "x"], "there is no run to resume"),
        (["--app", "/nowhere"], "no [tool.flwr.app]"),
        (["--seed", "-1"], "seed=-1"),
        (["--run-config", "evaluate-every=0"], "evaluate-every=0"),
        (["--run-config", "checkpoint-every=0"], "checkpoint-every=0"),
        (["--run-config", "keep-checkpoints=-3"], "keep-checkpoints=-3"),
        (["--run-config", "round-timeout-s=0"], "round-timeout-s=0"),
        (["--run-config", "round-timeout-s=nan"], "round-timeout-s=nan"),
        (["--run-config", "run-dir='x'"], "--runs-dir and --name"),
        (["--run-config", "resume=true"], "--name NAME --resume"),
        (["--run-config", "stop=\"plateau(metric='gain', patience=3)\""], "mode='max' or mode='min'"),
    ],
)
def test_simulate_refuses_before_anything_is_started(tmp_path, no_flower, capsys, arguments, message):
    assert run(tmp_path, "simulate", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("num_supernodes", "strategy", "message"),
    [
        (1, "fedavg", "waits for 2 nodes to train; give --num-supernodes 2"),
        (10, "krum(num_byzantine=4)", "num_byzantine=4 needs n >= 2f+3 = 11"),
        (10, "krum(num_byzantine=2, fraction_train=0.5)", "gives cohorts of 5"),
        (4, "trimmed_mean(fraction=0.2)", "gives cohorts of 4. trimmed_mean: fraction=0.2"),
        (10, "fedavg(num_train_nodes=11)", "waits for 11 nodes to train"),
        (10, "median(min_available_nodes=12)", "waits for 12 nodes to train"),
        (10, "median(min_evaluate_nodes=13)", "waits for 13 nodes to evaluate"),
    ],
)
def test_too_few_nodes_are_refused_at_once_and_not_waited_for(
    tmp_path, no_flower, capsys, num_supernodes, strategy, message
):
    options = ["--num-supernodes", str(num_supernodes)]
    assert run(tmp_path, "simulate", "--strategy", strategy, *options) == 2
    assert message in capsys.readouterr().err
    assert run(tmp_path, "compare", "--strategies", f"fedavg(min_train_nodes=1); {strategy}", *options) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("krum(num_byzantine=4)", ["--num-supernodes", "11"]),
        ("krum(num_byzantine=4, fraction_train=0.0)", []),
        ("median(min_evaluate_nodes=13)", ["--run-config", "client-evaluation=false"]),
        ("median(num_evaluate_nodes=13, fraction_evaluate=0.0)", []),
        ("median(min_available_nodes=12, fraction_train=0.0, fraction_evaluate=0.0)", []),
    ],
)
def test_a_phase_that_is_left_out_needs_no_nodes(tmp_path, flower, strategy, more):
    assert run(tmp_path, "simulate", "--strategy", strategy, *more) == 0


def test_the_rule_is_asked_for_clients_and_not_for_the_nodes_that_host_them(tmp_path, no_flower, capsys):
    options = ["--virtual-clients", "10", "--num-supernodes", "2"]
    assert run(tmp_path, "simulate", "--strategy", "krum(num_byzantine=4)", *options) == 2
    assert "virtual_clients=10 gives cohorts of 10" in capsys.readouterr().err
    assert run(tmp_path, "simulate", "--strategy", "fedavg(num_train_nodes=11)", *options) == 2
    assert "waits for 11 clients to train; give --virtual-clients 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "nodes", "cpus"),
    [
        (["--virtual-clients", "100"], 1, 8),
        (["--virtual-clients", "100", "--num-supernodes", "3"], 3, 2),
        (["--virtual-clients", "100", "--num-supernodes", "9"], 9, 1),
        (["--virtual-clients", "100", "--client-cpus", "1"], 1, 1),
        (["--run-config", "virtual-clients=2"], 1, 8),
        ([], 10, 1),
    ],
)
def test_virtual_clients_share_one_node_that_has_all_cores(
    tmp_path, flower, monkeypatch, options, nodes, cpus
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert run(tmp_path, "simulate", *options) == 0
    assert flower[1].num_supernodes == nodes
    assert flower[1].client_cpus == cpus
    assert flower[1].run_config.get("virtual-clients", 0) == (0 if nodes == 10 else read_virtual(tmp_path))


HOSTS = ["--virtual-clients", "100"]


@pytest.mark.parametrize(
    ("options", "only_cpus", "cores"),
    [
        (HOSTS, True, 8),
        ([*HOSTS, "--client-cpus", "3"], True, 3),
        ([*HOSTS, "--run-config", "in-process-cores=0"], True, 0),
        ([*HOSTS, "--num-supernodes", "2"], True, 0),
        ([*HOSTS, "--client-gpus", "1"], True, 0),
        (HOSTS, False, 0),
        ([], True, 0),
    ],
)
def test_a_lone_cohort_node_is_served_by_the_engine_unless_it_needs_a_process_of_its_own(
    tmp_path, flower, monkeypatch, options, only_cpus, cores
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(_runs, "only_cpus", lambda: only_cpus)
    assert run(tmp_path, "simulate", *options, "--name", "a") == 0
    assert flower[1].run_config.get("in-process-cores", 0) == cores
    assert run(tmp_path, "simulate", "--name", "a", "--resume") == 0
    assert flower[-2].run_config.get("in-process-cores", 0) == cores


@pytest.mark.parametrize(
    ("platforms", "plugins", "found", "expected"),
    [
        ("", [], "", True),
        ("", ["cuda"], "", False),
        ("cpu", ["cuda"], "libtpu", True),
        ("", [], "libtpu", False),
    ],
)
def test_jax_knows_cpus_only_if_it_is_told_so_or_has_no_plugin(
    monkeypatch, platforms, plugins, found, expected
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(_runs, "entry_points", lambda group: plugins if group == "jax_plugins" else [])
    monkeypatch.setattr(_runs, "find_spec", lambda name: name == found or None)
    assert _runs.only_cpus() is expected


def read_virtual(tmp_path):
    [folder] = (tmp_path / "runs").iterdir()
    return read_config(folder)["run-config"]["virtual-clients"]


def test_a_run_is_resumed_with_as_many_virtual_clients_as_it_had(tmp_path, flower, capsys):
    assert run(tmp_path, "simulate", "--virtual-clients", "20", "--name", "a") == 0
    assert run(tmp_path, "simulate", "--virtual-clients", "21", "--name", "a", "--resume") == 2
    assert "virtual-clients=21 (it has 20)" in capsys.readouterr().err
    assert run(tmp_path, "simulate", "--name", "a", "--resume") == 0
    assert flower[-2].run_config["virtual-clients"] == 20


def test_a_strategy_that_does_not_say_what_it_needs_is_not_asked():
    check_cohorts(object(), spec="theirs", num_supernodes=1, phases=("train", "evaluate"))


@pytest.mark.parametrize("command", [["simulate"], ["compare", "--strategies", "fedavg"]])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, no_flower, capsys, command):
    (tmp_path / "runs").write_text("a file")
    assert run(tmp_path, *command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fl-plugins: {tmp_path / 'runs'}")
    assert "Not a directory" in error
    assert error.count("\n") == 1


def test_compare_checks_every_strategy_before_the_first_one_is_run(tmp_path, no_flower, capsys):
    assert run(tmp_path, "compare", "--strategies", "fedavg; trimmed_mean(fraction=0.2); krumm") == 2
    assert "krumm" in capsys.readouterr().err
    assert run(tmp_path, "compare", "--strategies", " ; ") == 2
    assert run(tmp_path, "compare", "--strategies", "fedavg", "--run-config", "strategy='krum'") == 2
    assert not (tmp_path / "runs").exists()


def test_simulate_runs_in_a_folder_of_its_own(tmp_path, flower, capsys):
    status = run(
        tmp_path, "simulate", "--strategy", "trimmed_mean(fraction=0.2)", "--name", "a", "--num-rounds", "1"
    )
    assert status == 0
    [start, request, end] = flower
    assert (start, end) == ("start", "end")
    folder = tmp_path / "runs" / "a"
    assert request.run_dir == folder
    assert request.num_supernodes == 10
    assert request.run_config == {
        "strategy": "trimmed_mean(fraction=0.2)",
        "num-rounds": 1,
        "run-dir": str(folder),
        "resume": False,
    }
    saved = read_config(folder)
    assert saved["run"]["num-supernodes"] == 10
    assert saved["run-config"]["strategy"] == "trimmed_mean(fraction=0.2)"
    assert saved["run-config"]["task"] == "digits"
    assert "run-dir" not in saved["run-config"]
    assert "jax" in saved["versions"]
    assert f"kept in {folder}" in capsys.readouterr().out


def test_a_run_that_failed_is_status_1_and_says_why(tmp_path, flower, capsys):
    assert run(tmp_path, "simulate", "--strategy", "median", "--name", "a") == 1
    assert "the run of median failed: boom\n(the log)" in capsys.readouterr().err


def test_a_second_run_of_the_same_name_is_refused(tmp_path, flower, capsys):
    assert run(tmp_path, "simulate", "--name", "a") == 0
    assert run(tmp_path, "simulate", "--name", "a") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert len(flower) == 3


def test_resume_takes_up_what_the_run_had_except_what_is_given_now(tmp_path, flower):
    first = [
        "--strategy",
        "trimmed_mean(fraction=0.2)",
        "--num-rounds",
        "1",
        "--num-supernodes",
        "5",
        "--seed",
        "3",
    ]
    assert run(tmp_path, "simulate", "--name", "a", *first) == 0
    assert run(tmp_path, "simulate", "--name", "a", "--resume", "--num-rounds", "7") == 0
    request = flower[4]
    assert request.num_supernodes == 5
    assert request.run_config["resume"] is True
    assert request.run_config["num-rounds"] == 7
    assert request.run_config["seed"] == 3
    assert request.run_config["strategy"] == "trimmed_mean(fraction=0.2)"


HAD = ["--strategy", "krum(num_byzantine=2)", "--attack", "sign_flip(num_byzantine=1)", "--num-rounds", "1"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--strategy", "median"], "strategy='median' (it has 'krum(num_byzantine=2)')"),
        (["--client", "supervised(local_epochs=2)"], "client='supervised(local_epochs=2)'"),
        (["--task", "breast_cancer"], "task='breast_cancer'"),
        (["--attack", ""], "attack=''"),
        (["--seed", "1"], "seed=1 (it has 0)"),
        (["--num-supernodes", "8"], "num-supernodes=8 (it has 10)"),
        (["--run-config", "strategy='median' seed=2"], "seed=2 (it has 0)"),
        (["--app", "."], "cannot be resumed with --app"),
    ],
)
def test_resume_as_another_run_is_refused_and_the_run_can_still_be_resumed(
    tmp_path, flower, capsys, option, message
):
    assert run(tmp_path, "simulate", "--name", "a", *HAD) == 0
    config = tmp_path / "runs" / "a" / "config.toml"
    before, made = config.read_bytes(), len(flower)
    assert run(tmp_path, "simulate", "--name", "a", "--resume", *option) == 2
    assert message in capsys.readouterr().err
    assert config.read_bytes() == before
    assert len(flower) == made, "nothing was started"
    assert run(tmp_path, "simulate", "--name", "a", "--resume") == 0
    assert flower[-2].run_config["strategy"] == "krum(num_byzantine=2)"


def test_resume_takes_other_spellings_of_the_same_run_and_other_lengths(tmp_path, flower):
    assert run(tmp_path, "simulate", "--name", "a", *HAD) == 0
    same = ["--strategy", "krum( num-byzantine = 2 )", "--client", "supervised()", "--num-supernodes", "10"]
    changed = "evaluate-every=2 round-timeout-s=5.0 stop=\"target(metric='accuracy', value=1)\""
    resumed = run(
        tmp_path, "simulate", "--name", "a", "--resume", *same, "--num-rounds", "3", "--run-config", changed
    )
    assert resumed == 0
    assert flower[-2].run_config["num-rounds"] == 3
    assert flower[-2].run_config["strategy"] == "krum(num_byzantine=2)", "as the checkpoint has it"
    saved = read_config(tmp_path / "runs" / "a")["run-config"]
    assert (saved["num-rounds"], saved["evaluate-every"]) == (3, 2)
    assert saved["strategy"] == "krum(num_byzantine=2)"


def test_a_resumed_run_that_does_not_start_has_failed_although_it_once_finished(
    tmp_path, flower, monkeypatch
):
    assert run(tmp_path, "simulate", "--name", "a") == 0

    def refuse(*_):
        raise RunFailedError("SuperLink: flower-superlink ended")

    monkeypatch.setattr(_runs, "run_app", refuse)
    assert run(tmp_path, "simulate", "--name", "a", "--resume") == 1


def test_compare_runs_all_in_one_superlink_and_shows_those_that_worked(tmp_path, flower, capsys):
    assert run(tmp_path, "compare", "--strategies", "median; fedavg", "--name", "c", "--seed", "5") == 1
    assert [flower[0], flower[-1], len(flower)] == ["start", "end", 4]
    assert {request.run_config["seed"] for request in flower[1:3]} == {5}
    output = capsys.readouterr()
    assert "the run of median failed: boom" in output.err
    rows = [line.split() for line in output.out.splitlines()]
    median = next(row for row in rows if row[:1] == ["median"])
    assert (median[1], median[-1]) == ("-", "failed")
    fedavg = next(row for row in rows if row[:1] == ["fedavg"])
    assert (fedavg[1], fedavg[-1]) == ("0.9000", "finished")
    assert sorted(path.name for path in (tmp_path / "runs" / "c").iterdir() if path.is_dir()) == [
        "01-median",
        "02-fedavg",
    ]


@pytest.mark.parametrize("second", ["krum(num_byzantine=2)", "multi_krum(num_byzantine=1)"])
def test_compare_is_status_0_if_all_finished_or_diverged(tmp_path, flower, second):
    assert run(tmp_path, "compare", "--strategies", f"fedavg; {second}") == 0


def test_a_single_run_that_diverged_has_failed(tmp_path, flower):
    assert run(tmp_path, "simulate", "--strategy", "multi_krum(num_byzantine=1)") == 1


@pytest.mark.parametrize(
    "command", [["simulate", "--name", "a"], ["compare", "--name", "a", "--strategies", "fedavg"]]
)
def test_ctrl_c_is_status_130_and_the_superlink_has_ended(tmp_path, flower, monkeypatch, capsys, command):
    def interrupted(*_):
        raise KeyboardInterrupt

    ended = []

    @contextmanager
    def superlink(log):
        try:
            yield
        finally:
            ended.append(True)

    monkeypatch.setattr(_runs, "local_superlink", superlink)
    monkeypatch.setattr(_runs, "run_app", interrupted)
    assert run(tmp_path, *command) == 130
    assert ended == [True]
    assert "interrupted" in capsys.readouterr().out
