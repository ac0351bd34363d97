import os
from pathlib import Path

import pytest

from fl_plugins._flower import ControlError, RunStatus
from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.runlog.events import EventLog, read_events
from fl_plugins.simulation import session
from fl_plugins.simulation.session import RunRequest, error_lines, judge, run_app

COMPLETED = RunStatus("finished", "completed", "")
FAILED = RunStatus("finished", "failed", "Simulation failed with exception: boom")
RUNNING = RunStatus("running", "", "")

TRACEBACK = "INFO: fine\nTraceback (most recent call last):\n  File x\nValueError: boom\n"


class FakeSuperLink:
    dead = False
    control = None  # the test's fake_control

    def check_alive(self):
        if self.dead:
            raise RunFailedError("SuperLink: flower-superlink ended with status 1")


def fake_control(steps, *, log="", refuse=None):
    """A SuperLink that takes one step each time its status is asked for."""
    left = list(steps)

    class Control:
        sent = None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def start_run(self, bundle, run_config, simulation):
            if refuse:
                raise ControlError(refuse)
            Control.sent = (bundle, run_config, simulation)
            return 5

        stopped = None

        def stop_run(self, run_id):
            Control.stopped = run_id

        def run_status(self, run_id):
            assert run_id == 5
            step = left.pop(0)
            return step() if callable(step) else step

        def logs(self, run_id):
            yield log

    return Control


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "STATUS_EVERY_S", 0.0)
    monkeypatch.setattr(session, "POLL_S", 0.001)

    def start(steps, *, superlink=None, **options):
        superlink = superlink or FakeSuperLink()
        start.control = superlink.control = fake_control(steps, **options)
        shown = []
        request = RunRequest(
            bundle=b"app", run_config={"text": "a\"b'\n"}, run_dir=tmp_path, num_supernodes=3
        )
        try:
            return run_app(superlink, request, shown.append), shown
        finally:
            start.shown = shown

    start.log = EventLog(tmp_path / "events.jsonl")
    start.folder = tmp_path
    return start


def step(function, status):
    def act():
        function()
        return status

    return act


def test_a_run_is_followed_to_its_end_and_its_events_are_shown_once_in_order(run):
    run.log("run_started", num_rounds=9)  # an earlier attempt's
    events, shown = run(
        [
            RunStatus("pending", "", ""),
            step(lambda: run.log("run_started", num_rounds=1), RUNNING),
            step(lambda: run.log("run_finished", rounds=1), COMPLETED),
        ],
        log="\x1b[92mINFO \x1b[0m: hello\n",
    )
    assert [event["event"] for event in events] == ["run_started", "run_finished"]
    assert events[0]["num_rounds"] == 1
    assert shown == events
    assert (run.folder / "server.log").read_text() == "INFO : hello\n"
    assert run.control.sent[:2] == (b"app", {"text": "a\"b'\n"})


def test_a_failed_run_is_an_error_with_the_end_of_the_log_although_flwr_run_returns_0(run):
    """#8 of flower.md's local-run notes: `flwr run --stream` returns 0 for a failed run."""
    with pytest.raises(RunFailedError, match=r"(?s)exception: boom.*ValueError: boom.*server\.log"):
        run([step(lambda: run.log("run_started"), RUNNING), FAILED], log=TRACEBACK)
    last = read_events(run.log.path)[-1]
    assert (last["event"], last["error"]) == ("run_failed", FAILED.details)
    assert run.shown[-1] == last


def test_what_the_server_says_of_its_failure_is_told_and_not_written_twice(run):
    with pytest.raises(RunFailedError, match="QuorumError: 1 of 4 replies"):
        run([step(lambda: run.log("run_failed", error="QuorumError: 1 of 4 replies"), FAILED)])
    assert [event["event"] for event in read_events(run.log.path)] == ["run_failed"]


def test_an_error_of_ours_comes_without_a_traceback(run):
    with pytest.raises(RunFailedError) as raised:
        run([step(lambda: run.log("run_failed", error="QuorumError: none"), FAILED)], log=TRACEBACK)
    assert str(raised.value) == f"QuorumError: none\n(the whole log: {run.folder / 'server.log'})"


def test_a_completed_run_whose_events_end_early_has_failed(run):
    """D1: with its clients dead a run can end as `finished:completed`."""
    with pytest.raises(RunFailedError, match="its events end before it was finished"):
        run([step(lambda: run.log("run_started"), COMPLETED)])


def test_an_app_that_writes_no_events_is_judged_by_flower(run):
    assert run([COMPLETED]) == ([], [])


def test_a_superlink_that_dies_ends_the_wait(run):
    superlink = FakeSuperLink()
    with pytest.raises(RunFailedError, match="ended with status 1"):
        run([step(lambda: setattr(superlink, "dead", True), RUNNING)], superlink=superlink)


def test_a_run_that_is_no_longer_followed_is_stopped(run):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([RUNNING, interrupt])
    assert run.control.stopped == 5
    run([COMPLETED])
    assert run.control.stopped is None


def test_a_superlink_that_is_busy_is_asked_again(run):
    def busy():
        raise ControlError("the SuperLink does not answer: ReadTimeout")

    assert run([busy, busy, COMPLETED]) == ([], [])


def test_a_refused_run_config_is_an_error_that_names_the_keys(run):
    with pytest.raises(ConfigError, match=r"Invalid run configuration.*'text'.*tool.flwr.app.config"):
        run([], refuse="the SuperLink refused the request: Invalid run configuration.")


@pytest.mark.parametrize(
    ("status", "types", "wrong"),
    [
        (COMPLETED, [], False),
        (COMPLETED, ["run_started", "run_finished"], False),
        (COMPLETED, ["run_started"], True),
        (COMPLETED, ["run_started", "run_failed"], True),
        (FAILED, ["run_started", "run_finished"], True),
        (FAILED, [], True),
        (RunStatus("finished", "stopped", ""), [], True),
    ],
)
def test_only_a_run_that_both_sides_call_finished_has_succeeded(status, types, wrong):
    assert (judge(status, [{"event": name, "error": "e"} for name in types]) is not None) == wrong


def test_the_error_is_the_last_traceback():
    log = TRACEBACK.replace("boom", "first") + "INFO: between\n" + TRACEBACK
    assert error_lines(log) == "Traceback (most recent call last):\n  File x\nValueError: boom"
    assert error_lines("a\n\nb\n") == "a\nb"
    deep = "Traceback (most recent call last):\n" + "  File x\n" * 99 + "ValueError: boom"
    assert error_lines(deep, lines=2).splitlines() == [
        deep.splitlines()[0],
        "  ...",
        "  File x",
        "ValueError: boom",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_supernodes", 0),
        ("client_cpus", 0),
        ("client_cpus", 10**6),
        ("client_gpus", -1),
        ("client_gpus", float("nan")),
    ],
)
def test_resources_that_no_machine_has_are_refused_before_anything_starts(name, value):
    settings = {"num_supernodes": 2, name: value}
    with pytest.raises(ConfigError, match=name):
        RunRequest(bundle=b"", run_config={}, run_dir=Path(), **settings)


def test_a_deployed_federation_is_sent_no_settings_of_a_simulation():
    request = RunRequest(bundle=b"", run_config={}, run_dir=Path(), num_supernodes=None)
    assert request.simulation_config() is None


@pytest.mark.parametrize(("cores", "expected"), [(64, 10), (10, None), (2, None)])
def test_ray_starts_no_more_actors_than_there_are_clients(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    request = RunRequest(bundle=b"", run_config={}, run_dir=Path(), num_supernodes=5, client_cpus=2)
    assert request.simulation_config().get("init_args_num_cpus") == expected


def test_a_folder_without_an_app_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="is no Flower App that can be run"):
        session.load_bundle(tmp_path)
