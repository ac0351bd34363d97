import json
import os
import stat
import subprocess
import sys
import time
import tomllib

import pytest
import yaml

from clients.tasks.heart_disease import HOSPITALS as TASKS_HOSPITALS
from fl_plugins.cli import main
from fl_plugins.deployment import drive, processes
from fl_plugins.deployment.create import create
from fl_plugins.deployment.files import write_new
from fl_plugins.deployment.hospitals import HOSPITALS
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.deployment.pids import moment_of, read_pid, write_pid
from fl_plugins.deployment.ports import free_ports
from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.node_policy import NodePolicy


@pytest.fixture
def layout(tmp_path):
    before = os.umask(0)  # permissions must not depend on it
    try:
        return create(tmp_path / "d", Settings(host="fl.example.org", num_nodes=3))
    finally:
        os.umask(before)


def test_secrets_are_for_their_owner_only_and_each_is_where_it_belongs(layout):
    files = [path for path in layout.root.rglob("*") if path.is_file()]
    secret = {path for path in files if b"PRIVATE KEY" in path.read_bytes()}
    assert {str(path.relative_to(layout.root)) for path in secret} == {
        "authority/ca.key", "server/server.key", "nodes/0/node.key", "nodes/1/node.key", "nodes/2/node.key",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    folders = [layout.root, *(path for path in layout.root.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert not any(path.stat().st_mode & 0o022 for path in files)


def test_nothing_of_a_deployment_in_a_checkout_is_seen_by_git(tmp_path):
    def untracked():
        command = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "theirs.txt").write_text("")
    layout = create(tmp_path / "trial", Settings(host="fl.example.org", num_nodes=1))
    assert untracked() == ["??", "theirs.txt"]
    (layout.root / ".gitignore").unlink()
    assert "trial/authority/ca.key" in untracked()


def test_an_existing_deployment_is_not_overwritten_and_a_failure_leaves_nothing(
    layout, tmp_path, monkeypatch
):
    key = (layout.authority / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        create(layout.root, layout.settings)
    assert (layout.authority / "ca.key").read_bytes() == key

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("fl_plugins.deployment.create.node_files", broken)
    with pytest.raises(OSError, match="disk full"):
        create(tmp_path / "other", layout.settings)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_what_is_written_reads_back(layout):
    assert Layout.open(layout.root) == layout
    connection = tomllib.loads((layout.operator / "config.toml").read_text())["superlink"]["deployment"]
    assert connection["address"] == "fl.example.org:9092"
    assert connection["root-certificates"] == str(layout.operator / "ca.crt")
    for role, service in ((layout.server, "superlink"), (layout.node(1), "supernode")):
        compose = yaml.safe_load((role.folder / "docker-compose.yml").read_text())
        assert compose["services"][service]["command"] == ["/deployment/start.sh"]
        assert (role.folder / f"fl-plugins-{service}.service").read_text().count("/start.sh") == 1
        assert subprocess.run(["sh", "-n", str(role.start_script)], check=False).returncode == 0
    assert "RUNTIME_PORT=9095" in (layout.node(1).folder / "settings.env").read_text()
    with pytest.raises(ConfigError, match="holds no deployment"):
        Layout.open(layout.server.folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_nodes": 0}, "nodes=0"),
        ({"days": 999_999_999}, "days=999999999, but the authority's own certificate"),
        ({"port": 9095}, "among the nodes' own ports"),
        ({"port": 65536}, "65535"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message.replace("nodes=0", "num_nodes=0|nodes=0")):
        Settings(**{"host": "a.org", "num_nodes": 3, **setting})


def test_init_prints_no_secret_and_status_of_nothing_is_1(tmp_path, capsys):
    folder = str(tmp_path / "d")
    port = str(free_ports(1)[0])
    assert main(["deploy", "init", folder, "--nodes", "2", "--host", "127.0.0.1", "--port", port]) == 0
    assert "PRIVATE" not in capsys.readouterr().out
    assert main(["deploy", "status", folder]) == 1
    assert capsys.readouterr().out.count("not running") == 3
    assert main(["deploy", "down", folder]) == 0
    assert main(["deploy", "logs", folder, "7"]) == 2
    assert main(["deploy", "init", folder, "--nodes", "2", "--host", "127.0.0.1"]) == 2


def test_everything_else_is_ended_when_one_node_cannot_be(layout, monkeypatch):
    asked = []

    def end(role):
        asked.append(role.name)
        if role.name == "node 1":
            raise RunFailedError("node 1: processes [7] do not end")
        return role.name != "node 2"

    monkeypatch.setattr(processes, "end", end)
    with pytest.raises(RunFailedError, match="node 1"):
        drive.down(layout)
    assert sorted(asked[:-1]) == ["node 0", "node 1", "node 2"]
    assert asked[-1] == "server"
    monkeypatch.setattr(processes, "end", lambda role: role.name != "node 2")
    assert [role.name for role in drive.down(layout)] == ["node 0", "node 1", "server"]


@pytest.fixture
def role(tmp_path):
    made = Role("node 0", tmp_path)
    made.state.mkdir()
    # One child in a session of its own, which outlives its parent.
    made.start_script.write_text('#!/bin/sh\nsetsid sleep 600 &\nexec sleep 601 "$@"\n')
    made.start_script.chmod(0o755)
    yield made
    processes.end(made, grace_s=0)


def wait_for_members(role, count):
    deadline = time.monotonic() + 30
    while len(found := processes.members(role)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="found by their environment on Linux only")
def test_ending_a_role_ends_what_it_started_even_when_its_leader_is_dead(role):
    leader = processes.start(role)
    everyone = wait_for_members(role, 2)
    with pytest.raises(ConfigError, match="runs already"):
        processes.start(role)
    os.kill(leader, 9)
    wait_for_members(role, 1)
    with pytest.raises(RunFailedError, match="has ended"):
        processes.check_alive(role)
    assert processes.end(role)
    assert not any(map(moment_of, everyone))
    assert not processes.end(role)


def test_a_pid_that_was_given_to_a_stranger_is_not_signalled(role):
    with subprocess.Popen(["sleep", "600"]) as stranger:
        write_pid(role.pid_file, stranger.pid)
        mine = read_pid(role.pid_file)
        assert mine.is_running()  # the control: with its true moment it would be ended
        role.pid_file.write_text(json.dumps({"pid": stranger.pid, "moment": "long ago"}))
        assert not processes.end(role)
        assert stranger.poll() is None
        stranger.kill()
    assert moment_of(stranger.pid) is None


def test_a_pid_file_that_does_not_read_is_none(tmp_path):
    (tmp_path / "pid").write_text("{")
    assert read_pid(tmp_path / "pid") is None
    assert read_pid(tmp_path / "none") is None


def test_hospitals_are_dealt_as_the_task_numbers_them():
    assert HOSPITALS == TASKS_HOSPITALS


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_a_file_has_its_mode_whatever_the_umask_and_is_never_open_to_others_before(
    tmp_path, monkeypatch, mode
):
    first = []
    fchmod = os.fchmod

    def noted(descriptor, wanted):
        first.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fchmod(descriptor, wanted)

    monkeypatch.setattr(os, "fchmod", noted)
    for umask in (0, 0o077):
        before = os.umask(umask)
        try:
            write_new(tmp_path / f"{umask}", b"secret", mode=mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}").stat().st_mode) == mode
    assert first == [0o600, 0o600]


def test_a_file_is_never_written_over_another_nor_through_a_link(tmp_path):
    there = tmp_path / "there"
    there.write_text("in use")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"new")
    assert there.read_text() == "in use"
    assert not (tmp_path / "nowhere").exists()


def test_what_a_role_writes_is_for_its_owner_only(layout):
    """The SuperLink's database has every node's messages in it."""
    script = layout.server.start_script.read_text().replace(
        "exec flower-superlink", "touch written; exec true"
    )
    layout.server.start_script.write_text(script)
    before = os.umask(0)
    try:
        subprocess.run([layout.server.start_script], check=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((layout.server.state / "written").stat().st_mode) == 0o600
    assert stat.S_IMODE((layout.server.state / "flwr").stat().st_mode) == 0o700


def test_the_policy_that_a_node_is_given_counts_rounds_where_its_service_may_write(layout):
    node = layout.node(0).folder
    text = (node / "policy.toml").read_text()
    uncommented = [line[2:] for line in text.splitlines() if line.startswith(("# max_rounds", "# state"))]
    (node / "policy.toml").write_text("\n".join(uncommented))
    NodePolicy.load(node / "policy.toml").count_round()
    assert json.loads((node / "state" / "policy.json").read_text()) == {"rounds": 1}
    unit = (node / "fl-plugins-supernode.service").read_text()
    assert "ProtectSystem=strict" in unit
    assert "ReadWritePaths=/opt/fl-plugins/node/state\n" in unit


@pytest.mark.skipif(sys.platform != "linux", reason="command lines are read from /proc")
def test_forks_of_a_starter_are_clientapps_and_its_worker_is_none(role):
    """As ``fl-plugins-supernode`` has them: a starter, its fork for one message, and the resident worker."""
    waits = "import time; time.sleep(60)"
    starts = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {waits!r}])\n{waits}"
    environment = {**os.environ, processes.ROLE_VARIABLE: str(role.folder)}
    started = [
        subprocess.Popen([sys.executable, "-c", code, f"fl_plugins.resident.{name}"], env=environment)
        for name, code in (("starter", starts), ("worker", waits))
    ]
    try:
        deadline = time.monotonic() + 60
        while not (found := processes.client_apps(role)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found.isdisjoint(process.pid for process in started)
        assert len(found) == 1
    finally:
        processes.kill(role)
        for process in started:
            process.wait()
    assert processes.client_apps(role) == set()
